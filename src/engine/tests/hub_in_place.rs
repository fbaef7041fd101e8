//! Downloads of models with adapters, and of models that are in place already.

use std::path::PathBuf;

use steadytext_engine::card::Card;
use steadytext_engine::hub::{Hub, HubError, Order, Reference, pull};
use steadytext_test_models::adapters::{self, TASKS};
use steadytext_test_models::hub::Fault;
use steadytext_test_models::{Bert, EncoderFamily};
use tempfile::TempDir;

use crate::hub::{FILE, REPOSITORY, World, bytes, order, world};

pub(super) const JINA: &str = "acme/jina-GGUF";
pub(super) const JINA_FILE: &str = "jina-Q8_0.gguf";

/// The name of an adapter's file, as llama.cpp's converter makes it.
pub(super) fn lora(task: &str) -> String {
    format!("lora-{task}-{JINA_FILE}")
}

pub(super) fn spec() -> Bert {
    Bert { family: EncoderFamily::JinaBertV3, ..Bert::default() }
}

/// Puts the model and its adapters into the repository; the bytes of the adapters.
pub(super) fn add_jina(world: &World) -> Vec<Vec<u8>> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    spec().write(&path).unwrap();
    world.hub.add(JINA, JINA_FILE, std::fs::read(path).unwrap());
    let add = |(index, (task, _)): (usize, &(&str, &str))| {
        let mut bytes = Vec::new();
        adapters::adapter(&spec(), index).unwrap().write(&mut bytes).unwrap();
        world.hub.add(JINA, &lora(task), bytes.clone());
        bytes
    };
    TASKS.iter().enumerate().map(add).collect()
}

