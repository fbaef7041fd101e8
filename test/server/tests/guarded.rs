//! Attacks: requests that are counted though nothing happened, refusals that are made up, columns of others
//! that take the place of a vectorizer's, limits that one request exceeds, and endpoints that refuse
//! everything.

use steadytext_test_models::endpoint::{LocalEndpoint, Mistake};
use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session, Signal, is_alive, served_elsewhere, signal, wait_until};

use crate::endpoints::{file, model, register, row, start};

#[test]
fn a_retry_that_is_said_a_thousand_times_beside_one_that_is_counts_once() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice login in role steadytext_user;
         select steadytext_set_limit('alice', max_pending => 1000000)",
    );
    session.pause();
    let mut alice = cluster.session_as("postgres", "alice");
    alice.generate("a request", "max_tokens => 3");
    let fail = "update steadytext_queue set status = 'failed'";
    session.run(fail);
    wait_until("it is not pending any more", || alice.used("max_pending") == 0);
    // Nobody counts the rows meanwhile.
    let worker = session.worker_pid();
    assert!(signal(worker, Signal::STOP));
    let said = "select count(*) from generate_series(1, 1000) where steadytext.admit_retry()";
    let put_back = "update steadytext_queue set status = 'pending', retry_count = 0";
    // In one statement, before it, behind it, and around a savepoint.
    for act in [
        format!("begin; {said}; {put_back}; commit"),
        format!("begin; {put_back}; {said}; commit"),
        format!(
            "begin; {said}; savepoint a; {put_back}; rollback to a; {put_back}; release a; {said}; commit"
        ),
        format!(
            "{put_back} where (select count(*) from generate_series(1, 1000) where steadytext.admit_retry()) > 0"
        ),
    ] {
        let before = alice.used("max_pending");
        alice.run(&act);
        assert_eq!(alice.used("max_pending") - before, 1, "{act}");
        session.run(fail);
    }
    assert!(signal(worker, Signal::CONT));
    wait_until("the worker has counted", || alice.used("max_pending") == 0);
}

#[test]
fn refusals_that_were_none_are_not_noted() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         grant create on schema public to alice",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table docs (id bigint primary key, body text);
         select steadytext_create_vectorizer('docs', array['body'], name => 'of-alice', index => 'none');
         select steadytext_prompt_create('of-alice', 'A prompt {{ x }}')",
    );
    let mut bob = cluster.session_as("postgres", "bob");
    for call in [
        "steadytext.refuse_change('vectorizer', 'of-nobody', null)",
        "steadytext.refuse_change('enrichment', 'of-alice', null)",
        "steadytext.refuse_change('prompt', 'of-nobody', null)",
        "steadytext.refuse_change('vectorizer', null, null)",
    ] {
        assert_eq!(bob.error(&format!("select {call}")).code().code(), "42501", "{call}");
    }
    for call in [
        "steadytext.refuse_change('vectorizer', 'of-alice', null)",
        "steadytext.refuse_change('prompt', 'of-alice', null)",
    ] {
        assert_eq!(alice.error(&format!("select {call}")).code().code(), "42501", "{call}");
    }
    // One that is, behind all of them.
    assert_eq!(bob.error("select steadytext_pause_vectorizer('of-alice')").code().code(), "42501");
    assert!(signal(session.worker_pid(), Signal::TERM));
    const REFUSALS: &str = "select coalesce(string_agg(concat_ws(' ', user_id, error_message, details ->> 'count'), ', ' order by id), '')
         from steadytext_audit_log where action = 'right_refused'";
    wait_until("it is written down", || !session.one::<String>(REFUSALS).is_empty());
    assert_eq!(session.one::<String>(REFUSALS), "bob must be owner of vectorizer \"…\" 1");
}

#[test]
fn a_worker_that_is_ended_while_it_writes_a_refusal_down_loses_it_not() {
    let (cluster, mut session) = prepared(Options::new());
    session.run("create role bob login in role steadytext_user");
    let mut bob = cluster.session_as("postgres", "bob");
    let mut holder = cluster.session("postgres");
    holder.run("begin; lock table steadytext_audit_log in exclusive mode");
    assert_eq!(bob.error("select * from steadytext_audit_log").code().code(), "42501");
    const WAITS: &str = "select count(*) from pg_locks where not granted and relation = 'steadytext_audit_log'::regclass and pid = ";
    let worker = session.worker_pid();
    wait_until("the worker waits for the table", || session.one::<i64>(&format!("{WAITS}{worker}")) == 1);
    // It is refused the lock in time, and goes on.
    wait_until("it has given up", || session.one::<i64>(&format!("{WAITS}{worker}")) == 0);
    wait_until("it tries again", || session.one::<i64>(&format!("{WAITS}{worker}")) == 1);
    assert_eq!(session.worker_pid(), worker);
    assert!(signal(worker, Signal::TERM));
    wait_until("it is gone", || !is_alive(worker));
    holder.run("commit");
    const REFUSALS: &str = "select coalesce(string_agg(concat_ws(' ', user_id, error_message, details ->> 'count'), ', ' order by id), '')
         from steadytext_audit_log where action = 'right_refused'";
    wait_until("it is written down", || !session.one::<String>(REFUSALS).is_empty());
    assert_eq!(session.one::<String>(REFUSALS), "bob permission denied for table steadytext_audit_log 1");
}

