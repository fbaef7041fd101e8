//! Weights in several files are the same as in one, and an index is not trusted.

use std::path::Path;

use steadytext_test_models::{Bert, EncoderFamily};
use tempfile::TempDir;

use super::{file, refusal, replace};
use crate::identity::ModelIdentity;
use crate::safetensors::{open, weights};
use crate::{Error, ModelSource, model};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";
const LAST: &str = "model-00003-of-00003.safetensors";

fn folder() -> TempDir {
    let directory = TempDir::new().unwrap();
    Bert::default().write_shards(directory.path(), 3).unwrap();
    directory
}

#[test]
fn a_folder_in_shards_tells_what_it_tells_in_one_file() {
    let families = [
        (EncoderFamily::Bert, 2),
        (EncoderFamily::XlmRoberta, 1),
        (EncoderFamily::NomicBert, 0),
        (EncoderFamily::ModernBert, 0),
    ];
    for (family, labels) in families {
        let spec = Bert { family, labels, layers: 3, ..Bert::default() };
        let directory = TempDir::new().unwrap();
        let (whole, shards) = (directory.path().join("whole"), directory.path().join("shards"));
        spec.write_folder(&whole).unwrap();
        for count in [1, 2, 5] {
            spec.write_shards(&shards, count).unwrap();
            let (whole, shards) = (open(&whole).unwrap(), open(&shards).unwrap());
            assert_eq!(shards.files().len(), count);
            assert_eq!(shards.tensors().len(), whole.tensors().len(), "{family:?}");
            for tensor in whole.tensors() {
                let other = shards.tensor(tensor.name).unwrap();
                assert_eq!((tensor.shape, tensor.kind), (other.shape, other.kind), "{}", tensor.name);
                assert!(tensor.data == other.data, "{family:?}: {}", tensor.name);
            }
            model::check(&shards, crate::KvCacheType::default(), 1, false).unwrap();
        }
    }
}

#[test]
fn one_file_with_everything_is_taken_before_shards() {
    let directory = folder();
    Bert::default().write_folder(directory.path()).unwrap();
    assert_eq!(weights(directory.path()).unwrap(), [directory.path().join("model.safetensors")]);
    assert_eq!(open(directory.path()).unwrap().files().len(), 1);
}

#[test]
fn a_checksum_is_that_of_all_shards() {
    let directory = folder();
    let folder = directory.path();
    let identity = || {
        let file = ModelIdentity::file_of(folder).unwrap();
        let source = ModelSource::File(folder.into());
        let gguf = source.open().unwrap();
        (file, ModelIdentity::of(&source, &gguf, Some(file), &|| false).unwrap().hash)
    };
    let before = identity();
    assert_eq!(identity(), before);
    for shard in [FIRST, "model-00002-of-00003.safetensors", LAST] {
        let (path, before) = (folder.join(shard), identity());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(folder.join("new"), bytes).unwrap();
        std::fs::rename(folder.join("new"), path).unwrap();
        let after = identity();
        assert!(after.0 != before.0 && after.1 != before.1, "{shard}");
    }
    std::fs::remove_file(folder.join(LAST)).unwrap();
    assert!(ModelIdentity::file_of(folder).is_err());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "x/model.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "a\\u0000b.safetensors",
        "a\\\\b.safetensors",
        "é.safetensors",
    ] {
        let directory = folder();
        replace(directory.path(), INDEX, LAST, name);
        let (path, reason) = refusal(directory.path());
        assert_eq!(path, INDEX, "{name}");
        assert!(reason.contains("is no name of a file with weights"), "{name}: {reason}");
    }
}

#[test]
fn an_index_and_shards_that_contradict_each_other_are_refused() {
    let check = |spoil: &dyn Fn(&Path), at: &str, expected: &str| {
        let directory = folder();
        spoil(directory.path());
        let (path, reason) = refusal(directory.path());
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(path, at, "{reason}");
    };
    let tensor = "embeddings.word_embeddings.weight";
    let index = |from: &'static str, to: &'static str| move |folder: &Path| replace(folder, INDEX, from, to);
    let quoted = "\"embeddings.word_embeddings.weight\"";
    check(&index(quoted, "\"unknown\""), FIRST, &format!("tensor \"{tensor}\" is not in it"));
    let moved = |folder: &Path| {
        replace(folder, INDEX, &format!("{quoted}:\"{FIRST}\""), &format!("{quoted}:\"{LAST}\""));
    };
    check(&moved, FIRST, &format!("tensor \"{tensor}\" is not in it"));
    let more = |folder: &Path| {
        replace(folder, INDEX, "\"weight_map\":{", &format!("\"weight_map\":{{\"more\":\"{LAST}\","));
    };
    check(&more, INDEX, &format!("tensor \"more\" is not in \"{LAST}\""));
    let twice = |folder: &Path| {
        let again = format!("\"weight_map\":{{{quoted}:\"{LAST}\",");
        replace(folder, INDEX, "\"weight_map\":{", &again);
    };
    check(&twice, INDEX, &format!("tensor \"{tensor}\" occurs twice"));
    // One tensor is in two shards, whatever the index says.
    let doubled = |folder: &Path| {
        std::fs::copy(folder.join(FIRST), folder.join(LAST)).unwrap();
    };
    check(&doubled, LAST, "is not in it");
    let doubled_by_prefix = |folder: &Path| {
        let header = format!(r#"{{"bert.{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        std::fs::write(folder.join("more.safetensors"), file(&header, 4)).unwrap();
        let entry = format!("\"weight_map\":{{\"bert.{tensor}\":\"more.safetensors\",");
        replace(folder, INDEX, "\"weight_map\":{", &entry);
    };
    check(&doubled_by_prefix, "more.safetensors", "is there under two names");
    let write = |text: &'static str| move |folder: &Path| std::fs::write(folder.join(INDEX), text).unwrap();
    check(&write("{}"), INDEX, "weight_map");
    check(&write("{\"weight_map\":{}}"), INDEX, "it names 0 files");
    check(&write("{\"weight_map\":{\"a\":1}}"), INDEX, "expected a string");
    let many = |folder: &Path| {
        let entries: Vec<String> = (0..257).map(|i| format!("\"{i}\":\"{i}.safetensors\"")).collect();
        let text = format!("{{\"weight_map\":{{{}}}}}", entries.join(","));
        std::fs::write(folder.join(INDEX), text).unwrap();
    };
    check(&many, INDEX, "it names 257 files");
    let long = |folder: &Path| std::fs::write(folder.join(INDEX), vec![b' '; 9 << 20]).unwrap();
    check(&long, INDEX, "it has more than");
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let directory = folder();
    std::fs::remove_file(directory.path().join(LAST)).unwrap();
    let Err(Error::ModelFile { path, .. }) = open(directory.path()) else { panic!("it was opened") };
    assert_eq!(path, directory.path().join(LAST));
    // With neither weights nor an index, the error names the usual file.
    for name in [FIRST, "model-00002-of-00003.safetensors", INDEX] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    let Err(Error::ModelFile { path, .. }) = open(directory.path()) else { panic!("it was opened") };
    assert_eq!(path, directory.path().join("model.safetensors"));
}
