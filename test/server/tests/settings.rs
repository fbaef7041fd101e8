//! Settings of the server, of a database, and of the extension.

use postgres::error::SqlState;
use steadytext_test_server::{Cluster, Options, Session, slow_model, wait_until};
use uuid::Uuid;

fn restart_worker(session: &mut Session) {
    let worker = session.worker_pid();
    replace_worker(session, worker);
}

fn replace_worker(session: &mut Session, worker: i32) {
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)"));
    wait_until("another worker", || session.worker_of("postgres").is_some_and(|pid| pid != worker));
}

#[test]
fn settings_of_the_database_do_not_stop_the_worker() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "alter database postgres set default_transaction_read_only = on;
         alter database postgres set default_transaction_isolation = 'serializable';
         alter database postgres set default_transaction_deferrable = on;
         alter database postgres set statement_timeout = '1ms';
         alter database postgres set lock_timeout = '1ms';
         alter database postgres set idle_in_transaction_session_timeout = '1ms';
         alter database postgres set search_path = 'nowhere';
         alter database postgres set session_replication_role = 'replica';
         alter database postgres set row_security = off;
         alter database postgres set synchronous_commit = off;
         alter database postgres set datestyle = 'German';
         alter database postgres set extra_float_digits = -5;
         alter database postgres set jit_above_cost = 0;
         alter database postgres set enable_indexscan = off;
         alter database postgres set plan_cache_mode = 'force_generic_plan'",
    );
    // This session was there before and has none of that.
    restart_worker(&mut session);
    let ids: Vec<Uuid> =
        (0..5).map(|i| session.generate(&format!("request {i}"), "max_tokens => 3")).collect();
    for id in ids {
        session.answer(id);
    }
    let id = session.embed("exact", "");
    session.answer(id);
    assert!(session.one::<bool>(&format!("select abs(1 - (embedding <#> embedding) * -1) < 1e-5 from steadytext_queue where request_id = '{id}'")));
}

#[test]
fn the_default_of_max_tokens_is_bound_by_the_limit() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let short: String = session.one("select steadytext_generate('bound', max_tokens => 3)");
    let long: String = session.one("select steadytext_generate('bound')");
    assert_ne!(short, long);
    session.run("select steadytext_config_set('max_tokens_limit', '3')");
    assert_eq!(session.one::<String>("select steadytext_generate('bound')"), short);
    let id = session.generate("bound", "");
    assert_eq!(session.answer(id), short);
}

#[test]
fn a_paused_worker_lets_the_running_request_end_and_takes_no_other() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    let running = session.generate("is running", "model => 'slow', max_tokens => 400");
    session.wait_for_tokens(running);
    assert!(session.one::<bool>("select steadytext_daemon_stop()"));
    session.wait_for_worker("paused");
    let later = session.generate("comes later", "max_tokens => 3");
    session.answer(running);
    assert_eq!(session.request(later).attempt, 0);
    // The pause outlives the worker: it belongs to the database.
    restart_worker(&mut session);
    session.wait_for_worker("paused");
    assert_eq!(session.request(later).attempt, 0);
    assert!(session.one::<bool>("select steadytext_daemon_start()"));
    session.answer(later);
}

#[test]
fn a_request_that_comes_after_a_pause_is_never_taken_however_soon() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for i in 0..100 {
        session.run("select steadytext_daemon_stop()");
        let id = session.embed(&format!("text {i}"), "");
        session.wait_for_worker("paused");
        assert_eq!(session.request(id).attempt, 0, "{i}");
        session.run("select steadytext_daemon_start()");
        session.answer(id);
    }
}

#[test]
fn max_worker_processes_used_up_is_said_in_the_log_and_the_worker_comes_when_there_is_room() {
    // The launcher and the logical replication launcher take two; there is one for a database.
    let cluster = Options::new().set("max_worker_processes", 3).set("max_parallel_workers", 0).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let id = session.generate("in the first database", "max_tokens => 3");
    session.answer(id);
    session.run("create database other");
    let from = cluster.log().len();
    let mut other = cluster.session("other");
    other.create_extension();
    let id = other.generate("in the other one", "max_tokens => 3");
    cluster.wait_for_log(from, "max_worker_processes");
    assert_eq!(other.request(id).attempt, 0);
    let said = cluster.log()[from..].lines().filter(|line| line.contains("max_worker_processes")).count();
    assert!(said < 10, "it is said {said} times");
    // A session that asks is told, too.
    let message: String = other.one("select message from steadytext.worker_state()");
    assert!(message.contains("max_worker_processes"), "{message}");
    assert_eq!(
        other.list::<String>(
            "select status from steadytext_diagnose() where detail like '%max_worker_processes%the worker%'"
        ),
        ["error"]
    );
    session.run("drop extension pg_steadytext");
    other.answer(id);
    assert_eq!(other.one::<Option<String>>("select message from steadytext.worker_state()"), None);
}

