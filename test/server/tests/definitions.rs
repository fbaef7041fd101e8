//! Vectorizers and enrichments whose subjects are dropped: columns, rows that have failed, and their owner.

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session, wait_until};

fn state(session: &mut Session, kind: &str, name: &str) -> String {
    session.one(&format!("select state from steadytext_{kind}_status where name = '{name}'"))
}

fn wait_until_broken(session: &mut Session, kind: &str, name: &str) {
    wait_until("it is known to be broken", || {
        session.one(&format!(
            "select s.problem ~ 'was dropped' from steadytext_vectorizer_state as s join steadytext_vectorizers as v on v.id = s.vectorizer_id
             where v.name = '{name}' and v.kind = '{kind}' and s.problem is not null
             union all select false limit 1"
        ))
    });
}

#[test]
fn a_definition_whose_column_was_dropped_goes_on_with_another() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table apart (id int primary key, body text, other text);
         create table inside (id int primary key, body text, other text);
         create table told (id int primary key, body text, other text);
         insert into apart select i, 'row ' || i, 'other ' || i from generate_series(1, 5) as i;
         insert into inside select * from apart;
         insert into told select * from apart;
         select steadytext_create_vectorizer('apart', array['body'], index => 'none');
         select steadytext_create_vectorizer('inside', array['body'], target_column => 'embedding', index => 'none');
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    rest(&mut session);
    session.run(
        "alter table apart drop column body cascade; alter table inside drop column body cascade; alter table told drop column body cascade",
    );
    // Rows come, change and go as before, and nothing is lost of what is searched.
    for table in ["apart", "inside", "told"] {
        session.run(&format!(
            "insert into {table} (id, other) values (6, 'new'); update {table} set other = other || '.'; delete from {table} where id = 1"
        ));
    }
    for (kind, name) in
        [("vectorizer", "apart_body"), ("vectorizer", "inside_body"), ("enrichment", "told_kind")]
    {
        assert_eq!(state(&mut session, kind, name), "broken", "{name}");
        wait_until_broken(&mut session, kind, name);
    }
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_search('apart_body', 'row 2', 2)"),
        2,
        "the old vectors are found"
    );
    session.run(
        "select steadytext_alter_vectorizer('apart_body', columns => array['other']);
         select steadytext_alter_vectorizer('inside_body', columns => array['other']);
         select steadytext_alter_enrichment('told_kind', prompt => '$other')",
    );
    rest(&mut session);
    assert_eq!(
        session.one::<i64>(
            "select (select count(*) from apart as s full join apart_body_embedding as d using (id)
                     where d.embedding::text is distinct from steadytext_embed(s.other)::text)
                 + (select count(*) from inside where embedding::text is distinct from steadytext_embed(other)::text)
                 + (select count(*) from told where kind is distinct from steadytext_generate_choice(other, array['a', 'b']))"
        ),
        0
    );
    assert_eq!(
        session.list::<String>(
            "select attname::text from pg_attribute where attrelid = 'inside'::regclass and attnum > 0 and not attisdropped order by 1"
        ),
        ["embedding", "embedding_hash", "id", "other"]
    );
    assert_eq!(
        session.one::<i64>("select count(*) from pg_trigger where tgfoid = 'steadytext.note_row'::regproc"),
        9
    );
    session.run("update apart set other = 'changed' where id = 3");
    rest(&mut session);
    assert_eq!(session.one::<String>("select chunk from apart_body_embedding where id = 3"), "changed");
}

#[test]
fn who_makes_an_enrichment_is_told_that_only_the_builtin_model_answers() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table empty (id int primary key, body text); set pg_steadytext.generation_model = 'builtin'",
    );
    let warning = "answers with its builtin model";
    let from = cluster.log().len();
    session.run("select steadytext_create_enrichment('empty', 'chosen', '$body', model => 'builtin')");
    session.run("select steadytext_create_enrichment('empty', 'set', '$body')");
    assert!(!cluster.log()[from..].contains(warning), "who has chosen it knows");
    session.run("set pg_steadytext.generation_model = 'auto'; select steadytext_create_enrichment('empty', 'unsaid', '$body')");
    cluster.wait_for_log(from, warning);
}

/// The hints of the warnings of the builtin model that a statement gives.
fn warnings(session: &mut Session, sql: &str) -> Vec<String> {
    session.notices();
    session.run(sql);
    let notices = session.notices();
    let of_builtin = notices.iter().filter(|notice| notice.message().contains("with its builtin model"));
    of_builtin.map(|notice| notice.hint().unwrap_or_default().to_owned()).collect()
}

