//! The engine from outside: requests, events, cancel, stop, limits, errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Embed, Engine, Error, Event, EventKind, Finish, Generate, ModelSource, Output, Reply, Request,
    Sampling, Ticket, Work,
};
use steadytext_test_models::{Architecture, Spec, Text, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// A directory of models and an engine.
struct World {
    directory: TempDir,
    engine: Engine,
}

impl World {
    fn new(config: Config) -> World {
        World { directory: TempDir::new().unwrap(), engine: Engine::start(config).unwrap() }
    }

    fn model(&self, name: &str, spec: &Spec) -> ModelSource {
        let path = self.path(name);
        write(spec, &path).unwrap();
        ModelSource::File(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn submit(&self, model: &ModelSource, work: Work) -> (Ticket, Receiver<Event>) {
        let (sender, events) = unbounded();
        let request = Request { key: 77, model: model.clone(), salt: 0, dedup_key: None, work };
        (self.engine.submit(request, Reply::new(sender)), events)
    }

    /// Runs a request to its end.
    fn run(&self, model: &ModelSource, work: Work) -> Result<Output, Error> {
        finish(&self.submit(model, work).1)
    }
}

/// Waits for the last event.
fn finish(events: &Receiver<Event>) -> Result<Output, Error> {
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        assert_eq!(event.key, 77);
        match event.kind {
            EventKind::Done(output) => return Ok(output),
            EventKind::Failed(error) => return Err(error),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

/// Waits until the request makes progress.
fn wait_for_progress(events: &Receiver<Event>) {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Progress { .. } => return,
            EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => {}
            EventKind::Done(_) | EventKind::Failed(_) => panic!("it ended without progress"),
        }
    }
}

fn quick() -> Config {
    Config { threads: 2, nice: 0, ..Config::default() }
}

fn endless() -> Spec {
    Spec { endless: true, context: 32_768, ..Spec::tiny(Architecture::Qwen3) }
}

fn generate(prompt: &str, max_tokens: usize) -> Work {
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    })
}

/// Varied but reproducible tokens, up to one of the strings.
fn stopping(prompt: &str, max_tokens: usize, stop: &[&str]) -> Work {
    let stop = stop.iter().map(ToString::to_string).collect();
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    Work::Generate(Generate { prompt: prompt.to_owned(), max_tokens, sampling, stop, ..Generate::default() })
}

fn embed(text: &str) -> Work {
    Work::Embed(Embed::passage(text))
}

fn text(output: Result<Output, Error>) -> (String, usize, Finish) {
    match output.unwrap() {
        Output::Text { text, generated_tokens, finish, .. } => (text, generated_tokens, finish),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_builtin_model_answers() {
    let world = World::new(quick());
    let (answer, tokens, _) = text(world.run(&ModelSource::Builtin, generate("What does VACUUM do?", 40)));
    assert!(tokens > 5, "{answer}");
    assert!(answer.contains("VACUUM"), "{answer}");
    let Output::Embedding(vector) = world.run(&ModelSource::Builtin, embed("a text")).unwrap() else {
        panic!("no embedding")
    };
    assert_eq!(vector.len(), 256);
    let loaded = world.engine.loaded_models();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].name, "builtin");
    assert!(loaded[0].memory_mb > 0);
}

#[test]
fn events_come_in_order_and_progress_adds_up() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &endless());
    let notifications = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&notifications);
    let (sender, events) = unbounded();
    let reply = Reply::with_notify(
        sender,
        Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        }),
    );
    world.engine.submit(
        Request { key: 1, model, salt: 0, dedup_key: None, work: generate("hello there", 3000) },
        reply,
    );
    let (mut partial, mut told, mut progress, mut received) = (String::new(), 0, 0, 0);
    let (mut started, mut begun) = (false, false);
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        received += 1;
        match event.kind {
            EventKind::Loading => assert!(!started),
            EventKind::Started { prompt_tokens, .. } => {
                assert!(!started && prompt_tokens > 0);
                started = true;
            }
            EventKind::FirstToken { cached_tokens } => {
                assert!(started && !begun && cached_tokens == 0);
                begun = true;
            }
            EventKind::Progress { generated_tokens, text } => {
                assert!(begun && generated_tokens > told);
                told = generated_tokens;
                partial += &text;
                progress += 1;
            }
            EventKind::Done(Output::Text { text, generated_tokens, finish, .. }) => {
                assert_eq!((generated_tokens, finish), (3000, Finish::Length));
                assert!(text.starts_with(&partial), "progress is the beginning of the text");
                assert!(progress > 0);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(events.recv_timeout(PATIENCE).is_err(), "nothing comes after the last event");
    assert_eq!(notifications.load(Ordering::SeqCst), received, "the function is called after each event");
}

#[test]
fn a_stop_string_ends_the_text_before_it_wherever_token_borders_are() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &Spec { vocab: 4000, ..endless() });
    let (whole, ..) = text(world.run(&model, stopping("go on", 100, &[])));
    assert!(whole.len() > 80, "{whole}");
    for (start, length) in [(3, 1), (10, 3), (17, 9), (40, 20)] {
        let stop = &whole[start..start + length];
        let (cut, tokens, finish) = text(world.run(&model, stopping("go on", 100, &["never there", stop])));
        assert_eq!(cut, whole[..whole.find(stop).unwrap()], "stop at \"{stop}\"");
        assert_eq!(finish, Finish::Stop);
        assert!(tokens <= 100);
    }
    let (same, _, finish) = text(world.run(&model, stopping("go on", 100, &["never there"])));
    assert_eq!((same, finish), (whole, Finish::Length));
}

