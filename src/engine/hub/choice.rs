//! The choice of a repository's files that make up the requested model.

use std::path::Path;

use super::error::HubError;
use super::listing::{Remote, RepositoryListing};
use crate::gguf::parts;

/// Parameters from which on a model is large and gets a smaller quantization.
const LARGE: u64 = 3_000_000_000;
/// Quantizations of large models, the best one for its size first.
const OF_LARGE: [&str; 12] = [
    "Q4_K_M", "Q4_K_S", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0",
    "Q3_K_M",
];
/// Quantizations of small models, the best one for its size first.
const OF_SMALL: [&str; 12] = [
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4", "F16", "BF16",
];
/// Words by which names say a quantization, beside those above.
const OTHERS: [&str; 18] = [
    "Q2_K", "Q2_K_S", "Q2_K_L", "Q3_K", "Q3_K_S", "Q3_K_L", "Q4_K_L", "Q5_0", "Q5_1", "Q5_K", "Q5_K_L",
    "Q6_K_L", "IQ4_XS", "IQ3_M", "IQ3_XXS", "IQ2_M", "IQ1_M", "F32",
];
/// Files of an encoder's folder, where they are there.
const OF_ENCODER: [&str; 11] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    INDEX,
];
/// The weights of an encoder, where they are in one file.
const WEIGHTS: &str = "model.safetensors";
/// The index that names the part of each tensor, where the weights are in several parts.
const INDEX: &str = "model.safetensors.index.json";
/// Names listed in an error.
const MAX_LISTED: usize = 8;
/// Files of a model at most.
const MAX_FILES: usize = 256;

/// The files of a model and what they become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileChoice {
    pub(super) files: Vec<Remote>,
    /// A folder with the files under their paths, instead of a file (or several) under their names.
    pub(super) is_folder: bool,
    /// The name of the file, of the first part or of the folder.
    pub(super) name: String,
    /// The choice and the reason for it, in words, if there was a choice.
    pub(super) said: Option<String>,
}

impl FileChoice {
    /// Bytes of all files, as far as they are known.
    pub(super) fn size(&self) -> u64 {
        self.files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add)
    }
}

/// Chooses. `file` is a path in the repository or a quantization; `folder` says whether a folder is wanted,
/// where that is known.
///
/// # Errors
/// [`HubError::NoModel`] and [`HubError::NotFound`].
pub(super) fn choose(
    listing: &RepositoryListing,
    host: &str,
    file: Option<&str>,
    folder: Option<bool>,
) -> Result<FileChoice, HubError> {
    if let Some(path) = file.filter(|path| path.ends_with(".gguf")) {
        return named(listing, host, path);
    }
    let models: Vec<&Remote> = listing.files.iter().filter(is_model).collect();
    if let Some(word) = file {
        return match models
            .iter()
            .find(|model| quantization(model.name()).is_some_and(|found| found.eq_ignore_ascii_case(word)))
        {
            Some(model) => with_parts(listing, model, None),
            None => Err(no_model(
                listing,
                format!("has no file \"{word}\", and none of that quantization"),
                &models,
            )),
        };
    }
    if folder == Some(true) || (folder.is_none() && models.is_empty()) {
        return encoder(listing);
    }
    if let [model] = models[..] {
        return with_parts(listing, model, None);
    }
    let large = size(listing, &models).is_some_and(|parameters| parameters >= LARGE);
    let order = if large { &OF_LARGE } else { &OF_SMALL };
    let of = |word: &&str| {
        models.iter().filter(|model| quantization(model.name()) == Some(word)).collect::<Vec<_>>()
    };
    let best = order.iter().map(of).find(|of| !of.is_empty()).unwrap_or_default();
    let [model] = best[..] else {
        let reason =
            if best.is_empty() { "has no GGUF file of a known quantization" } else { "has several models" };
        return Err(no_model(listing, reason.to_owned(), &models));
    };
    let word = quantization(model.name()).unwrap_or_default();
    let why = if large {
        "a model of 3 billion parameters and more"
    } else {
        "a model of less than 3 billion parameters"
    };
    let said = format!("{} ({word}) of {} files, for {why}", model.name(), models.len());
    with_parts(listing, model, Some(said))
}

