//! Downloads from a hub on this machine, which makes all the mistakes that hubs and networks make.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use steadytext_engine::card::{Card, Task};
use steadytext_engine::hub::{Hub, HubError, Order, Progress, Pulled, Reference, Token, pull};
use steadytext_test_models::hub::{Fault, LocalHub};
use tempfile::TempDir;

pub(super) const REPOSITORY: &str = "acme/tiny-1B-GGUF";
pub(super) const FILE: &str = "tiny-1B-Q8_0.gguf";

pub(super) struct World {
    pub(super) hub: LocalHub,
    directory: TempDir,
    pub(super) progress: Arc<Progress>,
    token: Option<Token>,
}

/// A hub with a file that takes several reads.
pub(super) fn world() -> World {
    let hub = LocalHub::start().unwrap();
    hub.add(REPOSITORY, FILE, bytes(1));
    World { hub, directory: TempDir::new().unwrap(), progress: Arc::default(), token: None }
}

pub(super) fn bytes(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    b"GGUF".iter().copied().chain(std::iter::repeat_with(next)).take(1_000_000).collect()
}

pub(super) fn order(reference: &str) -> Order {
    Order { reference: Reference::parse(reference).unwrap(), name: None, sha256: None, card: Card::default() }
}

impl World {
    pub(super) fn settings(&self) -> Hub {
        Hub {
            endpoint: self.hub.endpoint(),
            token: self.token.clone(),
            tries: 3,
            first_pause: Duration::from_millis(1),
            ..Hub::default()
        }
    }

    pub(super) fn pull(&self, reference: &str) -> Result<Pulled, HubError> {
        self.order(&order(reference))
    }

    pub(super) fn order(&self, order: &Order) -> Result<Pulled, HubError> {
        pull(&self.settings(), order, self.path(), &self.progress)
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    pub(super) fn card(&self, name: &str) -> Card {
        Card::read(&self.path().join(name)).unwrap().unwrap()
    }

    /// The files in the directory of the models, without those that are being fetched.
    pub(super) fn names(&self) -> Vec<String> {
        let entries =
            self.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.filter(|name| name != ".pull").collect();
        names.sort();
        names
    }

    /// The files that are being fetched.
    pub(super) fn staged(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.path().join(".pull")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.retain(|path| path.extension().is_some_and(|extension| extension != "lock"));
        files
    }

    pub(super) fn ranges(&self) -> Vec<Option<String>> {
        self.hub.asked().into_iter().filter(|asked| asked.place == "store").map(|asked| asked.range).collect()
    }
}

#[test]
fn a_model_arrives_with_its_card_and_leaves_nothing_else() {
    let world = world();
    world.hub.describe(
        REPOSITORY,
        serde_json::json!({"cardData": {"license": "apache-2.0"}, "pipeline_tag": "text-generation"}),
    );
    let pulled = world.pull(REPOSITORY).unwrap();
    assert_eq!((pulled.name.as_str(), pulled.size, pulled.was_there), (FILE, 1_000_000, false));
    assert_eq!(world.read(FILE), bytes(1));
    assert_eq!(world.names(), [FILE.to_owned(), format!("{FILE}.card.json")]);
    assert!(world.staged().is_empty());
    let mode = pulled.path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let card = world.card(FILE);
    assert_eq!(card.repository.as_deref(), Some(REPOSITORY));
    assert_eq!(card.revision.as_deref(), Some("0123456789abcdef0123456789abcdef01234567"));
    assert_eq!(card.file.as_deref(), Some(FILE));
    assert_eq!(card.sha256, Some(world.hub.sha256(REPOSITORY, FILE)));
    assert_eq!(
        (card.size, card.licence.as_deref(), &*card.tasks),
        (Some(1_000_000), Some("apache-2.0"), &[Task::Generate][..])
    );
    assert_eq!(card.downloaded_at.unwrap().len(), 20);
    let moment = world.progress.moment();
    assert_eq!((moment.total, moment.done), (1_000_000, 1_000_000));

    // A second pull finds it, and fetches none of its bytes.
    assert!(world.pull(REPOSITORY).unwrap().was_there);
    assert_eq!(world.hub.times(FILE), 1);
    // Without its card, it is recognised by its content.
    std::fs::remove_file(world.path().join(format!("{FILE}.card.json"))).unwrap();
    assert!(world.pull(REPOSITORY).unwrap().was_there);
    assert_eq!(
        (world.hub.times(FILE), world.card(FILE).sha256),
        (1, Some(world.hub.sha256(REPOSITORY, FILE)))
    );
    // A file of the same length with another content is replaced.
    world.hub.add(REPOSITORY, FILE, bytes(2));
    assert!(!world.pull(REPOSITORY).unwrap().was_there);
    assert_eq!(world.read(FILE), bytes(2));
}

#[test]
fn what_was_cut_goes_on_where_it_was() {
    let world = world();
    world.hub.fault(
        FILE,
        [Fault::Cut(300_000), Fault::Cut(200_000), Fault::Status(503, None), Fault::Cut(100_000)],
    );
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    let begins: Vec<u64> = world
        .ranges()
        .iter()
        .flatten()
        .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap())
        .collect();
    assert_eq!(begins, [300_000, 500_000, 500_000, 600_000]);
    assert!(
        world
            .hub
            .asked()
            .iter()
            .filter(|asked| asked.range.is_some() && asked.place == "store")
            .all(|asked| asked.if_range.is_some())
    );
}