/// The files in the folder of the adapters.
pub(super) fn adapter_names(world: &World) -> Vec<String> {
    let folder = world.path().join(format!("{JINA_FILE}.adapters"));
    let mut names: Vec<String> = folder
        .read_dir()
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_comes_with_the_adapters_that_its_repository_has_for_it() {
    let world = world();
    let bytes = add_jina(&world);
    let tasks = ["classification", "retrieval.passage", "retrieval.query"];
    let pull = || world.pull(&format!("{JINA}:{JINA_FILE}"));
    let cut = [Fault::Cut(1000), Fault::Cut(0), Fault::Cut(0), Fault::Cut(0)];
    world.hub.fault(&lora("retrieval.passage"), cut);
    pull().unwrap_err();
    assert!(world.names().is_empty(), "nothing of it is there before its adapters are");
    let pulled = pull().unwrap();
    assert_eq!((pulled.was_there, &pulled.adapters[..]), (false, &tasks.map(str::to_owned)[..]));
    assert_eq!(adapter_names(&world), tasks.map(|task| format!("{task}.gguf")));
    for ((task, _), bytes) in TASKS.iter().zip(&bytes) {
        assert_eq!(&world.read(&format!("{JINA_FILE}.adapters/{task}.gguf")), bytes);
    }
    assert_eq!(steadytext_engine::adapter_tasks(&pulled.path).unwrap(), tasks);
    assert_eq!((world.hub.times(JINA_FILE), world.hub.times(&lora("classification"))), (1, 1));
    assert!(world.ranges().contains(&Some("bytes=1000-".to_owned())), "it goes on where it was");
    let card = world.card(JINA_FILE);
    assert_eq!(card.sha256, Some(world.hub.sha256(JINA, JINA_FILE)), "that of the model's own file");
    let listed: Vec<_> = card.adapters.unwrap().into_iter().map(|file| (file.name, file.sha256)).collect();
    assert_eq!(listed, tasks.map(|task| (format!("{task}.gguf"), Some(world.hub.sha256(JINA, &lora(task))))));
    let size: usize = bytes.iter().map(Vec::len).sum();
    assert_eq!(pulled.size, (world.read(JINA_FILE).len() + size) as u64);
    assert_eq!(world.staged(), Vec::<PathBuf>::new());

    // All of it is in place, which nobody has to be asked about.
    let asked = world.hub.asked().len();
    let again = pull().unwrap();
    assert!(again.was_there && again.size == pulled.size && again.adapters == pulled.adapters);
    assert_eq!(world.hub.asked().len(), asked);
    // One that is missing comes alone, and so do those of a model that came without.
    std::fs::remove_file(world.path().join(format!("{JINA_FILE}.adapters/classification.gguf"))).unwrap();
    assert!(!pull().unwrap().was_there);
    assert_eq!((world.hub.times(JINA_FILE), world.hub.times(&lora("classification"))), (1, 2));
    std::fs::remove_dir_all(world.path().join(format!("{JINA_FILE}.adapters"))).unwrap();
    let card = Card { adapters: None, ..world.card(JINA_FILE) };
    card.write(&world.path().join(JINA_FILE)).unwrap();
    assert!(!pull().unwrap().was_there);
    assert_eq!((world.hub.times(JINA_FILE), world.hub.times(&lora("classification"))), (1, 3));
    assert_eq!(adapter_names(&world), tasks.map(|task| format!("{task}.gguf")));
}

#[test]
fn adapters_that_somebody_has_put_there_keep_their_names_and_are_not_replaced_by_others() {
    let world = world();
    let bytes = add_jina(&world);
    let folder = world.path().join(format!("{JINA_FILE}.adapters"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join(lora("classification")), &bytes[2]).unwrap();
    let pull = || world.pull(&format!("{JINA}:{JINA_FILE}"));
    pull().unwrap();
    let names =
        [lora("classification"), "retrieval.passage.gguf".to_owned(), "retrieval.query.gguf".to_owned()];
    assert_eq!((adapter_names(&world), world.hub.times(&lora("classification"))), (names.to_vec(), 0));
    // Its own older version is replaced.
    let mut newer = adapters::adapter(&spec(), 1).unwrap();
    newer.tensors[0].data[0] ^= 1;
    let mut changed = Vec::new();
    newer.write(&mut changed).unwrap();
    world.hub.add(JINA, &lora("retrieval.passage"), changed.clone());
    world.pull(JINA).unwrap();
    assert_eq!(world.read(&format!("{JINA_FILE}.adapters/retrieval.passage.gguf")), changed);
    // One that did not come from there is left alone.
    std::fs::remove_file(world.path().join(format!("{JINA_FILE}.card.json"))).unwrap();
    let mine = adapters::adapter_called(&spec(), 0, TASKS[0].0, "mine ").unwrap();
    let mut bytes = Vec::new();
    mine.write(&mut bytes).unwrap();
    std::fs::write(folder.join("retrieval.query.gguf"), &bytes).unwrap();
    let error = pull().unwrap_err();
    assert!(
        matches!(&error, HubError::Taken { file, .. } if file.ends_with("retrieval.query.gguf")),
        "{error}"
    );
    assert_eq!(std::fs::read(folder.join("retrieval.query.gguf")).unwrap(), bytes);
}

#[test]
fn a_spoiled_adapter_never_becomes_one_and_other_models_get_none() {
    let world = world();
    add_jina(&world);
    world.hub.fault(&lora("retrieval.query"), [Fault::Spoil, Fault::Spoil]);
    let error = world.pull(&format!("{JINA}:{JINA_FILE}")).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert!(world.names().is_empty());
    world.hub.add(JINA, "lora-retrieval.query-another.gguf", b"GGUF".to_vec());
    world.hub.add(JINA, "other-Q8_0.gguf", bytes(3));
    let pulled = world.pull(&format!("{JINA}:other-Q8_0.gguf")).unwrap();
    assert!(pulled.adapters.is_empty());
    assert_eq!(world.names(), ["other-Q8_0.gguf", "other-Q8_0.gguf.card.json"]);
    assert_eq!(world.card("other-Q8_0.gguf").adapters, None);
}

#[test]
fn what_is_in_place_as_it_was_recorded_is_not_asked_about() {
    let world = world();
    let named = order(&format!("{REPOSITORY}:{FILE}"));
    world.order(&named).unwrap();
    let asked = || world.hub.asked().len();
    let before = asked();
    let away = Hub { endpoint: "http://127.0.0.1:1".to_owned(), ..world.settings() };
    let offline = Hub { offline: true, ..world.settings() };
    for hub in [&away, &offline, &world.settings()] {
        let pulled = pull(hub, &named, world.path(), &world.progress).unwrap();
        assert_eq!((pulled.was_there, pulled.size, pulled.name.as_str()), (true, 1_000_000, FILE));
    }
    // By the name of a registry, with the checksum of its row, and by the commit that it came from.
    let sha256 = |text: &str| {
        let digits = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
        std::array::from_fn::<u8, 32, _>(digits)
    };
    let right = sha256(&world.hub.sha256(REPOSITORY, FILE));
    let registered = Order { name: Some(FILE.to_owned()), sha256: Some(right), ..named.clone() };
    assert!(pull(&away, &registered, world.path(), &world.progress).unwrap().was_there);
    let commit = world.card(FILE).revision.unwrap();
    let at = |revision: &str| Order {
        reference: Reference { revision: revision.to_owned(), ..named.reference.clone() },
        ..named.clone()
    };
    assert!(pull(&away, &at(&commit), world.path(), &world.progress).unwrap().was_there);
    assert_eq!(asked(), before);
    // A file that somebody has put there is recognized by the row's checksum, and has a card from then on.
    std::fs::remove_file(world.path().join(format!("{FILE}.card.json"))).unwrap();
    assert!(pull(&away, &registered, world.path(), &world.progress).unwrap().was_there);
    assert_eq!(world.card(FILE).repository.as_deref(), Some(REPOSITORY));
    assert!(pull(&away, &named, world.path(), &world.progress).unwrap().was_there);
    assert_eq!(asked(), before);

    // Another branch, another checksum, another size and another repository are for the hub to say.
    let asks = |order: &Order| {
        let error = pull(&away, order, world.path(), &world.progress).unwrap_err();
        assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
        error
    };
    asks(&at("v2"));
    asks(&Order { sha256: Some([7; 32]), ..registered.clone() });
    asks(&order(&format!("acme/other:{FILE}")));
    asks(&order(REPOSITORY));
    std::fs::write(world.path().join(FILE), b"GGUF").unwrap();
    let error = asks(&named);
    assert!(error.to_string().starts_with("127.0.0.1:1 could not be reached: "), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("HTTPS_PROXY") && hint.contains("NO_PROXY"), "{hint}");
    assert!(!world.order(&named).unwrap().was_there);
    assert_eq!(world.read(FILE), bytes(1));
}

#[test]
fn a_download_that_dies_while_files_are_put_into_their_places_is_mended_by_the_next_one() {
    let world = world();
    let bytes = add_jina(&world);
    let pull = || world.pull(&format!("{JINA}:{JINA_FILE}"));
    pull().unwrap();
    let card = world.card(JINA_FILE);
    let path = world.path().join(JINA_FILE);
    let adapter = path.with_file_name(format!("{JINA_FILE}.adapters/classification.gguf"));
    // An older adapter of the same length is still in the place of the one that has come.
    let mut older = bytes[2].clone();
    *older.last_mut().unwrap() ^= 1;
    let unverified =
        |name: &str| steadytext_engine::card::CardFile { name: name.to_owned(), size: None, sha256: None };
    let names = ["classification.gguf", "retrieval.passage.gguf", "retrieval.query.gguf"];
    let cut_off = Card {
        size: None,
        sha256: None,
        adapters: Some(names.iter().map(|name| unverified(name)).collect()),
        ..card.clone()
    };
    for reference in [format!("{JINA}:{JINA_FILE}"), JINA.to_owned()] {
        std::fs::write(&adapter, &older).unwrap();
        cut_off.write(&path).unwrap();
        assert!(!world.pull(&reference).unwrap().was_there, "{reference}");
        assert_eq!(std::fs::read(&adapter).unwrap(), bytes[2], "{reference}");
        let again = world.card(JINA_FILE);
        assert_eq!((&again.sha256, &again.size, &again.adapters), (&card.sha256, &card.size, &card.adapters));
    }
    // All files had been put there, but for the card.
    cut_off.write(&path).unwrap();
    assert!(pull().unwrap().was_there);
    assert_eq!(world.card(JINA_FILE).sha256, card.sha256);
    // A newer version that somebody has put beside the card of an older one.
    Card { sha256: Some("0".repeat(64)), ..card.clone() }.write(&path).unwrap();
    assert!(world.pull(JINA).unwrap().was_there);
    assert_eq!(world.card(JINA_FILE).sha256, card.sha256);
    assert_eq!(world.hub.times(JINA_FILE), 1);
}