#[test]
fn a_column_that_was_made_anew_under_a_targets_name_is_nobodys_but_its_makers() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table docs (id int primary key, body text, title text);
         insert into docs select i, 'body ' || i, 'title ' || i from generate_series(1, 3) as i;
         select steadytext_create_vectorizer('docs', array['body'], target_column => 'vec', name => 'docs', index => 'none')",
    );
    rest(&mut session);
    // The hashes stay where they were, and fit the vectors that came back.
    session.run(
        "create table aside as select id, vec from docs;
         alter table docs drop column vec cascade;
         alter table docs add column vec vector(256);
         update docs set vec = aside.vec from aside where aside.id = docs.id;
         select steadytext_alter_vectorizer('docs', columns => array['title'])",
    );
    let column =
        "select target_column from steadytext_vectorizer_status where name = 'docs' and state = 'idle'";
    wait_until("the new vectors are there", || session.list::<String>(column) == ["vec_next"]);
    let kept = "select count(*) from docs join aside using (id) where docs.vec = aside.vec and docs.vec_next is not null";
    assert_eq!(session.one::<i64>(kept), 3);
    session.run("select steadytext_drop_vectorizer('docs', drop_all => true)");
    let columns: String = session.one(
        "select string_agg(attname, ' ' order by attnum) from pg_attribute
         where attrelid = 'docs'::regclass and attnum > 0 and not attisdropped",
    );
    assert_eq!(columns, "id body title vec");
}

#[test]
fn columns_of_any_name_change_places_and_keep_the_name_that_they_have_by_then() {
    let (_cluster, mut session) = prepared(Options::new());
    let long =
        |bytes: usize| format!("{}{}", "😀".repeat((bytes - 3) / 4), "x".repeat(bytes - (bytes - 3) / 4 * 4));
    let names: Vec<String> = (55..=63).map(long).collect();
    for (number, name) in names.iter().enumerate() {
        assert_eq!(name.len(), 55 + number);
        session.run(&format!(
            "create table t{number} (id int primary key, body text, title text);
             insert into t{number} values (1, 'body', 'title');
             select steadytext_create_vectorizer('t{number}', array['body'], target_column => '{name}', name => 't{number}', index => 'none')"
        ));
    }
    // One that is called otherwise when a column that is read goes.
    session.run(
        "create table renamed (id int primary key, body text, title text);
         insert into renamed values (1, 'body', 'title');
         select steadytext_create_vectorizer('renamed', array['body'], target_column => 'vec', name => 'renamed', index => 'none')",
    );
    rest(&mut session);
    session.run(
        "alter table renamed rename column vec to direction; alter table renamed rename column vec_hash to origin;
         alter table renamed drop column body cascade;
         select steadytext_alter_vectorizer(name, columns => array['title']) from steadytext_vectorizers",
    );
    rest(&mut session);
    let columns = |session: &mut Session, table: &str| -> Vec<String> {
        session.list(&format!(
            "select attname::text from pg_attribute where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped order by attnum"
        ))
    };
    for (number, name) in names.iter().enumerate() {
        let columns = columns(&mut session, &format!("t{number}"));
        assert_eq!(columns[..4], ["id", "body", "title", name], "{name}");
        assert!(columns.len() == 5 && columns[4].ends_with("_hash"), "{columns:?}");
        let filled = format!("select count(*) from t{number} where \"{name}\" = steadytext_embed('title')");
        assert_eq!(session.one::<i64>(&filled), 1, "{name}");
    }
    assert_eq!(columns(&mut session, "renamed"), ["id", "title", "direction", "origin"]);
    session.run("select steadytext_drop_vectorizer(name, drop_all => true) from steadytext_vectorizers");
    assert_eq!(columns(&mut session, "renamed"), ["id", "title"]);
    assert_eq!(columns(&mut session, "t8"), ["id", "body", "title"]);
}