#[test]
fn attempts_that_bring_nothing_end_and_what_has_arrived_is_kept_for_the_next_call() {
    let world = world();
    world.hub.fault(FILE, [Fault::Cut(300_000), Fault::Cut(0), Fault::Cut(0), Fault::Cut(0)]);
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.hint().unwrap().contains("kept"));
    assert!(world.names().is_empty() && !world.staged().is_empty());
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    assert_eq!(world.ranges().last().unwrap().as_deref(), Some("bytes=300000-"));
}

#[test]
fn a_process_that_is_killed_leaves_what_has_arrived() {
    let world = world();
    world.hub.fault(FILE, [Fault::Hold(400_000)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_steadytext-engine"))
        .args([
            "pull",
            REPOSITORY,
            "--model-dir",
            world.path().to_str().unwrap(),
            "--endpoint",
            &world.hub.endpoint(),
        ])
        .spawn()
        .unwrap();
    assert!(world.hub.wait_until_held(1));
    // Bytes that were sent may not have been read yet.
    while !world.staged().iter().any(|path| path.metadata().is_ok_and(|there| there.len() == 400_000)) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    world.hub.release();
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    assert_eq!(world.ranges().last().unwrap().as_deref(), Some("bytes=400000-"));
    assert!(world.staged().is_empty());
}

#[test]
fn a_file_that_has_changed_meanwhile_is_fetched_from_its_beginning() {
    let world = world();
    world.hub.fault(FILE, [Fault::Cut(300_000), Fault::Cut(0), Fault::Cut(0)]);
    world.pull(REPOSITORY).unwrap_err();
    // Another ETag at the store: the range does not count, and the whole file comes.
    world.hub.change_etags();
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    let last = world.hub.asked().pop().unwrap();
    assert_eq!((last.range.as_deref(), last.status), (Some("bytes=300000-"), 200));

    // Another content at the hub: the part that has arrived belongs to another file.
    let other = self::world();
    other.hub.fault(FILE, [Fault::Cut(300_000), Fault::Cut(0), Fault::Cut(0)]);
    other.pull(REPOSITORY).unwrap_err();
    other.hub.add(REPOSITORY, FILE, bytes(2));
    other.pull(REPOSITORY).unwrap();
    assert_eq!(other.read(FILE), bytes(2));
    assert_eq!(other.ranges().last().unwrap(), &None);
}

#[test]
fn a_store_that_ignores_ranges_or_has_nothing_behind_them_begins_again() {
    let world = world();
    world.hub.fault(FILE, [Fault::Cut(300_000), Fault::IgnoreRange]);
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));

    let other = self::world();
    other.hub.fault(FILE, [Fault::Cut(300_000), Fault::Status(416, None)]);
    other.pull(REPOSITORY).unwrap();
    assert_eq!(other.read(FILE), bytes(1));
    assert_eq!(other.ranges().last().unwrap(), &None);
}

