//! Requests that ask for the same at the same time are computed once; a model whose file was replaced is
//! loaded anew.

use std::path::Path;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, ModelIdentity, ModelSource, Output, Reply, Request,
    Sampling, Ticket, Work,
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
    fn new() -> World {
        let (sender, events) = unbounded();
        let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
        World { directory: TempDir::new().unwrap(), engine, sender, events }
    }

    fn model(&self, seed: u64) -> ModelSource {
        // As an administrator would replace it: never half written.
        let (path, new) = (self.directory.path().join("model.gguf"), self.directory.path().join("new"));
        let spec = Spec { endless: true, context: 4096, seed, ..Spec::tiny(Architecture::Qwen3) };
        write(&spec, &new).unwrap();
        std::fs::rename(&new, &path).unwrap();
        ModelSource::File(path)
    }

    fn submit(&self, key: u64, model: &ModelSource, key_byte: Option<u8>, max_tokens: usize) -> Ticket {
        let work = Work::Generate(Generate {
            prompt: "the same for all".to_owned(),
            max_tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ..Generate::default()
        });
        let dedup_key = key_byte.map(|byte| [byte; 32]);
        let request = Request { key, model: model.clone(), salt: key, dedup_key, work };
        self.engine.submit(request, Reply::new(self.sender.clone()))
    }

    /// The last events of so many requests, by key.
    fn endings(&self, count: usize) -> Vec<(u64, Result<Output, Error>)> {
        let mut endings = Vec::new();
        while endings.len() < count {
            let event = self.events.recv_timeout(PATIENCE).unwrap();
            match event.kind {
                EventKind::Done(output) => endings.push((event.key, Ok(output))),
                EventKind::Failed(error) => endings.push((event.key, Err(error))),
                EventKind::Loading
                | EventKind::Started { .. }
                | EventKind::FirstToken { .. }
                | EventKind::Progress { .. } => {}
            }
        }
        endings.sort_by_key(|(key, _)| *key);
        endings
    }

    fn wait_for_progress(&self) {
        while !matches!(self.events.recv_timeout(PATIENCE).unwrap().kind, EventKind::Progress { .. }) {}
    }
}

fn identity(events: &Receiver<Event>) -> ModelIdentity {
    loop {
        if let EventKind::Started { model, .. } = events.recv_timeout(PATIENCE).unwrap().kind {
            return model;
        }
    }
}

fn recorded(model: &ModelSource) -> Option<ModelIdentity> {
    let ModelSource::File(path) = model else { return None };
    ModelIdentity::recorded(Path::new(path))
}

#[test]
fn twenty_requests_of_one_key_are_computed_once_and_all_get_the_result() {
    let world = World::new();
    let model = world.model(1);
    world.submit(0, &model, None, 2000);
    let alone = world.endings(1).remove(0).1.unwrap();
    let before = world.engine.statistics();
    for key in 0..20 {
        world.submit(key, &model, Some(1), 2000);
    }
    let endings = world.endings(20);
    let keys: Vec<u64> = endings.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, (0..20).collect::<Vec<_>>());
    for (_, output) in endings {
        assert_eq!(output.unwrap(), alone);
    }
    let after = world.engine.statistics();
    assert_eq!(after.joined_requests - before.joined_requests, 19);
    let once = after.computed_tokens - before.computed_tokens;
    assert!(once < 2100, "{once} tokens were computed");
    assert!(world.events.try_recv().is_err());
}

#[test]
fn requests_of_other_keys_and_of_none_are_computed_by_themselves() {
    let world = World::new();
    let model = world.model(1);
    for (key, key_byte) in [None, None, Some(1), Some(2)].into_iter().enumerate() {
        world.submit(key as u64, &model, key_byte, 40);
    }
    assert_eq!(world.endings(4).len(), 4);
    assert_eq!(world.engine.statistics().joined_requests, 0);
}

#[test]
fn a_request_that_is_cancelled_leaves_its_work_to_those_who_joined_it() {
    let world = World::new();
    let model = world.model(1);
    let first = world.submit(1, &model, Some(1), 4000);
    world.wait_for_progress();
    world.submit(2, &model, Some(1), 4000);
    let third = world.submit(3, &model, Some(1), 4000);
    let deadline = Instant::now() + PATIENCE;
    while world.engine.statistics().joined_requests < 2 {
        assert!(Instant::now() < deadline, "they join what runs");
        std::thread::yield_now();
    }
    first.cancel();
    assert!(matches!(world.endings(1)[..], [(1, Err(Error::Cancelled))]));
    third.cancel();
    assert!(matches!(world.endings(1)[..], [(3, Err(Error::Cancelled))]));
    let ending = world.endings(1).remove(0);
    assert_eq!(ending.0, 2);
    assert!(matches!(ending.1.unwrap(), Output::Text { generated_tokens: 4000, .. }));
}

#[test]
fn an_error_is_everybodys() {
    let world = World::new();
    let model = ModelSource::File(world.directory.path().join("absent.gguf"));
    for key in 0..3 {
        world.submit(key, &model, Some(1), 4);
    }
    for (_, ending) in world.endings(3) {
        assert!(matches!(ending, Err(Error::ModelFile { .. })));
    }
}

#[test]
fn a_model_whose_file_was_replaced_is_loaded_anew_and_each_answer_says_which_one_gave_it() {
    let world = World::new();
    let model = world.model(1);
    assert_eq!(recorded(&model), None);
    let endless = world.submit(1, &model, None, 3000);
    let first = identity(&world.events);
    assert_eq!(recorded(&model), Some(first));
    world.wait_for_progress();
    // A running request goes on with the file that it began with; later ones of the model wait for its end.
    world.model(2);
    world.submit(2, &model, None, 4);
    world.submit(3, &ModelSource::Builtin, None, 4);
    assert!(matches!(world.endings(1)[..], [(3, Ok(_))]));
    endless.cancel();
    let second = identity(&world.events);
    assert_ne!(second.hash, first.hash);
    assert_eq!(recorded(&model), Some(second));
    // The event of the cancelled request may come before or after.
    assert!(world.endings(1).iter().any(|(key, _)| *key == 2));
}

#[test]
fn a_request_does_not_join_work_with_a_file_that_was_replaced() {
    let world = World::new();
    let model = world.model(1);
    let old = world.submit(1, &model, Some(1), 3000);
    world.wait_for_progress();
    world.model(2);
    // The second waits, and the third for the second.
    world.submit(2, &model, Some(1), 3000);
    world.submit(3, &model, Some(1), 3000);
    old.cancel();
    let endings = world.endings(3);
    assert!(matches!(endings[0], (1, Err(Error::Cancelled))), "the one with the old file was alone");
    world.submit(4, &model, None, 3000);
    let alone = world.endings(1).remove(0).1.unwrap();
    assert!(
        endings[1..].iter().all(|(_, ending)| ending.as_ref().unwrap() == &alone),
        "the new file answers"
    );
    assert_eq!(world.engine.statistics().joined_requests, 1);
}