fn named(listing: &RepositoryListing, host: &str, path: &str) -> Result<FileChoice, HubError> {
    let model = listing.file(path).ok_or_else(|| HubError::NotFound {
        what: format!("file \"{path}\" in repository \"{}\"", listing.repository),
        host: host.to_owned(),
    })?;
    with_parts(listing, model, None)
}

/// A file, and the other parts of its model.
fn with_parts(
    listing: &RepositoryListing,
    model: &Remote,
    said: Option<String>,
) -> Result<FileChoice, HubError> {
    let names = parts(Path::new(&model.path));
    let files: Option<Vec<Remote>> =
        names.iter().map(|name| name.to_str().and_then(|name| listing.file(name)).cloned()).collect();
    let files = files.ok_or_else(|| {
        no_model(listing, format!("has not all of the {} parts of \"{}\"", names.len(), model.path), &[])
    })?;
    Ok(FileChoice { files, is_folder: false, name: model.name().to_owned(), said })
}

/// The files of an encoder, or of whatever else a folder with safetensors holds.
fn encoder(listing: &RepositoryListing) -> Result<FileChoice, HubError> {
    let wanted = |file: &&Remote| {
        let name = file.path.as_str();
        OF_ENCODER.contains(&name) || is_weights(name) || is_of_module(name)
    };
    let mut files: Vec<Remote> = listing.files.iter().filter(wanted).cloned().collect();
    let has = |wanted: &dyn Fn(&str) -> bool| files.iter().any(|file| wanted(&file.path));
    if !has(&|path| path == "config.json") || !has(&is_weights) {
        return Err(no_model(
            listing,
            "has neither a GGUF file nor config.json with model.safetensors".to_owned(),
            &[],
        ));
    }
    let is_whole = has(&|path| path == WEIGHTS);
    if is_whole {
        // A model that is there as a whole is not fetched in parts too.
        files.retain(|file| part_of(&file.path).is_none() && file.path != INDEX);
    }
    if files.len() > MAX_FILES {
        return Err(no_model(listing, format!("has more than {MAX_FILES} files of a model"), &[]));
    }
    if !is_whole {
        let has = |wanted: &dyn Fn(&str) -> bool| files.iter().any(|file| wanted(&file.path));
        let count = files.iter().filter_map(|file| part_of(&file.path)).map(|(_, count)| count).max();
        let count = count.unwrap_or_default();
        // One that is missing ends the search, whatever their names say of their number.
        let is_complete = (1..=count).all(|number| has(&|path| part_of(path) == Some((number, count))));
        if !is_complete || !has(&|path| path == INDEX) {
            let reason = format!("has not all of the {count} parts of its weights with \"{INDEX}\"");
            return Err(no_model(listing, reason, &[]));
        }
    }
    let name = listing.repository.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(FileChoice { files, is_folder: true, name, said: None })
}

/// `model.safetensors`, or a part of it.
fn is_weights(path: &str) -> bool {
    path == WEIGHTS || part_of(path).is_some()
}

/// The number of a part of the weights and the count of parts, by the name of its file.
fn part_of(path: &str) -> Option<(u32, u32)> {
    let numbers = path.strip_prefix("model-")?.strip_suffix(".safetensors")?;
    let (number, count) = numbers.split_once("-of-")?;
    let number_of = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    Some((number_of(number)?, number_of(count)?))
}

/// `1_Pooling/config.json`, and what other modules behind the model have.
fn is_of_module(path: &str) -> bool {
    path.split_once('/').is_some_and(|(folder, file)| {
        let number = folder.split_once('_').map(|(number, _)| number);
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
            && matches!(file, "config.json" | "model.safetensors")
    })
}

/// A file that holds a model, or the first part of one. What belongs to pictures, adapters and measurements
/// is none.
fn is_model(file: &&Remote) -> bool {
    let name = file.name().to_ascii_lowercase();
    let first = || match name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-")) {
        Some((before, count)) if count.len() == 5 => before.ends_with("-00001"),
        _ => true,
    };
    name.ends_with(".gguf")
        && !["mmproj", "imatrix", "lora", "adapter"].iter().any(|word| name.contains(word))
        && first()
}

