//! Errors about rows never show the rows: neither to the client nor in the server's log.

use postgres::error::DbError;
use steadytext_test_server::{Cluster, Session};

const SECRET: &str = "sesame-4711";

/// Alice uses, carol administers; failing statements are not logged, as they may hold any text.
fn people() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user; create role carol login in role steadytext_admin;
         alter role all set log_min_error_statement = 'panic'",
    );
    session.run("set log_min_error_statement = 'panic'");
    session.pause();
    (cluster, session)
}

/// The error of a statement, if there is one; it must not show the row.
fn try_out(session: &mut Session, sql: &str) -> Option<DbError> {
    let error = session.batch_execute(sql).err()?;
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone();
    assert!(!format!("{error:?}").contains(SECRET), "{sql}: {error:?}");
    Some(error)
}

/// Columns of a table with their types.
fn columns(session: &mut Session, table: &str) -> Vec<(String, String)> {
    session
        .list::<String>(&format!(
            "select attname || ' ' || format_type(atttypid, null) from pg_attribute
             where attrelid = '{table}'::regclass and attnum > 0 and attgenerated = '' order by attnum"
        ))
        .into_iter()
        .map(|column| {
            let (name, kind) = column.split_once(' ').expect("a name and a type");
            (name.to_owned(), kind.to_owned())
        })
        .collect()
}

fn bad_values(kind: &str) -> &'static [&'static str] {
    match kind {
        "integer" | "bigint" => &["null", "-1", "11", "101", "-2147483648"],
        "text" => &["null", "'nonsense'", "''"],
        "text[]" => &["null", "'{}'", "'{null}'"],
        "jsonb" => &["null", "'[]'", "'7'"],
        "uuid" => &["null", "'01890000-0000-7000-8000-000000000000'"],
        _ => &["null"],
    }
}