#[test]
fn cancel_takes_effect_within_a_token() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &endless());
    let (ticket, events) = world.submit(&model, generate("run for ever", 30_000));
    let (_, mate) = world.submit(&model, generate("its neighbour", 200));
    wait_for_progress(&events);
    ticket.cancel();
    assert!(matches!(finish(&events), Err(Error::Cancelled)));
    assert_eq!(text(finish(&mate)).1, 200, "its neighbour goes on");
}

#[test]
fn a_waiting_request_can_be_cancelled() {
    let world = World::new(Config { max_running: 1, ..quick() });
    let model = world.model("model.gguf", &endless());
    let (first, running) = world.submit(&model, generate("run for ever", 30_000));
    wait_for_progress(&running);
    let (second, waiting) = world.submit(&model, generate("wait", 10));
    second.cancel();
    assert!(matches!(finish(&waiting), Err(Error::Cancelled)));
    first.cancel();
    assert!(matches!(finish(&running), Err(Error::Cancelled)));
    assert_eq!(text(world.run(&model, generate("next", 5))).1, 5, "the engine goes on");
}

#[test]
fn dropping_the_engine_fails_what_is_left() {
    let world = World::new(Config { max_running: 2, ..quick() });
    let model = world.model("model.gguf", &endless());
    let requests: Vec<_> = (0..5).map(|_| world.submit(&model, generate("run for ever", 30_000))).collect();
    wait_for_progress(&requests[0].1);
    let World { engine, directory } = world;
    drop(engine);
    for (_, events) in &requests {
        assert!(matches!(finish(events), Err(Error::Stopped)));
    }
    drop(directory);
}

#[test]
fn requests_beyond_the_queue_are_refused() {
    let world = World::new(Config { max_running: 1, queue_capacity: 2, ..quick() });
    let model = world.model("model.gguf", &endless());
    let (ticket, running) = world.submit(&model, generate("run for ever", 30_000));
    wait_for_progress(&running);
    let waiting: Vec<_> = (0..2).map(|_| world.submit(&model, generate("wait", 3))).collect();
    let refused = world.run(&model, generate("too many", 3));
    assert!(matches!(refused, Err(Error::QueueFull { capacity: 2 })));
    ticket.cancel();
    for (_, events) in &waiting {
        assert_eq!(text(finish(events)).1, 3);
    }
}

#[test]
fn max_tokens_is_cut_to_the_context_and_a_prompt_without_room_is_refused() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &Spec { context: 64, ..endless() });
    let (_, events) = world.submit(&model, generate("a few words", 1000));
    let EventKind::Loading = events.recv_timeout(PATIENCE).unwrap().kind else { panic!("not loading") };
    let EventKind::Started { prompt_tokens, .. } = events.recv_timeout(PATIENCE).unwrap().kind else {
        panic!("not started")
    };
    let (_, tokens, finish) = text(finish(&events));
    assert_eq!((tokens, finish), (64 - prompt_tokens, Finish::Length));
    let long = "many words ".repeat(100);
    for work in [generate(&long, 1), embed(&long)] {
        let error = world.run(&model, work).unwrap_err();
        assert!(
            matches!(error, Error::PromptTooLong { prompt_tokens, context_length: 64 } if prompt_tokens > 64)
        );
    }
    let world = World::new(Config { context_length: 20, ..quick() });
    let model = world.model("model.gguf", &endless());
    assert!(matches!(
        world.run(&model, generate(&long, 1)),
        Err(Error::PromptTooLong { context_length: 20, .. })
    ));
}

