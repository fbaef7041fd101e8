//! Sliding windows: blocks of keys and values that no window reaches any more are given back, and no byte
//! changes.

use std::path::PathBuf;

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, Instructions, KvCacheType, ModelSource, Output, Probe,
    PromptLookup, Reply, Request, Sampling, Standing, Ticket, Work,
};
use steadytext_test_models::gguf::Value;
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, file, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// Families with windows in some of their layers. Those of the test models are of 100 positions.
const SOME_LAYERS: [Architecture; 5] = [
    Architecture::GptOss,
    Architecture::Gemma2,
    Architecture::Gemma3,
    Architecture::Gemma4,
    Architecture::Olmo2,
];

/// Families with windows in all of their layers.
const ALL_LAYERS: [Architecture; 2] = [Architecture::Llama, Architecture::Phi3];

fn spec(architecture: Architecture) -> Spec {
    Spec { context: 8192, layers: 4, ..Spec::wide(architecture, Quantization::uniform(Kind::Q8_0)) }
}

fn some_layers(directory: &TempDir, architecture: Architecture) -> ModelSource {
    let path = directory.path().join("model.gguf");
    write(&spec(architecture), &path).unwrap();
    ModelSource::File(path)
}

/// A model of a family whose test files have no window. The first Mistral is Llama with a window in all
/// layers, like Phi-3.
fn with_a_window(directory: &TempDir, spec: &Spec) -> ModelSource {
    let name = spec.architecture.variant();
    let path: PathBuf = directory.path().join("windowed.gguf");
    let mut made = file(spec).unwrap();
    made.keys.push((format!("{name}.attention.sliding_window"), Value::U32(100)));
    made.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    ModelSource::File(path)
}

fn each(test: impl Fn(&str, &ModelSource)) {
    let directory = TempDir::new().unwrap();
    for architecture in SOME_LAYERS {
        test(architecture.variant(), &some_layers(&directory, architecture));
    }
    for architecture in ALL_LAYERS {
        test(architecture.variant(), &with_a_window(&directory, &spec(architecture)));
    }
}

fn open(model: &ModelSource, kind: KvCacheType, whole: bool) -> Probe {
    Probe::open_keeping(model, 2, Instructions::best(), kind, whole).unwrap()
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 + i * i * 31) % 600).collect()
}

#[test]
fn what_no_window_sees_is_given_back_and_no_logit_changes() {
    let test = |name: &str, model: &ModelSource| {
        let tokens = tokens(700);
        for kind in KvCacheType::ALL {
            let mut expected = Vec::new();
            let mut whole = open(model, kind, true);
            whole.extend_each(&tokens, |row| expected.extend_from_slice(row)).unwrap();
            for passes in [&[256][..], &[1, 90, 64, 37]] {
                let (mut probe, mut got, mut rest) = (open(model, kind, false), Vec::new(), &tokens[..]);
                for size in passes.iter().cycle() {
                    let (pass, left) = rest.split_at((*size).min(rest.len()));
                    probe.extend_each(pass, |row| got.extend_from_slice(row)).unwrap();
                    let ((kept, most), (of_whole, _)) = (probe.state_bytes(), whole.state_bytes());
                    assert!(kept <= most && most < of_whole, "{name}: {kept} of {most}, {of_whole}");
                    rest = left;
                    if rest.is_empty() {
                        break;
                    }
                }
                assert!(got == expected, "{name}, {kind}, passes of {passes:?}");
            }
        }
    };
    each(test);
    // Windows are in the models of 64 blocks only.
    let directory = TempDir::new().unwrap();
    let spec = Spec { context: 8192, layers: 64, vocab: 600, ..Spec::tiny(Architecture::Exaone4) };
    test("exaone4", &with_a_window(&directory, &spec));
}

#[test]
fn a_window_in_all_layers_bounds_what_a_sequence_keeps_and_in_some_layers_what_those_keep() {
    each(|name, model| {
        let mut probe = open(model, KvCacheType::F16, false);
        let mut kept = Vec::new();
        for pass in tokens(2048).chunks(128) {
            probe.extend(pass).unwrap();
            kept.push(probe.state_bytes());
        }
        let load = Load { requests: 1, tokens: 64, threads: 1, kv_cache_type: KvCacheType::F16 };
        let summary = ModelSummary::of(model, load).unwrap().0;
        let (of_each, window) = (summary.state_bytes_per_token.unwrap(), summary.window.unwrap());
        assert_eq!(window.tokens, 100, "{name}");
        let in_all = ALL_LAYERS.iter().any(|family| family.variant() == name);
        assert_eq!(of_each == 0, in_all, "{name}");
        // The blocks of a pass of 128 positions, and those that the window of its first position reaches.
        let (last, most) = *kept.last().unwrap();
        assert_eq!(last, 2048 * of_each + 4 * 64 * window.bytes_per_token, "{name}");
        // The maximum is for passes of 256 positions.
        assert_eq!(most, 2048 * of_each + 7 * 64 * window.bytes_per_token, "{name}");
        assert_eq!(kept[7].0 - 1024 * of_each, last - 2048 * of_each, "{name}: it does not grow");
    });
}

