//! Default models: whoever acts for a session, a definition or the queue gets the model that the session
//! itself gets.

use steadytext_test_models::{Bert, Spec};
use steadytext_test_server::definitions::{prepared, process, rest};
use steadytext_test_server::{Cluster, Options, Session, wait_until};

/// A cluster whose settings leave all choices to the databases and the directory of the models.
fn automatic() -> (Cluster, Session) {
    prepared(Options::new().automatic_models())
}

/// Puts an encoder of its own numbers into the directory of the models.
fn encoder(cluster: &Cluster, file: &str, seed: u64) {
    Bert { seed, ..Bert::default() }.write(&cluster.model_directory().join(file)).expect("our own file");
}

fn decoder(cluster: &Cluster, file: &str, seed: u64) {
    let spec = Spec { seed, ..Spec::default() };
    steadytext_test_models::write(&spec, &cluster.model_directory().join(file)).expect("our own file");
}

fn vector(session: &mut Session, more: &str) -> String {
    session.one(&format!("select steadytext_embed('which one', use_cache => false{more})::text"))
}

/// What the queue answers.
fn queued(session: &mut Session) -> String {
    let id = session.embed("which one", "use_cache => false");
    session.answer(id)
}

#[test]
fn a_vectorizer_takes_the_model_that_its_session_embeds_with() {
    let (cluster, mut session) = automatic();
    for (seed, name) in [(1, "ours"), (2, "theirs"), (3, "mine")] {
        encoder(&cluster, &format!("{name}.gguf"), seed);
    }
    session.run(
        "create role app login in role steadytext_user; grant create on schema public to app;
         alter database postgres set pg_steadytext.embedding_model = 'ours';
         alter role app set pg_steadytext.embedding_model = 'theirs'",
    );
    let mut app = cluster.session_as("postgres", "app");
    app.run("create table docs (id int primary key, body text)");
    let model = |session: &mut Session, name: &str| -> Option<String> {
        session.one(&format!(
            "select model from steadytext_vectorizers where name = '{name}' and replaces is null"
        ))
    };
    let create = |name: &str| {
        format!(
            "select steadytext_create_vectorizer('docs', array['body'], name => '{name}', destination => '{name}', index => 'none')"
        )
    };
    app.run(&create("of_role"));
    assert_eq!(model(&mut app, "of_role").as_deref(), Some("theirs"));
    app.run("set pg_steadytext.embedding_model = 'mine'");
    app.run(&create("of_session"));
    assert_eq!(model(&mut app, "of_session").as_deref(), Some("mine"));
    rest(&mut session);
    app.run("select steadytext_alter_vectorizer('of_role', model => 'auto')");
    rest(&mut session);
    assert_eq!(model(&mut app, "of_role").as_deref(), Some("mine"));
    // Who has set nothing gets that of the database.
    let mut other = cluster.session("postgres");
    other.run(&create("of_database"));
    assert_eq!(model(&mut other, "of_database").as_deref(), Some("ours"));
}

#[test]
fn the_queue_follows_a_default_of_the_database_that_is_taken_back_or_hidden() {
    let (cluster, mut session) = automatic();
    for (seed, name) in [(1, "set"), (2, "preferred"), (3, "other")] {
        encoder(&cluster, &format!("{name}.gguf"), seed);
    }
    let card = cluster.model_directory().join("preferred.gguf.card.json");
    std::fs::write(card, r#"{"preferred": ["embed"]}"#).expect("our own file");
    let [set, preferred, other] =
        ["set", "preferred", "other"].map(|name| vector(&mut session, &format!(", model => '{name}'")));
    // The worker that begins now knows it.
    session.run("alter database postgres set pg_steadytext.embedding_model = 'set'");
    let before = session.worker_pid();
    session.run(&format!("select pg_terminate_backend({before})"));
    wait_until("there is another worker", || session.worker_of("postgres").is_some_and(|pid| pid != before));
    let mut new = cluster.session("postgres");
    assert_eq!([vector(&mut new, ""), queued(&mut new)], [set.clone(), set.clone()]);

    // What hides it in a session is a choice of the session.
    new.run("set pg_steadytext.embedding_model = 'auto'");
    assert_eq!([vector(&mut new, ""), queued(&mut new)], [preferred.clone(), preferred.clone()]);
    new.run("select steadytext_config_set('embedding_model', 'other')");
    assert_eq!([vector(&mut new, ""), queued(&mut new)], [other.clone(), other]);
    new.run("select steadytext_config_set('embedding_model', null)");

    // It is taken back for sessions that begin now. Calls that the worker's engine has when it ends are lost,
    // so that none is made before there is another one.
    session.run("alter database postgres reset pg_steadytext.embedding_model");
    let mut newest = cluster.session("postgres");
    wait_until("the worker knows that it is taken back", || queued(&mut newest) == preferred);
    assert_eq!(vector(&mut newest, ""), preferred);
    // For all roles, and for all settings.
    session.run("alter role all set pg_steadytext.embedding_model = 'set'");
    wait_until("the worker knows it", || queued(&mut session) == set);
    assert_eq!(vector(&mut session, ""), preferred);
    let mut newest = cluster.session("postgres");
    assert_eq!(vector(&mut newest, ""), set);
    session.run("alter role all reset all");
    wait_until("the worker knows that it is taken back", || queued(&mut session) == preferred);
}

#[test]
fn an_enrichment_without_a_model_follows_the_default_of_the_database() {
    let (cluster, mut session) = automatic();
    for (seed, name) in [(1, "first"), (2, "second")] {
        decoder(&cluster, &format!("{name}.gguf"), seed);
    }
    let answer = |session: &mut Session, model: &str| -> String {
        session.one(&format!("select steadytext_generate('which one', max_tokens => 4, model => '{model}')"))
    };
    let [first, second] = ["first", "second"].map(|model| answer(&mut session, model));
    assert_ne!(first, second);
    session.run("alter database postgres set pg_steadytext.generation_model = 'first'");
    let mut session = cluster.session("postgres");
    session.run(
        "create table docs (id int primary key, body text, told text);
         insert into docs values (1, 'which one');
         select steadytext_create_enrichment('docs', 'told', '$body', 'generate', '{\"max_tokens\": 4}')",
    );
    rest(&mut session);
    let told = |session: &mut Session, id: i32| -> String {
        session.one(&format!("select told from docs where id = {id}"))
    };
    assert_eq!(told(&mut session, 1), first);
    let before = process(&mut session);
    session.run("alter database postgres set pg_steadytext.generation_model = 'second'");
    // The process that works for it is another one then.
    wait_until("there is another process", || process(&mut session) != before);
    session.run("insert into docs values (2, 'which one')");
    rest(&mut session);
    assert_eq!(told(&mut session, 2), second);
}
