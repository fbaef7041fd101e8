//! Adapters of jina-embeddings-v3, against weights to which they were added, against themselves in other
//! company, and files of them that contradict themselves.

use std::path::Path;

use sha2::{Digest, Sha256};
use steadytext_test_models::adapters::{
    ALPHA, RANK, TASKS, adapter, adapter_path, write_adapted, write_adapted_folder,
};
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Bert, EncoderFamily, Kind, Spec};
use tempfile::TempDir;

use super::families::by_hand;
use super::{EncoderNetwork, EncoderText, cosine, load, mixed, one, tokens, vectors, vectors_on};
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::{ModelIdentity, ModelSource};

fn spec() -> Bert {
    Bert { family: EncoderFamily::JinaBertV3, layers: 3, ..Bert::default() }
}

/// A text that is computed for a task.
fn of_task(tokens: &[u32], task: Option<usize>) -> EncoderText<'_> {
    EncoderText { adapter: task.map(|task| task as u16), ..one(tokens) }
}

/// Tasks in the order of the adapters of a model: that of a folder, and that of the names of files.
fn orders() -> [Vec<usize>; 2] {
    let mut by_name: Vec<usize> = (0..TASKS.len()).collect();
    by_name.sort_by_key(|task| TASKS[*task].0);
    [(0..TASKS.len()).collect(), by_name]
}

#[test]
fn every_task_agrees_with_weights_to_which_its_adapter_was_added() {
    let (spec, directory) = (spec(), TempDir::new().unwrap());
    let (file, folder) = (directory.path().join("model.gguf"), directory.path().join("folder"));
    write_adapted(&spec, &file).unwrap();
    write_adapted_folder(&spec, &folder).unwrap();
    for (path, order) in [&folder, &file].into_iter().zip(orders()) {
        let encoder = load(path);
        let gguf = ModelSource::File(path.clone()).open().unwrap();
        let named: Vec<&str> =
            crate::adapters::list(&gguf).unwrap().iter().map(|adapter| adapter.task).collect();
        assert_eq!(named, order.iter().map(|task| TASKS[*task].0).collect::<Vec<_>>());
        for length in [1, 2, 17, 65, 200] {
            let tokens = tokens(length, 3);
            for task in [None].into_iter().chain((0..TASKS.len()).map(Some)) {
                let expected: Vec<f32> = by_hand(&spec, &tokens, task.map(|at| order[at]))
                    .unwrap()
                    .mean(0)
                    .unwrap()
                    .to_vec1()
                    .unwrap();
                let got = vectors(&encoder, &[of_task(&tokens, task)], 2).remove(0);
                let alike = cosine(&got, &expected);
                assert!(alike > 0.999_99, "task {task:?}, {length} tokens: {alike}");
                let plain = vectors(&encoder, &[one(&tokens)], 2).remove(0);
                assert_eq!(cosine(&got, &plain) < 0.99, task.is_some(), "task {task:?} changes something");
            }
        }
    }
}

#[test]
fn tasks_beside_each_other_change_no_byte_and_a_text_without_one_is_as_without_adapters() {
    for kind in [Kind::F32, Kind::Q8_0] {
        let spec = Bert { kind, width: 128, heads: 4, feed_forward: 256, ..spec() };
        let directory = TempDir::new().unwrap();
        let (path, plain) = (directory.path().join("model.gguf"), directory.path().join("plain.gguf"));
        write_adapted(&spec, &path).unwrap();
        spec.write(&plain).unwrap();
        let (encoder, plain) = (load(&path), load(&plain));
        let mixed = mixed();
        let tasks = [None, Some(0), Some(1), Some(2), Some(1)];
        let texts: Vec<EncoderText<'_>> =
            mixed.iter().zip(tasks.iter().cycle()).map(|(tokens, task)| of_task(tokens, *task)).collect();
        let alone: Vec<Vec<f32>> =
            texts.iter().map(|text| vectors(&encoder, &[*text], 1).remove(0)).collect();
        for threads in [1, 2, 3] {
            assert!(vectors(&encoder, &texts, threads) == alone, "{kind:?} on {threads} threads");
        }
        let backwards: Vec<EncoderText<'_>> = texts.iter().rev().copied().collect();
        let mut got = vectors(&encoder, &backwards, 2);
        got.reverse();
        assert!(got == alone, "{kind:?} backwards");
        for set in [Instructions::Portable, Instructions::Avx2] {
            let start: std::sync::Arc<dyn Fn() + Send + Sync> = std::sync::Arc::new(|| {});
            let other = vectors_on(&encoder, &texts, &Pool::new(2, set, &start).unwrap());
            assert!(other == alone, "{kind:?} with {set:?}");
        }
        for (text, vector) in texts.iter().zip(&alone).filter(|(text, _)| text.adapter.is_none()) {
            assert!(vectors(&plain, &[*text], 2)[0] == *vector, "{kind:?} without a task");
        }
    }
}

