//! An engine with little memory, or none: requests fail with an error that says so, and the next ones are
//! served.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, unbounded};
use rustix::process::{Resource, Rlimit, setrlimit};
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Reply,
    Request, Sampling, Work,
};
use steadytext_test_models::{Architecture, Bert, Kind, Quantization, Spec, write};
use tempfile::TempDir;

use crate::{PATIENCE, alone};

fn generate(prompt: &str, max_tokens: usize) -> Work {
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    })
}

fn constrained(constraint: Constraint) -> Work {
    let Work::Generate(how) = generate("x", 40) else { panic!("it generates") };
    Work::Generate(Generate { constraint: Some(constraint), ..how })
}

fn submit(engine: &Engine, model: &ModelSource, works: Vec<Work>) -> (usize, Receiver<Event>) {
    let (sender, events) = unbounded();
    let count = works.len();
    for (key, work) in (0..).zip(works) {
        let request = Request { key, model: model.clone(), salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
    }
    (count, events)
}

/// The results of requests that are submitted at once.
fn run(engine: &Engine, model: &ModelSource, works: Vec<Work>) -> Vec<Result<Output, Error>> {
    let (count, events) = submit(engine, model, works);
    let mut ends = Vec::new();
    while ends.len() < count {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => ends.push(Ok(output)),
            EventKind::Failed(error) => ends.push(Err(error)),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    ends
}

/// The number of requests for which there was no memory. No other errors may come than those of the requests
/// themselves.
fn refused(what: &str, ends: &[Result<Output, Error>]) -> usize {
    let no_memory = |end: &&Result<Output, Error>| match end {
        Ok(_)
        | Err(
            Error::PromptTooLong { .. }
            | Error::InvalidRequest(_)
            | Error::Unfinished { .. }
            | Error::TooFewTokens { .. }
            | Error::Constraint { .. },
        ) => false,
        Err(Error::OutOfMemory { .. }) => true,
        Err(error) => panic!("{what}: {error:?}"),
    };
    ends.iter().filter(no_memory).count()
}

/// A schema of many properties.
fn schema(properties: usize) -> Constraint {
    let all: Vec<String> = (0..properties)
        .map(|i| format!(r#""property {i}": {{"type": "string", "pattern": "^[a-z]{{1,{}}}$"}}"#, 3 + i % 40))
        .collect();
    Constraint::Json(format!(r#"{{"type": "object", "properties": {{{}}}}}"#, all.join(", ")))
}

/// A model of some 40 MB, and an encoder.
fn models(directory: &Path) -> [ModelSource; 2] {
    let (large, encoder): (PathBuf, PathBuf) = (directory.join("large.gguf"), directory.join("encoder.gguf"));
    let quantization =
        Quantization { embedding: Kind::F32, output: Kind::F32, ..Quantization::uniform(Kind::Q8_0) };
    let spec = Spec {
        vocab: 20_000,
        tied: false,
        context: 4096,
        endless: true,
        quantization,
        ..Spec::small(Architecture::Qwen3)
    };
    write(&spec, &large).unwrap();
    Bert { layers: 4, context: 512, ..Bert::default() }.write(&encoder).unwrap();
    [large, encoder].map(ModelSource::File)
}

fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    size.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

const HEADROOM: &str = "STEADYTEXT_TEST_HEADROOM_MB";

#[test]
fn where_the_system_has_no_memory_requests_fail_and_the_engine_goes_on() {
    const TEST: &str = "memory::where_the_system_has_no_memory_requests_fail_and_the_engine_goes_on";
    if let Ok(megabytes) = std::env::var(HEADROOM) {
        return within(megabytes.parse().unwrap());
    }
    for megabytes in ["20", "60", "160"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture"])
            .env(HEADROOM, megabytes)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{megabytes} MB: {} {told}{failed}", output.status);
        assert!(told.contains("1 passed"), "{told}");
    }
}

/// The body of the test, with `megabytes` MiB of address space left.
fn within(megabytes: u64) {
    let directory = TempDir::new().unwrap();
    let [large, encoder] = models(directory.path());
    let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
    let builtin = ModelSource::Builtin;
    let usual = || vec![generate("hello", 8), Work::Embed(Embed::passage("hello"))];
    // The threads and models of these requests have their memory already.
    let before: Vec<_> = run(&engine, &builtin, usual()).into_iter().map(Result::unwrap).collect();
    let _ = run(&engine, &builtin, vec![constrained(Constraint::Choice(vec!["yes".into(), "no".into()]))]);
    let limit = address_space() + (megabytes << 20);
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();

    let mut without = 0;
    let text = "many words ".repeat(300_000);
    let long: Vec<Work> = (0..3).map(|_| generate(&text, 5)).collect();
    let one_word: Vec<Work> =
        vec![generate(&"a".repeat(3 << 20), 5), Work::Embed(Embed::passage("b".repeat(3 << 20)))];
    let many: Vec<Work> =
        (0..40).map(|i| generate(&format!("{i} {}", "some words ".repeat(30)), 20)).collect();
    let texts: Vec<Work> = (0..600)
        .map(|i| Work::Embed(Embed::passage(format!("{i} {}", "reclaim storage ".repeat(40)))))
        .collect();
    let schemas: Vec<Work> = [800, 400, 50].map(|count| constrained(schema(count))).into();
    let rounds = [
        ("a model", &large, vec![generate("x", 5)]),
        ("long prompts", &builtin, long),
        ("prompts of one word", &builtin, one_word),
        ("many sequences", &builtin, many.clone()),
        ("many sequences on a large model", &large, many),
        ("many texts", &encoder, texts),
        ("schemas", &builtin, schemas),
    ];
    for (what, model, works) in rounds {
        without += refused(what, &run(&engine, model, works));
        // Small requests are served again, at the latest when the large ones are gone.
        for _ in 0..20 {
            let now = run(&engine, &builtin, usual());
            if refused(what, &now) == 0 {
                let now: Vec<_> = now.into_iter().map(Result::unwrap).collect();
                assert!(now.iter().all(|output| before.contains(output)), "the bytes after {what}");
                break;
            }
        }
    }
    let last = run(&engine, &builtin, usual());
    assert_eq!(refused("the end", &last), 0, "the next request is served");
    assert!(without > 0 || megabytes > 24, "there was memory for everything in {megabytes} MB");
}

#[test]
fn what_waits_counts_and_what_does_not_fit_is_refused_until_there_is_room() {
    let config = Config {
        threads: 1,
        nice: 0,
        max_running: 1,
        memory_limit_mb: 96,
        kv_cache_mb: 16,
        ..Config::default()
    };
    let engine = Engine::start(config).unwrap();
    let builtin = ModelSource::Builtin;
    run(&engine, &builtin, vec![generate("load it", 1)]).remove(0).unwrap();
    // Each request holds some five megabytes, and most of them wait.
    let text = "words ".repeat(170_000);
    let ends = run(&engine, &builtin, (0..60).map(|_| generate(&text, 1)).collect());
    let refused = refused("the queue", &ends);
    assert!((20..60).contains(&refused), "{refused} of 60 were refused");
    let Some(Err(error)) = ends.iter().find(|end| matches!(end, Err(Error::OutOfMemory { .. }))) else {
        panic!("none says why")
    };
    assert!(error.to_string().contains("queue"), "{error}");
    // There is room again when they are gone.
    let again = run(&engine, &builtin, vec![generate(&text, 1), generate("short", 3)]);
    assert!(
        again.iter().any(Result::is_ok)
            && again.iter().all(|end| !matches!(end, Err(Error::OutOfMemory { .. }))),
        "{again:?}"
    );
}

#[test]
fn grammars_count_and_a_limit_that_leaves_no_room_for_one_refuses_it_alone() {
    alone("memory::grammars_count_and_a_limit_that_leaves_no_room_for_one_refuses_it_alone", || {
        let config =
            Config { threads: 1, nice: 0, memory_limit_mb: 48, kv_cache_mb: 16, ..Config::default() };
        let engine = Engine::start(config).unwrap();
        let builtin = ModelSource::Builtin;
        let ends = run(&engine, &builtin, vec![constrained(schema(400)), generate("beside it", 5)]);
        assert_eq!(refused("a schema", &ends), 1, "{ends:?}");
        assert!(ends.iter().any(Result::is_ok), "{ends:?}");
    });
}