#[test]
fn a_vectorizer_without_a_process_says_what_it_waits_for() {
    // Two launchers, the worker, and the process that takes short steps; none is left for the one that makes
    // indexes.
    let mut cluster = Options::new().set("max_worker_processes", 4).set("max_parallel_workers", 0).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(
        "select steadytext_config_set('worker_poll_interval', '0.05');
         create table docs (id bigint primary key, body text);
         insert into docs values (1, 'words');
         select steadytext_create_vectorizer('docs', array['body'])",
    );
    const STATE: &str = "select concat_ws(' ', state, problem) from steadytext_vectorizer_status";
    wait_until("it says why its index is not made", || {
        session.one::<String>(STATE).starts_with("broken a process that works for vectorizers")
    });
    let state: String = session.one(STATE);
    assert!(state.contains("max_worker_processes"), "{state}");
    let message: String = session.one("select message from steadytext.worker_state()");
    assert!(message.contains("max_worker_processes"), "{message}");
    assert_eq!(
        session.list::<String>(
            "select status from steadytext_diagnose() where detail like '%max_worker_processes%indexes%'"
        ),
        ["error"]
    );
    cluster.configure("max_worker_processes", 8);
    cluster.restart();
    let mut session = cluster.session("postgres");
    wait_until("it is made", || session.one::<String>(STATE) == "idle");
}

#[test]
fn changed_engine_settings_take_effect_without_a_restart() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id = session.generate("before", "max_tokens => 8, use_cache => false");
    let before = session.answer(id);
    cluster.configure("pg_steadytext.context_length", 64);
    cluster.reload();
    let long = "word ".repeat(200);
    wait_until("the context is short", || {
        let id = session.generate(&long, "max_tokens => 1, use_cache => false");
        wait_until("it ends", || {
            session.request(id).status != "pending" && session.request(id).status != "processing"
        });
        session.request(id).error_code.as_deref() == Some("54000")
    });
    cluster.configure("pg_steadytext.context_length", 0);
    cluster.configure("pg_steadytext.threads", 1);
    cluster.reload();
    let id = session.generate("before", "max_tokens => 8, use_cache => false");
    assert_eq!(session.answer(id), before, "the number of threads does not change the answer");
}

#[test]
fn another_kind_of_keys_and_values_starts_another_engine_and_other_entries_of_the_cache() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let prompt = "What does VACUUM do?";
    let ask = format!("select steadytext_generate('{prompt}', max_tokens => 60)");
    let entries = "select count(*) from steadytext_cache";
    let versions = "select count(distinct kernel_version) from steadytext_cache";
    session.run(&ask);
    wait_until("the answer is kept", || session.one::<i64>(entries) == 1);
    let key: String = session
        .one(&format!("select steadytext_cache_key('generate', '{prompt}', '{{\"max_tokens\": 60}}')"));
    cluster.configure("pg_steadytext.kv_cache_type", "q8_0");
    cluster.reload();
    wait_until("the setting is read", || session.one::<String>("show pg_steadytext.kv_cache_type") == "q8_0");
    let other: String = session
        .one(&format!("select steadytext_cache_key('generate', '{prompt}', '{{\"max_tokens\": 60}}')"));
    assert_ne!(key, other, "no entry of before is found");
    wait_until("an engine with the new setting answers", || {
        // A call that the engine of before has begun to answer fails when that one goes.
        if let Err(error) = session.query_one(&ask, &[]) {
            assert_eq!(error.code().map(SqlState::code), Some("55000"), "{error}");
        }
        session.one::<i64>(&format!("select count(*) from steadytext_cache where cache_key = '{other}'")) == 1
    });
    assert_eq!(session.one::<i64>(versions), 2, "each entry says what has computed it");
    // Entries of before answer again when the setting is what it was.
    cluster.configure("pg_steadytext.kv_cache_type", "f16");
    cluster.reload();
    wait_until("the setting is read", || session.one::<String>("show pg_steadytext.kv_cache_type") == "f16");
    let accesses = format!("select access_count from steadytext_cache where cache_key = '{key}'");
    let before: i32 = session.one(&accesses);
    session.run(&ask);
    wait_until("the hit is counted", || session.one::<i32>(&accesses) > before);
    let error = session.error("alter system set pg_steadytext.kv_cache_type = 'q4_0'");
    assert_eq!(error.code().code(), "22023", "there is no such kind");
}

