//! Settings that choose a model: what is said where one is set that cannot answer, and in the errors of
//! requests that got their model from one; and the word `auto`, which leaves the choice to them.

use std::fs;

use postgres::error::DbError;
use steadytext_test_server::{Options, Session, with_automatic_models, write_decoder, write_encoder};

/// The warnings that a statement has brought.
fn warned(session: &mut Session, sql: &str) -> Vec<DbError> {
    session.notices();
    session.run(sql);
    session.notices().into_iter().filter(|notice| notice.severity() == "WARNING").collect()
}

#[test]
fn who_sets_a_model_that_cannot_answer_is_warned_and_it_is_taken_all_the_same() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    write_encoder(&cluster, "vectors.gguf", 1);
    write_decoder(&cluster, "writer.gguf", 1);
    session.run(
        "create role alice login in role steadytext_user;
         insert into steadytext_models (name, task, file, placement) values ('far', 'generate', 'far.gguf', 'elsewhere')",
    );
    let generation = "pg_steadytext.generation_model";
    for (sql, setting, reason, hint) in [
        (
            format!("set {generation} = 'nothing'"),
            generation,
            "\"nothing\" is not registered",
            "Models for this task",
        ),
        (
            format!("set {generation} = 'Writer'''"),
            generation,
            "\"Writer'\" is not registered",
            "Did you mean \"writer\"",
        ),
        (
            format!("set {generation} = 'Small'"),
            generation,
            "\"Small\" is not registered",
            "Did you mean \"small\"",
        ),
        (format!("set {generation} = 'small'"), generation, "is not there", "steadytext_model_pull()"),
        (
            format!("set {generation} = 'embedding'"),
            generation,
            "registered for task embed, not generate",
            "",
        ),
        (
            format!("set {generation} = 'vectors'"),
            generation,
            "\"vectors\" is for task embed, not generate",
            "\"writer\"",
        ),
        (
            format!("set {generation} = './none.gguf'"),
            generation,
            "there is no model at \"./none.gguf\"",
            "path",
        ),
        (
            "select set_config('pg_steadytext.embedding_model', 'nothing', false)".to_owned(),
            "pg_steadytext.embedding_model",
            "\"nothing\" is not registered",
            "\"vectors\"",
        ),
        (
            "alter role alice set pg_steadytext.reranker_model = 'nothing'".to_owned(),
            "pg_steadytext.reranker_model",
            "\"nothing\" is not registered",
            "",
        ),
        (
            "alter database postgres set pg_steadytext.reranker_model = 'nothing'".to_owned(),
            "pg_steadytext.reranker_model",
            "\"nothing\" is not registered",
            "",
        ),
        (
            "select steadytext_config_set('generation_model', 'SMALL')".to_owned(),
            "generation_model of steadytext_config",
            "\"SMALL\" is not registered",
            "Did you mean \"small\"",
        ),
    ] {
        let warnings = warned(&mut session, &sql);
        let [warning] = warnings.as_slice() else { panic!("{sql}: {warnings:?}") };
        let said = warning.message();
        assert!(said.contains(&format!("{setting} is set to now")) && said.contains(reason), "{sql}: {said}");
        assert!(warning.hint().unwrap_or_default().contains(hint), "{sql}: {:?}", warning.hint());
    }
    let taken: Vec<String> = session.list(
        "select current_setting('pg_steadytext.embedding_model')
         union all select steadytext_config_get('generation_model')
         union all select unnest(setconfig) from pg_db_role_setting order by 1",
    );
    let rest = "pg_steadytext.reranker_model=nothing";
    assert_eq!(taken, ["SMALL", "nothing", rest, rest]);

    let path = cluster.model_directory().join("writer.gguf").display().to_string();
    for value in ["writer", "WRITER", "builtin", "auto", "", "far", &path] {
        let warnings = warned(&mut session, &format!("set {generation} = '{value}'"));
        assert!(warnings.is_empty(), "{value}: {warnings:?}");
    }
    for sql in [
        "reset pg_steadytext.embedding_model",
        "select steadytext_config_set('generation_model', null)",
        "select steadytext_config_set('embedding_model', 'vectors')",
        // They are read where nobody can be told, and outside of transactions.
        "alter system set pg_steadytext.generation_model = 'nothing'",
        "select pg_reload_conf()",
    ] {
        let warnings = warned(&mut session, sql);
        assert!(warnings.is_empty(), "{sql}: {warnings:?}");
    }
    // A user may look at no table of the models, and is told the same.
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(warned(&mut alice, &format!("set {generation} = 'nothing'")).len(), 1);
    // A function sets it at each call, and says so once in a statement.
    session.run(&format!(
        "create function sets(i bigint) returns bigint language plpgsql set {generation} = 'nothing' as $$ begin return i; end $$"
    ));
    let warnings = warned(&mut session, "select count(sets(i)) from generate_series(1, 100) as i");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    // The names of models are not for everybody.
    session.run("create role outsider login");
    let mut outsider = cluster.session_as("postgres", "outsider");
    assert_eq!(warned(&mut outsider, &format!("set {generation} = 'nothing'")).len(), 0);
    // Nor does a look count as the first query of a transaction.
    let mut other = cluster.session("postgres");
    let sql = format!(
        "begin; set local {generation} = 'nothing'; set transaction isolation level serializable; commit"
    );
    assert_eq!(warned(&mut other, &sql).len(), 1);
    // Where the extension is not, no requests can fail.
    session.run("create database empty");
    assert!(warned(&mut cluster.session("empty"), &format!("set {generation} = 'nothing'")).is_empty());
}