#[test]
fn a_model_is_another_one_when_an_adapter_changes_its_content_or_its_task() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let identity = || {
        let (source, file) = (ModelSource::File(path.clone()), ModelIdentity::file_of(&path).unwrap());
        let hash = ModelIdentity::of(&source, &source.open().unwrap(), Some(file), &|| false).unwrap().hash;
        (file, hash)
    };
    let spec = spec();
    spec.write(&path).unwrap();
    let plain = identity();
    std::fs::create_dir(adapter_path(&path, "x").parent().unwrap()).unwrap();
    assert_eq!(identity(), plain, "a folder without adapters changes nothing");
    write(&path, "classification", &adapter(&spec, 2).unwrap());
    let first = identity();
    let mut file = adapter(&spec, 2).unwrap();
    file.tensors[0].data[0] ^= 1;
    write(&path, "classification", &file);
    let second = identity();
    file.remove("adapter.lora.task_name");
    write(&path, "classification", &file);
    let third = identity();
    std::fs::rename(adapter_path(&path, "classification"), adapter_path(&path, "sorting")).unwrap();
    let all = [plain, first, second, third, identity()];
    for (index, one) in all.iter().enumerate() {
        for other in &all[..index] {
            assert!(one.0 != other.0 && one.1 != other.1, "{index}");
        }
    }
}

