//! The order of requests: by priority, users in turn, and no request waits for ever. Time is counted in turns
//! of the engine, not in seconds.

use std::sync::Arc;

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::socket::{Caller, Client, FromEngine, Server, ServerLimits};
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Error, Event, EventKind, Generate, ModelSource, Output, PromptLookup,
    Reply, Request, Sampling, Standing, Ticket, Work,
};
use steadytext_test_models::{Architecture, Bert, Kind, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

struct World {
    _directory: TempDir,
    engine: Arc<Engine>,
    model: ModelSource,
}

/// A request that was submitted.
struct SubmittedRequest {
    ticket: Ticket,
    events: Receiver<Event>,
}

fn world(config: Config) -> World {
    world_of(Spec::tiny(Architecture::Qwen3), config)
}

/// With a vocabulary from which drawing a token takes some tenths of a millisecond, so that a text takes
/// longer than the engine takes to send its first pieces.
fn slow_world(config: Config) -> World {
    world_of(Spec { vocab: 16384, ..Spec::tiny(Architecture::Qwen3) }, config)
}

fn world_of(spec: Spec, config: Config) -> World {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    write(&Spec { endless: true, context: 8192, ..spec }, &path).unwrap();
    let config = Config { threads: 1, nice: 0, prefill_rows: vec![64], ..config };
    World {
        engine: Arc::new(Engine::start(config).unwrap()),
        model: ModelSource::File(path),
        _directory: directory,
    }
}

fn of(owner: u32, priority: u8) -> Standing {
    Standing { owner, priority, paced: false }
}

impl World {
    fn request(&self, prompt: &str, max_tokens: usize) -> Request {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let work = Work::Generate(Generate {
            prompt: prompt.to_owned(),
            max_tokens,
            sampling,
            stop: Vec::new(),
            ..Generate::default()
        });
        Request { key: 1, model: self.model.clone(), salt: 0, dedup_key: None, work }
    }

    fn submit(&self, standing: Standing, prompt: &str, max_tokens: usize) -> SubmittedRequest {
        let (sender, events) = unbounded();
        let ticket = Ticket::new();
        self.engine.submit_as(self.request(prompt, max_tokens), standing, Reply::new(sender), ticket.clone());
        SubmittedRequest { ticket, events }
    }

    /// Submits `count` long requests and waits until the first `places` of them run.
    fn busy(&self, standing: Standing, count: usize, places: usize) -> Vec<SubmittedRequest> {
        let running: Vec<SubmittedRequest> =
            (0..count).map(|i| self.submit(standing, &format!("long story {i}"), 4000)).collect();
        running.iter().take(places).for_each(SubmittedRequest::wait_for_tokens);
        running
    }
}

impl SubmittedRequest {
    fn wait_for_tokens(&self) {
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap().kind {
                EventKind::Progress { .. } => return,
                EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => {}
                ended @ (EventKind::Done(_) | EventKind::Failed(_)) => panic!("it has ended: {ended:?}"),
            }
        }
    }

    /// The text, and the number of turns from its beginning to its end.
    fn finish(&self) -> (String, u64) {
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap();
            match event.kind {
                EventKind::Done(Output::Text { text, .. }) => return (text, event.turns),
                EventKind::Done(other) => panic!("{other:?}"),
                EventKind::Failed(error) => panic!("{error}"),
                EventKind::Loading
                | EventKind::Started { .. }
                | EventKind::FirstToken { .. }
                | EventKind::Progress { .. } => {}
            }
        }
    }

    fn cancel(&self) {
        self.ticket.cancel();
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap().kind {
                EventKind::Failed(Error::Cancelled) => return,
                EventKind::Failed(error) => panic!("{error}"),
                EventKind::Done(_) => panic!("it has ended"),
                EventKind::Loading
                | EventKind::Started { .. }
                | EventKind::FirstToken { .. }
                | EventKind::Progress { .. } => {}
            }
        }
    }
}

#[test]
fn an_urgent_request_has_its_first_token_after_three_turns_beside_64_long_ones() {
    let world = world(Config::default());
    let long = world.busy(of(1, 5), 64, 16);
    for priority in [10, 9, 8, 6] {
        let (_, turns) = world.submit(of(1, priority), "urgent", 1).finish();
        assert!(turns <= 3, "priority {priority} took {turns} turns");
    }
    assert!(world.engine.statistics().suspended_requests >= 4);
    long.iter().for_each(SubmittedRequest::cancel);
    assert_eq!(world.engine.waiting(), 0);
}

#[test]
fn a_request_of_the_same_priority_and_user_waits_for_a_place() {
    let world = world(Config { max_running: 2, ..Config::default() });
    let long = world.busy(of(1, 8), 2, 2);
    let next = world.submit(of(1, 8), "as urgent", 1);
    let less = world.submit(of(1, 7), "less urgent", 1);
    // Another user is served meanwhile.
    world.submit(of(1, 9), "more urgent", 1).finish();
    assert!(next.events.is_empty() && less.events.is_empty());
    long[0].cancel();
    next.finish();
    less.finish();
    long[1].cancel();
}

