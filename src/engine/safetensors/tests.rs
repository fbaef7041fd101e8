//! Tests of reading folders: the files that the reader makes of them, and its errors for those that it
//! refuses.

mod normalizers;
mod shards;

use std::path::Path;

use steadytext_test_models::{Bert, EncoderFamily, Kind};
use tempfile::TempDir;

use super::{header, open};
use crate::Error;
use crate::gguf::Gguf;
use crate::model;
use crate::tokenizer::Tokenizer;

fn folder() -> TempDir {
    let directory = TempDir::new().unwrap();
    Bert::default().write_folder(directory.path()).unwrap();
    directory
}

/// The file and the reason of an error about a file.
fn refusal(folder: &Path) -> (String, String) {
    match open(folder).unwrap_err() {
        Error::CorruptModel { path, reason } | Error::UnsupportedModel { path, reason, .. } => {
            (path.strip_prefix(folder).unwrap().display().to_string(), reason)
        }
        other => panic!("{other}"),
    }
}

fn replace(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file}: {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// A file of safetensors with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn a_folder_tells_what_the_gguf_file_of_the_same_model_tells() {
    let directory = folder();
    let path = directory.path().join("model.gguf");
    Bert::default().write(&path).unwrap();
    let (folder, file) = (open(directory.path()).unwrap(), Gguf::open(&path).unwrap());
    for key in ["bert.block_count", "bert.context_length", "bert.embedding_length", "bert.pooling_type"] {
        assert_eq!(folder.u32(key).unwrap(), file.u32(key).unwrap(), "{key}");
    }
    assert!(
        folder.strings("tokenizer.ggml.tokens").unwrap().eq(file.strings("tokenizer.ggml.tokens").unwrap())
    );
    assert_eq!(folder.tensors().len(), file.tensors().len());
    for tensor in file.tensors() {
        let other = folder.tensor(tensor.name).unwrap();
        assert_eq!((tensor.shape, tensor.kind), (other.shape, other.kind), "{}", tensor.name);
        assert!(tensor.data == other.data, "{}", tensor.name);
    }
}

/// Families of folders, with and without a head where they have one.
fn families() -> Vec<Bert> {
    let of = |family, labels| Bert { family, labels, layers: 4, ..Bert::default() };
    vec![
        of(EncoderFamily::XlmRoberta, 0),
        of(EncoderFamily::XlmRoberta, 1),
        of(EncoderFamily::NomicBert, 0),
        of(EncoderFamily::ModernBert, 0),
        of(EncoderFamily::ModernBert, 2),
    ]
}

#[test]
fn folders_of_other_families_tell_what_their_gguf_files_tell() {
    for spec in families() {
        let directory = TempDir::new().unwrap();
        let (path, folder) = (directory.path().join("model.gguf"), directory.path().join("folder"));
        spec.write(&path).unwrap();
        spec.write_folder(&folder).unwrap();
        let (folder, file) = (open(&folder).unwrap(), Gguf::open(&path).unwrap());
        let family = spec.family;
        for key in ["block_count", "context_length", "embedding_length", "feed_forward_length"] {
            let key = format!("{}.{key}", family.name());
            assert_eq!(folder.u32(&key).unwrap(), file.u32(&key).unwrap(), "{family:?}: {key}");
        }
        let tokens = "tokenizer.ggml.tokens";
        assert!(folder.strings(tokens).unwrap().eq(file.strings(tokens).unwrap()), "{family:?}");
        let text = "a text, and some more of it: 1234 naïve ждж 日本";
        let [ours, theirs] = [&folder, &file]
            .map(|gguf| Tokenizer::from_gguf(gguf).unwrap().encode_pair(text, "and another").unwrap());
        assert_eq!(ours.tokens, theirs.tokens, "{family:?}");
        assert_eq!(ours.second, theirs.second, "{family:?}");
        assert_eq!(folder.tensors().len(), file.tensors().len(), "{family:?}");
        for tensor in file.tensors() {
            let other = folder.tensor(tensor.name).unwrap();
            assert_eq!((tensor.shape, tensor.kind), (other.shape, other.kind), "{family:?}: {}", tensor.name);
            assert!(tensor.data == other.data, "{family:?}: {}", tensor.name);
        }
        model::check(&folder, crate::KvCacheType::default(), 1, false).unwrap();
    }
}

