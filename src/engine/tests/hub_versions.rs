//! Downloads of another version than the one that is in place: what is kept of the old one, what goes, and
//! that no mixture of two versions stays where a download dies in the middle.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;
use steadytext_engine::card::{Card, Task};
use steadytext_engine::hub::{HubError, Order};
use steadytext_test_models::adapters;
use steadytext_test_models::hub::Fault;

use crate::hub::{FILE, REPOSITORY, World, bytes, order, world};
use crate::hub_in_place::{JINA, JINA_FILE, adapter_names, add_jina, lora, spec};

const ENCODER: &str = "acme/encoder";

/// The repository is at another commit from now on.
fn commit(world: &World, repository: &str, digit: char) -> String {
    let commit = digit.to_string().repeat(40);
    world.hub.describe(repository, json!({ "sha": commit }));
    commit
}

fn add_encoder(world: &World) {
    for (path, content) in [
        ("config.json", &b"{}"[..]),
        ("tokenizer.json", b"[]"),
        ("1_Pooling/config.json", br#"{"cls": true,  "mean": false}"#),
        ("config_sentence_transformers.json", br#"{"prompts": {"query": "query: ", "document": "text: "}}"#),
    ] {
        world.hub.add_small(ENCODER, path, content);
    }
    world.hub.add(ENCODER, "model.safetensors", bytes(5));
}

#[test]
fn small_files_of_a_newer_commit_take_the_place_of_those_of_the_same_length() {
    let world = world();
    add_encoder(&world);
    commit(&world, ENCODER, '1');
    world.pull(ENCODER).unwrap();
    assert!(world.pull(ENCODER).unwrap().was_there);

    let other = br#"{"cls": false, "mean": true }"#;
    world.hub.add_small(ENCODER, "1_Pooling/config.json", other);
    let newer = commit(&world, ENCODER, '2');
    let pulled = world.pull(&format!("{ENCODER}@v2")).unwrap();
    assert!(!pulled.was_there && pulled.replaced);
    assert_eq!(world.read("encoder/1_Pooling/config.json"), other);
    let card = world.card("encoder");
    assert_eq!(card.revision, Some(newer));
    assert!(card.files.iter().all(|file| file.size.is_some() && file.sha256.is_some()), "{card:?}");
    // The weights are the same ones, and are not fetched again.
    assert_eq!(world.hub.times("model.safetensors"), 1);
    assert_eq!(world.read("encoder/model.safetensors"), bytes(5));
    let weights = world.path().join("encoder/model.safetensors").metadata().unwrap();
    assert_eq!((weights.nlink(), weights.mode() & 0o777), (1, 0o644));
    assert!(world.staged().is_empty());
    assert!(world.pull(ENCODER).unwrap().was_there);

    // A card that does not know what the small files are says nothing of them.
    let small = |name: &str| name != "model.safetensors";
    let mut card = world.card("encoder");
    card.files.iter_mut().filter(|file| small(&file.name)).for_each(|file| file.sha256 = None);
    card.write(&world.path().join("encoder")).unwrap();
    assert!(!world.pull(ENCODER).unwrap().was_there);
    assert!(world.card("encoder").files.iter().all(|file| file.sha256.is_some()));
    assert_eq!(world.hub.times("model.safetensors"), 1);
    // Weights that somebody has changed are fetched.
    world.hub.add_small(ENCODER, "tokenizer.json", b"{}");
    commit(&world, ENCODER, '3');
    std::fs::write(world.path().join("encoder/model.safetensors"), bytes(6)).unwrap();
    assert!(!world.pull(ENCODER).unwrap().was_there);
    assert_eq!(
        (world.read("encoder/model.safetensors"), world.hub.times("model.safetensors")),
        (bytes(5), 2)
    );
}

#[test]
fn a_file_of_which_a_mirror_says_nothing_is_believed_where_its_card_is_that_of_the_commit() {
    let world = world();
    world.hub.be_silent();
    std::fs::write(world.path().join(FILE), bytes(2)).unwrap();
    let error = world.pull(REPOSITORY).unwrap_err();
    assert!(matches!(&error, HubError::Taken { from, .. } if from.contains("nothing says")), "{error}");
    let named = Order { name: Some(FILE.to_owned()), ..order(REPOSITORY) };
    assert!(!world.order(&named).unwrap().was_there, "anybody's file is not the model's");
    assert_eq!(world.read(FILE), bytes(1));
    assert!(world.pull(REPOSITORY).unwrap().was_there);
    assert_eq!(world.hub.times(FILE), 1);
    // Nobody knows what is in another commit.
    world.hub.add(REPOSITORY, FILE, bytes(3));
    commit(&world, REPOSITORY, '2');
    assert!(!world.pull(REPOSITORY).unwrap().was_there);
    assert_eq!(world.read(FILE), bytes(3));
    // The file of another repository under that name is refused, as it is where checksums are announced.
    world.hub.add("acme/other", FILE, bytes(4));
    assert!(matches!(world.pull("acme/other").unwrap_err(), HubError::Taken { .. }));
    assert_eq!(world.read(FILE), bytes(3));
}

/// Puts something into a place of a file that no file can take.
fn obstruct(path: &Path) {
    let _ = std::fs::remove_file(path);
    std::fs::create_dir(path).unwrap();
    std::fs::write(path.join("in the way"), b"").unwrap();
}

#[test]
fn a_split_model_whose_replacement_dies_in_the_middle_is_none_until_the_next_download() {
    let repository = "acme/big-8B-GGUF";
    let name = |number: u32| format!("big-Q4_K_M-0000{number}-of-00003.gguf");
    for is_silent in [false, true] {
        let world = world();
        if is_silent {
            world.hub.be_silent();
        }
        (1..=3).for_each(|number| world.hub.add(repository, &name(number), bytes(number)));
        let pulled = world.pull(repository).unwrap();
        assert!(!pulled.was_there && !pulled.replaced);

        // Part 3 gets its place, part 2 cannot.
        (1..=3).for_each(|number| world.hub.add(repository, &name(number), bytes(10 + number)));
        commit(&world, repository, '2');
        let second = world.path().join(name(2));
        obstruct(&second);
        world.pull(repository).unwrap_err();
        assert_eq!(world.read(&name(3)), bytes(13));
        assert!(!world.path().join(name(1)).exists(), "an old first part makes a model of new ones");

        std::fs::remove_dir_all(&second).unwrap();
        assert!(!world.pull(repository).unwrap().was_there, "silent: {is_silent}");
        for number in 1..=3 {
            assert_eq!(world.read(&name(number)), bytes(10 + number));
            let links = world.path().join(name(number)).metadata().unwrap().nlink();
            assert_eq!(links, 1);
            if !is_silent {
                let times = world.hub.times(&name(number));
                assert_eq!(times, 2, "each version of part {number} is fetched once");
            }
        }
        let card = world.card(&name(1));
        assert_eq!((card.size, card.files.len()), (Some(3_000_000), 3));
        assert!(world.staged().is_empty());
        assert!(world.pull(repository).unwrap().was_there);
    }
}

#[test]
fn parts_that_a_newer_version_shares_with_the_old_one_are_not_fetched_again() {
    let world = world();
    let repository = "acme/big-8B-GGUF";
    let name = |number: u32| format!("big-Q4_K_M-0000{number}-of-00003.gguf");
    (1..=3).for_each(|number| world.hub.add(repository, &name(number), bytes(number)));
    world.pull(repository).unwrap();
    world.hub.add(repository, &name(2), bytes(12));
    assert!(world.pull(repository).unwrap().replaced);
    assert_eq!([1, 2, 3].map(|number| world.hub.times(&name(number))), [1, 2, 1]);
    assert_eq!([1, 2, 3].map(|number| world.read(&name(number))), [bytes(1), bytes(12), bytes(3)]);
    // The checksum of all of it is the one that a download of all of it has.
    let other = self::world();
    for (number, seed) in [(1, 1), (2, 12), (3, 3)] {
        other.hub.add(repository, &name(number), bytes(seed));
    }
    other.pull(repository).unwrap();
    assert_eq!(world.card(&name(1)).sha256, other.card(&name(1)).sha256);
}

#[test]
fn a_model_that_changes_with_its_adapters_is_none_while_they_are_put_into_their_places() {
    let world = world();
    let first = add_jina(&world);
    world.pull(JINA).unwrap();
    let changed = |mut bytes: Vec<u8>| {
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let model = changed(world.read(JINA_FILE));
    world.hub.add(JINA, JINA_FILE, model.clone());
    for ((task, _), bytes) in adapters::TASKS.iter().zip(&first) {
        world.hub.add(JINA, &lora(task), changed(bytes.clone()));
    }
    let place = world.path().join(format!("{JINA_FILE}.adapters/classification.gguf"));
    obstruct(&place);
    world.pull(JINA).unwrap_err();
    assert!(!world.path().join(JINA_FILE).exists(), "the old model would have new adapters");
    std::fs::remove_dir_all(&place).unwrap();
    assert!(!world.pull(JINA).unwrap().was_there);
    assert_eq!(world.read(JINA_FILE), model);
    for ((task, _), bytes) in adapters::TASKS.iter().zip(&first) {
        let there = world.read(&format!("{JINA_FILE}.adapters/{task}.gguf"));
        assert_eq!(there, changed(bytes.clone()), "{task}");
    }
    // Where adapters alone change, the model stays all the time.
    for ((task, _), bytes) in adapters::TASKS.iter().zip(&first) {
        world.hub.add(JINA, &lora(task), bytes.clone());
    }
    obstruct(&place);
    world.pull(JINA).unwrap_err();
    assert_eq!(world.read(JINA_FILE), model);
}

#[test]
fn adapters_that_a_newer_version_has_no_more_go_with_the_old_one() {
    let world = world();
    add_jina(&world);
    world.pull(JINA).unwrap();
    world.hub.remove(JINA, &lora("classification"));
    let pulled = world.pull(JINA).unwrap();
    assert!(!pulled.was_there && pulled.replaced, "its vectors for that task are others");
    let tasks = ["retrieval.passage", "retrieval.query"];
    assert_eq!(adapter_names(&world), tasks.map(|task| format!("{task}.gguf")));
    assert_eq!(steadytext_engine::adapter_tasks(&pulled.path).unwrap(), tasks);
    assert_eq!(world.card(JINA_FILE).adapters.unwrap().len(), 2);
    assert!(world.pull(JINA).unwrap().was_there);

    // A download that dies before they are gone leaves them to the next one.
    let place = world.path().join(format!("{JINA_FILE}.adapters/retrieval.query.gguf"));
    world.hub.remove(JINA, &lora("retrieval.passage"));
    let mut newer = world.read(&format!("{JINA_FILE}.adapters/retrieval.query.gguf"));
    *newer.last_mut().unwrap() ^= 1;
    world.hub.add(JINA, &lora("retrieval.query"), newer.clone());
    obstruct(&place);
    world.pull(JINA).unwrap_err();
    assert!(adapter_names(&world).contains(&"retrieval.passage.gguf".to_owned()));
    std::fs::remove_dir_all(&place).unwrap();
    world.pull(JINA).unwrap();
    assert_eq!(
        (adapter_names(&world), std::fs::read(&place).unwrap()),
        (vec!["retrieval.query.gguf".to_owned()], newer)
    );

    // One that somebody has put into the place of a fetched one is nobody's to remove.
    world.hub.remove(JINA, &lora("retrieval.query"));
    let mine = adapters::adapter_called(&spec(), 0, "retrieval.query", "mine ").unwrap();
    let mut bytes = Vec::new();
    mine.write(&mut bytes).unwrap();
    std::fs::write(&place, &bytes).unwrap();
    world.pull(JINA).unwrap();
    assert_eq!(std::fs::read(&place).unwrap(), bytes);
}

#[test]
fn the_card_of_another_repository_says_nothing_of_this_ones_model() {
    let world = world();
    let card = Card {
        query_prompt: Some("old: ".to_owned()),
        passage_prompt: Some("old text: ".to_owned()),
        preferred: vec![Task::Embed],
        dimensions: vec![64],
        licence: Some("mit".to_owned()),
        ..Card::default()
    };
    let named = |repository: &str, card: &Card| Order {
        name: Some(FILE.to_owned()),
        card: card.clone(),
        ..order(&format!("{repository}:{FILE}"))
    };
    world.order(&named(REPOSITORY, &card)).unwrap();
    // A newer version of the same repository keeps what somebody has set.
    world.hub.add(REPOSITORY, FILE, bytes(2));
    commit(&world, REPOSITORY, '2');
    let newer = Order { name: Some(FILE.to_owned()), ..order(&format!("{REPOSITORY}@v2:{FILE}")) };
    world.order(&newer).unwrap();
    assert_eq!(world.read(FILE), bytes(2));
    let kept = world.card(FILE);
    assert_eq!(
        (kept.query_prompt.as_deref(), &*kept.preferred, &*kept.dimensions),
        (Some("old: "), &[Task::Embed][..], &[64][..])
    );

    world.hub.add("acme/other", FILE, bytes(3));
    assert!(world.order(&named("acme/other", &Card::default())).unwrap().replaced);
    assert_eq!(world.read(FILE), bytes(3));
    let card = world.card(FILE);
    assert_eq!(card.repository.as_deref(), Some("acme/other"));
    assert_eq!((card.query_prompt, card.passage_prompt, card.licence), (None, None, None));
    assert!(card.preferred.is_empty() && card.dimensions.is_empty());
}

#[test]
fn prompts_that_came_with_a_folder_are_those_of_its_version() {
    let world = world();
    add_encoder(&world);
    let prompts = |world: &World| {
        let card = world.card("encoder");
        (card.query_prompt.unwrap_or_default(), card.passage_prompt.unwrap_or_default())
    };
    world.pull(ENCODER).unwrap();
    assert_eq!(prompts(&world), ("query: ".to_owned(), "text: ".to_owned()));
    let config = |query: &str| format!(r#"{{"prompts": {{"query": "{query}", "document": "text: "}}}}"#);
    world.hub.add_small(ENCODER, "config_sentence_transformers.json", config("search: "));
    commit(&world, ENCODER, '2');
    world.pull(ENCODER).unwrap();
    assert_eq!(prompts(&world), ("search: ".to_owned(), "text: ".to_owned()));
    // What somebody has written onto the card stays.
    Card { query_prompt: Some("mine: ".to_owned()), ..world.card("encoder") }
        .write(&world.path().join("encoder"))
        .unwrap();
    world.hub.add_small(ENCODER, "config_sentence_transformers.json", config("find: "));
    commit(&world, ENCODER, '3');
    world.pull(ENCODER).unwrap();
    assert_eq!(prompts(&world), ("mine: ".to_owned(), "text: ".to_owned()));
}

#[test]
fn a_file_of_another_folder_of_the_same_repository_does_not_take_the_place_of_the_first() {
    let world = world();
    let repository = "acme/folders-GGUF";
    world.hub.add(repository, "q8/model.gguf", bytes(1));
    world.hub.add(repository, "f16/model.gguf", bytes(2));
    world.pull(&format!("{repository}:q8/model.gguf")).unwrap();
    let error = world.pull(&format!("{repository}:f16/model.gguf")).unwrap_err();
    assert!(matches!(&error, HubError::Taken { from, .. } if from.contains("q8/model.gguf")), "{error}");
    assert_eq!((world.read("model.gguf"), world.hub.times("f16/model.gguf")), (bytes(1), 0));
    // A newer version of the first one still does, and so does one that is registered under the name.
    world.hub.add(repository, "q8/model.gguf", bytes(3));
    commit(&world, repository, '2');
    world.pull(&format!("{repository}@v2:q8/model.gguf")).unwrap();
    assert_eq!(world.read("model.gguf"), bytes(3));
    let named =
        Order { name: Some("model.gguf".to_owned()), ..order(&format!("{repository}:f16/model.gguf")) };
    world.order(&named).unwrap();
    assert_eq!(world.read("model.gguf"), bytes(2));
}

#[test]
fn a_pull_says_whether_another_version_was_there() {
    let world = world();
    assert!(!world.pull(REPOSITORY).unwrap().replaced);
    assert!(!world.pull(REPOSITORY).unwrap().replaced);
    world.hub.add(REPOSITORY, FILE, bytes(2));
    world.hub.fault(FILE, [Fault::Cut(300_000)]);
    let pulled = world.pull(REPOSITORY).unwrap();
    assert!(pulled.replaced && !pulled.was_there);
    assert_eq!(world.read(FILE), bytes(2));
}