#[test]
fn invalid_parameters_are_refused() {
    let world = World::new(quick());
    let refused = |how: Generate| {
        let result = world.run(&ModelSource::Builtin, Work::Generate(how));
        assert!(matches!(result, Err(Error::InvalidRequest(_))), "{result:?}");
    };
    let base = Generate {
        prompt: "p".to_owned(),
        max_tokens: 1,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    };
    refused(Generate { max_tokens: 0, ..base.clone() });
    refused(Generate { prompt: "p".repeat((16 << 20) + 1), ..base.clone() });
    refused(Generate { stop: vec![String::new()], ..base.clone() });
    refused(Generate { stop: vec!["x".to_owned(); 65], ..base.clone() });
    for sampling in [
        Sampling { temperature: f32::NAN, ..Sampling::default() },
        Sampling { temperature: -1.0, ..Sampling::default() },
        Sampling { top_p: 1.5, ..Sampling::default() },
        Sampling { min_p: -0.5, ..Sampling::default() },
    ] {
        refused(Generate { sampling, ..base.clone() });
    }
}

#[test]
fn an_answer_that_is_no_text_fails() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &Spec { text: Text::InvalidUtf8, ..endless() });
    let error = world.run(&model, stopping("anything", 200, &[])).unwrap_err();
    assert!(matches!(error, Error::InvalidText { position: 0 }), "{error:?}");
}

#[test]
fn a_failed_load_fails_its_requests_and_is_tried_again() {
    let world = World::new(quick());
    let path = world.path("model.gguf");
    let model = ModelSource::File(path.clone());
    assert!(matches!(world.run(&model, generate("p", 1)), Err(Error::ModelFile { .. })));
    std::fs::write(&path, b"this is no model").unwrap();
    assert!(matches!(world.run(&model, generate("p", 1)), Err(Error::CorruptModel { .. })));
    write(&endless(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(world.run(&model, embed("p")), Err(Error::CorruptModel { .. })));
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(text(world.run(&model, generate("p", 3))).1, 3);
}

#[test]
fn memory_limits_refuse_what_can_never_fit() {
    let world = World::new(Config { memory_limit_mb: 1, ..quick() });
    let error = world.run(&ModelSource::Builtin, generate("p", 1)).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { what, .. } if what.contains("builtin")), "{error:?}");
    let world = World::new(Config { kv_cache_mb: 1, ..quick() });
    let model = world.model("model.gguf", &endless());
    let error = world.run(&model, generate("p", 30_000)).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { what, .. } if what.contains("cache")), "{error:?}");
    assert_eq!(text(world.run(&model, generate("p", 30))).1, 30);
}

#[test]
fn requests_wait_for_room_in_the_cache() {
    // Room for one request at a time.
    let world = World::new(Config { kv_cache_mb: 1, ..quick() });
    let model = world.model("model.gguf", &endless());
    let requests: Vec<_> = (0..4).map(|_| world.submit(&model, generate("wait your turn", 1200))).collect();
    for (_, events) in &requests {
        assert_eq!(text(finish(events)).1, 1200);
    }
}

#[test]
fn models_make_room_for_each_other_and_idle_ones_go() {
    let size = |engine: &Engine| engine.loaded_models().iter().map(|model| model.memory_mb).sum::<u64>();
    let spec = Spec { vocab: 20_000, width: 256, ..endless() };
    let world = World::new(quick());
    let one = world.model("one.gguf", &spec);
    world.run(&one, embed("a")).unwrap();
    let limit = size(&world.engine) * 3 / 2 + 2;
    let timeout = Some(Duration::from_millis(200));
    let world =
        World::new(Config { memory_limit_mb: limit, kv_cache_mb: 1, model_idle_timeout: timeout, ..quick() });
    let one = world.model("one.gguf", &spec);
    let two = world.model("two.gguf", &Spec { seed: 2, ..spec });
    // Two models in turns: each replaces the other as soon as that is idle.
    let requests: Vec<_> =
        (0..6).map(|i| world.submit(if i % 2 == 0 { &one } else { &two }, generate("p", 50))).collect();
    for (_, events) in &requests {
        assert_eq!(text(finish(events)).1, 50);
    }
    assert_eq!(world.engine.loaded_models().len(), 1);
    let deadline = Instant::now() + PATIENCE;
    while !world.engine.loaded_models().is_empty() {
        assert!(Instant::now() < deadline, "an idle model stays");
        std::thread::yield_now();
    }
}