#[test]
fn who_makes_a_vectorizer_is_told_once_that_only_the_builtin_model_embeds() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table empty (id int primary key, body text); set pg_steadytext.embedding_model = 'builtin'",
    );
    let create = |name: &str, more: &str| {
        format!(
            "select steadytext_create_vectorizer('empty', array['body'], name => '{name}', destination => '{name}', index => 'none'{more})"
        )
    };
    assert!(warnings(&mut session, &create("set", "")).is_empty(), "who has chosen it knows");
    session.run("set pg_steadytext.embedding_model = 'auto'");
    assert!(warnings(&mut session, &create("named", ", model => 'builtin'")).is_empty());
    let hints = warnings(&mut session, &create("unsaid", ""));
    assert!(hints.len() == 1 && hints[0].contains("steadytext_alter_vectorizer"), "{hints:?}");
    assert_eq!(
        session.one::<String>("select model from steadytext_vectorizers where name = 'unsaid'"),
        "builtin"
    );
    assert_eq!(warnings(&mut session, &create("auto", ", model => 'auto'")).len(), 1);
    assert_eq!(warnings(&mut session, "select steadytext_alter_vectorizer('set', model => 'auto')").len(), 1);
    rest(&mut session);
}

#[test]
fn who_asks_a_broken_definition_for_work_is_told_that_it_can_do_none() {
    fn said(session: &mut Session, sql: &str) -> Vec<String> {
        session.notices();
        session.run(sql);
        session.notices().iter().map(|notice| notice.message().to_owned()).collect()
    }
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table docs (id int primary key, body text, told text);
         select steadytext_create_vectorizer('docs', array['body'], index => 'none', model => 'builtin');
         select steadytext_create_enrichment('docs', 'told', '$body', model => 'builtin');
         alter table docs drop column body cascade",
    );
    for call in [
        "steadytext_reembed('docs_body')",
        "steadytext_retry_vectorizer('docs_body')",
        "steadytext_resume_vectorizer('docs_body')",
        "steadytext_refresh_enrichment('docs_told')",
        "steadytext_retry_enrichment('docs_told')",
        "steadytext_resume_enrichment('docs_told')",
    ] {
        let words = said(&mut session, &format!("select {call}"));
        assert!(
            words.len() == 1 && words[0].contains("can do nothing as it is: a column of table"),
            "{call}: {words:?}"
        );
    }
    assert_eq!(said(&mut session, "select steadytext_pause_vectorizer('docs_body')"), Vec::<String>::new());
    for call in [
        "steadytext_drop_vectorizer('nix', if_exists => null)",
        "steadytext_drop_enrichment('nix', if_exists => null)",
    ] {
        let error = session.error(&format!("select {call}"));
        assert!(error.message().contains("does not exist"), "{call}: {error}");
    }
    assert_eq!(session.notices().len(), 0, "it is an error, and nothing is said to be skipped");
}

#[test]
fn failures_of_rows_that_are_gone_are_forgotten() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table apart (id int primary key, body text);
         create table inside (id int primary key, body text);
         create table told (id int primary key, body text, part int) ;
         select steadytext_create_vectorizer('apart', array['body'], chunk_size => 0, index => 'none');
         select steadytext_create_vectorizer('inside', array['body'], target_column => 'embedding', index => 'none');
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    for table in ["apart", "inside", "told"] {
        session.run(&format!(
            "insert into {table} (id, body) values (1, repeat('word ', 20000)), (2, repeat('another ', 20000)), (3, 'short')"
        ));
    }
    rest(&mut session);
    let failed = "select (select count(*) from steadytext_vectorizer_errors) + (select count(*) from steadytext_enrichment_errors)";
    assert_eq!(session.one::<i64>(failed), 6);
    // A row that goes by itself, and all of them at once, of which no trigger tells one by one.
    session.run(
        "delete from apart where id = 1; delete from inside where id = 1; delete from told where id = 1",
    );
    rest(&mut session);
    assert_eq!(session.one::<i64>(failed), 3);
    session.run("truncate apart; truncate inside; truncate told");
    rest(&mut session);
    assert_eq!(session.one::<i64>(failed), 0);
    // Errors of rows that are there stay.
    session.run("insert into apart values (1, repeat('word ', 20000)), (2, 'short')");
    rest(&mut session);
    session.run("vacuum full apart");
    rest(&mut session);
    assert_eq!(session.one::<i64>(failed), 1);
}

#[test]
fn an_owner_who_is_dropped_takes_the_tables_and_nobody_elses_vectors() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role owner login; grant steadytext_user to owner; create schema owned authorization owner;
         create table mine (id int primary key, body text);
         select steadytext_create_vectorizer('mine', array['body'], index => 'none')",
    );
    let mut owner = cluster.session_as("postgres", "owner");
    owner.run(
        "create table owned.t (id int primary key, body text);
         insert into owned.t select i, 'row ' || i from generate_series(1, 5) as i;
         select steadytext_create_vectorizer('owned.t', array['body'], name => 'owned', index => 'none');
         select steadytext_create_enrichment('owned.t', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}', name => 'kinds')",
    );
    rest(&mut session);
    owner.run("insert into owned.t values (6, 'the last one')");
    drop(owner);
    assert_eq!(session.error("drop role owner").code().code(), "2BP01", "what a role owns is dropped first");
    session.run("drop owned by owner cascade; drop role owner");
    session.run("insert into mine values (1, 'words')");
    wait_until("others are embedded", || {
        session.list::<String>("select chunk from mine_body_embedding") == ["words"]
    });
    for (kind, name) in [("vectorizer", "owned"), ("enrichment", "kinds")] {
        assert_eq!(state(&mut session, kind, name), "broken");
        session.run(&format!("select steadytext_drop_{kind}('{name}', true)"));
    }
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizers"), 1);
}

