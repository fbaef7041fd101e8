//! Vectorizers and enrichments whose rows change without a note: while triggers are off, while the table is
//! another role's, by a crash, or by a type that changes.

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session, Signal, wait_until};

/// The rows of a table without the vector of their text, and the vectors without a row.
fn wrong(session: &mut Session, table: &str, key: &str) -> i64 {
    session.one(&format!(
        "select count(*) from {table} as a full join {table}_body_embedding as e using ({key})
         where e.embedding::text is distinct from steadytext_embed(a.body::text)::text or e.chunk is distinct from a.body::text"
    ))
}

#[test]
fn what_changes_while_triggers_are_off_for_a_moment_is_found() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table apart (id int primary key, body text);
         create table told (id int primary key, body text);
         create table parted (part int, id int, body text, primary key (part, id)) partition by list (part);
         create table parted_1 partition of parted for values in (1);
         insert into apart select i, 'row ' || i from generate_series(1, 5) as i;
         insert into told select * from apart;
         insert into parted select 1, i, 'row ' || i from generate_series(1, 5) as i;
         select steadytext_create_vectorizer('apart', array['body'], index => 'none');
         select steadytext_create_vectorizer('parted', array['body'], index => 'none');
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    rest(&mut session);
    let updates = |session: &mut Session, table: &str| {
        session.one::<String>(&format!(
            "select quote_ident(tgname) from pg_trigger where tgrelid = '{table}'::regclass and tgname ~ '^steadytext_.*_updates$'"
        ))
    };
    let (of_apart, of_parted) = (updates(&mut session, "apart"), updates(&mut session, "parted"));
    // As pg_restore does with --disable-triggers.
    for (table, triggers, change) in [
        ("apart", "user", "update apart set body = 'changed unseen' where id = 2"),
        ("apart", "all", "insert into apart values (6, 'came unseen'); delete from apart where id = 1"),
        ("apart", &*of_apart, "update apart set body = 'changed again' where id = 3"),
        (
            "parted_1",
            "user",
            "update parted set body = 'changed unseen' where id = 2; delete from parted where id = 1",
        ),
        ("parted_1", &*of_parted, "update parted set body = 'changed again' where id = 3"),
        ("told", "user", "insert into told values (6, 'came unseen'); delete from told where id = 1"),
    ] {
        session.run(&format!(
            "begin; alter table {table} disable trigger {triggers}; {change}; alter table {table} enable trigger {triggers}; commit"
        ));
        rest(&mut session);
        assert_eq!(wrong(&mut session, "apart", "id"), 0, "{change}");
        assert_eq!(wrong(&mut session, "parted", "part, id"), 0, "{change}");
    }
    assert_eq!(session.one::<i64>("select count(*) from told where kind is null"), 0);
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_enrichment_rows where gone_at is null"),
        5
    );
}

#[test]
fn what_changes_while_the_table_is_another_roles_is_found() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice in role steadytext_user; create role bob in role steadytext_user;
         create table owned (id int primary key, body text);
         insert into owned select i, 'row ' || i from generate_series(1, 3) as i;
         alter table owned owner to alice; grant all on schema public to alice, bob;
         select steadytext_create_vectorizer('owned', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run(
        "begin; alter table owned owner to bob; alter table owned_body_embedding owner to bob;
         update owned set body = 'changed under way' where id = 2;
         update steadytext_vectorizers set owner_role = 'bob'; commit",
    );
    rest(&mut session);
    assert_eq!(wrong(&mut session, "owned", "id"), 0, "given to another role together with its definition");
    session.run(
        "begin; alter table owned owner to alice; update owned set body = 'changed there' where id = 3; alter table owned owner to bob; commit",
    );
    rest(&mut session);
    assert_eq!(wrong(&mut session, "owned", "id"), 0, "given away and taken back");
}

#[test]
fn unlogged_tables_that_a_crash_has_emptied_leave_no_vectors() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create unlogged table passing (id int primary key, body text);
         insert into passing select i, 'row ' || i from generate_series(1, 3) as i;
         select steadytext_create_vectorizer('passing', array['body'], index => 'none')",
    );
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from passing_body_embedding"), 3);
    let process = session.backend_pid();
    cluster.crash(process, Signal::KILL);
    let mut session = cluster.session("postgres");
    assert_eq!(session.one::<i64>("select count(*) from passing"), 0);
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from passing_body_embedding"), 0);
}

#[test]
fn values_of_an_enumeration_that_are_renamed_are_embedded_under_their_new_names() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create type mood as enum ('good', 'bad'); create table felt (id mood primary key, body mood);
         insert into felt values ('good', 'bad'), ('bad', 'good');
         select steadytext_create_vectorizer('felt', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run("alter type mood rename value 'bad' to 'awful'");
    rest(&mut session);
    assert_eq!(wrong(&mut session, "felt", "id"), 0);
    assert_eq!(
        session.list::<String>("select concat(id, ' ', chunk) from felt_body_embedding order by 1"),
        ["awful good", "good awful"]
    );
}

