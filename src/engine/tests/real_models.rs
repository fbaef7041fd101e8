//! Real decoders, fetched by `scripts/fetch-real-models.sh`, against the results of llama.cpp
//! (`real_models/reference.jsonl`, made by `bench/peer/real_models.py`). A model that was not fetched is
//! skipped, with a line that says so.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{
    Config, Engine, EventKind, Generate, Instructions, KvCacheType, ModelSource, Output, Probe, Reply,
    Request, Work,
};

use crate::PATIENCE;

/// Tokens of the text whose perplexity is measured.
const TOKENS: usize = 2000;
/// Both sides quantize activations, and round at different places.
const PERPLEXITY_BOUND: f64 = 0.005;
/// llama.cpp's perplexity is that with keys and values in 16 bits.
const PERPLEXITY_BOUND_OF_8_BITS: f64 = 0.01;
/// If llama.cpp's best token leads the second one by less, in logits, either may come first: logits of the
/// two differ by a few hundredths of their deviation, which is about 3.
const NEAR_TIE: f64 = 0.5;

/// The lines of the reference of a model.
fn reference(model: &str) -> Vec<Json> {
    let lines = include_str!("real_models/reference.jsonl").lines();
    lines
        .map(|line| serde_json::from_str::<Json>(line).unwrap())
        .filter(|line| line["model"] == model)
        .collect()
}

/// The file of a model; None where it was not fetched, after saying so.
fn fetched(test: &str, file: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/real-models").join(file);
    if path.is_file() {
        return Some(path);
    }
    // Written directly, past the test harness, which captures output.
    let _ = writeln!(
        std::io::stderr(),
        "real_models::{test}: SKIPPED, target/real-models/{file} is not there (scripts/fetch-real-models.sh)"
    );
    None
}

fn numbers(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

/// Tokens of a text as in llama.cpp, with those that the model wants at the beginning.
fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = tokenizer.encode_marked(text).unwrap();
    if let Some(bos) = tokenizer.bos().filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    ids
}

fn perplexity(test: &str, model: &str, kind: KvCacheType) {
    let line = reference(model).into_iter().find(|line| line.get("perplexity").is_some()).unwrap();
    let Some(path) = fetched(test, line["file"].as_str().unwrap()) else { return };
    let source = ModelSource::File(path);
    let mut probe = Probe::open_keeping(&source, 2, Instructions::best(), kind, false).unwrap();
    let tokenizer = Tokenizer::from_gguf(probe.gguf()).unwrap();
    let mut ids = encode(&tokenizer, include_str!("real_models/text.txt"));
    ids.truncate(TOKENS);
    assert_eq!(ids.len(), TOKENS);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, line["ids_sha256"], "the same tokens");
    let (mut sum, mut next) = (0.0, ids[1..].iter());
    probe
        .extend_each(&ids, |row| {
            let Some(id) = next.next() else { return };
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|logit| libm::exp(f64::from(logit - largest))).sum();
            sum += f64::from(largest) + libm::log(total) - f64::from(row[*id as usize]);
        })
        .unwrap();
    let (ours, theirs) = (libm::exp(sum / (TOKENS - 1) as f64), line["perplexity"].as_f64().unwrap());
    let ratio = ours / theirs;
    let bound = match kind {
        KvCacheType::F16 => PERPLEXITY_BOUND,
        KvCacheType::Q8_0 => PERPLEXITY_BOUND_OF_8_BITS,
    };
    assert!((ratio - 1.0).abs() < bound, "perplexity is {ours}, llama.cpp's {theirs}: {ratio}");
}