#[test]
fn vectorizers_ask_for_no_more_texts_than_a_limit_has_room_for() {
    let (cluster, mut session) = prepared(Options::new());
    session.run("create role alice login in role steadytext_user; grant create on schema public to alice");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table docs (id int primary key, body text);
         select steadytext_create_vectorizer('docs', array['body'], name => 'docs', chunk_size => 16, chunk_overlap => 0, index => 'none')",
    );
    rest(&mut session);
    session.run("select steadytext_set_limit('alice', requests_per_day => 10); select steadytext_reset_usage('alice')");
    // Of one text each, but for the last, which has more pieces than can ever be asked for.
    alice.run(
        "insert into docs select i, 'row ' || i from generate_series(1, 15) as i;
         insert into docs select 99, string_agg('A sentence, and its number is ' || i || '.', ' ') from generate_series(1, 100) as i",
    );
    let state = "select state from steadytext_vectorizer_status where name = 'docs'";
    wait_until("it waits for the limit", || alice.one::<String>(state) == "waiting_for_limit");
    wait_until("all that was allowed is there", || {
        alice.one::<i64>("select count(*) from docs_body_embedding") == 10
    });
    assert_eq!(alice.used("requests_per_day"), 10);
    let waits: bool =
        alice.one("select problem like '%steadytext_rate_limits%' from steadytext_vectorizer_status");
    assert!(waits);
    session.run("select steadytext_reset_usage('alice')");
    wait_until("the rest is there", || alice.one::<i64>("select count(*) from docs_body_embedding") == 15);
    wait_until("it waits for a limit that has room for the long one", || {
        alice.one::<bool>(
            "select state = 'waiting_for_limit' and problem like '1 rows have more chunks %' from steadytext_vectorizer_status",
        )
    });
    assert_eq!(alice.used("requests_per_day"), 5);
    let failed: Vec<String> =
        alice.list("select concat_ws('|', key, error_code) from steadytext_vectorizer_errors");
    assert_eq!(failed, ["{\"id\": 99}|53400"]);
    // With another limit it is asked for by itself.
    session.run("select steadytext_set_limit('alice', requests_per_day => 1000)");
    wait_until("the long one is there", || {
        alice.one::<i64>("select count(*) from docs_body_embedding where id = 99") > 10
    });
    wait_until("it waits for nothing", || alice.one::<String>(state) == "idle");
}

#[test]
fn models_elsewhere_do_not_take_the_place_of_the_default_one() {
    let options = Options::new().set("pg_steadytext.generation_model", "auto");
    let (_cluster, mut session) = prepared(options.set("pg_steadytext.embedding_model", "auto"));
    for task in ["generate", "embed"] {
        session.run(&format!(
            "insert into steadytext_models (name, task, file, placement) values ('far-{task}', '{task}', 'far', 'elsewhere')"
        ));
    }
    let id = session.generate("nobody named a model", "max_tokens => 2, use_cache => false");
    assert_eq!(session.wait_for_end(id).status, "completed");
    assert_eq!(session.one::<i32>("select vector_dims(steadytext_embed('nobody named one'))"), 256);
    // But one that is preferred is wanted, and nothing is given in its place.
    session.run("update steadytext_models set is_preferred = true where name = 'far-embed'");
    session.error("select steadytext_embed('nobody named one', use_cache => false)");
}

#[test]
fn endpoints_that_refuse_the_account_or_have_nothing_there_lose_no_request() {
    let (cluster, mut session) = served_elsewhere();
    let statuses = [402_u16, 403, 404, 405, 410];
    let endpoints: Vec<_> = statuses.iter().map(|_| LocalEndpoint::start().expect("a port")).collect();
    let mut content = String::new();
    for (status, endpoint) in statuses.iter().zip(&endpoints) {
        register(&mut session, &format!("model-{status}"), "generate");
        content += &model(&format!("model-{status}"), "chat", &endpoint.url(), "retries = 0");
        let said = "{\"error\": {\"message\": \"no\"}}".to_owned();
        endpoint.mistake([Mistake::Status(*status, None, said)]);
    }
    let path = file(&cluster, "endpoints", &content);
    let ids: Vec<_> = statuses
        .iter()
        .map(|status| session.generate("x", format!("model => 'model-{status}', max_tokens => 9")))
        .collect();
    let mut worker = start(&cluster, &path, &[]);
    for ((status, id), endpoint) in statuses.iter().zip(&ids).zip(&endpoints) {
        wait_until("it is answered when the endpoint answers again", || {
            session.request(*id).status == "completed"
        });
        assert_eq!(session.request(*id).retry_count, 0, "{status}");
        assert!(row(&mut session, id).starts_with("completed|echo: x|0|2|"), "{status}");
        assert_eq!(endpoint.called().len(), 2, "{status}");
        assert!(worker.said().contains(&format!("({status})")), "{status}: {}", worker.said());
    }
    assert!(worker.stop());
}