#[test]
fn other_bytes_than_were_announced_never_become_a_model() {
    let world = world();
    world.hub.fault(FILE, [Fault::Spoil, Fault::Spoil]);
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(&error, HubError::Damaged { reason, .. } if reason.contains("SHA-256")), "{error}");
    assert!(world.names().is_empty());
    // A single spoiled download is fetched again.
    world.hub.fault(FILE, [Fault::Spoil]);
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));

    let longer = self::world();
    longer.hub.fault(FILE, [Fault::Longer]);
    let error = longer.pull(REPOSITORY).unwrap_err();
    assert!(
        matches!(&error, HubError::Damaged { reason, .. } if reason.contains("1000001 bytes")),
        "{error}"
    );
    assert!(longer.names().is_empty());
    // Bytes on the disk that were spoiled are found as well.
    let spoiled = self::world();
    spoiled.hub.fault(FILE, [Fault::Cut(300_000), Fault::Cut(0), Fault::Cut(0), Fault::Cut(0)]);
    spoiled.pull(REPOSITORY).unwrap_err();
    let part =
        spoiled.staged().into_iter().find(|path| path.extension().is_some_and(|end| end == "part")).unwrap();
    std::fs::write(&part, vec![7; 300_000]).unwrap();
    spoiled.pull(REPOSITORY).unwrap();
    assert_eq!(spoiled.read(FILE), bytes(1));
}

#[test]
fn a_registered_checksum_is_compared_before_anything_is_fetched() {
    let world = world();
    let error = world.order(&Order { sha256: Some([7; 32]), ..order(REPOSITORY) }).unwrap_err();
    assert!(matches!(error, HubError::NotRegistered { .. }), "{error}");
    assert_eq!(world.hub.times(FILE), 0);
    // If a hub announces no checksum, the error is found afterwards.
    world.hub.be_silent();
    let error = world.order(&Order { sha256: Some([7; 32]), ..order(REPOSITORY) }).unwrap_err();
    assert!(matches!(error, HubError::NotRegistered { .. }), "{error}");
    assert!(world.names().is_empty());
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
}

#[test]
fn who_is_asked_to_wait_waits() {
    let world = world();
    world.hub.fault("list", [Fault::Status(429, Some(("Retry-After", "0"))), Fault::Status(500, None)]);
    world.hub.fault(FILE, [Fault::Status(429, Some(("Retry-After", "1")))]);
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    // The wait is bounded, also where the hub asks for a day.
    world.hub.fault("list", [Fault::Status(429, None), Fault::Status(429, None), Fault::Status(429, None)]);
    assert!(matches!(world.pull(REPOSITORY).unwrap_err(), HubError::TooManyRequests { .. }));
    world.hub.fault("list", [Fault::Status(429, Some(("Retry-After", "86400")))]);
    assert!(matches!(world.pull(REPOSITORY).unwrap_err(), HubError::TooManyRequests { .. }));
}

#[test]
fn slow_bytes_are_bytes() {
    let world = world();
    world.hub.fault(FILE, [Fault::Drip(200)]);
    let slow = Hub { silence: Duration::from_secs(20), ..world.settings() };
    pull(&slow, &order(REPOSITORY), world.path(), &world.progress).unwrap();
    assert_eq!((world.read(FILE), world.hub.times(FILE)), (bytes(1), 1));
}

#[test]
fn a_connection_that_says_nothing_is_given_up_and_another_goes_on() {
    let world = world();
    world.hub.fault(FILE, [Fault::Hold(300_000)]);
    let hasty = Hub { silence: Duration::from_secs(1), ..world.settings() };
    pull(&hasty, &order(REPOSITORY), world.path(), &world.progress).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    assert_eq!(world.ranges().last().unwrap().as_deref(), Some("bytes=300000-"));
    world.hub.release();
}