fn write(model: &Path, task: &str, file: &File) {
    // Another file each time, as a file system tells it.
    let path = adapter_path(model, task);
    let new = path.with_extension("new");
    file.write(&mut std::fs::File::create(&new).unwrap()).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The reason why a model is refused.
fn refused(path: &Path) -> String {
    let checked = ModelSource::File(path.to_owned()).open().and_then(|gguf| EncoderNetwork::check(&gguf));
    let error = checked.unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[test]
fn an_adapter_that_contradicts_itself_or_its_model_is_refused() {
    let (spec, directory) = (spec(), TempDir::new().unwrap());
    let path = directory.path().join("model.gguf");
    spec.write(&path).unwrap();
    std::fs::create_dir(adapter_path(&path, "x").parent().unwrap()).unwrap();
    let spoilt = |spoil: &dyn Fn(&mut File)| {
        let mut file = adapter(&spec, 0).unwrap();
        spoil(&mut file);
        write(&path, TASKS[0].0, &file);
        refused(&path)
    };
    let set = |key: &'static str, value: Value| spoilt(&move |file| file.set(key, value.clone()));
    let text = |text: &str| Value::String(text.to_owned());
    for alpha in [f32::NAN, f32::INFINITY, 0.0, -ALPHA] {
        assert!(set("adapter.lora.alpha", Value::F32(alpha)).contains("adapter.lora.alpha"), "{alpha}");
    }
    assert!(set("adapter.lora.alpha", text("1")).contains("adapter.lora.alpha"));
    assert!(set("general.type", text("model")).contains("general.type"));
    assert!(set("adapter.type", text("control_vector")).contains("adapter.type"));
    assert!(set("general.architecture", text("bert")).contains("general.architecture"));
    assert!(set("adapter.lora.task_name", text("separation")).contains("adapter.lora.task_name"));
    assert!(set("adapter.lora.prompt_prefix", text(&"x".repeat(5000))).contains("prompt_prefix"));
    assert!(set("adapter.alora.invocation_tokens", Value::I32s(vec![1])).contains("in the middle of a text"));
    assert!(spoilt(&|file| file.remove("adapter.lora.alpha")).contains("adapter.lora.alpha"));

    let shape = |name: &'static str, shape: [usize; 2]| {
        spoilt(&move |file| file.tensor_mut(name).unwrap().shape = shape.to_vec())
    };
    let (width, inner) = (spec.width, spec.feed_forward);
    assert!(shape("blk.0.attn_qkv.weight.lora_a", [width / 2, 2 * RANK]).contains("attn_qkv.weight.lora_a"));
    assert!(shape("blk.0.attn_qkv.weight.lora_b", [1, 3 * width * RANK]).contains("attn_qkv.weight.lora_b"));
    assert!(shape("blk.1.ffn_down.weight.lora_a", [1, RANK * inner]).contains("the rank 384"));
    assert!(shape("token_embd.weight.lora_b", [width, RANK]).contains("token_embd.weight.lora_b"));
    assert!(shape("token_types.weight.lora_a", [RANK, width]).contains("token_types.weight.lora_"));
    for name in ["blk.2.ffn_up.weight.lora_a", "blk.2.ffn_up.weight.lora_b", "token_embd.weight.lora_a"] {
        let said = spoilt(&|file| file.tensors.retain(|tensor| tensor.name != name));
        assert!(said.contains(&format!("\"{name}\" is missing")), "{said}");
    }
    let rename = |from: &'static str, to: &'static str| {
        spoilt(&move |file| file.tensor_mut(from).unwrap().name = to.to_owned())
    };
    let twice = rename("blk.0.attn_output.weight.lora_a", "blk.0.attn_qkv.weight.lora_a");
    assert!(twice.contains("occurs twice"), "{twice}");
    for to in
        ["blk.9.ffn_up.weight.lora_a", "blk.0.attn_output_norm.weight.lora_a", "blk.0.ffn_up.weight", "rank"]
    {
        let said = rename("blk.0.ffn_up.weight.lora_a", to);
        assert!(said.contains(to) || said.contains("blk.0.ffn_up.weight.lora_a"), "{said}");
    }
    assert!(
        spoilt(&|file| {
            let tensor = file.tensor_mut("blk.0.ffn_up.weight.lora_a").unwrap();
            tensor.kind = Kind::Q8_0.number();
            tensor.data.truncate(width / 32 * 34 * RANK);
        })
        .contains("element type Q8_0")
    );

    // Files that are no adapters at all.
    std::fs::write(adapter_path(&path, TASKS[0].0), "no file of weights").unwrap();
    assert!(refused(&path).contains("retrieval.query.gguf"));
    std::fs::remove_file(adapter_path(&path, TASKS[0].0)).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    adapter(&spec, 0).unwrap().write(&mut std::fs::File::create(&elsewhere).unwrap()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, adapter_path(&path, TASKS[0].0)).unwrap();
    assert!(refused(&path).contains("no regular file"));
    let folder = adapter_path(&path, "x").parent().unwrap().to_owned();
    std::fs::remove_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(directory.path(), &folder).unwrap();
    assert!(refused(&path).contains("is none"));
}

#[test]
fn models_of_other_families_take_no_adapters() {
    let directory = TempDir::new().unwrap();
    let (bert, qwen) = (directory.path().join("bert.gguf"), directory.path().join("qwen.gguf"));
    Bert::default().write(&bert).unwrap();
    steadytext_test_models::write(&Spec::tiny(Architecture::Qwen3), &qwen).unwrap();
    for (path, family) in [(bert, "bert"), (qwen, "qwen3")] {
        std::fs::create_dir(adapter_path(&path, "x").parent().unwrap()).unwrap();
        let mut file = adapter(&spec(), 0).unwrap();
        file.set("general.architecture", Value::String(family.to_owned()));
        write(&path, TASKS[0].0, &file);
        let gguf = ModelSource::File(path).open().unwrap();
        let error = crate::model::check(&gguf, crate::KvCacheType::default(), 1, false).unwrap_err();
        assert!(error.to_string().contains("take none"), "{family}: {error}");
    }
}

#[test]
fn a_folder_whose_adapters_are_not_those_of_its_config_is_refused() {
    let directory = TempDir::new().unwrap();
    write_adapted_folder(&spec(), directory.path()).unwrap();
    let path = directory.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let tasks = crate::adapter_tasks(directory.path()).unwrap();
    assert_eq!(tasks, TASKS.map(|(task, _)| task));
    for (from, to, said) in [
        ("\"lora_rank\": 3", "\"lora_rank\": 4", "of rank 4"),
        ("\"lora_rank\": 3", "\"lora_rank\": 0", "lora_rank is 0"),
        ("\"lora_rank\": 3", "\"lora_rank\": -1", "invalid value"),
        ("\"lora_alpha\": 6.0", "\"lora_alpha\": 0.0", "lora_alpha is 0"),
        ("\"lora_alpha\": 6.0", "\"lora_alpha\": 1e300", "lora_alpha"),
        ("\"lora_alpha\": 6.0", "\"lora_alpha\": NaN", "expected value"),
        ("[\"retrieval.query\", ", "[", "2 adapters"),
        ("[\"retrieval.query\", ", "[\"classification\", ", "\"classification\" twice"),
        ("[\"retrieval.query\", ", "[\"\", ", "no task"),
        ("\"lora_adaptations\"", "\"others\"", "0 adapters"),
        ("\"find this \"", "\"\\u0000\"", "task_instructions"),
    ] {
        assert!(config.contains(from), "{from}");
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let found = refused(directory.path());
        assert!(found.contains(said), "{to}: {found}");
    }
}

#[test]
fn the_length_of_a_models_files_contains_its_adapters() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    write_adapted(&spec(), &path).unwrap();
    let length = |path: &Path| std::fs::metadata(path).unwrap().len();
    let adapters: u64 = TASKS.iter().map(|(task, _)| length(&adapter_path(&path, task))).sum();
    assert!(adapters > 0);
    assert_eq!(crate::file_bytes(&path), Some(length(&path) + adapters));
    std::fs::remove_file(adapter_path(&path, TASKS[0].0)).unwrap();
    assert!(crate::file_bytes(&path).unwrap() < length(&path) + adapters);
    assert_eq!(crate::file_bytes(directory.path()), None);
}