/// Texts of words, digits, letters of other scripts, spaces and punctuation.
fn texts(count: usize) -> impl Iterator<Item = String> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let words = [
        "the",
        "Nothing",
        "tokenizer",
        "naïve",
        "été",
        "жук",
        "日本語",
        "x1y2",
        "don't",
        "ISN'T",
        "3.14",
        "100,000",
        "<s>",
        "</s>",
        "[CLS]",
        "[MASK]",
        "…",
        "\u{a0}",
        "\n",
        "\t\t",
        "  ",
        "a\u{301}",
        "👩‍👩‍👧",
        "ﬁn",
        "!?",
        "\u{200b}",
        "Ⅳ",
    ];
    (0..count).map(move |_| {
        let mut text = String::new();
        for _ in 0..next(12) {
            text.push_str(words[next(words.len())]);
            text.push_str(["", " ", "  ", "."][next(4)]);
        }
        text
    })
}

#[test]
fn texts_are_cut_as_the_tokenizers_crate_cuts_them() {
    for family in [EncoderFamily::XlmRoberta, EncoderFamily::ModernBert] {
        let directory = TempDir::new().unwrap();
        Bert { family, vocab: 900, ..Bert::default() }.write_folder(directory.path()).unwrap();
        let ours = Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap();
        let theirs = tokenizers::Tokenizer::from_file(directory.path().join("tokenizer.json")).unwrap();
        for text in texts(10_000) {
            // Unlike the crate, this tokenizer never takes a user's text for a control token.
            if ["<s>", "</s>", "[CLS]", "[MASK]"].iter().any(|control| text.contains(control)) {
                continue;
            }
            // Without the character map of published files, other spaces are no spaces to a unigram model.
            let text = match family {
                EncoderFamily::XlmRoberta => text.replace(['\n', '\t', '\u{a0}'], " "),
                _ => text,
            };
            let expected = theirs.encode(text.as_str(), true).unwrap();
            assert_eq!(ours.encode_embedding(&text).unwrap(), expected.get_ids(), "{family:?}: {text:?}");
        }
    }
}

#[test]
fn folders_of_other_families_that_are_something_else_are_refused() {
    let spoilt = |spec: &Bert, file: &str, from: &str, to: &str| {
        let directory = TempDir::new().unwrap();
        spec.write_folder(directory.path()).unwrap();
        replace(directory.path(), file, from, to);
        refusal(directory.path())
    };
    let of = |family| Bert { family, ..Bert::default() };
    let (xlm, nomic, modern) =
        (of(EncoderFamily::XlmRoberta), of(EncoderFamily::NomicBert), of(EncoderFamily::ModernBert));
    for (spec, file, from, to, reason) in [
        (&xlm, "tokenizer.json", "\"Unigram\"", "\"WordLevel\"", "only Unigram is read"),
        (&xlm, "tokenizer.json", "\"unk_id\": 3", "\"unk_id\": 99999", "no token for what is unknown"),
        (&xlm, "tokenizer.json", "[\"</s>\", 0.0]", "[\"<end>\", 0.0]", "it has no token"),
        (&xlm, "config.json", "\"pad_token_id\": 1", "\"pad_token_id\": 4000000000", "are for padding"),
        (&nomic, "config.json", "\"prenorm\": false", "\"prenorm\": true", "prenorm"),
        (&nomic, "config.json", "\"swiglu\"", "\"gelu\"", "activation_function"),
        (&modern, "config.json", "\"cls\"", "\"max\"", "classifier_pooling"),
        (
            &modern,
            "tokenizer.json",
            "\"type\": \"ByteLevel\", \"add_prefix_space\": false",
            "\"type\": \"Split\"",
            "not cut into bytes",
        ),
        (&modern, "tokenizer.json", "\"id\": 597", "\"id\": 4000000000", "tokens"),
    ] {
        let spec = Bert { labels: 0, ..spec.clone() };
        let from = if from == "\"cls\"" { "\"mean\"" } else { from };
        let (_, said) = spoilt(&spec, file, from, to);
        assert!(said.contains(reason), "{from}: {said}");
    }
}

#[test]
fn the_file_is_what_the_safetensors_crate_reads() {
    for kind in [Kind::F32, Kind::F16, Kind::BF16] {
        let bytes = Bert { kind, labels: 2, ..Bert::default() }.safetensors().unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ours = header::read(&bytes).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for entry in ours {
            let tensor = theirs.tensor(&entry.name).unwrap();
            assert_eq!(entry.shape, tensor.shape());
            assert!(bytes[entry.data] == *tensor.data());
        }
    }
}