#[test]
fn higher_priorities_go_first_and_users_take_turns() {
    let cluster = Options::new().set("pg_steadytext.max_running", 1).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    session.pause();
    let mut alice = cluster.session_as("postgres", "alice");
    let mut bob = cluster.session_as("postgres", "bob");
    for i in 0..30 {
        alice.generate(&format!("alice {i}"), "max_tokens => 2");
    }
    for i in 0..3 {
        bob.generate(&format!("bob {i}"), "max_tokens => 2");
    }
    let urgent = alice.generate("urgent", "max_tokens => 2, priority => 10");
    let idle = alice.generate("idle", "max_tokens => 2, priority => 1");
    session.run("select steadytext_daemon_start()");
    session.answer(idle);
    // Requests that end in one transaction share a time and a place.
    let places = session
        .query(
            "select request_id, owner_role::text, rank() over (order by completed_at),
                    rank() over (order by completed_at desc)
             from steadytext_queue",
            &[],
        )
        .expect("the queue can be read");
    let place = |id: Uuid, column: usize| {
        places.iter().find(|row| row.get::<_, Uuid>(0) == id).map(|row| row.get::<_, i64>(column))
    };
    let last_of_bob =
        places.iter().filter(|row| row.get::<_, &str>(1) == "bob").map(|row| row.get::<_, i64>(2)).max();
    assert_eq!(place(urgent, 2), Some(1), "nothing ended before the urgent one");
    assert_eq!(place(idle, 3), Some(1), "nothing ended after the idle one");
    let last_of_bob = last_of_bob.expect("bob has requests");
    assert!(last_of_bob <= 20, "bob's last request was number {last_of_bob}");
}

#[test]
fn what_the_activity_shows_belongs_to_the_running_request_and_goes_with_it() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    let id = session.generate("takes its time", "model => 'slow', max_tokens => 600");
    session.wait_for_tokens(id);
    let row = session
        .query_one(
            "select owner_role::text, request_type, phase, prompt_tokens, generated_tokens, partial_text, worker_pid
             from steadytext_activity",
            &[],
        )
        .expect("one request is running");
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, &str>(2)),
        ("postgres", "generate", "decoding")
    );
    assert!(row.get::<_, i32>(3) > 0 && row.get::<_, i32>(4) > 0);
    assert_eq!(row.get::<_, i32>(6), session.worker_pid());
    wait_until("tokens come", || {
        session.one::<Option<i32>>("select max(generated_tokens) from steadytext_activity") > Some(row.get(4))
    });
    let partial: String = session.one("select partial_text from steadytext_activity");
    let whole = session.answer(id);
    // The last 1,024 bytes at most, of what there was at that moment.
    assert!(
        partial.len() <= 1024 && !partial.is_empty() && whole.contains(&partial),
        "{partial:?}\n{whole:?}"
    );
    wait_until("it is gone", || session.one::<bool>("select not exists (select from steadytext_activity)"));
}

#[test]
fn a_worker_of_another_version_than_the_extension_idles_and_says_so() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let version: String = session.one("select steadytext_version()");
    let from = cluster.log().len();
    // Before the update: a worker that starts after it does not work.
    let worker = session.worker_pid();
    session.run("update pg_extension set extversion = '1.4.0' where extname = 'pg_steadytext'");
    replace_worker(&mut session, worker);
    wait_until("the worker says so", || session.worker_state().contains("version_mismatch"));
    let line = cluster.wait_for_log(from, "1.4.0");
    assert!(line.contains(&version), "{line}");
    let id = session.generate("later", "max_tokens => 3");
    assert_eq!(session.request(id).attempt, 0);
    session.run("update pg_extension set extversion = steadytext_version() where extname = 'pg_steadytext'");
    let worker = session.worker_of("postgres").expect("it idles");
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)"));
    session.answer(id);
}

#[test]
fn auto_takes_the_builtin_model_with_one_warning_until_a_registered_file_is_there() {
    let cluster = Options::new()
        .set("pg_steadytext.generation_model", "auto")
        .set("pg_steadytext.embedding_model", "auto")
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let warnings =
        |cluster: &Cluster| cluster.log().lines().filter(|line| line.contains("builtin model")).count();
    for i in 0..3 {
        let id = session.generate(&format!("request {i}"), "max_tokens => 3");
        session.answer(id);
        let id = session.embed(&format!("text {i}"), "");
        session.answer(id);
    }
    assert_eq!(warnings(&cluster), 1, "{}", cluster.log());
    let [by_auto, by_name] = ["", ", model => 'builtin'"].map(|more| {
        let id =
            session.generate("What does VACUUM do?", format!("max_tokens => 8, use_cache => false{more}"));
        session.answer(id)
    });
    assert_eq!(by_auto, by_name);
    slow_model(&cluster, &mut session);
    let [by_auto, by_name] = ["", ", model => 'slow'"].map(|more| {
        let id =
            session.generate("What does VACUUM do?", format!("max_tokens => 8, use_cache => false{more}"));
        session.answer(id)
    });
    assert_eq!(by_auto, by_name);
}

