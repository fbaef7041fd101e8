//! First starts of `steadytext-worker`: mistakes end it at once and with the reason, and the queue's own side
//! knows which requests nobody claims.

use std::process::{Command, Output};

use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{Cluster, Session, served_elsewhere, wait_until, worker_program};

/// Runs the program to its end, as role remote in database postgres where the arguments say nothing else.
fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new(worker_program());
    for name in ["DATABASE_URL", "PGSSLMODE", "PGPASSFILE", "PGPASSWORD", "STEADYTEXT_WORKER_MODEL_DIR"] {
        command.env_remove(name);
    }
    command.env("PGHOST", cluster.directory()).env("PGPORT", "5432");
    command.env("PGUSER", "remote").env("PGDATABASE", "postgres").env("HOME", cluster.directory());
    command.current_dir(cluster.directory()).args(["--threads", "1", "--poll-interval", "0.1"]);
    command.args(arguments).output().expect("it was built")
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn types_that_there_are_not_are_refused_with_those_that_there_are() {
    let (cluster, mut session) = served_elsewhere();
    let (code, all) = said(&run(&cluster, &["--once", "--types", "embed,foo"]));
    assert_eq!(code, Some(2), "{all}");
    let list = all.trim().rsplit_once("\"foo\", which is none of ").map(|(_, list)| list);
    // The server's list is the same.
    let error = session.error("insert into steadytext_queue (request_type, prompt) values ('foo', 'x')");
    let hint = error.hint().expect("it names them").trim_start_matches("Use request type ");
    let mut of_server: Vec<String> =
        hint.trim_end_matches('.').replace(" or ", ", ").split(", ").map(str::to_owned).collect();
    let mut of_worker: Vec<String> =
        list.unwrap_or_else(|| panic!("{all}")).split(", ").map(str::to_owned).collect();
    of_server.sort_unstable();
    of_worker.sort_unstable();
    assert_eq!(of_worker, of_server);
    let (code, all) = said(&run(&cluster, &["--once", "--types", ","]));
    assert!(code == Some(2) && all.contains("--types names none of"), "{all}");
    for name in of_server {
        let (code, all) = said(&run(&cluster, &["--once", "--models", "builtin", "--types", &name]));
        assert_eq!(code, Some(0), "{name}: {all}");
    }
}

#[test]
fn a_directory_that_cannot_be_read_is_refused_where_it_was_named() {
    let (cluster, _session) = served_elsewhere();
    let (code, all) = said(&run(&cluster, &["--once", "--model-dir", "/nonexistent"]));
    assert_eq!(code, Some(2), "{all}");
    assert!(all.contains("--model-dir \"/nonexistent\" cannot be read: No such file"), "{all}");
    // The default one need not be there.
    let (code, all) = said(&run(&cluster, &["--once"]));
    assert_eq!(code, Some(0), "{all}");
    assert!(all.contains("nothing was claimed: no request waits for models builtin (types: all)"), "{all}");
}

