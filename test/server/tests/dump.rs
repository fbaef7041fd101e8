//! pg_dump and restore, and pg_upgrade, keep requests, results, configuration, registry and prompts.

use std::process::Command;

use steadytext_test_server::{Cluster, Options, Session, Shutdown};

/// Rows that had ended. The others may be answered in the restored database before its pause is restored.
const STATE: &str = "select coalesce(string_agg(format('%s %s %s %s %s %s', request_id, status, md5(result), \
     md5(embedding::text), error_code, owner_role), E'\\n' order by request_id), '') from steadytext_queue \
     where prompt not like 'pending%' and prompt <> 'by alice'";
const CONFIG: &str = "select string_agg(format('%s=%s', key, value), E'\\n' order by key) from steadytext_config where key <> 'worker_paused'";
const MODELS: &str =
    "select string_agg(format('%s %s %s', name, task, file), E'\\n' order by name) from steadytext_models";
/// Prompts of two roles, with their versions.
const PROMPTS: &str = "select string_agg(format('%s %s %s %s %s %s', p.id, slug, owner_role, version, template, required_variables), \
     E'\\n' order by slug, version) from steadytext_prompts as p join steadytext_prompt_versions as v on prompt_id = p.id";
/// Batches of two roles, and the keys of their requests.
const BATCHES: &str = "select string_agg(format('%s %s %s %s', b.batch, b.name, b.total, b.owner_role), E'\\n' order by b.batch) || \
     (select string_agg(batch_key::text, E'\\n' order by id) from steadytext_queue where batch is not null) from steadytext_batches as b";

/// A database with a row in every state that lasts, and a paused worker.
fn filled() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user;
         insert into steadytext_models (name, task, file) values ('missing', 'generate', 'missing.gguf');
         update steadytext_models set description = 'changed here' where name = 'small';
         select steadytext_config_set('default_max_tokens', '77');
         select steadytext_config_set('worker_poll_interval', '2');
         select steadytext_prompt_create('kept', 'Hello {{ name }}!');
         select steadytext_prompt_update('kept', 'Hi {{ name }}!')",
    );
    for i in 0..3 {
        let id = session.generate(&format!("done {i}"), "max_tokens => 4");
        session.answer(id);
    }
    let id = session.embed("done as well", "");
    session.answer(id);
    let batch: uuid::Uuid = session.one(
        "select steadytext_enqueue_query('select i as id, ''batched '' || i as prompt from generate_series(1, 3) as i', \
         'embed', name => 'kept')",
    );
    session.run(&format!("select steadytext_wait('{batch}'::uuid, 'all', 3000)"));
    let id = session.generate("fails", "model => 'missing'");
    session.wait_for(id, "failed");
    session.pause();
    for i in 0..5 {
        session.generate(&format!("pending {i}"), "max_tokens => 4");
    }
    let id = session.generate("cancelled", "max_tokens => 4");
    session.cancel(id);
    let mut alice = cluster.session_as("postgres", "alice");
    alice.generate("by alice", "max_tokens => 4");
    alice.run("select steadytext_prompt_create('of-alice', '{{ x }}')");
    (cluster, session)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !text.contains("ERROR") && !text.contains("error:"),
        "{command:?}\n{text}"
    );
}

/// The restored database holds the same, answers what was pending, and takes new requests.
fn is_whole(cluster: &Cluster, original: &mut Session, database: &str) {
    let mut restored = cluster.session(database);
    for sql in [STATE, CONFIG, MODELS, PROMPTS, BATCHES] {
        assert_eq!(restored.one::<String>(sql), original.one::<String>(sql));
    }
    assert_eq!(restored.one::<String>("select steadytext_config_get('default_max_tokens')"), "77");
    restored.run("select steadytext_daemon_start()");
    let ids = restored
        .list("select request_id from steadytext_queue where prompt like 'pending%' or prompt = 'by alice'");
    assert_eq!(ids.len(), 6);
    for id in ids {
        restored.answer(id);
    }
    let new = restored.generate("new", "max_tokens => 4");
    restored.answer(new);
    assert!(restored.one::<bool>(&format!(
        "select max(id) = (select id from steadytext_queue where request_id = '{new}') from steadytext_queue"
    )));
    // Done requests were not done again.
    assert_eq!(
        restored
            .one::<i64>("select count(*) from steadytext_queue where prompt like 'done%' and attempt = 1"),
        4
    );
}

#[test]
fn a_plain_dump_keeps_everything() {
    let (cluster, mut session) = filled();
    let directory = cluster.make_directory("dump");
    let file = directory.join("plain.sql");
    run(cluster.client_program("pg_dump").args(["-d", "postgres", "-f"]).arg(&file));
    session.run("create database restored");
    run(cluster
        .client_program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "restored", "-f"])
        .arg(&file));
    is_whole(&cluster, &mut session, "restored");
}

