//! What a hub does to a download so that it would never end, or end in vain, and names that mean something
//! else.

use std::time::Duration;

use steadytext_engine::card::Card;
use steadytext_engine::hub::{Hub, HubError, Order, pull};
use steadytext_test_models::hub::Fault;

use crate::hub::{FILE, REPOSITORY, SmallDisk, bytes, order, world};
use crate::hub_in_place::{JINA, JINA_FILE, add_jina, lora};

#[test]
fn bytes_that_come_again_and_again_are_no_progress() {
    // The store cuts at the same place, and then has nothing behind it, for as long as anybody asks.
    let world = world();
    world.hub.fault(FILE, (0..20).flat_map(|_| [Fault::Cut(300_000), Fault::Status(416, None)]));
    world.pull(REPOSITORY).unwrap_err();
    let requests = world.ranges().len();
    assert!(requests <= 5, "{requests} requests");
    assert!(world.names().is_empty());

    // It ignores ranges, and cuts elsewhere each time.
    let other = self::world();
    let lengths = (0..20).map(|number| Fault::Cut(300_000 - number % 2 * 1000));
    other.hub.fault(FILE, [Fault::Cut(310_000)].into_iter().chain(lengths));
    other.hub.be_silent();
    other.hub.ignore_ranges();
    other.pull(REPOSITORY).unwrap_err();
    let requests = other.ranges().len();
    assert!(requests <= 5, "{requests} requests");
}

#[test]
fn a_connection_that_brings_hardly_anything_is_given_up() {
    let world = world();
    world.hub.fault(FILE, vec![Fault::Drip(200_000); 10]);
    let hasty = |settings: Hub| Hub { silence: Duration::from_secs(1), ..settings };
    let error =
        pull(&hasty(world.settings()), &order(REPOSITORY), world.path(), &world.progress).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(world.ranges().len() <= 3, "there are more requests than tries");
    assert!(!world.staged().is_empty(), "what has arrived is kept");
    // The list of a repository is no exception.
    let other = self::world();
    other.hub.fault("list", vec![Fault::Drip(200_000); 10]);
    other.hub.describe(REPOSITORY, serde_json::json!({ "description": "x".repeat(200_000) }));
    let error =
        pull(&hasty(other.settings()), &order(REPOSITORY), other.path(), &other.progress).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn a_model_whose_card_could_not_be_written_is_refused_before_it_is_fetched() {
    let world = world();
    let long = "x".repeat(600);
    for licence in ["mit\u{7}", &long] {
        let card = Card { licence: Some(licence.to_owned()), ..Card::default() };
        let named = Order { name: Some(FILE.to_owned()), card, ..order(REPOSITORY) };
        let error = world.order(&named).unwrap_err();
        assert!(matches!(&error, HubError::NoModel { reason, .. } if reason.contains("licence")), "{error}");
        assert!(error.hint().unwrap().contains("row"), "{error:?}");
    }
    let far = format!("{0}/{0}/{0}/{FILE}", "d".repeat(190));
    world.hub.add("acme/far", &far, bytes(2));
    let error = world.pull("acme/far").unwrap_err();
    assert!(matches!(&error, HubError::NoModel { reason, .. } if reason.contains("file has")), "{error}");
    assert_eq!(world.hub.times(FILE), 0);

    // So many files that the card would be too long with the checksums that they will have.
    let repository = "acme/shards";
    for path in ["config.json", "model.safetensors.index.json"] {
        world.hub.add_small(repository, path, b"{}");
    }
    world.hub.be_silent();
    let folder = "9".repeat(190);
    for number in 1..=200 {
        world.hub.add(repository, &format!("{folder}{number}_Dense/config.json"), bytes(3));
    }
    world.hub.add(repository, "model.safetensors", bytes(3));
    let error = world.pull(repository).unwrap_err();
    assert!(matches!(&error, HubError::NoModel { reason, .. } if reason.contains("longer than")), "{error}");
    assert!(world.ranges().is_empty() && world.names().is_empty());
}

#[test]
fn offline_a_file_with_another_checksum_than_the_registered_one_is_not_there() {
    let world = world();
    world.pull(REPOSITORY).unwrap();
    let offline = Hub { offline: true, ..world.settings() };
    let pull = |order: &Order| pull(&offline, order, world.path(), &world.progress);
    let named = |name: &str| Order { name: Some(name.to_owned()), ..order("acme/elsewhere") };
    // Whichever version it is, where nobody says which one it must be.
    assert!(pull(&named(FILE)).unwrap().was_there);
    let error = pull(&Order { sha256: Some([7; 32]), ..named(FILE) }).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");

    // The parts of a split model have one checksum together.
    let name = |number: u32| format!("big-0000{number}-of-00002.gguf");
    (1..=2).for_each(|number| std::fs::write(world.path().join(name(number)), bytes(number)).unwrap());
    let both = [bytes(1), bytes(2)].concat();
    world.hub.add("acme/both", "both", both);
    let right = sha256(&world.hub.sha256("acme/both", "both"));
    assert!(pull(&Order { sha256: Some(right), ..named(&name(1)) }).unwrap().was_there);
    assert!(pull(&Order { sha256: Some([7; 32]), ..named(&name(1)) }).is_err());
    // So has a model that takes adapters, whichever there are.
    add_jina(&world);
    world.pull(JINA).unwrap();
    std::fs::remove_file(Card::path(&world.path().join(JINA_FILE))).unwrap();
    let right = sha256(&world.hub.sha256(JINA, JINA_FILE));
    assert!(pull(&Order { sha256: Some(right), ..named(JINA_FILE) }).unwrap().was_there);
    assert!(pull(&Order { sha256: Some([7; 32]), ..named(JINA_FILE) }).is_err());
}

fn sha256(text: &str) -> [u8; 32] {
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

#[test]
fn names_of_files_that_lie_beside_models_are_no_models() {
    let world = world();
    for name in
        ["x.gguf.card.json", "x.gguf.Adapters", "x.gguf.checksum", "x.gguf.panels", "x.gguf.card.json.new"]
    {
        let repository = format!("acme/{name}");
        for path in ["config.json", "tokenizer.json"] {
            world.hub.add_small(&repository, path, b"{}");
        }
        world.hub.add(&repository, "model.safetensors", bytes(1));
        let error = world.pull(&repository).unwrap_err();
        assert!(
            matches!(&error, HubError::NoModel { reason, .. } if reason.contains(name)),
            "{name}: {error}"
        );
    }
    assert!(world.names().is_empty());
}

#[test]
fn an_address_that_a_hub_has_signed_is_in_no_message() {
    for place in [":80", "127.0.0.1:99999", "[::1", "a b"] {
        let world = world();
        let target = format!("http://{place}/file?signature=hf_secret");
        world.hub.fault(FILE, vec![Fault::Redirect(target); 10]);
        let error = world.pull(REPOSITORY).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hf_secret"), "{place}: {error}");
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn the_room_for_adapters_is_looked_at_before_the_model_is_fetched() {
    let world = world();
    add_jina(&world);
    // The disk has room for the model, and none for this adapter.
    world.hub.add(JINA, &lora("retrieval.query"), [&b"GGUF"[..], &vec![0; 90 << 20]].concat());
    let Some(disk) = SmallDisk::new("100m") else {
        eprintln!("skipped: this user may not mount a small file system");
        return;
    };
    let named = order(&format!("{JINA}:{JINA_FILE}"));
    let error = pull(&world.settings(), &named, disk.path(), &world.progress).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    assert_eq!(world.hub.times(JINA_FILE), 0);
}