/// The tasks that are found beside a model, or why there are none.
fn found(model: &Path) -> Result<Vec<String>, String> {
    let listed = crate::adapter_tasks(model);
    let opened = ModelSource::File(model.to_owned()).open();
    match (listed, opened) {
        (Ok(tasks), Ok(gguf)) => {
            let named: Vec<&str> =
                crate::adapters::list(&gguf).unwrap().iter().map(|adapter| adapter.task).collect();
            assert_eq!(tasks, named, "both say the same");
            Ok(tasks)
        }
        (Err(listed), Err(opened)) => {
            assert_eq!(listed.to_string(), opened.to_string());
            Err(format!("{listed}; {}", listed.hint().unwrap_or_default()))
        }
        (listed, opened) => panic!("{listed:?}, but {:?}", opened.err()),
    }
}

#[test]
fn the_task_of_an_adapter_is_what_its_file_says_or_its_name_in_each_of_their_forms() {
    let (spec, directory) = (spec(), TempDir::new().unwrap());
    let path = directory.path().join("jina-embeddings-v3-Q8_0.gguf");
    spec.write(&path).unwrap();
    let folder = adapter_path(&path, "x").parent().unwrap().to_owned();
    let silent = |task: usize| {
        let mut file = adapter(&spec, task).unwrap();
        file.remove("adapter.lora.task_name");
        file
    };
    let put = |files: &[(&str, &File)]| {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        for (name, file) in files {
            write(&path, name, file);
        }
        found(&path)
    };
    let all =
        Ok(vec!["classification".to_owned(), "retrieval.passage".to_owned(), "retrieval.query".to_owned()]);
    for names in [
        // As llama.cpp's converter has them, with dashes in the name of the model; one of another
        // quantization.
        [
            "lora-retrieval.query-jina-embeddings-v3-Q8_0",
            "lora-retrieval.passage-jina-embeddings-v3-F16",
            "lora-classification-jina-embeddings-v3-Q8_0",
        ],
        ["lora-retrieval.query", "LORA-retrieval.passage", "lora-classification"],
        ["retrieval.query", "retrieval.passage", "classification"],
    ] {
        let said = [adapter(&spec, 0).unwrap(), adapter(&spec, 1).unwrap(), adapter(&spec, 2).unwrap()];
        assert_eq!(
            put(&[(names[0], &said[0]), (names[1], &said[1]), (names[2], &said[2])]),
            all,
            "{names:?}"
        );
        let said = [silent(0), silent(1), silent(2)];
        assert_eq!(
            put(&[(names[0], &said[0]), (names[1], &said[1]), (names[2], &said[2])]),
            all,
            "{names:?}"
        );
    }
    // A name that says nothing, where the file does.
    let said = [adapter(&spec, 0).unwrap(), adapter(&spec, 1).unwrap(), adapter(&spec, 2).unwrap()];
    assert_eq!(put(&[("a", &said[0]), ("lora-b-c", &said[1]), ("lora", &said[2])]), all);
    // Tasks of others, before the name of the model.
    let other = silent(0);
    assert_eq!(
        put(&[("lora-of-another-jina-embeddings-v3-Q8_0", &other)]),
        Ok(vec!["of-another".to_owned()])
    );
    assert_eq!(put(&[("lora-another", &other)]), Ok(vec!["another".to_owned()]));
    let error = put(&[("lora-of-another", &other)]).unwrap_err();
    assert!(error.contains("neither its name nor what it says") && error.contains("TASK.gguf"), "{error}");

    // The identity is that of tasks and contents, whatever the files are called.
    let hash = || {
        let (source, file) = (ModelSource::File(path.clone()), ModelIdentity::file_of(&path).unwrap());
        ModelIdentity::of(&source, &source.open().unwrap(), Some(file), &|| false).unwrap()
    };
    put(&[("lora-classification-x", &said[2]), ("b", &said[0])]).unwrap();
    let one = hash();
    put(&[("classification", &said[2]), ("lora-retrieval.query", &said[0])]).unwrap();
    let other = hash();
    assert_eq!((one.hash, one.own_hash), (other.hash, other.own_hash));
    assert_ne!(one.file, other.file, "which files they are is seen");

    // Two of one task.
    let error = put(&[("classification", &said[2]), ("lora-classification-x", &said[2])]).unwrap_err();
    assert!(
        error.contains("adapter for the task \"classification\"") && error.contains("Leave one of the two"),
        "{error}"
    );
    // A name that contradicts the file.
    let error = put(&[("lora-separation-x", &said[2])]).unwrap_err();
    assert!(error.contains("is \"classification\", not \"separation\""), "{error}");
}