/// Follows llama.cpp's answers token by token: where llama.cpp is sure of the next one, the engine chooses it
/// too.
fn answers(test: &str, model: &str) {
    let lines = reference(model);
    let file = lines.iter().find_map(|line| line["file"].as_str()).unwrap();
    let Some(path) = fetched(test, file) else { return };
    let mut probe = Probe::open(&ModelSource::File(path), 2).unwrap();
    let tokenizer = Tokenizer::from_gguf(probe.gguf()).unwrap();
    let (mut steps, mut ties, mut prompts) = (0, 0, 0);
    for line in lines.iter().filter(|line| line.get("answer").is_some()) {
        let text = line["text"].as_str().unwrap();
        let ids = encode(&tokenizer, text);
        assert_eq!(ids, numbers(&line["ids"]), "tokens of {text:?}");
        let answer = numbers(&line["answer"]);
        let margins = line["margins"].as_array().unwrap().iter().map(|margin| margin.as_f64().unwrap());
        probe.truncate(0);
        probe.extend(&ids[..ids.len() - 1]).unwrap();
        let fed: Vec<u32> = ids[ids.len() - 1..].iter().chain(&answer[..answer.len() - 1]).copied().collect();
        let mut best = Vec::new();
        probe
            .extend_each(&fed, |row| {
                let first = (0..).zip(row).fold((0, f32::NEG_INFINITY), |best: (u32, f32), (id, logit)| {
                    if *logit > best.1 { (id, *logit) } else { best }
                });
                best.push(first.0);
            })
            .unwrap();
        for (step, ((got, expected), margin)) in best.iter().zip(&answer).zip(margins).enumerate() {
            steps += 1;
            if got != expected {
                ties += 1;
                assert!(margin < NEAR_TIE, "{text:?}, step {step}: {got}, not {expected}, ahead by {margin}");
            }
        }
        prompts += 1;
    }
    assert_eq!(prompts, 20);
    assert!(steps > 300 && ties * 20 < steps, "{ties} of {steps} tokens differ");
}

#[test]
fn smollm2_has_llama_cpps_perplexity() {
    perplexity("smollm2_has_llama_cpps_perplexity", "smollm2", KvCacheType::F16);
}

#[test]
fn smollm2_has_llama_cpps_perplexity_with_keys_and_values_in_8_bits() {
    let test = "smollm2_has_llama_cpps_perplexity_with_keys_and_values_in_8_bits";
    perplexity(test, "smollm2", KvCacheType::Q8_0);
}

#[test]
fn smollm2_answers_20_prompts_as_llama_cpp_does() {
    answers("smollm2_answers_20_prompts_as_llama_cpp_does", "smollm2");
}

#[test]
fn gemma3_has_llama_cpps_perplexity() {
    perplexity("gemma3_has_llama_cpps_perplexity", "gemma3", KvCacheType::F16);
}

#[test]
fn gemma3_has_llama_cpps_perplexity_with_keys_and_values_in_8_bits() {
    let test = "gemma3_has_llama_cpps_perplexity_with_keys_and_values_in_8_bits";
    perplexity(test, "gemma3", KvCacheType::Q8_0);
}

#[test]
fn gemma3_continues_20_texts_as_llama_cpp_does() {
    answers("gemma3_continues_20_texts_as_llama_cpp_does", "gemma3");
}

#[test]
fn smollm2_knows_the_capital_of_france() {
    let Some(path) = fetched("smollm2_knows_the_capital_of_france", "SmolLM2-135M-Instruct.Q4_1.gguf") else {
        return;
    };
    let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
    let (sender, events) = crossbeam_channel::unbounded();
    let work = Work::Generate(Generate {
        prompt: "What is the capital of France?".to_owned(),
        max_tokens: 32,
        ..Generate::default()
    });
    engine.submit(
        Request { key: 1, model: ModelSource::File(path), salt: 0, dedup_key: None, work },
        Reply::new(sender),
    );
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(Output::Text { text, .. }) => {
                assert!(text.contains("Paris"), "{text}");
                return;
            }
            EventKind::Done(_) | EventKind::Failed(_) => panic!("there is no answer"),
            _ => {}
        }
    }
}