fn config() -> Config {
    Config { threads: 2, nice: 0, prompt_lookup: PromptLookup::Off, ..Config::default() }
}

/// A configuration without anything that could save work or memory.
fn plain() -> Config {
    Config { prefix_reuse: false, whole_windows: true, ..config() }
}

fn generate(prompt: &str, max_tokens: usize, temperature: f32) -> Work {
    let sampling = Sampling { temperature, ..Sampling::default() };
    Work::Generate(Generate { prompt: prompt.to_owned(), max_tokens, sampling, ..Generate::default() })
}

fn submit(engine: &Engine, model: &ModelSource, work: Work, priority: u8) -> Receiver<Event> {
    let (sender, events) = unbounded();
    let request = Request { key: 0, model: model.clone(), salt: 0, dedup_key: None, work };
    let standing = Standing { owner: 1, priority, paced: false };
    engine.submit_as(request, standing, Reply::new(sender), Ticket::new());
    events
}

fn finish(events: &Receiver<Event>) -> Result<Output, Error> {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => return Ok(output),
            EventKind::Failed(error) => return Err(error),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

fn run(engine: &Engine, model: &ModelSource, work: Work) -> Result<Output, Error> {
    finish(&submit(engine, model, work, 5))
}

fn words(seed: u64, count: u64) -> String {
    (0..count).map(|i| format!("{} ", (seed + 1) * 7919 + i * i * 31)).collect()
}

#[test]
fn prefixes_guesses_and_suspension_change_no_byte_where_windows_let_go() {
    each(|name, model| {
        let plain = Engine::start(plain()).unwrap();
        let common = words(0, 100);
        let works: Vec<Work> = (0..6)
            .map(|i| {
                generate(&format!("{common}{}", words(i, 1 + 13 * i)), 40, if i % 2 == 0 { 0.0 } else { 1.0 })
            })
            .collect();
        let expected: Vec<_> = works.iter().map(|work| run(&plain, model, work.clone()).unwrap()).collect();
        for (kv_cache_mb, max_running) in [(1024, 3), (4, 2)] {
            let prompt_lookup = PromptLookup::On;
            let engine =
                Engine::start(Config { kv_cache_mb, max_running, prompt_lookup, ..config() }).unwrap();
            for round in 0..2u8 {
                let events: Vec<_> = (1..)
                    .zip(&works)
                    .map(|(i, work)| submit(&engine, model, work.clone(), 1 + (i * 7 + round) % 10))
                    .collect();
                for (i, events) in events.iter().enumerate() {
                    assert_eq!(
                        finish(events).unwrap(),
                        expected[i],
                        "{name}, {kv_cache_mb} MB, {i} of {round}"
                    );
                }
            }
            let statistics = engine.statistics();
            assert!(statistics.reused_tokens > 300, "{name}, {kv_cache_mb} MB: {statistics:?}");
        }
    });
}

#[test]
fn a_long_text_fits_into_a_cache_that_has_room_for_its_windows() {
    let directory = TempDir::new().unwrap();
    let model = with_a_window(&directory, &spec(Architecture::Llama));
    let load = Load { requests: 1, tokens: 64, threads: 1, kv_cache_type: KvCacheType::F16 };
    let window = ModelSummary::of(&model, load).unwrap().0.window.unwrap();
    let tokens = (6 << 20) / window.bytes_per_token as usize;
    assert!(tokens > 1000, "{tokens}");
    let engine = |whole_windows| Engine::start(Config { kv_cache_mb: 2, whole_windows, ..config() }).unwrap();
    let work = || generate("long", tokens, 1.0);
    let refused = run(&engine(true), &model, work());
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
    let expected = run(&Engine::start(plain()).unwrap(), &model, work()).unwrap();
    let one = engine(false);
    // The blocks that it leaves for others stay within the cache, too.
    assert_eq!(run(&one, &model, work()).unwrap(), expected);
    assert_eq!(run(&one, &model, work()).unwrap(), expected);
    assert!(one.statistics().reused_tokens <= tokens as u64);
}