#[test]
fn what_the_files_beside_the_weights_say_is_obeyed() {
    let directory = folder();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("sentence_bert_config.json", r#"{"max_seq_length": 100, "do_lower_case": false}"#);
    write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
    write(
        "config_sentence_transformers.json",
        r#"{"prompts": {"query": "query: ", "document": "passage: "}}"#,
    );
    let gguf = open(directory.path()).unwrap();
    assert_eq!(model::spec(&gguf).unwrap().context_length, 100);
    assert_eq!(gguf.u32("bert.pooling_type").unwrap(), 2);
    assert_eq!(gguf.str("steadytext.prompt.query").unwrap(), "query: ");
    assert_eq!(gguf.str("steadytext.prompt.passage").unwrap(), "passage: ");
}

#[test]
fn a_file_that_cannot_be_looked_at_is_not_taken_for_one_that_is_missing() {
    for name in ["1_Pooling", "modules.json", "tokenizer_config.json", "vocab.txt"] {
        let directory = folder();
        let path = directory.path().join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else if path.is_file() {
            std::fs::remove_file(&path).unwrap();
        }
        std::os::unix::fs::symlink(name, &path).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::ModelFile { .. }), "{name}: {error}");
    }
}

#[test]
fn a_folder_says_how_long_its_vectors_are_and_what_they_may_be_cut_to() {
    let directory = folder();
    let whole = open(directory.path()).unwrap().u32("bert.embedding_length").unwrap();
    let found = super::lengths(directory.path()).unwrap();
    assert_eq!((found.whole, found.shorter), (Some(whole), Vec::new()));
    let path = directory.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["matryoshka_dimensions"] = serde_json::json!([32, 16, 0, whole, whole + 1, 16]);
    std::fs::write(&path, config.to_string()).unwrap();
    let beside = directory.path().join("config_sentence_transformers.json");
    std::fs::write(&beside, r#"{"truncate_dim": 24, "prompts": {}}"#).unwrap();
    assert_eq!(super::lengths(directory.path()).unwrap().shorter, [16, 24, 32]);
    // Other words for the same, and what is no list of lengths.
    std::fs::write(&path, r#"{"model_type": "nomic_bert", "n_embd": 48}"#).unwrap();
    std::fs::write(&beside, r#"{"truncate_dim": null}"#).unwrap();
    let found = super::lengths(directory.path()).unwrap();
    assert_eq!((found.whole, found.shorter), (Some(48), Vec::new()));
    std::fs::write(&path, r#"{"hidden_size": 48, "matryoshka_dimensions": "all"}"#).unwrap();
    assert!(super::lengths(directory.path()).is_err());
}

#[test]
fn what_a_file_beside_the_weights_changes_makes_another_content() {
    let directory = folder();
    let content = || open(directory.path()).unwrap().content().concat();
    let before = content();
    assert!(content() == before);
    for (name, text) in [
        ("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#),
        ("sentence_bert_config.json", r#"{"max_seq_length": 100}"#),
        ("tokenizer_config.json", r#"{"do_lower_case": false}"#),
        ("config_sentence_transformers.json", r#"{"prompts": {"query": "query: "}}"#),
    ] {
        let before = content();
        std::fs::write(directory.path().join(name), text).unwrap();
        assert!(content() != before, "{name}");
    }
}

#[test]
fn tokenizer_json_does_where_there_is_no_vocab_txt() {
    let directory = folder();
    let plain = Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap();
    let tokens = std::fs::read_to_string(directory.path().join("vocab.txt")).unwrap();
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.lines().enumerate().map(|(id, token)| (token.to_owned(), id.into())).collect();
    let json = serde_json::json!({
        "normalizer": {"type": "BertNormalizer", "lowercase": true, "strip_accents": null, "handle_chinese_chars": true},
        "model": {"type": "WordPiece", "vocab": vocab}
    });
    std::fs::remove_file(directory.path().join("vocab.txt")).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
    let other = Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap();
    let text = "Hello wörld, 日本!";
    assert_eq!(plain.encode(text).unwrap(), other.encode(text).unwrap());
}

#[test]
fn a_cased_folder_keeps_capitals() {
    let directory = folder();
    let config = directory.path().join("tokenizer_config.json");
    std::fs::write(config, r#"{"do_lower_case": false}"#).unwrap();
    let tokenizer = Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("AB").unwrap(), [1], "its vocabulary has no capitals");
    assert_ne!(tokenizer.encode("ab").unwrap(), [1]);
}

#[test]
fn models_of_other_kinds_are_refused_by_name() {
    for (file, from, to, reason) in [
        (
            "config.json",
            "\"model_type\": \"bert\"",
            "\"model_type\": \"deberta-v2\"",
            "model_type is \"deberta-v2\"; bert, xlm-roberta, nomic_bert and modernbert are read",
        ),
        ("config.json", "\"gelu\"", "\"silu\"", "hidden_act is \"silu\", not \"gelu\""),
        (
            "config.json",
            "\"absolute\"",
            "\"relative_key\"",
            "position_embedding_type is \"relative_key\", not \"absolute\"",
        ),
    ] {
        let directory = folder();
        replace(directory.path(), file, from, to);
        assert_eq!(refusal(directory.path()), (file.to_owned(), reason.to_owned()));
    }
    let directory = folder();
    let modules = r#"[{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
    std::fs::write(directory.path().join("modules.json"), modules).unwrap();
    let reason = "it has a step \"sentence_transformers.models.Dense\", which is not known";
    assert_eq!(refusal(directory.path()), ("modules.json".to_owned(), reason.to_owned()));
}

#[test]
fn a_step_outside_of_the_folder_is_refused() {
    for path in ["../secrets", "/etc", "x/../.."] {
        let directory = folder();
        let modules = format!(r#"[{{"type": "x.Pooling", "path": "{path}"}}]"#);
        std::fs::write(directory.path().join("modules.json"), modules).unwrap();
        assert_eq!(refusal(directory.path()).1, "the path of a step leads out of the folder");
    }
}

#[test]
fn files_that_are_no_files_or_too_large_are_refused() {
    let directory = folder();
    std::fs::write(directory.path().join("config.json"), vec![b' '; 2 << 20]).unwrap();
    assert_eq!(refusal(directory.path()).1, "it has more than 1048576 bytes");
    let directory = folder();
    std::fs::remove_file(directory.path().join("config.json")).unwrap();
    std::fs::create_dir(directory.path().join("config.json")).unwrap();
    assert!(matches!(open(directory.path()), Err(Error::ModelFile { .. })));
    std::fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    assert!(matches!(open(directory.path()), Err(Error::ModelFile { .. })));
}

#[test]
fn depth_of_json_is_limited() {
    for (name, inside) in [("config.json", false), ("model.safetensors", true)] {
        let directory = folder();
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        let bytes = if inside { file(&deep, 0) } else { deep.into_bytes() };
        std::fs::write(directory.path().join(name), bytes).unwrap();
        refusal(directory.path());
    }
}

#[test]
fn tables_that_lie_are_refused_by_tensor() {
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let overlapping = format!("{{{},{}}}", entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12));
    let twice = format!("{{{},{}}}", entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 4, 8));
    for (header, reason) in [
        (
            format!("{{{}}}", entry("a", "F32", "[4]", 0, 17)),
            "tensor \"a\" of 16 bytes lies from 0 to 17 of 16 bytes of data",
        ),
        (
            format!("{{{}}}", entry("a", "F32", "[8]", 0, 32)),
            "tensor \"a\" of 32 bytes lies from 0 to 32 of 16 bytes of data",
        ),
        (
            format!("{{{}}}", entry("a", "F32", "[4]", 16, 0)),
            "tensor \"a\" of 16 bytes lies from 16 to 0 of 16 bytes of data",
        ),
        (
            format!("{{{}}}", entry("a", "F32", "[4]", u64::MAX - 15, 0)),
            "tensor \"a\" of 16 bytes lies from 18446744073709551600 to 0 of 16 bytes of data",
        ),
        (
            format!("{{{}}}", entry("a", "F32", "[4294967296,4294967296]", 0, 16)),
            "tensor \"a\" has an impossible shape",
        ),
        (format!("{{{}}}", entry("a", "F32", "[1,1,1,1,4]", 0, 16)), "tensor \"a\" has an impossible shape"),
        (
            format!("{{{}}}", entry("a", "F3", "[4]", 0, 16)),
            "tensor \"a\" has the unknown element type \"F3\"",
        ),
        (overlapping, "tensors \"a\" and \"b\" overlap"),
        (twice, "tensor \"a\" occurs twice"),
    ] {
        assert_eq!(header::read(&file(&header, 16)).unwrap_err(), reason);
    }
    for (bytes, reason) in [
        (vec![], "the file is too short for a header"),
        (vec![255; 8], "its header has 18446744073709551615 bytes, at most 8388608 are read"),
        ([100, 0, 0, 0, 0, 0, 0, 0, 1].to_vec(), "its header has 100 bytes, the file 9"),
    ] {
        assert_eq!(header::read(&bytes).unwrap_err(), reason);
    }
}