#[test]
fn the_builtin_model_chosen_by_name_is_not_warned_of() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id = session.generate("chosen by name", "max_tokens => 3");
    session.answer(id);
    assert!(!cluster.log().contains("builtin model"), "{}", cluster.log());
}

#[test]
fn a_number_with_a_point_means_what_it_says_however_it_came_in() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    // Past the trigger, as from a dump of a version that did not know better.
    session.run(
        "alter table steadytext_config disable trigger check_config;
         update steadytext_config set value = '3.0' where key in ('max_retries', 'cache_min_access_count');
         update steadytext_config set value = '8.0' where key = 'max_tokens_limit';
         update steadytext_config set value = '4.0e0' where key = 'default_max_tokens';
         update steadytext_config set value = '24.0' where key = 'queue_retention_hours';
         update steadytext_config set value = '\"many\"' where key = 'max_batch_size';
         alter table steadytext_config enable always trigger check_config",
    );
    let error = session.error("select steadytext_generate_async('x', 9)");
    assert_eq!(error.message(), "max_tokens must be between 1 and 8");
    let id = session.generate("claimed and completed", "");
    session.answer(id);
    assert_eq!(
        session.one::<i32>(&format!("select max_retries from steadytext_queue where request_id = '{id}'")),
        3
    );
    session.run(
        "insert into steadytext_models (name, task, file) values ('missing', 'generate', 'missing.gguf')",
    );
    let id = session.generate("fails", "model => 'missing'");
    session.wait_for(id, "failed");
    assert_eq!(session.one::<i32>("select steadytext.rescue_requests(null)"), 0);
    session.run(
        "select steadytext.expire_requests(0, 10); select steadytext_generate_batch_async(array['x'], 3)",
    );
}

#[test]
fn what_changes_under_session_replication_role_replica_is_noticed() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("select steadytext_config_set('worker_poll_interval', '3600')");
    // Known to this session and to the worker.
    let id = session.generate("before", "max_tokens => 3");
    session.answer(id);
    let mut replica = cluster.session("postgres");
    replica.run("set session_replication_role = replica; update steadytext_config set value = '5.0' where key = 'max_tokens_limit'");
    assert_eq!(
        session.error("select steadytext_generate_async('x', 6)").message(),
        "max_tokens must be between 1 and 5"
    );
    assert_eq!(
        replica
            .error("update steadytext_config set value = '0' where key = 'max_tokens_limit'")
            .code()
            .code(),
        "22023"
    );
    replica.run("update steadytext_config set value = 'true' where key = 'worker_paused'");
    session.wait_for_worker("paused");
    replica.run("update steadytext_config set value = 'false' where key = 'worker_paused'");
    session.wait_for_worker("idle");
    // A request that comes, and one that is put back, wake the worker.
    let id: Uuid = replica.one("insert into steadytext_queue (request_type, prompt, params) values ('generate', 'applied', '{\"max_tokens\": 3}') returning request_id");
    session.answer(id);
    session
        .run("insert into steadytext_models (name, task, file) values ('later', 'generate', 'later.gguf')");
    let id = session.generate("put back", "model => 'later', max_tokens => 3");
    session.wait_for(id, "failed");
    steadytext_test_server::write_model(&cluster, "later.gguf");
    replica.run("update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed'");
    session.wait_for(id, "completed");
}

#[test]
fn a_setting_with_a_unit_takes_what_was_said_or_refuses_it() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    // Zero has a meaning of its own, which nothing is rounded to.
    for (name, little, meant) in [
        ("engine_hang_timeout", "100ms", "1500ms"),
        ("model_idle_timeout", "499ms", "2500ms"),
        ("memory_limit_mb", "100kB", "3GB"),
    ] {
        let error = session.error(&format!("alter system set pg_steadytext.{name} = '{little}'"));
        assert_eq!(error.code(), &SqlState::INVALID_PARAMETER_VALUE, "{name}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("at least")), "{error:?}");
        assert_eq!(
            session.error(&format!("alter system set pg_steadytext.{name} = '-1'")).code().code(),
            "22023"
        );
        for value in ["0", meant] {
            session.run(&format!("alter system set pg_steadytext.{name} = '{value}'"));
            session.run("select pg_reload_conf()");
            let show = format!("select current_setting('pg_steadytext.{name}')");
            wait_until("the setting holds", || session.one::<String>(&show) == value);
        }
    }
    let rounded: Vec<String> = session.list(
        "select name from pg_settings where name like 'pg_steadytext.%' and vartype = 'integer' and min_val::int <= 0
         and unit in ('s', 'min', 'h', 'd', 'MB', 'GB', 'TB')",
    );
    assert_eq!(rounded, [""; 0], "what is less than one of the unit becomes 0");
    // The engine runs with them.
    assert!(!session.one::<String>("select steadytext_generate('x', 2)").is_empty());
}