#[test]
fn a_parallel_directory_dump_and_a_single_transaction_restore_keep_everything() {
    let (cluster, mut session) = filled();
    let directory = cluster.make_directory("dump");
    let file = directory.join("parallel");
    run(cluster.client_program("pg_dump").args(["-Fd", "-j2", "-d", "postgres", "-f"]).arg(&file));
    for (database, how) in [("parallel", "-j2"), ("single", "--single-transaction")] {
        session.run(&format!("create database {database}"));
        run(cluster.client_program("pg_restore").args([how, "-d", database]).arg(&file));
        is_whole(&cluster, &mut session, database);
    }
}

#[test]
fn a_dump_of_insert_statements_keeps_everything() {
    let (cluster, mut session) = filled();
    let directory = cluster.make_directory("dump");
    for (database, how) in
        [("inserts", "--inserts"), ("columns", "--column-inserts"), ("many", "--rows-per-insert=3")]
    {
        let file = directory.join(database);
        run(cluster.client_program("pg_dump").args([how, "-d", "postgres", "-f"]).arg(&file));
        session.run(&format!("create database {database}"));
        run(cluster
            .client_program("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"])
            .arg(&file));
        is_whole(&cluster, &mut session, database);
    }
}

#[test]
fn pg_upgrade_keeps_everything_and_starts_no_worker_meanwhile() {
    let (mut old, mut session) = filled();
    let before = [STATE, CONFIG, MODELS, PROMPTS].map(|sql| session.one::<String>(sql));
    drop(session);
    old.stop(Shutdown::Fast);
    let mut new = Options::new().create();
    new.upgrade_from(&old);
    new.start();
    let mut session = new.session("postgres");
    assert_eq!([STATE, CONFIG, MODELS, PROMPTS].map(|sql| session.one::<String>(sql)), before);
    // Roles keep their numbers, by which rows belong to them.
    let mut alice = new.session_as("postgres", "alice");
    assert_eq!(alice.list::<String>("select prompt from steadytext_queue"), ["by alice"]);
    // No request was claimed: the pause was upgraded, too.
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status = 'pending'"), 6);
    session.run("select steadytext_daemon_start()");
    for id in session.list("select request_id from steadytext_queue where status = 'pending'") {
        session.answer(id);
    }
}

/// Restores what is in the way of default rows, with every trigger switched off; `restore` runs the file.
fn restores_data_alone(dump: &[&str], restore: impl Fn(&Cluster, &std::path::Path, &str) -> Command) {
    let (cluster, mut session) = filled();
    let file = cluster.make_directory("dump").join("data");
    run(cluster
        .client_program("pg_dump")
        .args(["--data-only", "-d", "postgres"])
        .args(dump)
        .arg("-f")
        .arg(&file));
    session.run("create database fresh");
    let mut fresh = cluster.session("fresh");
    fresh.create_extension();
    // The sessions that were there before take notice, too.
    fresh.run("select steadytext_generate_async('of the fresh database', 2)");
    fresh.run(
        "delete from steadytext_queue where status in ('completed', 'pending'); truncate steadytext_queue",
    );
    run(&mut restore(&cluster, &file, "fresh"));
    let weak = "select tgname::text from pg_trigger where not tgisinternal and tgenabled <> 'A' and tgrelid::regclass::text like 'steadytext%'";
    assert_eq!(fresh.list::<String>(weak), [""; 0]);
    assert_eq!(
        fresh.one::<i64>("select count(*) from steadytext_config where is_default = false"),
        session.one::<i64>("select count(*) from steadytext_config where is_default = false")
    );
    assert_eq!(fresh.one::<i32>("select steadytext.config_integer('default_max_tokens')"), 77);
    is_whole(&cluster, &mut session, "fresh");
    // A second time the rows that were changed are in the way, and nothing else happens to the table.
    let again = restore(&cluster, &file, "fresh").output().expect("the program runs");
    assert!(String::from_utf8_lossy(&again.stderr).contains("duplicate key"), "{again:?}");
    for sql in [CONFIG, MODELS] {
        assert_eq!(fresh.one::<String>(sql), session.one::<String>(sql));
    }
}

#[test]
fn a_dump_of_data_alone_restores_into_a_fresh_database_without_any_trigger() {
    restores_data_alone(&["--disable-triggers"], |cluster, file, database| {
        let mut command = cluster.client_program("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(file);
        command
    });
}

#[test]
fn a_dump_of_insert_statements_of_data_alone_restores_into_a_fresh_database() {
    restores_data_alone(&["--inserts"], |cluster, file, database| {
        let mut command = cluster.client_program("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(file);
        command
    });
}

#[test]
fn an_archive_of_data_alone_restores_into_a_fresh_database_without_any_trigger() {
    restores_data_alone(&["-Fc"], |cluster, file, database| {
        let mut command = cluster.client_program("pg_restore");
        command.args(["--data-only", "--disable-triggers", "--exit-on-error", "-d", database]).arg(file);
        command
    });
}

#[test]
fn a_dump_of_data_alone_restores_into_a_fresh_database_with_triggers() {
    restores_data_alone(&[], |cluster, file, database| {
        let mut command = cluster.client_program("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(file);
        command
    });
}
