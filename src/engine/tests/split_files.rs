//! Models in several files: they equal the model in one file, wherever it is cut, and parts that do not
//! belong together are refused.

use std::path::{Path, PathBuf};

use steadytext_engine::gguf::Gguf;
use steadytext_engine::{Error, ModelIdentity, ModelSource, Probe};
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, file};
use tempfile::TempDir;

use crate::alone;

/// A model in parts, with the keys that llama-gguf-split writes.
fn split(whole: &File, count: usize) -> Vec<File> {
    let each = whole.tensors.len().div_ceil(count);
    let keys = |number: usize| {
        [("split.no", number), ("split.count", count), ("split.tensors.count", whole.tensors.len())]
            .map(|(key, value)| (key.to_owned(), Value::I32(value as i32)))
    };
    let mut tensors = whole.tensors.chunks(each);
    (0..count)
        .map(|number| File {
            version: whole.version,
            keys: if number == 0 { whole.keys.clone() } else { Vec::new() }
                .into_iter()
                .chain(keys(number))
                .collect(),
            tensors: tensors.next().unwrap_or_default().to_vec(),
        })
        .collect()
}

fn name(number: usize, count: usize) -> String {
    format!("model-{number:05}-of-{count:05}.gguf")
}

fn write(file: &File, path: &Path) {
    file.write(&mut std::fs::File::create(path).unwrap()).unwrap();
}

/// Writes the parts and returns their paths.
fn write_parts(parts: &[File], directory: &Path) -> Vec<PathBuf> {
    let path = |index| directory.join(name(index + 1, parts.len()));
    let paths: Vec<PathBuf> = (0..parts.len()).map(path).collect();
    parts.iter().zip(&paths).for_each(|(part, path)| write(part, path));
    paths
}

fn whole() -> File {
    file(&Spec { tied: false, ..Spec::tiny(Architecture::Qwen3) }).unwrap()
}

fn logits(path: &Path) -> Vec<f32> {
    let mut probe = Probe::open(&ModelSource::File(path.into()), 2).unwrap();
    probe.extend(&[1, 2, 3, 500]).unwrap().unwrap().to_vec()
}

#[test]
fn a_model_in_parts_computes_what_it_computes_in_one() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("whole.gguf");
    write(&whole(), &path);
    let expected = logits(&path);
    for count in [2, 3, 7] {
        let paths = write_parts(&split(&whole(), count), directory.path());
        let gguf = Gguf::open(&paths[0]).unwrap();
        assert_eq!(gguf.files().collect::<Vec<_>>(), paths);
        assert_eq!(gguf.tensors().len(), whole().tensors.len());
        let sizes = paths.iter().map(|path| std::fs::metadata(path).unwrap().len());
        assert_eq!(gguf.file_size(), sizes.sum::<u64>());
        assert_eq!(logits(&paths[0]), expected, "{count} parts");
        // Once more, with the packed weights of the first time.
        assert!(paths[0].with_file_name(name(1, count) + ".panels").is_file());
        assert_eq!(logits(&paths[0]), expected, "{count} parts");
    }
}

#[test]
fn what_is_known_of_a_model_holds_as_long_as_all_its_parts_are_the_same() {
    let directory = TempDir::new().unwrap();
    let mut parts = split(&whole(), 3);
    let paths = write_parts(&parts, directory.path());
    let before = logits(&paths[0]);
    let state = ModelIdentity::file_of(&paths[0]).unwrap();
    assert_eq!(ModelIdentity::file_of(&paths[0]).unwrap(), state);
    // With another content of the last part, the packed weights of before are not used.
    let tensor = parts[2].tensors.iter_mut().find(|tensor| tensor.name.ends_with("ffn_down.weight")).unwrap();
    tensor.data.iter_mut().skip(2).step_by(34).for_each(|quant| *quant = quant.wrapping_add(1));
    let replaced = directory.path().join("new");
    write(&parts[2], &replaced);
    std::fs::rename(&replaced, &paths[2]).unwrap();
    assert_ne!(ModelIdentity::file_of(&paths[0]).unwrap(), state);
    let after = logits(&paths[0]);
    assert_ne!(after, before);
    std::fs::remove_file(paths[0].with_file_name(name(1, 3) + ".panels")).unwrap();
    assert_eq!(logits(&paths[0]), after);
    std::fs::remove_file(&paths[1]).unwrap();
    assert_ne!(ModelIdentity::file_of(&paths[0]).unwrap(), state);
}

