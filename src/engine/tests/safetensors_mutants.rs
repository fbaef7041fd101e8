//! Thousands of damaged folders: loading them neither panics nor takes excessive memory, and the engine goes
//! on after them. The damage is the same in every run.
#![cfg(target_os = "linux")]

use std::path::Path;

use crossbeam_channel::unbounded;
use rustix::process::{Resource, Rlimit, setrlimit};
use steadytext_engine::{Config, Embed, Engine, Error, EventKind, ModelSource, Output, Reply, Request, Work};
use steadytext_test_models::Bert;

const MUTANTS: usize = 1_500;
/// Room for workspaces and the allocator's arenas; allocations by a number from a damaged file exceed it.
const HEADROOM_BYTES: u64 = 1 << 30;
const FILES: [&str; 7] = [
    "config.json",
    "vocab.txt",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "1_Pooling/config.json",
    "tokenizer_config.json",
];

fn limit_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kilobytes: u64 = size.trim().trim_end_matches("kB").trim().parse().unwrap();
    let bytes = kilobytes * 1024 + HEADROOM_BYTES;
    setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
}

/// The result of embedding a text with the folder's model.
fn embed(engine: &Engine, folder: &Path) -> Result<Vec<f32>, Error> {
    let (sender, events) = unbounded();
    let work = Work::Embed(Embed::passage("Hello wörld, 日本 ab12!"));
    let request = Request { key: 1, model: ModelSource::File(folder.into()), salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    loop {
        match events.recv_timeout(crate::PATIENCE).unwrap().kind {
            EventKind::Done(Output::Embedding(vector)) => return Ok(vector),
            EventKind::Failed(error) => return Err(error),
            EventKind::Done(other) => panic!("{other:?}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

#[test]
fn damaged_folders_neither_panic_nor_take_much_memory() {
    crate::alone("safetensors_mutants::damaged_folders_neither_panic_nor_take_much_memory", load_mutants);
}

fn load_mutants() {
    let spec =
        Bert { layers: 1, width: 32, heads: 2, feed_forward: 32, vocab: 300, context: 64, ..Bert::default() };
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    spec.write_shards(&whole, 2).unwrap();
    std::fs::write(whole.join("tokenizer_config.json"), r#"{"do_lower_case": true, "strip_accents": null}"#)
        .unwrap();
    let config = Config { threads: 1, memory_limit_mb: 64, ..Config::default() };
    let engine = Engine::start(config).unwrap();
    let sound = embed(&engine, &whole).unwrap();
    limit_memory();

    let mut state = 7u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut loaded = 0;
    for mutant in 0..MUTANTS {
        // A folder of its own each time: the same path is the same model.
        let folder = directory.path().join(format!("mutant-{mutant}"));
        std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
        let damaged = FILES[next(FILES.len())];
        for file in FILES {
            let mut bytes = std::fs::read(whole.join(file)).unwrap();
            if file == damaged {
                for _ in 0..1 + next(3) {
                    // Structure is dense at the beginning.
                    let at = if next(4) > 0 { next(bytes.len().min(3000)) } else { next(bytes.len()) };
                    match next(6) {
                        0 => bytes[at] = next(256) as u8,
                        1 => bytes[at] ^= 1 << next(8),
                        2 => bytes[at] = b"0123456789"[next(10)],
                        3 => {
                            let numbers = [
                                "0",
                                "1",
                                "-1",
                                "4294967295",
                                "18446744073709551615",
                                "1e300",
                                "[]",
                                "null",
                                "\"",
                            ];
                            let number = numbers[next(numbers.len())].bytes();
                            bytes.splice(at..at, number);
                        }
                        4 => bytes.truncate(at.max(1)),
                        _ => {
                            let (from, length) = (next(bytes.len()), next(40));
                            let piece: Vec<u8> = bytes.iter().skip(from).take(length).copied().collect();
                            bytes.splice(at..at, piece);
                        }
                    }
                }
            }
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        match embed(&engine, &folder) {
            Ok(_) => loaded += 1,
            Err(Error::Panicked(message)) => panic!("{damaged} of mutant {mutant}: {message}"),
            Err(_) => {}
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    assert!((100..MUTANTS - 100).contains(&loaded), "{loaded} of {MUTANTS} could be loaded");
    assert!(embed(&engine, &whole).unwrap() == sound, "the engine is as it was");
}
