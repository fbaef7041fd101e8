//! One engine for all databases of a server, wherever it runs.

use std::path::Path;

use steadytext_test_server::{Cluster, Options, Session, endless_text, slow_model, wait_until, write_model};
use uuid::Uuid;

/// A server with two databases, `first` and `second`, each with a worker and the slow model.
fn two(options: Options) -> (Cluster, Session, Session) {
    let cluster = options.start();
    let mut session = cluster.session("postgres");
    let sessions = ["first", "second"].map(|database| {
        session.run(&format!("create database {database}"));
        let mut there = cluster.session(database);
        there.create_extension();
        slow_model(&cluster, &mut there);
        there.worker_pid();
        there
    });
    let [first, second] = sessions;
    (cluster, first, second)
}

/// The processes of the server that have a thread of this name.
fn processes_with(session: &mut Session, thread: &str) -> Vec<i32> {
    let pids: Vec<i32> =
        session.list("select pid from pg_stat_activity where backend_type like 'pg_steadytext%'");
    let has = |pid: &i32| {
        let tasks = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
        tasks.into_iter().flatten().flatten().any(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == thread)
        })
    };
    pids.into_iter().filter(has).collect()
}

/// Of the two sessions, the one whose database's worker runs the engine, and the other.
fn by_seat(first: Session, second: Session) -> (Session, Session) {
    let (mut first, mut second) = (first, second);
    let holder = processes_with(&mut first, "st-engine");
    if holder == [first.worker_pid()] {
        (first, second)
    } else {
        assert_eq!(holder, [second.worker_pid()]);
        (second, first)
    }
}

#[test]
fn two_databases_share_one_engine_and_load_a_model_once() {
    let (_cluster, mut first, mut second) = two(Options::new());
    let (one, other) = (first.generate("one", endless_text()), second.generate("other", endless_text()));
    first.wait_for_tokens(one);
    second.wait_for_tokens(other);
    assert_eq!(processes_with(&mut first, "st-engine").len(), 1);
    // Both workers report the same model, at once and in their heartbeats.
    let memory = "select memory_mb from steadytext.worker_state()";
    wait_until("both report its memory", || {
        let memory = [first.one::<i32>(memory), second.one::<i32>(memory)];
        memory[0] > 0 && memory[0] == memory[1]
    });
    first.cancel(one);
    second.cancel(other);
    assert_eq!(first.wait_for_end(one).status, "cancelled");
    // The heartbeats may come later than the longest answer takes.
    let models = "select coalesce((select models_loaded::text from steadytext_daemon_status()
                                   where models_loaded is not null), '')";
    for session in [&mut first, &mut second] {
        wait_until("the status shows it", || session.one::<String>(models).contains("slow.gguf"));
    }
    wait_until("it stops", || second.one("select not exists (select from steadytext_activity)"));
}

#[test]
fn two_databases_share_one_memory_budget() {
    // Room for one of the two models.
    let (cluster, first, second) = two(Options::new().set("pg_steadytext.memory_limit_mb", 75));
    let (mut first, mut second) = (first, second);
    write_model(&cluster, "another.gguf");
    second.run(
        "insert into steadytext_models (name, task, file) values ('another', 'generate', 'another.gguf')",
    );
    let memory = "select memory_mb from steadytext.worker_state()";
    let id = first.generate("takes it all", endless_text());
    first.wait_for_tokens(id);
    wait_until("its memory shows", || first.one::<i32>(memory) > 20);
    let waits = second.generate("has to wait", "model => 'another', max_tokens => 3");
    wait_until("it is waiting", || second.request(waits).status == "processing");
    let generated = |session: &mut Session| {
        session.one::<i64>("select coalesce(sum(generated_tokens), 0) from steadytext_activity")
    };
    let before = generated(&mut first);
    wait_until("the first goes on", || generated(&mut first) > before + 50);
    assert_eq!(second.request(waits).status, "processing");
    first.cancel(id);
    second.answer(waits);
}

#[test]
fn the_seat_passes_on_and_what_others_had_in_flight_is_neither_lost_nor_counted_nor_doubled() {
    let (_cluster, first, second) = two(Options::new());
    let (mut holder, mut other) = by_seat(first, second);
    other.audit();
    let ids: Vec<Uuid> = (0..5)
        .map(|i| other.generate(&format!("in flight {i}"), "model => 'slow', max_tokens => 800"))
        .collect();
    let cancelled = other.generate("cancelled between two engines", endless_text());
    other.wait_for_tokens(ids[0]);
    let (worker, there) = (holder.worker_pid(), other.worker_pid());
    assert!(holder.one::<bool>(&format!("select pg_terminate_backend({worker}, 180000)")));
    other.cancel(cancelled);
    for id in &ids {
        other.answer(*id);
        let request = other.request(*id);
        assert_eq!((request.attempt, request.retry_count), (1, 0), "{request:?}");
    }
    assert_eq!(other.doubled(), 0);
    assert_eq!(other.wait_for_end(cancelled).status, "cancelled");
    // They were held by the same worker all the time. Either of the two may run the engine now.
    assert_eq!(other.worker_pid(), there);
    holder.worker_pid();
    assert_eq!(processes_with(&mut other, "st-engine").len(), 1);
}