#[test]
fn no_column_of_a_row_can_be_set_to_anything_that_makes_an_error_show_the_row() {
    let (cluster, mut session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    let mut carol = cluster.session_as("postgres", "carol");
    alice.generate(SECRET, "max_tokens => 3");
    alice.generate(SECRET, "max_tokens => 3");
    session.run(&format!(
        "insert into steadytext_cache (cache_key, prompt, request_type) values ('{SECRET}', '{SECRET}', 'generate')"
    ));
    let mut refused = Vec::new();
    for (table, some) in [
        ("steadytext_queue", "request_type, prompt"),
        ("steadytext_cache", "request_type, prompt, cache_key"),
    ] {
        for (column, kind) in columns(&mut session, table) {
            for bad in bad_values(&kind) {
                let update = format!("update {table} set {column} = {bad}");
                let filled: Vec<&str> = some.split(", ").filter(|name| *name != column).collect();
                let values = filled
                    .iter()
                    .map(|name| {
                        if *name == "request_type" { "'generate'".to_owned() } else { format!("'{SECRET}'") }
                    })
                    .collect::<Vec<_>>()
                    .join(", ");
                let insert = format!(
                    "insert into {table} ({column}, {}) overriding system value values ({bad}, {values})",
                    filled.join(", ")
                );
                for statement in [update, insert] {
                    for who in [&mut session, &mut carol, &mut alice] {
                        who.run("begin");
                        let error = try_out(who, &statement);
                        who.run("rollback");
                        if let Some(error) = error {
                            refused.push(format!("{} {statement}: {}", error.code().code(), error.message()));
                        }
                    }
                }
            }
        }
    }
    for wanted in [
        "23514 update steadytext_queue set priority = 11: column \"priority\" of \"steadytext_queue\" must be between 1 and 10",
        "23514 update steadytext_queue set status = 'nonsense': column \"status\" of \"steadytext_queue\" must be pending, processing, completed, failed or cancelled",
        "23514 update steadytext_queue set max_retries = 101: column \"max_retries\" of \"steadytext_queue\" must be between 0 and 100, or NULL",
        "23514 update steadytext_queue set attempt = -1: column \"attempt\" of \"steadytext_queue\" must be 0 or more",
        "23514 update steadytext_queue set retry_count = null: column \"retry_count\" of \"steadytext_queue\" must be 0 or more",
        "23502 update steadytext_queue set request_id = null: column \"request_id\" of \"steadytext_queue\" must not be NULL",
        "23502 update steadytext_queue set request_type = null: column \"request_type\" of \"steadytext_queue\" must not be NULL",
        "23502 update steadytext_queue set created_at = null: column \"created_at\" of \"steadytext_queue\" must not be NULL",
        "23502 update steadytext_queue set owner_role = null: column \"owner_role\" of \"steadytext_queue\" must not be NULL",
        "23502 update steadytext_queue set alone = null: column \"alone\" of \"steadytext_queue\" must not be NULL",
        "23502 update steadytext_cache set cache_key = null: column \"cache_key\" of \"steadytext_cache\" must not be NULL",
        "23502 update steadytext_cache set prompt = null: column \"prompt\" of \"steadytext_cache\" must not be NULL",
        "23502 update steadytext_cache set access_count = null: column \"access_count\" of \"steadytext_cache\" must not be NULL",
        "23502 update steadytext_cache set imported = null: column \"imported\" of \"steadytext_cache\" must not be NULL",
    ] {
        assert!(refused.iter().any(|error| error == wanted), "{wanted}\n{refused:#?}");
    }
    for table in ["steadytext_queue", "steadytext_cache"] {
        let wanted = format!("23502 insert into {table} (id, ");
        let said = format!("column \"id\" of \"{table}\" must not be NULL");
        assert!(
            refused.iter().any(|error| error.starts_with(&wanted) && error.ends_with(&said)),
            "{refused:#?}"
        );
    }
    assert!(!cluster.log().contains(SECRET), "{}", cluster.log());
}

#[test]
fn neither_does_copy_show_the_row_that_is_refused_nor_one_whose_triggers_are_off() {
    let (cluster, mut session) = people();
    let file = cluster.make_directory("copy").join("rows");
    let copied = |session: &mut Session, table: &str, columns: &str, values: &str| {
        session.run(&format!("copy (select {values}) to '{}'", file.display()));
        try_out(session, &format!("copy {table} ({columns}) from '{}'", file.display()))
            .unwrap_or_else(|| panic!("{table} takes {values}"))
    };
    let queue = "steadytext_queue";
    let old = "'2020-01-01'::timestamptz";
    for (columns, values, said) in [
        ("request_type, prompt, priority", format!("'generate', '{SECRET}', 99"), "priority must be between"),
        ("request_type, prompt", format!("'nonsense', '{SECRET}'"), "unknown request type"),
        ("request_type, prompt, params", format!("'generate', '{SECRET}', '[]'"), "params must be"),
        ("request_type, prompt, id", format!("'generate', '{SECRET}', null"), "column \"id\""),
        (
            "request_type, prompt, id, created_at",
            format!("'generate', '{SECRET}', null, {old}"),
            "column \"id\"",
        ),
        (
            "request_type, prompt, status, created_at",
            format!("'generate', '{SECRET}', 'gone', {old}"),
            "column \"status\"",
        ),
        (
            "request_type, prompt, priority, created_at",
            format!("'generate', '{SECRET}', 99, {old}"),
            "column \"priority\"",
        ),
        (
            "request_type, prompt, request_id, created_at",
            format!("'generate', '{SECRET}', null, {old}"),
            "column \"request_id\"",
        ),
    ] {
        let error = copied(&mut session, queue, columns, &values);
        assert!(error.message().contains(said), "{error:?}");
    }
    let cache = "steadytext_cache";
    for (columns, values, said) in [
        (
            "cache_key, prompt, request_type, id",
            format!("'{SECRET}', '{SECRET}', 'generate', null"),
            "column \"id\"",
        ),
        (
            "cache_key, prompt, access_count",
            format!("'{SECRET}', '{SECRET}', null"),
            "column \"access_count\"",
        ),
    ] {
        let error = copied(&mut session, cache, columns, &values);
        assert!(error.message().contains(said), "{error:?}");
    }
    // COPY takes the same rows as before, and later errors have their context.
    session.run(&format!("copy (select 'generate', 'fine') to '{}'", file.display()));
    session.run(&format!("copy {queue} (request_type, prompt) from '{}'", file.display()));
    session.run(&format!("copy (select 'generate', 'x', 'no number') to '{}'", file.display()));
    let error =
        session.error(&format!("copy {queue} (request_type, prompt, priority) from '{}'", file.display()));
    assert!(error.where_().is_some_and(|context| context.contains("column priority")), "{error:?}");

    // Without the triggers, what must hold for every row is still asked.
    session.run("set session_replication_role = replica");
    for sql in [
        format!("insert into {queue} (request_type, prompt, priority) values ('generate', '{SECRET}', 11)"),
        format!("insert into {queue} (request_type, prompt, status) values ('generate', '{SECRET}', null)"),
        format!(
            "insert into {queue} (request_type, prompt, request_id) values ('generate', '{SECRET}', null)"
        ),
        format!("insert into {cache} (cache_key, prompt, access_count) values ('k', '{SECRET}', null)"),
        format!(
            "insert into {cache} (id, cache_key, prompt, request_type) overriding system value values (null, 'k', '{SECRET}', 'generate')"
        ),
    ] {
        assert!(try_out(&mut session, &sql).is_some(), "{sql}");
    }
    assert!(!cluster.log().contains(SECRET), "{}", cluster.log());
}