/// The word for the quantization in a file's name: the longest one that stands between marks.
pub(super) fn quantization(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase();
    let stands = |word: &str| {
        name.match_indices(word).any(|(at, _)| {
            let free =
                |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
            let bytes = name.as_bytes();
            let before = at.checked_sub(1).and_then(|at| bytes.get(at));
            // Some names put the word behind an underscore.
            (free(before) || before == Some(&b'_')) && free(bytes.get(at + word.len()))
        })
    };
    let words = OF_LARGE.iter().chain(&OF_SMALL).chain(&OTHERS).copied();
    words.filter(|word| stands(word)).max_by_key(|word| word.len())
}

/// Parameters of the model: as the hub says, or the repository's name, or the size of its files.
fn size(listing: &RepositoryListing, models: &[&Remote]) -> Option<u64> {
    let bytes = |word: &str| {
        models.iter().find(|model| quantization(model.name()) == Some(word)).and_then(|model| model.size)
    };
    listing
        .parameters
        .or_else(|| billions(&listing.repository))
        .or_else(|| bytes("Q8_0").map(|bytes| bytes / 17 * 16))
        .or_else(|| bytes("F16").or(bytes("BF16")).map(|bytes| bytes / 2))
}

/// `0.6B` or `270m` in a name.
fn billions(name: &str) -> Option<u64> {
    let words = name.split(['-', '_', '/']).rev();
    words
        .filter_map(|word| {
            let unit = match word.as_bytes().last()? {
                b'B' | b'b' => 1e9,
                b'M' | b'm' => 1e6,
                _ => return None,
            };
            let number = &word[..word.len() - 1];
            let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let number: f64 = number.parse().ok().filter(|_| digits)?;
            Some((number * unit) as u64)
        })
        .next()
}

fn no_model(listing: &RepositoryListing, reason: String, models: &[&Remote]) -> HubError {
    let hint = match models {
        [] => "Name another repository; those with GGUF in their names hold converted models.".to_owned(),
        models => {
            let mut names: Vec<&str> =
                models.iter().map(|model| model.path.as_str()).take(MAX_LISTED).collect();
            if models.len() > MAX_LISTED {
                names.push("…");
            }
            format!("Name one of its files behind a colon: {}.", names.join(", "))
        }
    };
    HubError::NoModel { repository: listing.repository.clone(), reason, hint }
}

#[cfg(test)]
mod tests {
    use super::{FileChoice, Remote, RepositoryListing, billions, choose, quantization};

    fn listing(repository: &str, files: &[&str]) -> RepositoryListing {
        let file = |path: &&str| Remote { path: (*path).to_owned(), size: Some(1), sha256: None, blob: None };
        RepositoryListing {
            repository: repository.to_owned(),
            commit: "1".to_owned(),
            files: files.iter().map(file).collect(),
            parameters: None,
            licence: None,
            task: None,
        }
    }

    fn chosen(repository: &str, files: &[&str], file: Option<&str>) -> Result<FileChoice, String> {
        choose(&listing(repository, files), "hub", file, None)
            .map_err(|error| format!("{error}; {}", error.hint().unwrap_or_default()))
    }

    fn name(repository: &str, files: &[&str], file: Option<&str>) -> String {
        chosen(repository, files, file).unwrap().name
    }

    const QUANTIZATIONS: [&str; 6] =
        ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf", "mmproj-m-Q8_0.gguf", "m.imatrix.gguf"];

    #[test]
    fn small_models_are_taken_with_8_bits_and_large_ones_with_4() {
        assert_eq!(name("a/Qwen3-1.7B-GGUF", &QUANTIZATIONS, None), "m-Q8_0.gguf");
        assert_eq!(name("a/Qwen3-4B-GGUF", &QUANTIZATIONS, None), "m-Q4_K_M.gguf");
        let said = chosen("a/Qwen3-4B-GGUF", &QUANTIZATIONS, None).unwrap().said.unwrap();
        assert!(said.contains("m-Q4_K_M.gguf (Q4_K_M) of 3 files") && said.contains("3 billion"), "{said}");
        let known =
            RepositoryListing { parameters: Some(8_000_000_000), ..listing("a/m-0.6B", &QUANTIZATIONS) };
        assert_eq!(
            choose(&known, "hub", None, None).unwrap().name,
            "m-Q4_K_M.gguf",
            "the hub knows better than a name"
        );
        let mut unnamed = listing("a/m", &QUANTIZATIONS);
        unnamed.files[2].size = Some(4 << 30);
        assert_eq!(choose(&unnamed, "hub", None, None).unwrap().name, "m-Q4_K_M.gguf", "8 bits a parameter");
        assert_eq!(name("a/b", &["only.gguf"], None), "only.gguf");
    }

