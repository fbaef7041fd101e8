//! Outputs have the same bytes for all chunks, truncations, threads and batch mates.

use std::path::{Path, PathBuf};

use crossbeam_channel::unbounded;
use steadytext_engine::{
    Config, Embed, Engine, EventKind, Generate, Instructions, ModelSource, Output, Probe, Reply, Request,
    Sampling, Work,
};
use steadytext_test_models::{Architecture, Kind, Pooling, Quantization, Spec, write};
use tempfile::TempDir;

fn model(directory: &TempDir, spec: &Spec) -> PathBuf {
    let path = directory.path().join("model.gguf");
    write(spec, &path).unwrap();
    path
}

fn mixed() -> Quantization {
    Quantization {
        embedding: Kind::Q6K,
        attention: Kind::Q8_0,
        value: Kind::F16,
        feed_forward: Kind::Q4K,
        down: Kind::Q6K,
        output: Kind::Q5_0,
        in_some_layers: false,
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7919 + i * i * 31) % 600).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits of every token, computed in passes of the given sizes, again and again.
fn logits(path: &Path, threads: usize, tokens: &[u32], passes: &[usize]) -> Vec<Vec<u32>> {
    logits_of(Probe::open(&ModelSource::File(path.to_owned()), threads).unwrap(), tokens, passes)
}

fn logits_of(mut probe: Probe, tokens: &[u32], passes: &[usize]) -> Vec<Vec<u32>> {
    let mut rows = Vec::new();
    let mut rest = tokens;
    for size in passes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (pass, left) = rest.split_at((*size).min(rest.len()));
        probe.extend_each(pass, |logits| rows.push(bits(logits))).unwrap();
        rest = left;
    }
    rows
}

#[test]
fn chunked_prefill_is_whole_prefill_on_any_number_of_threads() {
    for architecture in Architecture::ALL {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::wide(architecture, mixed()));
        let tokens = tokens(200);
        let whole = logits(&path, 1, &tokens, &[256]);
        assert!(whole == logits(&path, 2, &tokens, &[1]), "{architecture:?}: one by one");
        assert!(whole == logits(&path, 3, &tokens, &[7, 64, 1, 30]), "{architecture:?}: uneven chunks");
        assert!(whole == logits(&path, 2, &tokens, &[63, 2, 65]), "{architecture:?}: around tiles");
    }
}

#[test]
fn instruction_sets_change_no_byte() {
    let mixed = Quantization { output: Kind::Q4_0, value: Kind::Q6K, ..mixed() };
    let llama = [mixed, Quantization::q4_k_m()].map(|quantization| (Architecture::Llama, quantization));
    let all = Architecture::ALL.map(|architecture| (architecture, mixed));
    for (architecture, quantization) in llama.into_iter().chain(all) {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::wide(architecture, quantization));
        let tokens = tokens(150);
        let best = logits(&path, 2, &tokens, &[64]);
        for set in [Instructions::Portable, Instructions::Avx2] {
            let probe = Probe::open_with(&ModelSource::File(path.clone()), 1, set).unwrap();
            assert!(best == logits_of(probe, &tokens, &[33, 1, 17]), "{architecture:?} {set:?}");
        }
    }
}

#[test]
fn a_truncated_cache_forgets() {
    for architecture in Architecture::ALL {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::wide(architecture, mixed()));
        let tokens = tokens(150);
        let mut probe = Probe::open(&ModelSource::File(path), 2).unwrap();
        let expected = bits(probe.extend(&tokens).unwrap().unwrap());
        for length in [149, 128, 127, 64, 63, 1, 0] {
            probe.truncate(length);
            // Recurrent layers go back to the end of a block.
            let recurrent = architecture.is_recurrent_family();
            let kept = if recurrent { length / 64 * 64 } else { length };
            assert_eq!(probe.len(), kept, "{architecture:?}");
            // Other tokens in between, which must leave no trace.
            probe.extend(&[5, 6, 7, 8]).unwrap();
            probe.truncate(kept);
            assert_eq!(probe.len(), kept, "{architecture:?}");
            let again = bits(probe.extend(&tokens[kept..]).unwrap().unwrap());
            assert!(again == expected, "{architecture:?} truncated to {length}");
        }
    }
}

fn generate(prompt: &str, max_tokens: usize, sampling: Sampling) -> Work {
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens,
        sampling,
        stop: Vec::new(),
        ..Generate::default()
    })
}