#[test]
fn what_is_more_than_its_owner_may_ask_for_is_done_piece_by_piece() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice login in role steadytext_user; grant create on schema public to alice;
         select steadytext_set_limit('alice', requests_per_day => 700)",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table docs (id bigint primary key, body text);
         insert into docs select i, 'text ' || i from generate_series(1, 3000) as i;
         select steadytext_create_vectorizer('docs', array['body'], index => 'none')",
    );
    wait_until("it says what it waits for", || {
        session.one("select exists (select from steadytext_vectorizer_state where problem like '%steadytext_rate_limits%')")
    });
    let embedded: i64 = session.one("select count(*) from docs_body_embedding");
    assert!((1..700).contains(&embedded), "{embedded}");
    wait_until("all is embedded, as more and more is allowed", || {
        session.run("select steadytext_reset_usage('alice')");
        session.one::<i64>("select count(*) from docs_body_embedding") == 3000
    });
    session
        .run("select steadytext_set_limit('alice', requests_per_day => 5), steadytext_reset_usage('alice')");
    alice.run(
        "create table asked (id bigint primary key, body text);
         insert into asked select i, 'text ' || i from generate_series(1, 12) as i;
         select steadytext_create_enrichment('asked', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"], \"use_cache\": false}')",
    );
    wait_until("as many rows as are allowed have their value", || {
        session.one::<i64>("select count(*) from asked where kind is not null") == 5
    });
    wait_until("it says what it waits for", || {
        alice.one("select state = 'waiting_for_limit' and problem like '%requests per day%' from steadytext_enrichment_status")
    });
    wait_until("all have theirs, as more and more is allowed", || {
        session.run("select steadytext_reset_usage('alice')");
        session.one::<i64>("select count(*) from asked where kind is not null") == 12
    });
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_enrichment_errors"), 0);
}

#[test]
fn what_changes_while_triggers_are_disabled_is_found_when_they_are_back() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table apart (id int primary key, body text);
         create table told (id int primary key, body text);
         insert into apart select i, 'row ' || i from generate_series(1, 5) as i;
         insert into told select * from apart;
         select steadytext_create_vectorizer('apart', array['body'], index => 'none');
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    rest(&mut session);
    for table in ["apart", "told"] {
        session.run(&format!("alter table {table} disable trigger user"));
        wait_until("it is known to be broken", || {
            session.one(&format!(
                "select exists (select from steadytext_vectorizer_state as s join steadytext_vectorizers as v on v.id = s.vectorizer_id
                 where s.problem ~ 'disabled' and v.name like '{table}%')"
            ))
        });
        session.run(&format!(
            "update {table} set body = 'changed unseen' where id = 2; insert into {table} values (6, 'came unseen');
             delete from {table} where id = 1; alter table {table} enable trigger user"
        ));
    }
    rest(&mut session);
    let wrong = "select count(*) from apart as a full join apart_body_embedding as e using (id)
        where e.embedding is distinct from steadytext_embed(a.body) or e.chunk is distinct from a.body";
    assert_eq!(session.one::<i64>(wrong), 0);
    assert_eq!(session.one::<i64>("select count(*) from told where kind is null"), 0);
}

#[test]
fn a_model_is_asked_before_the_table_is_locked() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table docs (id int primary key, body text);
         select steadytext_create_vectorizer('docs', array['body'], index => 'none', model => 'builtin');
         select steadytext_pause_vectorizer('docs_body');
         select steadytext_alter_vectorizer('docs_body', format => 'One: $chunk')",
    );
    // A model that tells which locks are held while it is asked.
    session.run(
        "create or replace function steadytext_embed(text_input text, use_cache boolean default true, seed bigint default 42,
             model text default null, mode text default null, task text default null, truncate boolean default false,
             on_error text default 'error', dimensions bigint default null, unsafe_mode boolean default false)
         returns vector language plpgsql as $$
         begin
             raise notice 'locks: %', (select count(*) from pg_locks as l where l.pid = pg_backend_pid() and l.relation = 'public.docs'::regclass
                 and l.mode in ('ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'));
             return array_fill(1, array[256])::public.vector;
         end $$",
    );
    session.notices();
    session.run("select steadytext_alter_vectorizer('docs_body', format => 'Two: $chunk')");
    let notices: Vec<_> = session.notices().iter().map(|notice| notice.message().to_owned()).collect();
    assert_eq!(notices, ["locks: 0"]);
    assert_eq!(
        session.one::<String>("select format from steadytext_vectorizers where replaces is not null"),
        "Two: $chunk"
    );
}