/// The file that is refused, and the reason.
fn refusal(path: &Path) -> (PathBuf, String) {
    match Gguf::open(path).unwrap_err() {
        Error::CorruptModel { path, reason } | Error::UnsupportedModel { path, reason, .. } => (path, reason),
        Error::ModelFile { path, source } => (path, source.to_string()),
        other => panic!("{other}"),
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let check = |spoil: &dyn Fn(&mut Vec<File>), at: usize, expected: &str| {
        let mut parts = split(&whole(), 3);
        spoil(&mut parts);
        let paths = write_parts(&parts, directory.path());
        let (path, reason) = refusal(&paths[0]);
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(path, paths[at], "{reason}");
    };
    check(&|parts| parts[1].set("split.no", Value::I32(2)), 1, "it says that it is part 3 of 3");
    check(&|parts| parts[2].set("split.count", Value::I32(4)), 2, "it says that it is part 3 of 4");
    check(&|parts| parts[1].remove("split.count"), 1, "it is not part 2 of 3 of this model: it is not split");
    check(
        &|parts| parts[1].set("general.architecture", Value::String("llama".into())),
        1,
        "key \"general.architecture\" has another value",
    );
    check(
        &|parts| parts[2].set("split.tensors.count", Value::I32(5)),
        2,
        "key \"split.tensors.count\" has another",
    );
    let epsilon = "qwen3.attention.layer_norm_rms_epsilon";
    check(
        &|parts| parts[1].set(epsilon, Value::F32(0.5)),
        1,
        "layer_norm_rms_epsilon\" is not that of the first",
    );
    check(
        &|parts| parts[2].set("qwen3.rope.scale_linear", Value::F32(4.0)),
        2,
        "key \"qwen3.rope.scale_linear\" is not that of the first part",
    );
    check(&|parts| parts[1].version = 2, 1, "another version of GGUF");
    check(
        &|parts| {
            let twice = parts[0].tensors[0].clone();
            parts[2].tensors.push(twice);
        },
        2,
        "tensor \"token_embd.weight\" occurs twice",
    );
    check(&|parts| parts[1].tensors.truncate(1), 0, "which is not what \"split.tensors.count\" says");
    check(&|parts| parts[0].set("split.count", Value::I32(2)), 0, "by its name the others cannot be found");
}

#[test]
fn a_part_that_is_missing_or_comes_later_says_which_one_is_wanted() {
    let directory = TempDir::new().unwrap();
    let paths = write_parts(&split(&whole(), 3), directory.path());
    match Gguf::open(&paths[1]).unwrap_err() {
        Error::UnsupportedModel { path, reason, hint } => {
            assert_eq!((path, &*reason), (paths[1].clone(), "it is part 2 of 3 of a split model"));
            let first = format!("Open the first part, \"{}\"", paths[0].display());
            assert!(hint.unwrap().starts_with(&first));
        }
        other => panic!("{other}"),
    }
    let renamed = directory.path().join("renamed.gguf");
    std::fs::copy(&paths[0], &renamed).unwrap();
    let (path, reason) = refusal(&renamed);
    assert_eq!(path, renamed);
    assert!(reason.contains("it is the first of 3 parts"), "{reason}");
    std::fs::remove_file(&paths[2]).unwrap();
    let (path, reason) = refusal(&paths[0]);
    assert_eq!((path, &*reason), (paths[2].clone(), "it is part 3 of 3 of the model, and is missing"));
    std::fs::write(&paths[2], b"GGUF").unwrap();
    let (path, reason) = refusal(&paths[0]);
    assert_eq!(path, paths[2]);
    assert!(reason.contains("the GGUF header needs"), "{reason}");
    std::fs::remove_file(&paths[2]).unwrap();
    std::fs::create_dir(&paths[2]).unwrap();
    assert_eq!(refusal(&paths[0]).0, paths[2]);
}

#[test]
fn a_part_that_is_cut_short_while_it_is_in_use_fails_the_next_request_by_name() {
    alone(
        "split_files::a_part_that_is_cut_short_while_it_is_in_use_fails_the_next_request_by_name",
        cut_a_part,
    );
}

fn cut_a_part() {
    let directory = TempDir::new().unwrap();
    // The embedding is still looked up in the file after loading; here it is in the last part.
    let spec = Spec {
        tied: false,
        vocab: 20_000,
        quantization: Quantization { embedding: Kind::F32, ..Quantization::uniform(Kind::Q8_0) },
        ..Spec::small(Architecture::Qwen3)
    };
    let mut whole = file(&spec).unwrap();
    whole.tensors.reverse();
    let paths = write_parts(&split(&whole, 2), directory.path());
    let mut probe = Probe::open(&ModelSource::File(paths[0].clone()), 2).unwrap();
    std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap().set_len(0).unwrap();
    match probe.extend(&[1, 2, 19_000]) {
        Err(Error::LostModel { path }) => assert_eq!(path, paths[1]),
        other => panic!("{other:?}"),
    }
}