/// Runs all work at once and returns the results in its order.
fn run(path: &Path, config: Config, work: &[Work]) -> Vec<Output> {
    let engine = Engine::start(config).unwrap();
    let (sender, events) = unbounded();
    for (key, work) in (0..).zip(work) {
        let request = Request {
            key,
            model: ModelSource::File(path.to_owned()),
            salt: 0,
            dedup_key: None,
            work: work.clone(),
        };
        engine.submit(request, Reply::new(sender.clone()));
    }
    drop(sender);
    let mut outputs: Vec<Option<Output>> = vec![None; work.len()];
    for event in events {
        match event.kind {
            EventKind::Done(output) => outputs[event.key as usize] = Some(output),
            EventKind::Failed(error) => panic!("request {} failed: {error}", event.key),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    outputs.into_iter().map(Option::unwrap).collect()
}

#[test]
fn batch_mates_threads_and_restarts_change_no_byte() {
    let directory = TempDir::new().unwrap();
    let path =
        model(&directory, &Spec { pooling: Some(Pooling::Mean), ..Spec::wide(Architecture::Qwen3, mixed()) });
    let hot =
        Sampling { temperature: 0.9, top_k: 50, top_p: 0.95, min_p: 0.01, seed: 7, ..Sampling::default() };
    let mut work = Vec::new();
    for i in 0..12usize {
        let prompt = "some words of a prompt ".repeat(1 + i * i % 23);
        let sampling = if i % 2 == 0 { Sampling::default() } else { hot.clone() };
        work.push(generate(&prompt, 10 + i * 5, sampling));
        work.push(Work::Embed(Embed::passage(prompt)));
    }
    let alone = Config { threads: 1, max_running: 1, ..Config::default() };
    let expected = run(&path, alone, &work);
    for (threads, max_running) in [(2, 16), (3, 5)] {
        let config = Config { threads, max_running, ..Config::default() };
        assert!(run(&path, config, &work) == expected, "{threads} threads, {max_running} running");
    }
    // In reverse order, so that each request is computed together with others.
    let reversed: Vec<Work> = work.iter().rev().cloned().collect();
    let mut outputs = run(&path, Config { threads: 2, ..Config::default() }, &reversed);
    outputs.reverse();
    assert!(outputs == expected, "in reverse order");
}

#[test]
fn sampling_depends_on_the_seed() {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(Architecture::Llama, Quantization::uniform(Kind::Q8_0)));
    let hot = |seed| generate("a prompt", 30, Sampling { temperature: 1.0, seed, ..Sampling::default() });
    let outputs = run(&path, Config::default(), &[hot(1), hot(2), hot(1)]);
    assert_eq!(outputs[0], outputs[2]);
    assert_ne!(outputs[0], outputs[1]);
}

#[test]
fn pooling_follows_the_metadata() {
    let text = "several words to be pooled";
    let vectors: Vec<Vec<f32>> = [Some(Pooling::Mean), Some(Pooling::Cls), Some(Pooling::Last), None]
        .into_iter()
        .map(|pooling| {
            let directory = TempDir::new().unwrap();
            let spec = Spec { pooling, ..Spec::wide(Architecture::Qwen3, Quantization::uniform(Kind::Q8_0)) };
            let path = model(&directory, &spec);
            let outputs = run(&path, Config::default(), &[Work::Embed(Embed::passage(text))]);
            let [Output::Embedding(vector)] = &outputs[..] else { panic!("no embedding") };
            vector.clone()
        })
        .collect();
    for vector in &vectors {
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "length {length}");
        assert_eq!(vector.len(), 256);
    }
    assert_ne!(vectors[0], vectors[1]);
    assert_ne!(vectors[1], vectors[2]);
    assert_eq!(vectors[2], vectors[3], "without metadata it is the last token");
}

/// The builtin model is all F32 and Q8_0, whose kernels are the engine's own: the same bits on every machine,
/// with any instruction set. A change here changes the answers that users have seen; it belongs into the
/// change log.
#[test]
fn the_builtin_model_computes_the_same_bits_everywhere() {
    let mut probe = Probe::open(&ModelSource::Builtin, 2).unwrap();
    let tokens: Vec<u32> = (0..300).map(|i| i * 7919 % 6144).collect();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    probe
        .extend_each(&tokens, |logits| {
            for byte in logits.iter().flat_map(|logit| logit.to_le_bytes()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        })
        .unwrap();
    assert_eq!(hash, 0xb2f4_fd57_cb73_9b0f, "{hash:#018x}");
}