#[test]
fn what_cannot_be_served_ends_a_program_that_is_started_for_once_and_says_why() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role remote login in role steadytext_worker; create role nobody login;
         create role guarded login password 'right' in role steadytext_worker",
    );
    session.run("create database bare");
    cluster.write_data("pg_hba.conf", b"local all guarded scram-sha-256\nlocal all all trust\n");
    session.run("select pg_reload_conf()");
    wait_until("the rules are read", || {
        cluster.try_session("postgres", "guarded").is_err_and(|error| error.code().is_none())
    });
    for (url, reason) in [
        ("dbname=nosuch", "database \"nosuch\" does not exist (3D000)"),
        ("user=nosuch", "role \"nosuch\" does not exist (28000)"),
        ("user=guarded password=wrong", "password authentication failed for user \"guarded\" (28P01)"),
        ("user=guarded", "password"),
        ("user=nobody", "(42501): GRANT steadytext_worker to the role."),
        ("dbname=bare", "schema \"steadytext\" does not exist (3F000): CREATE EXTENSION pg_steadytext"),
    ] {
        for how in ["--once", "--drain"] {
            let (code, all) = said(&run(&cluster, &["--database-url", url, how]));
            assert_eq!(code, Some(1), "{url} {how}: {all}");
            assert!(all.contains(reason), "{url} {how}: {all}");
            assert!(!all.contains("wrong") && !all.contains("attempts"), "{url} {how}: {all}");
            assert!(all.contains("1 of 1 databases could not be served"), "{url} {how}: {all}");
        }
    }
    // A worker that is to stay waits until somebody has mended it.
    let directory = cluster.directory().display().to_string();
    let url = format!("host={directory} port=5432 user=remote dbname=bare");
    let mut worker = Worker::start_at(&url, &cluster, &[]);
    wait_until("it says what is missing", || worker.said().contains("CREATE EXTENSION"));
    let before = cluster.log().matches("schema \"steadytext\" does not exist").count();
    wait_until("it has tried again", || {
        cluster.log().matches("schema \"steadytext\" does not exist").count() >= before + 4
    });
    let said = worker.said();
    assert_eq!(said.matches("CREATE EXTENSION").count(), 1, "what has not changed is said once: {said}");
    let mut bare = cluster.session("bare");
    bare.run("create extension pg_steadytext cascade");
    bare.pause();
    let id = bare.generate("x", "max_tokens => 2, use_cache => false");
    wait_until("it serves the database", || bare.request(id).status == "completed");
    assert!(worker.stop());
}

#[test]
fn a_program_that_claims_nothing_says_why() {
    let (cluster, mut session) = served_elsewhere();
    let id = session.generate("x", "max_tokens => 2, use_cache => false");
    let (code, all) = said(&run(&cluster, &["--once", "--models", "nosuch"]));
    assert_eq!(code, Some(1), "{all}");
    assert!(all.contains("model \"nosuch\" of --models is answered by no file and no endpoint"), "{all}");
    assert!(
        all.contains("nothing was claimed: there is no model on this machine that could be served"),
        "{all}"
    );
    let (code, all) = said(&run(&cluster, &["--once", "--types", "embed"]));
    assert_eq!(code, Some(0), "{all}");
    assert!(all.contains("nothing was claimed: no request waits for models builtin (types: embed)"), "{all}");
    assert_eq!(session.request(id).attempt, 0);
    let (code, all) = said(&run(&cluster, &["--once", "--types", "generate"]));
    assert_eq!(code, Some(0), "{all}");
    assert!(all.contains("done: 1 request was claimed"), "{all}");
    assert_eq!(session.request(id).status, "completed");
}