#[test]
fn the_call_of_another_user_has_its_token_after_three_turns_however_many_streams_there_are() {
    let world = world(Config { max_running: 4, ..Config::default() });
    let streams = world.busy(of(1, 8), 12, 4);
    for owner in 2..8 {
        let (_, turns) = world.submit(of(owner, 8), "a short call", 1).finish();
        assert!(turns <= 3, "it took {turns} turns");
    }
    streams.iter().for_each(SubmittedRequest::cancel);
}

#[test]
fn two_users_with_long_requests_have_as_many_places_each() {
    let world = world(Config { max_running: 4, ..Config::default() });
    let first = world.busy(of(1, 5), 8, 4);
    let before = world.engine.statistics().suspended_requests;
    let second = world.busy(of(2, 5), 8, 2);
    assert_eq!(world.engine.statistics().suspended_requests - before, 2, "no more than that gave way");
    first.iter().chain(&second).for_each(SubmittedRequest::cancel);
}

#[test]
fn where_there_is_one_place_another_user_gets_it_for_a_while() {
    let world = world(Config { max_running: 1, ..Config::default() });
    let long = world.busy(of(1, 8), 3, 1);
    let (_, turns) = world.submit(of(2, 8), "a short call", 1).finish();
    assert!(turns <= 140, "it took {turns} turns");
    long.iter().for_each(SubmittedRequest::cancel);
}

