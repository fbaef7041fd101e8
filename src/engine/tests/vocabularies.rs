//! The vocabularies with which llama.cpp tests its tokenizers, and its tokens of 47 strings and of random
//! text (`vocabularies/llama_cpp.json`, made by `vocabularies/compare.py`). `scripts/fetch-llama-cpp.sh`
//! fetches them; without them the tests say so and are skipped.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::tokenizer::Tokenizer;

/// Vocabularies that come with expected tokens.
const NAMES: [&str; 15] = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder, if there is one.
fn folder() -> Option<PathBuf> {
    let folder = here().join("../../target/vocabularies");
    if folder.join("ggml-vocab-gpt-2.gguf.out").is_file() {
        return Some(folder);
    }
    // Not by a macro, whose output is hidden where a test passes.
    const SKIPPED: &[u8] = b"skipped: there are no vocabularies, scripts/fetch-llama-cpp.sh fetches them\n";
    std::io::stderr().write_all(SKIPPED).unwrap();
    None
}

fn tokenizer(folder: &Path, name: &str) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(&folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap()).unwrap()
}

#[test]
fn tokens_of_all_vectors_are_those_of_llama_cpp() {
    let Some(folder) = folder() else { return };
    for name in NAMES {
        let tokenizer = tokenizer(&folder, name);
        let read = |end: &str| {
            std::fs::read_to_string(folder.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap()
        };
        let (texts, expected) = (read("inp"), read("out"));
        // Most of these files end with a separator, and then with an empty text.
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<Vec<u32>> = expected
            .split('\n')
            .map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect())
            .collect();
        assert!(texts.len() >= 46 && expected.len() >= texts.len(), "{name}: {}", texts.len());
        for (text, expected) in texts.iter().zip(&expected) {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(&ids, expected, "{name}: {text:?}");
            if name != "bert-bge" {
                assert_eq!(decoded(&tokenizer, &ids), text.replace('▁', " "), "{name}");
            }
        }
    }
}

/// Their text with spaces for `▁`, which vocabularies that write spaces as `▁` make of it anyway.
fn decoded(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    String::from_utf8(tokenizer.decode(ids)).unwrap().replace('▁', " ")
}

#[test]
fn tokens_of_random_texts_are_those_of_llama_cpp() {
    let Some(folder) = folder() else { return };
    let read = |name: &str| std::fs::read_to_string(here().join("tests/vocabularies").join(name)).unwrap();
    let texts: Vec<String> =
        read("texts.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let digests: std::collections::BTreeMap<String, String> =
        serde_json::from_str(&read("llama_cpp.json")).unwrap();
    assert!(texts.len() >= 300 && digests.len() >= NAMES.len());
    for (name, expected) in digests {
        let tokenizer = tokenizer(&folder, &name);
        let mut hash = Sha256::new();
        for text in &texts {
            let ids = tokenizer.encode(text).unwrap();
            ids.iter().chain([&u32::MAX]).for_each(|id| hash.update(id.to_le_bytes()));
            // Unigram models replace characters.
            if name != "nomic-bert-moe" {
                assert_eq!(decoded(&tokenizer, &ids), text.replace('▁', " "), "{name}");
            }
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected, "{name}: scripts/check-tokenizers.sh lists the differences");
    }
}