#[test]
fn the_token_is_shown_to_the_hub_only_and_to_nobody_in_messages() {
    let mut world = world();
    world.hub.require_token("hf_secret");
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(&error, HubError::Denied { with_token: false, .. }), "{error}");
    assert!(error.hint().unwrap().contains("token"));
    world.token = Token::new("hf_wrong").unwrap();
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(&error, HubError::Denied { with_token: true, .. }), "{error}");
    assert!(!format!("{error}{error:?}{:?}", world.settings()).contains("hf_wrong"));
    world.token = Token::new("hf_secret").unwrap();
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    let asked = world.hub.asked();
    assert!(asked.iter().any(|asked| asked.place == "store"));
    assert!(asked.iter().all(|asked| asked.place == "hub" || asked.authorization.is_none()));
}

#[test]
fn redirects_lead_to_the_web_and_not_in_circles() {
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://user:password@127.0.0.1/x", "nowhere"] {
        let world = world();
        world.hub.fault(FILE, [Fault::Redirect(target.to_owned())]);
        let error = world.pull(REPOSITORY).unwrap_err();
        assert!(error.to_string().contains("a redirect to where none may lead"), "{target}: {error}");
    }
    let world = world();
    let here = format!("{}/{REPOSITORY}/{FILE}", world.hub.store());
    world.hub.fault(FILE, vec![Fault::Redirect(here.clone()); 20]);
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(error.to_string().contains("one redirect after the other"), "{error}");
}

#[test]
fn what_is_not_there_and_what_is_no_answer_is_said() {
    let world = world();
    let error = world.pull("acme/nothing").unwrap_err().to_string();
    assert_eq!(error, "127.0.0.1 has no repository \"acme/nothing\"");
    let error = world.pull(&format!("{REPOSITORY}:other.gguf")).unwrap_err().to_string();
    assert!(error.contains("no file \"other.gguf\""), "{error}");
    world.hub.fault("list", [Fault::Spoil]);
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Protocol { .. }), "{error}");
    let nowhere = Hub { endpoint: "http://127.0.0.1:1".to_owned(), ..world.settings() };
    let error = pull(&nowhere, &order(REPOSITORY), world.path(), &world.progress).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let offline = Hub { offline: true, ..world.settings() };
    let error = pull(&offline, &order(REPOSITORY), world.path(), &world.progress).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert!(world.names().is_empty());
}

#[test]
fn a_split_model_comes_with_all_of_its_parts() {
    let world = world();
    let name = |number| format!("big-Q4_K_M-0000{number}-of-00003.gguf");
    for number in 1..=3 {
        world.hub.add("acme/big-8B-GGUF", &format!("q4/{}", name(number)), bytes(number));
    }
    world
        .hub
        .fault(&format!("q4/{}", name(2)), [Fault::Cut(10), Fault::Cut(0), Fault::Cut(0), Fault::Cut(0)]);
    world.pull("acme/big-8B-GGUF").unwrap_err();
    assert!(world.names().is_empty(), "nothing of it is there before all of it is");
    let pulled = world.pull("acme/big-8B-GGUF").unwrap();
    assert_eq!((pulled.name, pulled.size), (name(1), 3_000_000));
    for number in 1..=3 {
        assert_eq!(world.read(&name(number)), bytes(number));
    }
    assert_eq!(
        world.hub.times(&format!("q4/{}", name(1))),
        1,
        "a part that had arrived is not fetched again"
    );
    let card = world.card(&name(1));
    let all: Vec<u8> = (1..=3).flat_map(bytes).collect();
    let digest = sha2(&all);
    assert_eq!((card.sha256, card.size, card.files.len()), (Some(digest), Some(3_000_000), 3));
    assert_eq!(card.files[2].sha256, Some(sha2(&bytes(3))));
    assert!(world.pull("acme/big-8B-GGUF").unwrap().was_there);
    // Parts under the name of one file could not be found again.
    let one = Order { name: Some("big.gguf".to_owned()), ..order("acme/big-8B-GGUF") };
    assert!(world.order(&one).unwrap_err().to_string().contains("3 files"));
}

fn sha2(bytes: &[u8]) -> String {
    let hub = LocalHub::start().unwrap();
    hub.add("a/b", "c", bytes);
    hub.sha256("a/b", "c")
}