#[test]
fn an_error_about_a_model_names_the_setting_that_chose_it() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let bad = cluster.model_directory().join("bad.gguf");
    fs::write(&bad, "Dear Sir or Madam, ".repeat(500)).expect("our own file");
    write_decoder(&cluster, "writer.gguf", 1);
    let setting = "pg_steadytext.generation_model names this model";
    // Where it is not there, and where it cannot be loaded.
    for (name, state) in [("nothing", "42704"), ("small", "58030"), ("bad", "XX001")] {
        session.run(&format!("set pg_steadytext.generation_model = '{name}'"));
        let error = session.error("select steadytext_generate('x', 3)");
        assert_eq!(error.code().code(), state, "{error:?}");
        assert!(error.message().ends_with(setting), "{error:?}");
        let named = session.error(&format!("select steadytext_generate('x', 3, model => '{name}')"));
        assert!(!named.message().contains("names this model"), "{named:?}");
    }
    session.run("set pg_steadytext.generation_model = 'Small'");
    let enqueued = session.error("select steadytext_generate_async('x')");
    assert!(enqueued.message().ends_with(setting), "{enqueued:?}");
    assert!(enqueued.hint().unwrap_or_default().starts_with("Did you mean \"small\""), "{enqueued:?}");

    // The worker finds what the session has set, and what the database has.
    session.run("set pg_steadytext.generation_model = 'bad'");
    let id = session.generate("x", "max_tokens => 3");
    let error = session.wait_for_end(id).error.unwrap_or_default();
    let of_session =
        "; pg_steadytext.generation_model of the session that enqueued the request names this model";
    assert!(error.contains(of_session), "{error}");
    session
        .run("reset pg_steadytext.generation_model; select steadytext_config_set('generation_model', 'bad')");
    let id = session.generate("x", "max_tokens => 3");
    let error = session.wait_for_end(id).error.unwrap_or_default();
    assert!(error.contains("; generation_model of steadytext_config names this model"), "{error}");
}

#[test]
fn auto_is_the_default_wherever_a_model_may_be_named() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    write_encoder(&cluster, "vectors.gguf", 1);
    write_decoder(&cluster, "writer.gguf", 1);
    session.run("select steadytext_config_set('cache_enabled', 'false')");
    for (call, more) in [
        ("steadytext_generate('which one', 4, {})", ""),
        ("steadytext_generate('which one', 4, {}, size => 'auto')", ""),
        ("steadytext_embed('which one', {})", ""),
        ("steadytext_chat('[{\"role\": \"user\", \"content\": \"which one\"}]', 4, {})", ""),
        ("steadytext_generate_choice('which one', '[a,b]', {})", ""),
        ("steadytext_if_score('is it?', {})", ""),
        ("steadytext_classify('x', '[a,b]', {})", ""),
        ("steadytext_similarity('a', 'b', {})", ""),
        ("steadytext_summarize_text('One text. Another text.', {})", ""),
        ("(steadytext_embed_batch('[a,b]', {}))[2]", ""),
        ("(steadytext_generate_batch('[a,b]', 4, {}))[2]", ""),
        ("steadytext_count_tokens('a text', {})", ""),
        ("steadytext_tokenize('a text', {})", ""),
        ("string_agg(chunk, '|')", "from steadytext_chunk_text('a text. another', 2, 0, {})"),
        ("string_agg(score::text, '|')", "from steadytext_rerank('q', '[a,b]', {})"),
    ] {
        let [named, default] = ["model => 'auto'", "model => null"].map(|model| {
            let sql = |text: &str| text.replace("{}", model).replace("'[a,b]'", "array['a', 'b']");
            session.one::<String>(&format!("select ({})::text {}", sql(call), sql(more)))
        });
        assert_eq!(named, default, "{call} {more}");
    }
}

#[test]
fn what_is_set_for_another_database_is_not_compared_with_the_models_of_this_one() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    session.run("create database other");
    session.run("create role alice");
    let mut other = cluster.session("other");
    other.create_extension();
    other.run("insert into steadytext_models (name, task, file) values ('theirs', 'embed', 'theirs.gguf')");
    write_encoder(&cluster, "theirs.gguf", 1);
    session.run(
        "insert into steadytext_models (name, task, file) values ('theirs', 'generate', 'nothing.gguf')",
    );
    let setting = "set pg_steadytext.embedding_model = 'theirs'";
    for target in ["database other", "role all in database other", "role alice in database other"] {
        assert_eq!(warned(&mut session, &format!("alter {target} {setting}")).len(), 0, "{target}");
    }
    for target in ["database postgres", "role all in database postgres", "role alice", "role all"] {
        assert_eq!(warned(&mut session, &format!("alter {target} {setting}")).len(), 1, "{target}");
    }
    session.run(&format!("alter database other {setting}"));
    assert_eq!(
        warned(&mut session, "select set_config('pg_steadytext.embedding_model', 'theirs', false)").len(),
        1
    );
}
