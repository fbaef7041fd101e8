//! Files of panels: made once, trusted only where they may be, replaced otherwise; and the weights are the
//! same in every case.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use steadytext_test_models::{Architecture, Quantization, Spec, write};
use tempfile::TempDir;

use super::{PackedState, PackedWeights, manifest::Manifest, stored, verify_packed_weights};
use crate::Error;
use crate::computing::Loading;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;

/// A directory with a model.
struct World {
    directory: TempDir,
    pool: Pool,
}

impl World {
    fn new(seed: u64) -> World {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let world = World {
            directory: TempDir::new().unwrap(),
            pool: Pool::new(2, Instructions::best(), &start).unwrap(),
        };
        world.write_model(seed);
        world
    }

    fn write_model(&self, seed: u64) {
        let small = Spec::small(Architecture::Qwen3);
        let spec = Spec { tied: true, quantization: Quantization::q4_k_m(), seed, ..small };
        write(&spec, &self.model()).unwrap();
    }

    fn model(&self) -> std::path::PathBuf {
        self.directory.path().join("model.gguf")
    }

    fn panels(&self) -> std::path::PathBuf {
        stored::path_of(&self.model()).unwrap()
    }

    fn loading(&self) -> Loading<'_> {
        Loading { pool: &self.pool, stop: &|| false }
    }

    fn open(&self) -> PackedWeights {
        PackedWeights::open(&Gguf::open(&self.model()).unwrap(), &self.loading()).unwrap()
    }

    fn state(&self) -> PackedState {
        verify_packed_weights(&Gguf::open(&self.model()).unwrap(), 2).unwrap().1
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The bytes of all panels.
fn content(panels: &PackedWeights) -> Vec<u8> {
    panels.mapping[panels.start..][..panels.manifest.panel_bytes()].to_vec()
}

fn change(path: &Path, at: usize) {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o400)).unwrap();
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

/// Checks that the file in place is not trusted, but replaced by a sound one.
fn check_replaced(world: &World, expected: &[u8], why: &str) {
    let panels = world.open();
    assert!(panels.stored() && content(&panels) == expected, "{why}");
    assert_eq!(world.state(), PackedState::Sound, "{why}");
    let metadata = std::fs::symlink_metadata(world.panels()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o400, "{why}");
    assert!(metadata.is_file() && metadata.nlink() == 1, "{why}");
}

#[test]
fn panels_are_stored_once_and_mapped_from_then_on() {
    let world = World::new(1);
    assert_eq!(world.state(), PackedState::Absent);
    let first = world.open();
    assert!(first.stored());
    assert_eq!(world.names(), ["model.gguf", "model.gguf.panels"]);
    let (expected, made) = (content(&first), inode(&world.panels()));
    assert!(expected.iter().any(|byte| *byte != 0));
    assert_eq!(content(&world.open()), expected);
    assert_eq!(inode(&world.panels()), made, "the second time nothing is written");
    check_replaced(&world, &expected, "as it was");
    assert_eq!(inode(&world.panels()), made);
    // Every tensor is where its matrix looks for it.
    let gguf = Gguf::open(&world.model()).unwrap();
    assert!(first.manifest.entries.len() > 10);
    for entry in &first.manifest.entries {
        assert!(entry.offset.is_multiple_of(64));
        assert!(first.get(&gguf, &entry.name, entry.inputs, entry.outputs).is_ok());
        assert!(first.get(&gguf, &entry.name, entry.inputs, entry.outputs + 16).is_err());
    }
}

#[test]
fn memory_of_ones_own_holds_the_same_panels() {
    let world = World::new(1);
    let stored = world.open();
    let gguf = Gguf::open(&world.model()).unwrap();
    let anonymous = PackedWeights::anonymous(&gguf, Manifest::of(&gguf), &world.loading()).unwrap();
    assert!(stored.stored() && !anonymous.stored());
    assert_eq!(content(&stored), content(&anonymous));
}