#[test]
fn the_folder_of_an_encoder_appears_as_a_whole() {
    let world = world();
    let repository = "acme/encoder";
    let prompts = br#"{"prompts": {"query": "query: ", "document": "passage: "}}"#;
    for (path, content) in [
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"[]"),
        ("modules.json", b"[1]"),
        ("1_Pooling/config.json", b"{\"pooling\": 1}"),
        ("config_sentence_transformers.json", prompts),
        ("README.md", b"not wanted"),
    ] {
        world.hub.add_small(repository, path, content);
    }
    world.hub.add(repository, "model.safetensors", bytes(5));
    world.hub.add(repository, "pytorch_model.bin", bytes(6));
    world.hub.fault("model.safetensors", [Fault::Cut(100_000)]);
    let pulled = world.pull(repository).unwrap();
    assert_eq!(pulled.name, "encoder");
    assert_eq!(world.names(), ["encoder", "encoder.card.json"]);
    assert_eq!(world.read("encoder/model.safetensors"), bytes(5));
    assert_eq!(world.read("encoder/1_Pooling/config.json"), b"{\"pooling\": 1}");
    assert!(
        !world.path().join("encoder/README.md").exists()
            && !world.path().join("encoder/pytorch_model.bin").exists()
    );
    let card = world.card("encoder");
    assert_eq!(
        (card.query_prompt.as_deref(), card.passage_prompt.as_deref()),
        (Some("query: "), Some("passage: "))
    );
    let weights = card.files.iter().find(|file| file.name == "model.safetensors").unwrap();
    assert_eq!((weights.size, &weights.sha256), (Some(1_000_000), &Some(sha2(&bytes(5)))));
    assert!(world.pull(repository).unwrap().was_there);
    // A new version takes the place of the old one.
    world.hub.add(repository, "model.safetensors", bytes(7));
    assert!(!world.pull(repository).unwrap().was_there);
    assert_eq!(world.read("encoder/model.safetensors"), bytes(7));
    assert!(world.staged().is_empty());
}

#[test]
fn names_of_the_registry_are_kept_and_lead_nowhere_else() {
    let world = world();
    let named = |name: &str| Order { name: Some(name.to_owned()), ..order(&format!("{REPOSITORY}:{FILE}")) };
    let card = Card { tasks: vec![Task::Embed], licence: Some("mit".to_owned()), ..Card::default() };
    let pulled = world.order(&Order { card, ..named("sub/other.gguf") }).unwrap();
    assert_eq!(pulled.path, world.path().join("sub/other.gguf"));
    assert_eq!(world.read("sub/other.gguf"), bytes(1));
    assert_eq!(
        (&*world.card("sub/other.gguf").tasks, world.card("sub/other.gguf").licence.as_deref()),
        (&[Task::Embed][..], Some("mit"))
    );
    for name in ["../x.gguf", "/tmp/x.gguf", "a/../../x.gguf", ".pull/x.gguf", "x\n.gguf", ""] {
        assert!(matches!(world.order(&named(name)).unwrap_err(), HubError::Reference { .. }), "{name:?}");
    }
    let elsewhere = TempDir::new().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), world.path().join("out")).unwrap();
    assert!(world.order(&named("out/x.gguf")).unwrap_err().to_string().contains("leads out"));
    assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_repository_cannot_name_files_that_lead_out() {
    let world = world();
    for path in ["../../escaped.gguf", "/tmp/escaped.gguf", "a/../../escaped.gguf", ".ssh/escaped.gguf"] {
        world.hub.add("acme/evil", path, bytes(1));
    }
    let error = world.pull("acme/evil").unwrap_err();
    assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    assert!(world.names().is_empty());
}

#[test]
fn a_model_of_another_repository_is_not_replaced_and_its_own_is() {
    let world = world();
    world.pull(REPOSITORY).unwrap();
    world.hub.add("acme/evil", FILE, bytes(2));
    let error = world.pull("acme/evil").unwrap_err();
    assert!(matches!(&error, HubError::Taken { from, .. } if from.contains(REPOSITORY)), "{error}");
    assert_eq!((world.read(FILE), world.hub.times(FILE)), (bytes(1), 1), "nothing was fetched");
    // A file that a user has put there.
    std::fs::write(world.path().join("mine.gguf"), bytes(3)).unwrap();
    world.hub.add("acme/mine", "mine.gguf", bytes(4));
    assert!(matches!(world.pull("acme/mine").unwrap_err(), HubError::Taken { .. }));
    assert_eq!(world.read("mine.gguf"), bytes(3));
    // A new version of the same repository, and a file that is registered as the repository's.
    world.hub.add(REPOSITORY, FILE, bytes(5));
    world.pull(REPOSITORY).unwrap();
    assert_eq!(world.read(FILE), bytes(5));
    world.order(&Order { name: Some("mine.gguf".to_owned()), ..order("acme/mine") }).unwrap();
    assert_eq!(world.read("mine.gguf"), bytes(4));
}

