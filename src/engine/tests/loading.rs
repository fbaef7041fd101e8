//! Models are loaded beside the engine thread: other requests do not wait, and no request waits for ever.
//!
//! The tests hold up a load by means of the lock that another process would have while it writes the file of
//! panels.

use std::fs::File;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::fs::{FlockOperation, flock};
use steadytext_engine::{
    Config, Embed, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Reply, Request, Sampling,
    Ticket, Work,
};
use steadytext_test_models::{Architecture, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

struct World {
    directory: TempDir,
    engine: Engine,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl World {
    fn new(config: Config) -> World {
        let (sender, events) = unbounded();
        let engine = Engine::start(Config { threads: 2, nice: 0, ..config }).unwrap();
        World { directory: TempDir::new().unwrap(), engine, sender, events }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn model(&self, name: &str) -> ModelSource {
        let path = self.path(name);
        write(&Spec { endless: true, context: 32_768, ..Spec::tiny(Architecture::Qwen3) }, &path).unwrap();
        ModelSource::File(path)
    }

    /// Loading the model stops until the file is dropped.
    fn hold_up(&self, name: &str) -> File {
        let path = self.path(&format!("{name}.panels.new"));
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    }

    fn submit(&self, key: u64, model: &ModelSource, work: Work) -> Ticket {
        self.engine.submit(
            Request { key, model: model.clone(), salt: 0, dedup_key: None, work },
            Reply::new(self.sender.clone()),
        )
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    /// The next event, progress aside, must be the last one of this request.
    fn ended(&self, key: u64) -> Result<Output, Error> {
        loop {
            let event = self.next();
            assert_eq!(event.key, key, "{:?}", event.kind);
            match event.kind {
                EventKind::Done(output) => return Ok(output),
                EventKind::Failed(error) => return Err(error),
                _ => {}
            }
        }
    }
}

fn embed(text: &str) -> Work {
    Work::Embed(Embed::passage(text))
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

#[test]
fn requests_of_other_models_go_on_while_a_model_is_loaded() {
    let world = World::new(Config::default());
    let model = world.model("model.gguf");
    let lock = world.hold_up("model.gguf");
    for key in 1..=3 {
        world.submit(key, &model, generate("the same for all", 5));
    }
    // Requests behind it are told when it is their turn.
    let event = world.next();
    assert!(event.key == 1 && matches!(event.kind, EventKind::Loading), "{event:?}");
    for key in 10..13 {
        world.submit(key, &ModelSource::Builtin, embed("beside it"));
        assert!(world.ended(key).is_ok());
    }
    drop(lock);
    let mut answers = Vec::new();
    while answers.len() < 3 {
        if let EventKind::Done(output) = world.next().kind {
            answers.push(output);
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let of_file = world.engine.loaded_models().into_iter().filter(|loaded| loaded.name != "builtin");
    assert_eq!(of_file.count(), 1, "it was loaded once");
}

#[test]
fn a_failed_load_fails_all_that_wait_for_it_and_nobody_else() {
    let world = World::new(Config::default());
    std::fs::write(world.path("broken.gguf"), b"this is no model").unwrap();
    let broken = ModelSource::File(world.path("broken.gguf"));
    for key in 1..=5 {
        world.submit(key, &broken, embed("p"));
        world.submit(10 + key, &ModelSource::Builtin, embed("p"));
    }
    let (mut failed, mut done) = (0, 0);
    while failed + done < 10 {
        let event = world.next();
        match event.kind {
            EventKind::Failed(error) => {
                assert!(event.key <= 5 && matches!(error, Error::CorruptModel { .. }), "{error:?}");
                failed += 1;
            }
            EventKind::Done(_) => {
                assert!(event.key > 10);
                done += 1;
            }
            _ => {}
        }
    }
    assert_eq!((failed, done), (5, 5));
}

#[test]
fn a_request_that_waits_for_its_model_can_be_cancelled_and_stopped() {
    let world = World::new(Config::default());
    let model = world.model("model.gguf");
    let _lock = world.hold_up("model.gguf");
    let ticket = world.submit(1, &model, embed("p"));
    assert!(matches!(world.next().kind, EventKind::Loading));
    ticket.cancel();
    assert!(matches!(world.ended(1), Err(Error::Cancelled)));
    world.submit(2, &model, embed("p"));
    let World { engine, events, .. } = world;
    // It returns although the lock is held: the load is abandoned.
    drop(engine);
    let last = std::iter::from_fn(|| events.try_recv().ok()).last().unwrap();
    assert!(last.key == 2 && matches!(last.kind, EventKind::Failed(Error::Stopped)), "{last:?}");
}

#[test]
fn long_texts_are_tokenized_beside_and_overtaken_by_short_ones() {
    let world = World::new(Config { max_running: 4, ..Config::default() });
    let model = world.model("model.gguf");
    world.submit(1, &model, embed("load it"));
    assert!(matches!(world.next().kind, EventKind::Loading));
    assert!(world.ended(1).is_ok());
    let long = "one word after the other ".repeat(600);
    world.submit(2, &model, embed(&long));
    world.submit(3, &model, embed("short"));
    world.submit(4, &model, embed(&long));
    world.submit(5, &model, embed(&"too long for its context ".repeat(6000)));
    let (mut started, mut ended) = (Vec::new(), Vec::new());
    let mut vectors = Vec::new();
    while ended.len() < 4 {
        let event = world.next();
        match event.kind {
            EventKind::Started { .. } => started.push(event.key),
            EventKind::Done(Output::Embedding(vector)) => {
                ended.push(event.key);
                if event.key != 3 {
                    vectors.push(vector);
                }
            }
            EventKind::Failed(error) => {
                assert!(event.key == 5 && matches!(error, Error::PromptTooLong { .. }), "{error:?}");
                ended.push(event.key);
            }
            _ => {}
        }
    }
    let place = |key| started.iter().position(|started| *started == key);
    assert!(place(2) < place(4) && place(3) < place(4) && started.len() == 3, "{started:?}");
    assert_eq!(vectors[0], vectors[1]);
}

#[test]
fn a_directory_that_cannot_be_written_costs_memory_and_nothing_else() {
    let world = World::new(Config::default());
    let model = world.model("model.gguf");
    world.submit(1, &model, generate("p", 20));
    let stored = world.ended(1).unwrap();
    std::fs::copy(world.path("model.gguf"), world.path("copy.gguf")).unwrap();
    // Not even root can rename a file over a directory.
    std::fs::create_dir(world.path("copy.gguf.panels")).unwrap();
    std::fs::set_permissions(world.path("copy.gguf.panels"), std::fs::Permissions::from_mode(0o555)).unwrap();
    world.submit(2, &ModelSource::File(world.path("copy.gguf")), generate("p", 20));
    assert_eq!(world.ended(2).unwrap(), stored);
    assert!(!world.path("copy.gguf.panels.new").exists());
}