#[test]
fn a_file_that_is_not_what_it_should_be_is_replaced() {
    let world = World::new(1);
    let expected = content(&world.open());
    let (path, length) = (world.panels(), std::fs::metadata(world.panels()).unwrap().len());
    let writable = || std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let file = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [0, 8, 20, 100, 500] {
        change(&path, at);
        assert_eq!(world.state(), PackedState::Stale, "byte {at}");
        check_replaced(&world, &expected, "a changed head");
    }
    for length in [0, 10, 4096, length - 1, length + 1] {
        writable();
        file().set_len(length).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        check_replaced(&world, &expected, "another length");
    }
    writable();
    check_replaced(&world, &expected, "it can be written to");
    std::fs::hard_link(&path, world.directory.path().join("second")).unwrap();
    check_replaced(&world, &expected, "it has a second name");
    let elsewhere = world.directory.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    check_replaced(&world, &expected, "it is a link");
}

#[test]
fn a_changed_byte_of_a_panel_is_found_by_verify() {
    let world = World::new(1);
    world.open();
    let length = std::fs::metadata(world.panels()).unwrap().len() as usize;
    change(&world.panels(), length - 70);
    assert_eq!(world.state(), PackedState::Corrupt);
}

#[test]
fn another_model_under_the_same_name_gets_panels_of_its_own() {
    let world = World::new(1);
    let first = content(&world.open());
    world.write_model(2);
    assert_eq!(world.state(), PackedState::Stale);
    let second = world.open();
    assert!(second.stored());
    assert_ne!(content(&second), first);
    assert_eq!(world.state(), PackedState::Sound);
}

#[test]
fn a_file_that_a_crash_left_is_taken_over_or_removed() {
    let world = World::new(1);
    let left = world.directory.path().join("model.gguf.panels.new");
    std::fs::write(&left, b"half of it").unwrap();
    let expected = content(&world.open());
    assert!(!left.exists());
    check_replaced(&world, &expected, "built over what was left");
    std::fs::write(&left, b"half of it").unwrap();
    world.open();
    assert!(!left.exists(), "removed where there was nothing to build");
    // A link in its place, made by another user, is not followed.
    let victim = world.directory.path().join("victim");
    std::fs::write(&victim, b"precious").unwrap();
    std::fs::remove_file(world.panels()).unwrap();
    symlink(&victim, &left).unwrap();
    assert!(!world.open().stored(), "without a place to build there is anonymous memory");
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn where_nothing_can_be_stored_memory_does() {
    let world = World::new(1);
    let expected = content(&world.open());
    // A directory in its place can't be replaced by any user.
    std::fs::remove_file(world.panels()).unwrap();
    std::fs::create_dir(world.panels()).unwrap();
    let panels = world.open();
    assert!(!panels.stored() && content(&panels) == expected);
    assert!(
        !crate::builtin::gguf().is_ok_and(|gguf| gguf.file_id().is_some()),
        "the builtin model has no file"
    );
}

#[test]
fn one_builds_and_the_others_wait_for_it() {
    let world = World::new(1);
    let model = world.model();
    let contents = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
                    let pool = Pool::new(2, Instructions::best(), &start).unwrap();
                    let gguf = Gguf::open(&model).unwrap();
                    let panels =
                        PackedWeights::open(&gguf, &Loading { pool: &pool, stop: &|| false }).unwrap();
                    assert!(panels.stored());
                    content(&panels)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(contents.iter().all(|content| *content == contents[0]));
    assert_eq!(world.names(), ["model.gguf", "model.gguf.panels"]);
}

#[test]
fn who_waits_for_a_builder_can_be_stopped() {
    let world = World::new(1);
    let busy = world.directory.path().join("model.gguf.panels.new");
    let file = std::fs::File::create(&busy).unwrap();
    std::fs::set_permissions(&busy, Permissions::from_mode(0o600)).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let gguf = Gguf::open(&world.model()).unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let stop = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 3;
    let stopped = PackedWeights::open(&gguf, &Loading { pool: &world.pool, stop: &stop });
    assert!(matches!(stopped.err(), Some(Error::Stopped)));
    drop(file);
    assert!(world.open().stored());
}

#[test]
fn a_build_that_is_stopped_leaves_nothing() {
    let world = World::new(1);
    let gguf = Gguf::open(&world.model()).unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let stop = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 1;
    let stopped = PackedWeights::open(&gguf, &Loading { pool: &world.pool, stop: &stop });
    assert!(matches!(stopped.err(), Some(Error::Stopped)));
    assert_eq!(world.names(), ["model.gguf"]);
}
