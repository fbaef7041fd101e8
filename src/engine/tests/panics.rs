//! A panic on the engine's thread is reported to the requests concerned and counted; everything else goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded, unbounded};
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Reply, Request, Sampling, Work,
};
use steadytext_test_models::{Architecture, Spec, write};

use crate::PATIENCE;

/// Makes the engine panic at a place, a given number of times.
#[derive(Clone, Default)]
struct Fault(Arc<AtomicU32>);

impl Fault {
    fn config(&self, place: &'static str, config: Config) -> Config {
        let left = Arc::clone(&self.0);
        let fault = move |here: &'static str| {
            let one_less = |left: u32| left.checked_sub(1);
            if here == place && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
                panic!("a fault in {place}");
            }
        };
        Config { threads: 1, nice: 0, fault: Some(Arc::new(fault)), ..config }
    }

    fn arm(&self, times: u32) {
        self.0.store(times, Ordering::SeqCst);
    }

    fn left(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

fn submit(engine: &Engine, model: &ModelSource, prompt: &str) -> Receiver<Event> {
    let work = Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens: 4,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    });
    let (sender, events) = unbounded();
    engine
        .submit(Request { key: 1, model: model.clone(), salt: 0, dedup_key: None, work }, Reply::new(sender));
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

/// The error of a panic gives its place.
fn assert_blames(result: Result<Output, Error>, place: &str) {
    let Err(Error::Panicked(message)) = result else { panic!("{place}: {result:?}") };
    assert!(message.starts_with(&format!("a fault in {place} at ")), "{message}");
}

/// A request fails while the thread unwinds; the panic is counted, and the request's place in the queue given
/// back, after that.
fn assert_settles(engine: &Engine, panics: u64) {
    let begun = Instant::now();
    while (engine.statistics().panics, engine.waiting()) != (panics, 0) {
        let (counted, waiting) = (engine.statistics().panics, engine.waiting());
        assert!(begun.elapsed() < PATIENCE, "{counted} panics of {panics}, {waiting} requests wait");
        std::thread::yield_now();
    }
}

#[test]
fn a_panic_in_admit_fails_its_request_alone_and_gives_its_place_back() {
    let fault = Fault::default();
    let engine =
        Engine::start(fault.config("admit", Config { queue_capacity: 3, ..Config::default() })).unwrap();
    let model = ModelSource::Builtin;
    finish(&submit(&engine, &model, "loads the model")).unwrap();
    // More requests than the queue has places.
    for round in 0..10 {
        fault.arm(1);
        assert_blames(finish(&submit(&engine, &model, "the first")), "admit");
        assert_settles(&engine, round + 1);
    }
    // As many requests as the queue takes, all at once.
    let events: Vec<_> = (0..3).map(|i| submit(&engine, &model, &format!("after it {i}"))).collect();
    events.iter().for_each(|events| drop(finish(events).unwrap()));
    assert!(!engine.is_gone());
}

#[test]
fn a_panic_in_receive_fails_what_was_received_and_the_thread_goes_on() {
    let fault = Fault::default();
    let engine = Engine::start(fault.config("receive", Config::default())).unwrap();
    let model = ModelSource::Builtin;
    let expected = finish(&submit(&engine, &model, "again")).unwrap();
    for round in 0..20 {
        fault.arm(1);
        assert_blames(finish(&submit(&engine, &model, "lost")), "receive");
        assert_eq!(finish(&submit(&engine, &model, "again")).unwrap(), expected, "round {round}");
    }
    assert_settles(&engine, 20);
    assert!(!engine.is_gone());
}

#[test]
fn a_report_that_is_lost_in_a_panic_fails_those_who_wait_for_it_and_the_next_loads_the_model() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    write(&Spec::tiny(Architecture::Qwen3), &path).unwrap();
    let model = ModelSource::File(path);
    let fault = Fault::default();
    let engine = Engine::start(fault.config("learn", Config::default())).unwrap();
    fault.arm(1);
    assert_blames(finish(&submit(&engine, &model, "one")), "learn");
    finish(&submit(&engine, &model, "two")).unwrap();
    // A long text is tokenized on another thread, whose report is lost as well.
    fault.arm(1);
    assert_blames(finish(&submit(&engine, &model, &"x".repeat(5000))), "learn");
    assert_settles(&engine, 2);
    finish(&submit(&engine, &model, "three")).unwrap();
}

#[test]
fn a_thread_that_panics_whatever_it_does_ends_and_says_so() {
    let fault = Fault::default();
    let (sender, ended) = bounded(1);
    let config = Config {
        ended: Some(Arc::new(move || _ = sender.try_send(()))),
        ..fault.config("turn", Config::default())
    };
    let engine = Engine::start(config).unwrap();
    finish(&submit(&engine, &ModelSource::Builtin, "before")).unwrap();
    fault.arm(u32::MAX);
    let events = submit(&engine, &ModelSource::Builtin, "it never gets its turn");
    ended.recv_timeout(PATIENCE).unwrap();
    assert!(engine.is_gone());
    // The request was not begun, so another engine can do it.
    assert!(matches!(finish(&events), Err(Error::Stopped)));
    let after = submit(&engine, &ModelSource::Builtin, "too late");
    assert!(matches!(finish(&after), Err(Error::Stopped)));
    assert!(fault.left() > 0 && engine.statistics().panics > 1);
}
