//! Changes that a vectorizer's trigger sees and writes down: by the transaction that makes them, whatever it
//! sees itself.

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session};

/// Whether the row's text is the one that its vector was computed from.
fn is_up_to_date(session: &mut Session, vectorizer: &str) -> bool {
    session.one(&format!(
        "select coverage = 1 and stale = 0 and pending = 0 from steadytext_vectorizer_status where name = '{vectorizer}'"
    ))
}

#[test]
fn a_transaction_that_began_before_the_vectorizer_has_its_changes_noted() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table note (id int primary key, body text);
         insert into note values (1, 'before'), (2, 'before')",
    );
    let mut old = cluster.session("postgres");
    old.run("begin isolation level repeatable read; select count(*) from note");
    session.run("select steadytext_create_vectorizer('note', array['body'], index => 'none')");
    rest(&mut session);
    old.run("update note set body = 'after' where id = 1; commit");
    rest(&mut session);
    assert!(is_up_to_date(&mut session, "note_body"));
    assert_eq!(
        session.one::<String>("select chunk from steadytext_search('note_body', 'after', 1)"),
        "after",
        "the vector is the present text's"
    );
}

#[test]
fn partitions_note_changes_for_the_vectorizer_of_a_table_between() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role owner_of_all login; create role owner_between login in role steadytext_user;
         grant create, usage on schema public to owner_of_all, owner_between;
         create table part (id int, kind text, body text, primary key (id, kind)) partition by list (kind);
         create table part_a partition of part for values in ('a') partition by range (id);
         create table part_a_1 partition of part_a for values from (0) to (1000);
         alter table part owner to owner_of_all; alter table part_a owner to owner_between; alter table part_a_1 owner to owner_between;
         insert into part values (1, 'a', 'one')",
    );
    let mut owner = cluster.session_as("postgres", "owner_between");
    owner.run("select steadytext_create_vectorizer('part_a', array['body'], index => 'none')");
    rest(&mut session);
    session.run("insert into part values (2, 'a', 'two'); update part set body = 'changed' where id = 1");
    rest(&mut session);
    let chunks =
        "select string_agg(chunk, ' ' order by chunk) from steadytext_search('part_a_body', 'x', 10)";
    assert_eq!(owner.one::<String>(chunks), "changed two");
}

#[test]
fn a_trigger_on_ones_own_table_notes_nothing_for_the_vectorizer_of_others() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role stranger login in role steadytext_user; grant create, usage on schema public to stranger;
         create table note (id int primary key, body text); insert into note values (1, 'one');
         select steadytext_create_vectorizer('note', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run("select steadytext_pause_vectorizer('note_body')");
    let id: String = session.one("select id::text from steadytext_vectorizers");
    let mut stranger = cluster.session_as("postgres", "stranger");
    stranger.run("create table own (id int primary key, body text) partition by range (id); create table own_1 partition of own default");
    stranger.run(&format!(
        "create trigger planted after insert or delete or update of id, body on own for each row execute function steadytext.note_row('{id}', 1, 1)"
    ));
    stranger.run("insert into own values (7, 'x'); insert into own_1 values (8, 'x')");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_work"), 0, "nothing is noted");
    // While the owner's own changes are, in the same session as well.
    session.run("insert into note values (2, 'two')");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_work"), 1);
}

#[test]
fn a_transaction_that_drops_the_extension_after_many_changes_commits() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table note (id int primary key, body text);
         select steadytext_create_vectorizer('note', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run(
        "begin; insert into note select i, 'row ' || i from generate_series(1, 100) as i; drop extension pg_steadytext cascade; commit",
    );
    assert_eq!(session.one::<i64>("select count(*) from note"), 100);
}