#[test]
fn the_database_whose_worker_runs_the_engine_can_be_dropped_while_others_use_it() {
    let (cluster, first, second) = two(Options::new());
    let (mut holder, mut other) = by_seat(first, second);
    let database: String = holder.one("select current_database()::text");
    drop(holder);
    let id = other.generate("goes on", "model => 'slow', max_tokens => 800");
    other.wait_for_tokens(id);
    let mut session = cluster.session("postgres");
    wait_until("nobody else is there", || {
        session.one(&format!(
            "select not exists (select from pg_stat_activity
                                where datname = '{database}' and backend_type = 'client backend')"
        ))
    });
    session.run(&format!("drop database {database}"));
    other.answer(id);
    assert_eq!(other.request(id).retry_count, 0);
    assert_eq!(processes_with(&mut session, "st-engine"), [other.worker_pid()]);
}

#[test]
fn new_settings_start_one_new_engine() {
    let (cluster, mut first, mut second) = two(Options::new());
    let before = processes_with(&mut first, "st-engine");
    assert_eq!(before.len(), 1);
    let ids = [&mut first, &mut second]
        .map(|session| session.generate("across the change", "model => 'slow', max_tokens => 800"));
    first.wait_for_tokens(ids[0]);
    second.wait_for_tokens(ids[1]);
    cluster.configure("pg_steadytext.max_running", 3);
    cluster.reload();
    first.answer(ids[0]);
    second.answer(ids[1]);
    wait_until("another process runs it", || {
        let now = processes_with(&mut first, "st-engine");
        now.len() == 1 && now != before
    });
}

#[test]
fn an_engine_that_fails_whatever_it_does_is_started_anew_in_the_same_process_and_loses_nothing() {
    let cluster = Options::new()
        .environment("STEADYTEXT_TEST_FAULT", "turn")
        .set("pg_steadytext.max_running", 1)
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    let worker = session.worker_pid();
    let fault = cluster.data().join("pg_stat_tmp/pg_steadytext.fault");
    let first = session.generate("it has begun", "model => 'slow', max_tokens => 800");
    session.wait_for_tokens(first);
    let others: Vec<Uuid> = (0..5)
        .map(|i| session.generate(&format!("in the engine's queue {i}"), "model => 'slow', max_tokens => 3"))
        .collect();
    wait_until("the engine has them", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 6
    });
    let from = cluster.log().len();
    std::fs::write(&fault, "").expect("the directory can be written");
    cluster.wait_for_log(from, "failed whatever it did, and is started anew");
    std::fs::remove_file(&fault).expect("it was just written");
    // Requests that had not begun were handed to the next engine, and none of them has failed; the one that
    // had begun is tried again.
    for id in others {
        session.answer(id);
        let request = session.request(id);
        assert_eq!((request.attempt, request.retry_count), (1, 0), "{request:?}");
    }
    session.answer(first);
    assert_eq!(session.worker_pid(), worker, "the process is the same");
    session.run("select steadytext_embed('and calls are answered', false)");
    let message: String = session.one("select message from steadytext.worker_state()");
    assert!(message.contains("panics"), "{message}");
}

#[test]
fn inside_a_restore_a_process_for_the_engine_alone_answers() {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.run("begin; create extension vector; create extension pg_steadytext");
    // Nobody else can see the extension.
    session.run("create table t (body text, e vector generated always as (steadytext_embed(body)) stored)");
    session.run("insert into t (body) values ('restored')");
    let mut other = cluster.session("postgres");
    let kinds: Vec<String> = other.list(
        "select backend_type from pg_stat_activity where backend_type like 'pg_steadytext%' order by 1",
    );
    assert!(kinds.contains(&"pg_steadytext engine".to_owned()), "{kinds:?}");
    session.run("commit");
    // The worker uses that engine.
    let id = session.generate("afterwards", "max_tokens => 3");
    session.answer(id);
    assert_eq!(processes_with(&mut session, "st-engine").len(), 1);
    let engine = processes_with(&mut session, "st-engine")[0];
    // The worker takes over when that process ends.
    assert!(session.one::<bool>(&format!("select pg_terminate_backend({engine}, 10000)")));
    let id = session.generate("and then", "max_tokens => 3");
    session.answer(id);
    assert_eq!(processes_with(&mut session, "st-engine"), [session.worker_pid()]);
}

#[test]
fn a_process_for_the_engine_alone_ends_when_nobody_needs_it() {
    let cluster = Options::new().set("pg_steadytext.model_idle_timeout", "1s").start();
    let mut session = cluster.session("postgres");
    session.run("begin; create extension vector; create extension pg_steadytext");
    session.run("select steadytext_embed('once')");
    let mut other = cluster.session("postgres");
    wait_until("it ends", || {
        other.one(
            "select not exists (select from pg_stat_activity where backend_type = 'pg_steadytext engine')",
        )
    });
    session.run("select steadytext_embed('twice'); rollback");
}

#[test]
fn the_socket_is_closed_to_others_and_gone_after_a_shutdown() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let mut cluster = Cluster::with_extension();
    cluster.session("postgres").run("select steadytext_embed('x')");
    let path = cluster.data().join("pg_stat_tmp/pg_steadytext.socket");
    let metadata = std::fs::metadata(&path).expect("the socket is there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    cluster.stop(steadytext_test_server::Shutdown::Fast);
    assert!(!path.exists());
    // Whatever is in the way.
    std::fs::write(&path, "left behind").expect("the directory can be written");
    cluster.start();
    cluster.session("postgres").run("select steadytext_embed('x')");
}
