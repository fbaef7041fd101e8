//! Files, cards and directories that cannot be read: nothing is concluded from that about what a model is
//! for, and nothing of it is remembered.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use steadytext_test_models::Bert;
use steadytext_test_server::{Cluster, Options, Session};

/// A cluster whose settings leave all choices to the directory of the models.
fn automatic() -> (Cluster, Session) {
    let cluster = Options::new().automatic_models().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    (cluster, session)
}

/// Puts an encoder of its own numbers into the directory of the models.
fn encoder(cluster: &Cluster, file: &str, seed: u64) {
    Bert { seed, ..Bert::default() }.write(&cluster.model_directory().join(file)).expect("our own file");
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
}

const CHOSEN: &str = "select steadytext_embed('which one', use_cache => false)::text";

fn named(session: &mut Session, model: &str) -> String {
    session.one(&format!("select steadytext_embed('which one', model => '{model}')::text"))
}

/// The call and the queue fail, because no model can be used, for a reason with these words.
#[track_caller]
fn fails(session: &mut Session, words: &str) {
    let error = session.error(CHOSEN);
    assert_eq!(error.code().code(), "58P01", "{error:?}");
    assert!(error.message().contains(words), "{error:?}");
    let id = session.embed("which one", "use_cache => false");
    let ended = session.wait_for_end(id);
    assert_eq!((ended.status.as_str(), ended.error_code.as_deref()), ("failed", Some("58P01")), "{ended:?}");
}

/// The call and the queue are answered by the model of this name.
#[track_caller]
fn answers(session: &mut Session, model: &str) {
    let expected = named(session, model);
    assert_eq!(session.one::<String>(CHOSEN), expected);
    let id = session.embed("which one", "use_cache => false");
    assert_eq!(session.answer(id), expected);
}

#[test]
fn a_file_that_cannot_be_read_keeps_the_builtin_model_from_answering_until_it_can_be_read() {
    let (cluster, mut session) = automatic();
    let path = cluster.model_directory().join("one.gguf");
    encoder(&cluster, "one.gguf", 1);
    allow(&path, 0o000);
    fails(&mut session, "\"one\" is passed over");
    // The same file, of the same size and time: the session and the worker look at it once more.
    allow(&path, 0o644);
    answers(&mut session, "one");

    // What can be read answers, and a warning says so.
    allow(&path, 0o000);
    encoder(&cluster, "two.gguf", 2);
    let mut other = cluster.session("postgres");
    let two = named(&mut other, "two");
    assert_eq!(other.one::<String>(CHOSEN), two);
    let is_about_one = |message: &str| message.contains("\"one\" is passed over");
    assert!(other.notices().iter().any(|notice| is_about_one(notice.message())));
}

#[test]
fn a_card_that_cannot_be_read_is_read_again_and_may_prefer_any_task_until_then() {
    let (cluster, mut session) = automatic();
    let at = |name: &str| cluster.model_directory().join(name);
    let card = at("two.gguf.card.json");
    encoder(&cluster, "two.gguf", 2);
    fs::write(&card, r#"{"preferred": ["embed"]}"#).expect("our own file");
    allow(&card, 0o000);
    fails(&mut session, "could not access model card");
    let error = session.error("select steadytext_generate('which one', max_tokens => 2, use_cache => false)");
    assert_eq!(error.code().code(), "58P01", "{error:?}");
    // So may that of a model which is not there.
    fs::rename(at("two.gguf"), at(".two")).expect("our own file");
    fails(&mut session, "could not access model card");
    fs::rename(at(".two"), at("two.gguf")).expect("our own file");
    encoder(&cluster, "one.gguf", 1);
    let mut other = cluster.session("postgres");
    answers(&mut other, "one");
    let is_about_two = |message: &str| message.contains("\"two.gguf\" is passed over");
    assert!(other.notices().iter().any(|notice| is_about_two(notice.message())));
    // The same card, of the same size and time.
    allow(&card, 0o644);
    for session in [&mut session, &mut other] {
        answers(session, "two");
    }
}

#[test]
fn a_directory_that_cannot_be_read_keeps_the_builtin_model_from_answering_and_says_so_of_names() {
    let (cluster, mut session) = automatic();
    let directory = cluster.model_directory();
    encoder(&cluster, "one.gguf", 1);
    // Its names cannot be listed; they can, and no file can be looked at.
    for mode in [0o311, 0o644] {
        allow(&directory, mode);
        let error = session.error(CHOSEN);
        let by_name =
            session.error("select steadytext_embed('which one', model => 'one', use_cache => false)");
        allow(&directory, 0o755);
        assert_eq!(error.code().code(), "58P01", "{mode:o}: {error:?}");
        assert!(error.message().contains("Permission denied"), "{mode:o}: {error:?}");
        assert_eq!(by_name.code().code(), "58030", "{mode:o}: {by_name:?}");
        answers(&mut session, "one");
    }
}