#[test]
fn the_examples_of_the_help_run() {
    let (cluster, mut session) = served_elsewhere();
    let help = run(&cluster, &["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).expect("a text");
    let (_, examples) = help.split_once("examples:\n").expect("there are some");
    let examples: Vec<&str> = examples.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert!(examples.len() >= 3, "{examples:?}");
    let models = cluster.model_directory().display().to_string();
    for example in examples {
        let embedding = session.embed("x", "use_cache => false");
        // Other names than on this machine, and no blanks within quotes.
        let here = example.replace("/srv/models", &models).replace('\'', "");
        let words: Vec<&str> = here.split_whitespace().collect();
        let (program, arguments) = words.split_first().expect("a program");
        assert_eq!(*program, "steadytext-worker");
        let address = ["postgresql://worker@db.example/app", "host=db.example", "dbname=app", "user=worker"];
        let mut arguments: Vec<&str> =
            arguments.iter().copied().filter(|word| !address.contains(word)).collect();
        arguments.retain(|word| *word != "--database-url");
        arguments.push("--once");
        let (code, all) = said(&run(&cluster, &arguments));
        assert_eq!(code, Some(0), "{example}: {all}");
        assert_eq!(session.request(embedding).status, "completed", "{example}: {all}");
    }
}

/// The server's report of requests that nobody claims.
fn unclaimed(session: &mut Session) -> Vec<String> {
    session.list(
        "select concat_ws(' ', model, request_type, requests, reason) from steadytext.unclaimed_requests() order by 1",
    )
}

#[test]
fn the_server_knows_what_the_workers_claim_that_are_there() {
    let (cluster, mut session) = served_elsewhere();
    session.run(
        "select steadytext_daemon_start();
         insert into steadytext_models (name, task, file, placement) values ('far', 'generate', 'far.gguf', 'elsewhere');
         select steadytext_generate_async('x', model => 'far')",
    );
    session.wait_for_worker("idle");
    let waiting = |why: &str| [format!("far generate 1 the model is placed elsewhere, and {why}")];
    assert_eq!(unclaimed(&mut session), waiting("no worker elsewhere has reported within the last minute"));
    let mut worker = Worker::start(&cluster, &["--types", "embed"]);
    wait_until("the worker has reported", || {
        unclaimed(&mut session) == waiting("the one worker there does not serve it")
    });
    // Its file comes: the worker sees it, and says so, though it takes other types.
    let spec = steadytext_test_models::Spec::default();
    steadytext_test_models::write(&spec, &cluster.model_directory().join("far.gguf")).expect("our own file");
    wait_until("the worker reports the model", || {
        unclaimed(&mut session)
            == waiting("the workers there that serve it do not take requests of this type")
    });
    let hint: String =
        session.one("select hint from steadytext_diagnose() where detail ~ 'no worker claims'");
    assert!(hint.contains("--types"), "{hint}");
    assert!(worker.stop());
    // One that has ended claims nothing.
    assert_eq!(unclaimed(&mut session), waiting("no worker elsewhere has reported within the last minute"));
    let mut worker = Worker::start(&cluster, &[]);
    wait_until("the request is claimed", || unclaimed(&mut session).is_empty());
    assert!(worker.stop());
}

#[test]
fn errors_name_no_functions_of_the_extension_but_those_of_the_caller() {
    let (_cluster, mut session) = served_elsewhere();
    session.run(
        "create function mine() returns void language plpgsql as $$ begin perform steadytext_drop_vectorizer('nosuch'); end $$;
         create function st_mine() returns void language plpgsql as $$ begin raise exception 'no'; end $$",
    );
    for sql in [
        "select steadytext_drop_vectorizer('nosuch')",
        "select st_drop_vectorizer('nosuch')",
        "select steadytext_generate_batch_async('{}')",
        "select steadytext_config_set('nosuch', '1')",
        "select steadytext_search('nosuch', 'x')",
    ] {
        let error = session.error(sql);
        assert_eq!(error.where_(), None, "{sql}");
        assert!(error.hint().is_some(), "{sql}");
    }
    let error = session.error("select mine()");
    let context = error.where_().expect("the caller's function is named");
    assert!(
        context.starts_with(
            "SQL statement \"SELECT steadytext_drop_vectorizer('nosuch')\"\nPL/pgSQL function mine()"
        ),
        "{context}"
    );
    // A name that begins like the extension's does not make it one of them, nor does the name of one in
    // another schema.
    session.run(
        "create function steadytext_mine() returns void language plpgsql as $$ begin raise exception 'no'; end $$;
         create function steadytext_mine_sql() returns void language sql as $$ select steadytext_drop_vectorizer('nosuch'); select $$;
         create schema other;
         create function other.steadytext_drop_vectorizer(name text) returns void language plpgsql as $$ begin raise exception 'no'; end $$",
    );
    for (sql, named) in [
        ("select steadytext_mine()", "PL/pgSQL function steadytext_mine()"),
        ("select steadytext_mine_sql()", "SQL function \"steadytext_mine_sql\""),
        (
            "select other.steadytext_drop_vectorizer('nosuch')",
            "PL/pgSQL function other.steadytext_drop_vectorizer(text)",
        ),
    ] {
        let error = session.error(sql);
        assert!(error.where_().is_some_and(|context| context.starts_with(named)), "{sql}: {error:?}");
    }
    let error = session.error("select st_mine()");
    assert!(
        error.where_().is_some_and(|context| context.starts_with("PL/pgSQL function st_mine()")),
        "{error:?}"
    );
    session.run("set log_error_verbosity = verbose");
    let error = session.error("select steadytext_drop_vectorizer('nosuch')");
    assert!(error.where_().is_some_and(|context| context.contains("steadytext.definition_id")), "{error:?}");
}