#[test]
fn what_is_no_gguf_file_or_has_a_name_with_a_meaning_never_becomes_a_model() {
    let world = world();
    world.hub.add("acme/letter", "letter.gguf", b"Dear Sir or Madam".to_vec());
    let error = world.pull("acme/letter").unwrap_err();
    assert!(matches!(&error, HubError::Damaged { reason, .. } if reason.contains("no GGUF file")), "{error}");
    for name in ["builtin.gguf", "AUTO.gguf"] {
        world.hub.add(&format!("acme/{name}"), name, bytes(1));
        let error = world.pull(&format!("acme/{name}")).unwrap_err();
        assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    }
    assert!(world.names().is_empty());
}

#[test]
fn many_who_want_the_same_model_at_once_download_it_once() {
    let world = Arc::new(world());
    world.hub.fault(FILE, [Fault::Hold(300_000)]);
    std::thread::scope(|scope| {
        let pull = || {
            scope.spawn(|| {
                pull(&world.settings(), &order(REPOSITORY), world.path(), &Progress::default()).unwrap()
            })
        };
        let first = pull();
        assert!(world.hub.wait_until_held(1));
        let others: Vec<_> = (0..3).map(|_| pull()).collect();
        // All of them have read the list, and wait.
        while world.hub.asked().iter().filter(|asked| asked.path.starts_with("/api/")).count() < 4 {
            std::thread::sleep(Duration::from_millis(5));
        }
        world.hub.release();
        assert!(!first.join().unwrap().was_there);
        assert!(others.into_iter().all(|other| other.join().unwrap().was_there));
    });
    assert_eq!(world.hub.times(FILE), 1);
}

#[test]
fn a_download_stops_when_it_is_told_to() {
    let world = world();
    world.hub.fault(FILE, [Fault::Hold(300_000)]);
    let error = std::thread::scope(|scope| {
        let pulling = scope.spawn(|| world.pull(REPOSITORY));
        assert!(world.hub.wait_until_held(1));
        world.progress.stop();
        // It does not wait for the hub, which still does not answer.
        pulling.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, HubError::Cancelled), "{error}");
    world.hub.release();
    let again = World { progress: Arc::default(), ..world };
    again.pull(REPOSITORY).unwrap();
    assert_eq!(again.read(FILE), bytes(1));
}

#[test]
fn a_mirror_without_sizes_and_checksums_serves_as_well() {
    let world = world();
    world.hub.be_silent();
    world.hub.fault(FILE, [Fault::Cut(300_000)]);
    world.pull(&format!("{REPOSITORY}:{FILE}")).unwrap();
    assert_eq!(world.read(FILE), bytes(1));
    assert_eq!(world.ranges(), [None, Some("bytes=300000-".to_owned())]);
}

/// A small file system of its own.
pub(super) struct SmallDisk(TempDir);

impl SmallDisk {
    /// One of this size, as mount has it; None where this process may not make one.
    pub(super) fn new(size: &str) -> Option<SmallDisk> {
        let directory = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(directory.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn a_full_disk_is_an_error_that_says_how_much_is_missing() {
    let Some(disk) = SmallDisk::new("512k") else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    let world = world();
    let pull =
        || pull(&world.settings(), &order(&format!("{REPOSITORY}:{FILE}")), disk.0.path(), &world.progress);
    // If the size is known, no byte is fetched.
    let error = pull().unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed_mb: 1, available_mb: 0, .. }), "{error}");
    assert_eq!(world.hub.times(FILE), 0);
    world.hub.be_silent();
    let error = pull().unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    assert_eq!(world.hub.times(FILE), 1);
    assert!(!disk.0.path().join(FILE).exists());
}
