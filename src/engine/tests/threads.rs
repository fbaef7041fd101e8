//! The engine's threads: each runs the hook, and all are nice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use steadytext_engine::{Config, Embed, Engine, EventKind, ModelSource, Reply, Request, Work};

use crate::PATIENCE;

/// An engine that has embedded a text.
fn embed(config: Config) -> Engine {
    let engine = Engine::start(config).unwrap();
    let (sender, events) = crossbeam_channel::unbounded();
    let work = Work::Embed(Embed::passage("a"));
    let request = Request { key: 1, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    while !matches!(events.recv_timeout(PATIENCE).unwrap().kind, EventKind::Done(_)) {}
    engine
}

#[test]
fn every_thread_runs_the_hook_first() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    drop(embed(Config { threads: 3, nice: 0, thread_start: Some(hook), ..Config::default() }));
    assert_eq!(
        calls.load(Ordering::SeqCst),
        10,
        "the engine thread and two helpers, four threads beside it, three that loaded"
    );
}

/// Niceness of this process's threads of a name; /proc cuts names at 15 bytes.
#[cfg(target_os = "linux")]
fn niceness(name: &str) -> Vec<i32> {
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_name = |stat: String| {
        let (start, rest) = stat.rsplit_once(") ")?;
        // Field 19 of proc(5), counted from 1; field 3 is the first after the name.
        start.ends_with(name).then(|| rest.split(' ').nth(16).unwrap().parse().unwrap())
    };
    tasks.filter_map(stat).filter_map(of_name).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn all_threads_of_the_engine_and_no_others_are_nice() {
    // Engines of other tests have threads of the same names.
    crate::alone("threads::all_threads_of_the_engine_and_no_others_are_nice", look_at_threads);
}

#[cfg(target_os = "linux")]
fn look_at_threads() {
    let _engine = embed(Config { threads: 2, nice: 19, ..Config::default() });
    let deadline = Instant::now() + PATIENCE;
    while !["st-engine", "st-compute-1", "st-load", "st-tokenize", "st-grammar", "st-check"]
        .map(niceness)
        .iter()
        .all(|nice| nice.contains(&19))
    {
        assert!(Instant::now() < deadline, "they are not nice");
        std::thread::yield_now();
    }
    let this = rustix::process::getpriority_process(None).unwrap();
    assert!(this < 19, "the thread of who starts an engine is as nice as before, not {this}");
}