#[test]
fn keys_that_are_none_any_more_stop_no_search() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create type mood as enum ('good', 'bad', 'odd');
         create table felt (id mood primary key, body text);
         create table told (id mood primary key, body text, kind text);
         select steadytext_create_vectorizer('felt', array['body'], chunk_size => 0, index => 'none');
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    for table in ["felt", "told"] {
        session.run(&format!(
            "insert into {table} (id, body) values ('good', 'short'), ('bad', repeat('word ', 20000)), ('odd', 'short, too')"
        ));
    }
    rest(&mut session);
    let failed = "select format('%s %s', v.name, f.key) from steadytext_vectorizer_failures as f
        join steadytext_vectorizers as v on v.id = f.vectorizer_id order by 1";
    assert_eq!(session.list::<String>(failed), ["felt_body [\"bad\"]", "told_kind [\"bad\"]"]);
    session
        .run("alter type mood rename value 'bad' to 'worse'; alter type mood rename value 'odd' to 'even'");
    // Tables that are written anew are searched.
    session.run("vacuum full felt");
    session.run("vacuum full told");
    rest(&mut session);
    assert_eq!(session.list::<String>(failed), ["felt_body [\"worse\"]", "told_kind [\"worse\"]"]);
    assert_eq!(
        session.list::<String>("select id::text from felt_body_embedding order by id::text"),
        ["even", "good"]
    );
    assert_eq!(
        session.list::<String>(
            "select key ->> 0 from steadytext_enrichment_rows where gone_at is null order by 1"
        ),
        ["even", "good"]
    );
}

#[test]
fn an_enrichment_whose_table_gets_another_key_goes_on_and_asks_nothing_again() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table told (id uuid primary key, code int not null, body text);
         insert into told select md5(i::text)::uuid, 100 + i, 'row ' || i from generate_series(1, 5) as i;
         insert into told values (md5('long')::uuid, 200, repeat('word ', 20000));
         select steadytext_create_enrichment('told', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    rest(&mut session);
    session.run("update told set kind = 'mine' where code = 101");
    rest(&mut session);
    let made = "select embedded_total from steadytext_vectorizer_state";
    let before: i64 = session.one(made);
    session.run("alter table told drop column id cascade; alter table told add primary key (code); update told set body = 'changed' where code = 105");
    session.run("select steadytext_alter_enrichment('told_kind', prompt => '$body')");
    rest(&mut session);
    assert_eq!(session.list::<String>("select key::text from steadytext_vectorizer_failures"), ["[200]"]);
    assert_eq!(session.one::<i64>(made), before + 1, "the one row that has changed");
    assert_eq!(
        session.list::<String>(
            "select key::text || is_kept from steadytext_enrichment_rows where gone_at is null order by 1"
        ),
        ["[101]true", "[102]false", "[103]false", "[104]false", "[105]false"]
    );
    assert_eq!(
        session.one::<i64>(
            "select count(*) from told where code between 102 and 105 and kind is distinct from steadytext_generate_choice(body, array['a', 'b'])"
        ),
        0
    );
    session.run("update told set body = 'changed, too'");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from told where kind in ('a', 'b')"), 6);
}

#[test]
fn what_the_owners_code_removes_in_the_step_of_another_definition_is_made_again() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table shared (id int primary key, body text);
         select steadytext_create_enrichment('shared', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}');
         select steadytext_create_vectorizer('shared', array['body'], target_column => 'embedding', index => 'none');
         create function wipe() returns trigger language plpgsql as $$ begin new.kind := null; return new; end $$;
         create trigger wipe before update on shared for each row
         when (new.embedding is distinct from old.embedding) execute function wipe()",
    );
    session.run("select steadytext_pause_vectorizer('shared_body')");
    session.run("insert into shared select i, 'row ' || i from generate_series(1, 5) as i");
    wait_until("the values are there", || {
        session.one("select count(*) = 5 from shared where kind is not null")
    });
    session.run("select steadytext_resume_vectorizer('shared_body')");
    rest(&mut session);
    assert_eq!(
        session.one::<i64>(
            "select count(*) from shared where kind is null or embedding::text is distinct from steadytext_embed(body)::text"
        ),
        0
    );
}

#[test]
fn rows_that_are_to_wait_until_they_change_do_so_whatever_happens_to_their_table() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table apart (id int primary key, body text);
         create table inside (id int primary key, body text);
         insert into apart select i, 'there ' || i from generate_series(1, 1200) as i;
         insert into inside select * from apart;
         begin;
         select steadytext_create_vectorizer('apart', array['body'], enqueue_existing => false);
         select steadytext_create_vectorizer('inside', array['body'], target_column => 'embedding', enqueue_existing => false);
         insert into apart values (0, 'new'); update apart set body = 'changed' where id = 7;
         insert into inside values (0, 'new'); update inside set body = 'changed' where id = 7;
         commit",
    );
    let embedded = |session: &mut Session| {
        session.list::<String>(
            "select 'apart ' || id from apart_body_embedding union all select 'inside ' || id from inside where embedding is not null order by 1",
        )
    };
    rest(&mut session);
    assert_eq!(embedded(&mut session), ["apart 0", "apart 7", "inside 0", "inside 7"]);
    session.run("vacuum full apart");
    session.run("vacuum full inside");
    rest(&mut session);
    session.run("truncate apart_body_embedding");
    rest(&mut session);
    assert_eq!(embedded(&mut session), ["apart 0", "apart 7", "inside 0", "inside 7"]);
    assert_eq!(
        session.list::<i64>("select skipped from steadytext_vectorizer_status where state = 'idle'"),
        [1199, 1199]
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_errors"), 0);
    // Not all of them are there any more, and one changes.
    session.run("delete from apart where id > 100; update apart set body = 'changed' where id = 8");
    rest(&mut session);
    assert_eq!(embedded(&mut session), ["apart 0", "apart 7", "apart 8", "inside 0", "inside 7"]);
    session.run("select steadytext_reembed('apart_body')");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from apart_body_embedding"), 101);
}