#[test]
fn the_checksum_of_the_models_own_file_is_known_beside_that_of_all_of_them() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let identify = || {
        let (source, file) = (ModelSource::File(path.clone()), ModelIdentity::file_of(&path).unwrap());
        ModelIdentity::of(&source, &source.open().unwrap(), Some(file), &|| false).unwrap()
    };
    spec().write(&path).unwrap();
    let own: [u8; 32] = Sha256::digest(std::fs::read(&path).unwrap()).into();
    let plain = identify();
    assert_eq!((plain.hash, plain.own_hash), (own, own));
    assert_eq!(ModelIdentity::recorded(&path), Some(plain));
    write_adapted(&spec(), &path).unwrap();
    let adapted = identify();
    assert_eq!(adapted.own_hash, own);
    assert_ne!(adapted.hash, own);
    assert_eq!(ModelIdentity::recorded(&path), Some(adapted), "both are on record");
    // A record that says nothing of the model's own file is of no use beside adapters.
    let record = directory.path().join("model.gguf.checksum");
    let written = std::fs::read(&record).unwrap();
    let mut short = [&b"STSHA256"[..], &written[8..written.len() - 36]].concat();
    short.extend(crc32fast::hash(&short).to_le_bytes());
    std::fs::remove_file(&record).unwrap();
    std::fs::write(&record, short).unwrap();
    std::fs::set_permissions(&record, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    assert_eq!(ModelIdentity::recorded(&path), None);
    assert_eq!(identify(), adapted);
    assert_eq!(ModelIdentity::recorded(&path), Some(adapted));
}
