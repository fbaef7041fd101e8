//! A cancelled request is answered while the pass that it shares with others goes on.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Sender, bounded, unbounded};
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, ModelSource, Reply, Request, Sampling, Ticket, Work,
};

use crate::PATIENCE;

/// A request for one token, computed in one pass.
fn request(key: u64) -> Request {
    let prompt = format!("request {key}");
    let work = Work::Generate(Generate {
        prompt,
        max_tokens: 1,
        sampling: Sampling::default(),
        stop: vec![],
        ..Generate::default()
    });
    Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work }
}

fn reply(to: &Sender<Event>, notify: impl Fn() + Send + Sync + 'static) -> Reply {
    Reply::with_notify(to.clone(), Arc::new(notify))
}

/// The functions are called on the engine's thread, which makes this certain: the third request cancels the
/// second when it is admitted; the second cancels the first when it has failed, before the pass and after the
/// engine has looked at the first. So the first is found cancelled inside the pass of the first and the
/// third.
#[test]
fn a_cancelled_request_does_not_wait_for_the_pass_of_the_others() {
    let engine = Engine::start(Config { threads: 1, prefill_rows: vec![256], ..Config::default() }).unwrap();
    let (sender, events) = unbounded();
    // Holds the engine's thread until the three are submitted, so that they are admitted together.
    let (go, gate) = bounded::<()>(0);
    let (arrived, at_gate) = unbounded();
    let done = move || {
        let _ = arrived.send(());
        let _ = gate.recv();
    };
    engine.submit(request(0), reply(&sender, done));
    at_gate.recv_timeout(PATIENCE).unwrap();
    let tickets: Arc<Mutex<Vec<Ticket>>> = Arc::default();
    let cancels = |index: usize| {
        let tickets = Arc::clone(&tickets);
        move || {
            if let Some(ticket) = tickets.lock().unwrap().get(index) {
                ticket.cancel();
            }
        }
    };
    // The second request must not be notified of its start.
    let started = Arc::new(Mutex::new(false));
    let cancel_first = cancels(0);
    let second_notifier = move || {
        if std::mem::replace(&mut *started.lock().unwrap(), true) {
            cancel_first();
        }
    };
    let first = engine.submit(request(1), reply(&sender, || {}));
    let second = engine.submit(request(2), reply(&sender, second_notifier));
    engine.submit(request(3), reply(&sender, cancels(1)));
    tickets.lock().unwrap().extend([first, second]);
    drop(go);
    let mut ends = Vec::new();
    while ends.len() < 4 {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(_) => ends.push((event.key, "done")),
            EventKind::Failed(Error::Cancelled) => ends.push((event.key, "cancelled")),
            EventKind::Failed(error) => panic!("{error}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    assert_eq!(ends, [(0, "done"), (2, "cancelled"), (1, "cancelled"), (3, "done")]);
}