    #[test]
    fn a_file_or_a_quantization_can_be_named() {
        assert_eq!(name("a/m-4B", &QUANTIZATIONS, Some("q8_0")), "m-Q8_0.gguf");
        assert_eq!(name("a/m-4B", &QUANTIZATIONS, Some("mmproj-m-Q8_0.gguf")), "mmproj-m-Q8_0.gguf");
        assert_eq!(name("a/m-4B", &["x/m-Q8_0.gguf"], Some("x/m-Q8_0.gguf")), "m-Q8_0.gguf");
        let error = chosen("a/m-4B", &QUANTIZATIONS, Some("Q2_K")).unwrap_err();
        assert!(error.contains("m-Q4_K_M.gguf, m-Q8_0.gguf"), "{error}");
        assert!(chosen("a/m", &QUANTIZATIONS, Some("n.gguf")).unwrap_err().contains("no file \"n.gguf\""));
        let error = chosen("a/m", &["a-Q8_0.gguf", "b-Q8_0.gguf"], None).unwrap_err();
        assert!(error.contains("several models"), "{error}");
    }

    #[test]
    fn split_models_come_whole_or_not_at_all() {
        let files = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf"];
        let choice = chosen("a/m-1B", &files, None).unwrap();
        assert_eq!((choice.name.as_str(), choice.files.len()), (files[0], 2));
        assert!(
            chosen("a/m-1B", &[files[0], files[2]], None).unwrap_err().contains("not all of the 2 parts")
        );
    }

    #[test]
    fn folders_of_encoders_are_what_their_loader_reads() {
        let files = [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "1_Pooling/config.json",
            "modules.json",
            "README.md",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "onnx/config.json",
            "model-00001-of-00002.safetensors",
            "model.fp16.safetensors",
        ];
        let choice = chosen("sentence-transformers/all-MiniLM-L6-v2", &files, None).unwrap();
        assert!(choice.is_folder);
        assert_eq!(choice.name, "all-MiniLM-L6-v2");
        let paths: Vec<&str> = choice.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, files[..5]);
        assert!(chosen("a/b", &["config.json", "pytorch_model.bin"], None).unwrap_err().contains("neither"));
        let parts = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(chosen("a/b", &parts, None).unwrap().files.len(), 4);
        for missing in 1..4 {
            let some: Vec<&str> = parts.iter().filter(|part| **part != parts[missing]).copied().collect();
            let error = chosen("a/b", &some, None).unwrap_err();
            assert!(error.contains("not all of the 2 parts of its weights"), "{error}");
        }
        // Where there are both, a GGUF file is taken, unless it is known that a folder is wanted.
        let both = listing("a/b", &["config.json", "model.safetensors", "m.gguf"]);
        assert!(!choose(&both, "hub", None, None).unwrap().is_folder);
        assert!(choose(&both, "hub", None, Some(true)).unwrap().is_folder);
    }

    #[test]
    fn names_say_quantizations_and_sizes() {
        for (name, word) in [
            ("Qwen3-0.6B-Q8_0.gguf", Some("Q8_0")),
            ("qwen3-1.7b-q4_k_m.gguf", Some("Q4_K_M")),
            ("model.Q4_K.gguf", Some("Q4_K")),
            ("smol_f16.gguf", Some("F16")),
            ("gemma-bf16.gguf", Some("BF16")),
            ("m-IQ4_XS.gguf", Some("IQ4_XS")),
            ("gpt-oss-20b-mxfp4.gguf", Some("MXFP4")),
            ("m-UD-Q6_K_XL.gguf", None),
            ("model.gguf", None),
        ] {
            assert_eq!(quantization(name), word, "{name}");
        }
        assert_eq!(billions("Qwen/Qwen3-0.6B-GGUF"), Some(600_000_000));
        assert_eq!(billions("google/gemma-3-270m-it"), Some(270_000_000));
        assert_eq!(billions("a/b"), None);
    }
}