#[test]
fn a_notifier_that_panics_does_not_stop_the_engine() {
    let world = World::new(quick());
    let (sender, events) = unbounded();
    let reply = Reply::with_notify(sender, Arc::new(|| panic!("the function is broken")));
    let (key, model) = (77, ModelSource::Builtin);
    world.engine.submit(
        Request { key, model: model.clone(), salt: 0, dedup_key: None, work: generate("p", 5) },
        reply,
    );
    assert!(finish(&events).is_ok(), "it still gets its events");
    assert!(world.run(&model, generate("p", 5)).is_ok(), "the engine goes on");
}

#[test]
fn requests_share_the_engine_fairly() {
    let world = World::new(quick());
    let model = world.model("model.gguf", &endless());
    let (ticket, long) = world.submit(&model, generate("run for ever", 30_000));
    wait_for_progress(&long);
    let prompts: Vec<String> = (0..20).map(|i| format!("short one {i}")).collect();
    let short: Vec<_> = prompts.iter().map(|prompt| world.submit(&model, generate(prompt, 5))).collect();
    for (_, events) in &short {
        assert_eq!(text(finish(events)).1, 5);
    }
    assert!(
        long.try_iter()
            .all(|event| matches!(event.kind, EventKind::Progress { .. } | EventKind::FirstToken { .. })),
        "still running"
    );
    ticket.cancel();
    assert!(matches!(finish(&long), Err(Error::Cancelled)));
}

#[test]
fn a_storm_of_requests_and_cancels_loses_none_and_doubles_none() {
    let timeout = Some(Duration::from_millis(1));
    let world = World::new(Config { kv_cache_mb: 4, max_running: 6, model_idle_timeout: timeout, ..quick() });
    let models =
        [ModelSource::Builtin, world.model("one.gguf", &endless()), world.model("two.gguf", &endless())];
    let (sender, events) = unbounded();
    let mut tickets = Vec::new();
    for key in 0..600u64 {
        let size = (key * 7919 % 41) as usize;
        let text = "word ".repeat(size % 13 + 1);
        let work = if key % 3 == 0 { embed(&text) } else { generate(&text, size + 1) };
        let model = models[(key % 7 % 3) as usize].clone();
        tickets.push(
            world
                .engine
                .submit(Request { key, model, salt: 0, dedup_key: None, work }, Reply::new(sender.clone())),
        );
        if key % 5 == 0 {
            tickets[(key * 31 % (key + 1)) as usize].cancel();
        }
    }
    drop(sender);
    let mut lasts = vec![0; tickets.len()];
    let (mut done, mut cancelled) = (0, 0);
    while lasts.contains(&0) {
        let Ok(event) = events.recv_timeout(PATIENCE) else { break };
        match event.kind {
            EventKind::Done(_) => done += 1,
            EventKind::Failed(Error::Cancelled) => {
                assert!(tickets[event.key as usize].is_cancelled());
                cancelled += 1;
            }
            EventKind::Failed(error) => panic!("request {}: {error}", event.key),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => continue,
        }
        lasts[event.key as usize] += 1;
    }
    assert!(events.try_iter().next().is_none(), "nothing follows");
    assert!(lasts.iter().all(|count| *count == 1), "{lasts:?}");
    assert_eq!(done + cancelled, 600);
    assert!(done > 300, "{done} done, {cancelled} cancelled");
}

/// The path of a test model as it is shown in errors.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn errors_name_the_file() {
    let world = World::new(quick());
    let path = world.path("not there.gguf");
    let error = world.run(&ModelSource::File(path.clone()), embed("a")).unwrap_err();
    assert!(error.to_string().contains(&shown(&path)));
}
