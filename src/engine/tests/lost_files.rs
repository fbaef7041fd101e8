//! Files that are cut short under a running engine: their requests fail, the others go on, and the next
//! request opens the file again. Without the signal handler, the process of a test ends by a signal.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Probe, Reply, Request, Sampling,
    Work,
};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, write};
use tempfile::TempDir;

use crate::{PATIENCE, alone};

struct World {
    directory: TempDir,
    engine: Engine,
}

impl World {
    fn new() -> World {
        let config = Config { threads: 2, nice: 0, ..Config::default() };
        World { directory: TempDir::new().unwrap(), engine: Engine::start(config).unwrap() }
    }

    fn model(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        write(&spec(), &path).unwrap();
        path
    }

    fn submit(&self, model: &Path, max_tokens: usize) -> Receiver<Event> {
        let (sender, events) = unbounded();
        let work = Work::Generate(Generate {
            prompt: "go on".to_owned(),
            max_tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ..Generate::default()
        });
        let request =
            Request { key: 1, model: ModelSource::File(model.into()), salt: 0, dedup_key: None, work };
        self.engine.submit(request, Reply::new(sender));
        events
    }
}

/// Its embedding is looked up in the model's file, all else is in panels; both are larger than the system's
/// read-ahead.
fn spec() -> Spec {
    Spec {
        tied: false,
        vocab: 20_000,
        endless: true,
        context: 32_768,
        quantization: Quantization { embedding: Kind::F32, ..Quantization::uniform(Kind::Q8_0) },
        ..Spec::small(Architecture::Qwen3)
    }
}

fn panels(model: &Path) -> PathBuf {
    model.with_file_name(format!("{}.panels", model.file_name().unwrap().to_str().unwrap()))
}

/// Truncates a file to nothing, and keeps its name and inode.
fn cut(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
}

fn wait_for_progress(events: &Receiver<Event>) {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Progress { .. } => return,
            EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => {}
            other => panic!("it ended without progress: {other:?}"),
        }
    }
}

fn finish(events: &Receiver<Event>) -> Result<Output, Error> {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => return Ok(output),
            EventKind::Failed(error) => return Err(error),
            _ => {}
        }
    }
}

fn check_lost(events: &Receiver<Event>, file: &Path) {
    match finish(events) {
        Err(Error::LostModel { path }) => assert_eq!(path, file),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_file_that_is_cut_short_fails_its_requests_and_no_others() {
    alone("lost_files::a_model_file_that_is_cut_short_fails_its_requests_and_no_others", cut_a_model);
}

fn cut_a_model() {
    let world = World::new();
    let (model, other) = (world.model("model.gguf"), world.model("other.gguf"));
    let before = finish(&world.submit(&model, 20)).unwrap();
    let first = world.submit(&model, 30_000);
    let second = world.submit(&model, 30_000);
    let neighbour = world.submit(&other, 1000);
    wait_for_progress(&first);
    wait_for_progress(&second);
    cut(&model);
    check_lost(&first, &model);
    check_lost(&second, &model);
    assert!(finish(&neighbour).is_ok(), "the other model goes on");
    assert!(matches!(finish(&world.submit(&model, 5)), Err(Error::CorruptModel { .. })), "an empty file");
    write(&spec(), &model).unwrap();
    assert_eq!(finish(&world.submit(&model, 20)).unwrap(), before, "put back, it answers as before");
}

#[test]
fn a_file_of_panels_that_is_cut_short_is_made_anew() {
    alone("lost_files::a_file_of_panels_that_is_cut_short_is_made_anew", cut_panels);
}

fn cut_panels() {
    let world = World::new();
    let model = world.model("model.gguf");
    let before = finish(&world.submit(&model, 20)).unwrap();
    let events = world.submit(&model, 30_000);
    wait_for_progress(&events);
    cut(&panels(&model));
    check_lost(&events, &panels(&model));
    assert_eq!(finish(&world.submit(&model, 20)).unwrap(), before);
    assert!(std::fs::metadata(panels(&model)).unwrap().len() > 1 << 20);
}

#[test]
fn files_that_are_cut_short_between_loading_and_use_fail_the_first_use() {
    alone("lost_files::files_that_are_cut_short_between_loading_and_use_fail_the_first_use", cut_before_use);
}

fn cut_before_use() {
    for of_panels in [false, true] {
        let directory = TempDir::new().unwrap();
        let model = directory.path().join("model.gguf");
        write(&spec(), &model).unwrap();
        // The first one writes the panels and has read them; the second one has only mapped them.
        drop(Probe::open(&ModelSource::File(model.clone()), 2).unwrap());
        let mut probe = Probe::open(&ModelSource::File(model.clone()), 2).unwrap();
        let file = if of_panels { panels(&model) } else { model.clone() };
        cut(&file);
        match probe.extend(&[1, 2, 19_000]) {
            Err(Error::LostModel { path }) => assert_eq!(path, file),
            other => panic!("{other:?}"),
        }
    }
}
