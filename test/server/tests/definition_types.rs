//! Vectorizers and enrichments whose columns get other types and names: nothing is lost, and PostgreSQL's
//! refusals have a hint.

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session};

/// The trigger that lists the columns of a definition.
fn trigger(session: &mut Session, table: &str) -> String {
    session.one(&format!("select tgname::text from pg_trigger where tgrelid = '{table}'::regclass and tgname like 'steadytext_%_rows'"))
}

/// Changes a type as the hint of the error says: what lists the columns goes, and they are named anew, in one
/// transaction.
fn change_type(session: &mut Session, table: &str, change: &str, naming: &str) {
    let error = session.error(&format!("alter table {table} {change}"));
    assert_eq!(error.code().code(), "0A000", "{error}");
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("drop the trigger") && hint.contains("steadytext_alter_vectorizer"),
        "{table}: {hint}"
    );
    let trigger = trigger(session, table);
    session.run(&format!(
        "begin; drop trigger {trigger} on {table}; alter table {table} {change}; {naming}; commit"
    ));
    rest(session);
}

#[test]
fn columns_change_their_types_and_the_vectors_are_those_of_their_texts() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table texts (id int primary key, body text, other jsonb);
         create table inside (id int primary key, body jsonb);
         insert into texts select i, 'row ' || i, jsonb_build_object('n', i) from generate_series(1, 5) as i;
         insert into inside select i, to_jsonb('row ' || i) from generate_series(1, 5) as i;
         select steadytext_create_vectorizer('texts', array['body', 'other'], name => 'texts', index => 'none');
         select steadytext_create_vectorizer('inside', array['body'], name => 'inside', target_column => 'embedding', index => 'none')",
    );
    rest(&mut session);
    let wrong = "select (select count(*) from texts as t full join texts_body_embedding as e on e.id::text = t.id::text
              where e.embedding::text is distinct from steadytext_embed(concat_ws(E'\\n\\n', t.body, t.other))::text)
        + (select count(*) from inside where embedding::text is distinct from steadytext_embed(body::text)::text)";
    assert_eq!(session.one::<i64>(wrong), 0);
    let named = "select steadytext_alter_vectorizer('texts', columns => array['body', 'other'])";
    for change in [
        "alter column body type varchar(100)",
        "alter column other type text",
        "alter column id type bigint",
        "alter column id type uuid using lpad(to_hex(id), 32, '0')::uuid",
    ] {
        change_type(&mut session, "texts", change, named);
        assert_eq!(session.one::<i64>(wrong), 0, "{change}");
        session.run("update texts set body = body || '.'");
        rest(&mut session);
        assert_eq!(session.one::<i64>(wrong), 0, "{change}");
    }
    assert_eq!(
        session.one::<String>("select format_type(atttypid, -1) from pg_attribute where attrelid = 'texts_body_embedding'::regclass and attname = 'id'"),
        "uuid"
    );
    for change in ["alter column body type text using body #>> '{}'", "alter column id type bigint"] {
        change_type(
            &mut session,
            "inside",
            change,
            "select steadytext_alter_vectorizer('inside', columns => array['body'])",
        );
        session.run("insert into inside (id, body) select max(id) + 1, 'new' from inside");
        rest(&mut session);
        assert_eq!(session.one::<i64>(wrong), 0, "{change}");
    }
}

#[test]
fn columns_of_an_enrichment_change_their_types_and_nothing_is_asked_again() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table asked (id int primary key, body text);
         insert into asked select i, 'row ' || i from generate_series(1, 3) as i;
         select steadytext_create_enrichment('asked', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}', name => 'asked')",
    );
    rest(&mut session);
    // A value that somebody has written would be made anew, if its row lost its entry.
    session.run("update asked set kind = 'mine' where id = 1");
    rest(&mut session);
    for change in ["alter column body type varchar", "alter column id type bigint"] {
        change_type(
            &mut session,
            "asked",
            change,
            "select steadytext_alter_enrichment('asked', prompt => '$body')",
        );
        session.run("insert into asked (id, body) select max(id) + 1, 'new' from asked");
        rest(&mut session);
        assert_eq!(session.one::<String>("select kind from asked where id = 1"), "mine", "{change}");
        assert_eq!(
            session.one::<i64>(
                "select count(*) from asked where id > 1 and kind is distinct from steadytext_generate_choice(body, array['a', 'b'])"
            ),
            0,
            "{change}"
        );
    }
}

#[test]
fn names_and_keys_change_and_nothing_is_lost() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table texts (id int primary key, code int not null, body text);
         insert into texts select i, 100 + i, 'row ' || i from generate_series(1, 5) as i;
         select steadytext_create_vectorizer('texts', array['body'], name => 'texts', index => 'none')",
    );
    rest(&mut session);
    session.run(
        "begin; alter table texts rename column id to number; alter table texts rename column body to said; alter table texts rename to sayings;
         create schema elsewhere; alter table sayings set schema elsewhere; set local search_path = elsewhere, public;
         update sayings set said = 'other ' || number; commit",
    );
    rest(&mut session);
    let wrong = |key: &str| {
        format!(
            "select count(*) from elsewhere.sayings as t full join texts_body_embedding as e on e.{key} = t.{key}
             where e.embedding::text is distinct from steadytext_embed(t.said)::text"
        )
    };
    session.run("alter table texts_body_embedding rename column id to number");
    session.run("insert into elsewhere.sayings values (6, 106, 'new'); delete from elsewhere.sayings where number = 1");
    rest(&mut session);
    assert_eq!(session.one::<i64>(&wrong("number")), 0);
    // A key that goes is missed, and said to be; another one takes its place.
    let error = session.error("alter table elsewhere.sayings drop column number");
    assert_eq!(error.code().code(), "2BP01");
    session.run("alter table elsewhere.sayings drop column number cascade");
    assert!(session.one::<bool>(
        "select state = 'broken' and problem like '%was dropped: steadytext_alter_vectorizer%' from steadytext_vectorizer_status"
    ));
    session.run("update elsewhere.sayings set said = 'changed' where code = 103; insert into elsewhere.sayings values (107, 'unkeyed')");
    let error = session.error("select steadytext_alter_vectorizer('texts', columns => array['said'])");
    assert_eq!(error.code().code(), "42P16");
    assert!(error.hint().is_some_and(|hint| hint.contains("primary key")), "{error}");
    session.run(
        "alter table elsewhere.sayings add primary key (code); select steadytext_alter_vectorizer('texts', columns => array['said'])",
    );
    rest(&mut session);
    assert_eq!(session.one::<i64>(&wrong("code")), 0);
    assert_eq!(session.one::<i64>("select count(*) from texts_body_embedding"), 6);
}