#[test]
fn who_has_the_lowest_priority_is_served_however_many_urgent_ones_come() {
    let config = Config { max_running: 2, prompt_lookup: PromptLookup::Off, ..Config::default() };
    let world = world(config);
    let (sender, ends) = unbounded();
    let submit = |key, priority, max_tokens| {
        let request = Request { key, ..world.request(&format!("request {key}"), max_tokens) };
        world.engine.submit_as(request, of(1, priority), Reply::new(sender.clone()), Ticket::new());
    };
    submit(0, 10, 200);
    submit(1, 10, 200);
    submit(2, 1, 100);
    // All of these come later, and take more turns than the patient request has to wait.
    (3..400).for_each(|key| submit(key, 10, 20));
    let mut order = Vec::new();
    while order.len() < 400 {
        let event = ends.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(_) => order.push((event.key, event.turns)),
            EventKind::Failed(error) => panic!("{error}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    let place = order.iter().position(|(key, _)| *key == 2).unwrap();
    let turns = order[place].1;
    assert!(place < 390, "it came at the very end");
    // It waits until it is as urgent as they are; then it keeps its place for 64 turns, and comes back after
    // 256.
    assert!((9 * 256..9 * 256 + 2 * (64 + 256)).contains(&turns), "it took {turns} turns");
}

#[test]
fn a_suspended_request_keeps_its_keys_and_values_while_there_is_room_and_has_the_same_text_anyway() {
    // Room for one of the urgent requests or for the long one; and then for all of them.
    for (kv_cache_mb, forgets) in [(2, true), (1024, false)] {
        let world = world(Config { kv_cache_mb, prefix_reuse: false, ..Config::default() });
        let expected = world.submit(of(1, 5), "a long story", 1500).finish().0;
        let long = world.submit(of(1, 5), "a long story", 1500);
        long.wait_for_tokens();
        for round in 0..3 {
            let urgent = world.submit(of(1, 10), &format!("urgent {round}"), 4040);
            urgent.wait_for_tokens();
            urgent.cancel();
        }
        assert_eq!(long.finish().0, expected, "{kv_cache_mb} MB");
        let statistics = world.engine.statistics();
        assert_eq!(statistics.forgotten_tokens > 0, forgets, "{statistics:?}");
        assert!(!forgets || statistics.suspended_requests > 0, "{statistics:?}");
    }
}

#[test]
fn a_request_that_is_held_leaves_its_place_to_others_and_goes_on_as_if_nothing_had_been() {
    let world = world(Config { max_running: 1, ..Config::default() });
    let expected = world.submit(of(1, 8), "a stream", 400).finish().0;
    let stream = world.submit(of(1, 8), "a stream", 400);
    stream.wait_for_tokens();
    stream.ticket.hold(true);
    // The only place is free, also for the same user.
    for i in 0..5 {
        world.submit(of(1, 8), &format!("beside it {i}"), 5).finish();
    }
    stream.ticket.hold(false);
    world.engine.wake();
    assert_eq!(stream.finish().0, expected);
    // A request that is paused for ever can be cancelled.
    let other = world.submit(of(1, 8), "another stream", 4000);
    other.wait_for_tokens();
    other.ticket.hold(true);
    other.cancel();
}

#[test]
fn a_stream_that_nobody_reads_pauses_and_goes_on_when_it_is_read() {
    let world = slow_world(Config { max_running: 1, ..Config::default() });
    let path = world._directory.path().join("socket");
    let server = Server::start_with(&path, Arc::clone(&world.engine), ServerLimits::of(1024)).unwrap();
    let expected = world.submit(of(1, 8), "a stream", 2000).finish().0;
    let caller = Caller { role: 1, process: 1, lasting: false };
    let mut client = Client::connect_as(&path, caller).unwrap();
    let standing = Standing { paced: true, ..of(1, 8) };
    client.submit_as(&world.request("a stream", 2000), standing).unwrap();
    let suspended = || world.engine.statistics().suspended_requests;
    let begun = std::time::Instant::now();
    while suspended() == 0 {
        client.flush().unwrap();
        assert!(begun.elapsed() < PATIENCE, "it does not pause");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // Its place, the only one, is free.
    world.submit(of(1, 8), "beside it", 5).finish();
    let mut pieces = String::new();
    loop {
        assert!(begun.elapsed() < PATIENCE, "it does not go on");
        client.flush().unwrap();
        match client.receive().unwrap() {
            Some(FromEngine::Event(Event { kind: EventKind::Progress { text, .. }, .. })) => {
                pieces.push_str(&text);
                client.read(1).unwrap();
            }
            Some(FromEngine::Event(Event { kind: EventKind::Done(Output::Text { text, .. }), .. })) => {
                assert!(text.starts_with(&pieces));
                assert_eq!(text, expected);
                break;
            }
            Some(FromEngine::Event(Event { kind: EventKind::Failed(error), .. })) => panic!("{error}"),
            Some(_) => {}
            None => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
    drop(server);
}

#[test]
fn tokens_that_constraints_force_leave_rows_to_the_prompts_of_others() {
    let world = world(Config { prefill_rows: vec![8], ..Config::default() });
    let words: Vec<String> =
        (b'a'..b'i').map(|first| format!("{}{}", char::from(first), "qz".repeat(60))).collect();
    let schema =
        serde_json::json!({ "type": "array", "minItems": 30, "maxItems": 30, "items": { "enum": words } });
    let forced: Vec<SubmittedRequest> = (0..8)
        .map(|i| {
            let request = world.request(&format!("words {i}"), 4000);
            let Work::Generate(how) = request.work else { panic!("it generates") };
            let constraint = Some(Constraint::Json(schema.to_string()));
            let request = Request { work: Work::Generate(Generate { constraint, ..how }), ..request };
            let (sender, events) = unbounded();
            let ticket = Ticket::new();
            world.engine.submit_as(request, of(1, 8), Reply::new(sender), ticket.clone());
            SubmittedRequest { ticket, events }
        })
        .collect();
    forced.iter().for_each(SubmittedRequest::wait_for_tokens);
    for (priority, most) in [(8, 60), (10, 35)] {
        let prompt = "some words before it ".repeat(8);
        let (_, turns) = world.submit(of(2, priority), &prompt, 2).finish();
        assert!(turns <= most, "it took {turns} turns at priority {priority}");
    }
    assert!(forced.iter().all(|running| !ended(running)), "the others are there all the time");
    forced.iter().for_each(SubmittedRequest::cancel);
}

/// Whether the last event has come.
fn ended(running: &SubmittedRequest) -> bool {
    running.events.try_iter().any(|event| matches!(event.kind, EventKind::Done(_) | EventKind::Failed(_)))
}

#[test]
fn texts_on_encoders_go_by_priority_and_owners_in_turn() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("encoder");
    Bert { kind: Kind::F16, ..Bert::default() }.write_folder(&path).unwrap();
    let engine = Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap();
    let (sender, events) = unbounded();
    let submit = |key, standing, reply| {
        let work = Work::Embed(Embed::passage(format!("w{key} w1 w2")));
        let request = Request { key, model: ModelSource::File(path.clone()), salt: 0, dedup_key: None, work };
        engine.submit_as(request, standing, reply, Ticket::new());
    };
    // Holds the engine's thread until all are submitted.
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let (arrived, at_gate) = unbounded();
    let notify = move || {
        let _ = arrived.send(());
        let _ = gate.recv();
    };
    submit(0, of(1, 5), Reply::with_notify(sender.clone(), Arc::new(notify)));
    at_gate.recv_timeout(PATIENCE).unwrap();
    (1..40).for_each(|key| submit(key, of(1, 5), Reply::new(sender.clone())));
    submit(40, of(2, 5), Reply::new(sender.clone()));
    submit(41, of(1, 10), Reply::new(sender.clone()));
    drop(go);
    let mut order = Vec::new();
    while order.len() < 42 {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(_) => order.push(event.key),
            EventKind::Failed(error) => panic!("{error}"),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    let place = |key| order.iter().position(|other| *other == key).unwrap();
    assert!(place(41) <= 1, "{order:?}");
    assert!(place(40) <= 3, "{order:?}");
}
