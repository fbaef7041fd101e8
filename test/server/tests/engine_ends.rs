//! The engine in a program of its own ends, in whatever way: nobody but its requests notices, and these go
//! on.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread;

use postgres::fallible_iterator::FallibleIterator;
use steadytext_test_server::{
    Cluster, PATIENCE, Session, Shutdown, Signal, endless_text, eventually, is_alive, signal, wait_until,
};
use uuid::Uuid;

use crate::engine_process::{
    PROGRAM, RESTART, audited, engines_of, kill, next_program, options, proc, program,
};

fn everybody_lives(cluster: &Cluster, session: &mut Session, postmaster: i32) {
    assert_eq!(session.one::<i32>("select 1"), 1, "the session of a bystander");
    assert_eq!(cluster.postmaster_pid(), postmaster);
    let log = cluster.log();
    assert!(!log.contains(RESTART) && !log.contains("PANIC"), "{log}");
}

#[test]
fn a_program_that_dies_ends_no_session_and_its_requests_are_answered_once() {
    for how in [Signal::KILL, Signal::SEGV, Signal::ABORT] {
        let (cluster, mut session) = audited(options().set("pg_steadytext.max_running", 4));
        let postmaster = cluster.postmaster_pid();
        let mut bystander = cluster.session("postgres");
        bystander.run("begin; create temporary table mine as select 1 as n");
        let mut ids: Vec<Uuid> = (0..3)
            .map(|i| session.generate(&format!("long {i}"), "model => 'slow', max_tokens => 120"))
            .collect();
        ids.extend((0..12).map(|i| session.generate(&format!("short {i}"), "max_tokens => 4")));
        ids.push(session.embed("a text beside them", ""));
        session.wait_for_tokens(ids[0]);
        let mut caller = cluster.session("postgres");
        let caller_pid = caller.backend_pid();
        let call = thread::spawn(move || {
            caller
                .query_one("select steadytext_generate('a call', model => 'slow', max_tokens => 4096)", &[])
                .map(|_| ())
                .err()
        });
        let mut reader = cluster.session("postgres");
        let reader_pid = reader.backend_pid();
        let stream = thread::spawn(move || {
            let sql = "select piece from steadytext_generate_stream('a stream', model => 'slow', max_tokens => 4096) as piece";
            let error =
                reader.query_raw(sql, Vec::<String>::new()).and_then(|rows| rows.count()).map(|_| ()).err();
            (error, reader)
        });
        // A request that has not begun when its engine ends is handed to the next engine, and does not fail.
        let begun = format!(
            "select count(distinct worker_pid) = 2 from steadytext_activity
              where worker_pid in ({caller_pid}, {reader_pid}) and generated_tokens > 0"
        );
        wait_until("call and stream have begun", || session.one::<bool>(&begun));
        let engine = program(&mut session);
        kill(engine, how);
        let error = call.join().expect("no panic").expect("it had begun");
        assert_eq!(error.code().map(|code| code.code()), Some("55000"), "{error:?}");
        let (error, mut reader) = stream.join().expect("no panic");
        let error = error.expect("it had begun");
        assert_eq!(error.code().map(|code| code.code()), Some("55000"), "{error:?}");
        // This session is still usable, and so are all others.
        reader.run("select steadytext_embed('and then', false)");
        for id in &ids {
            session.answer(*id);
        }
        assert_eq!(session.doubled(), 0);
        let stored: i64 = session.one("select count(*) from audit.changed where becomes = 'completed'");
        assert_eq!(stored, ids.len() as i64);
        assert_eq!(bystander.one::<i32>("select n from mine"), 1);
        everybody_lives(&cluster, &mut bystander, postmaster);
        let said = cluster.wait_for_log(0, &format!("pg_steadytext's engine (process {engine})"));
        let how_it_ended = match how {
            Signal::KILL => "was killed by signal 9",
            Signal::SEGV => "crashed by signal 11 (SIGSEGV)",
            _ => "crashed by signal 6 (SIGABRT)",
        };
        assert!(said.contains(how_it_ended), "{said}");
        assert!(!Path::new(&format!("/proc/{engine}")).exists(), "it was reaped");
    }
}

#[test]
fn a_request_that_kills_its_engine_every_time_fails_after_max_retries_and_its_neighbours_complete() {
    let (cluster, mut session) = audited(options());
    let postmaster = cluster.postmaster_pid();
    let mut neighbours: Vec<Uuid> =
        (0..2).map(|i| session.generate(&format!("long {i}"), "model => 'slow', max_tokens => 60")).collect();
    neighbours.extend((0..6).map(|i| session.generate(&format!("short {i}"), "max_tokens => 4")));
    let poison: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, max_retries)
         values ('generate', 'poison', '{\"model\": \"slow\", \"max_tokens\": 4000}', 1) returning request_id",
    );
    let mut kills = 0;
    let mut victims = Vec::new();
    let ended = eventually(2 * PATIENCE, || {
        let runs = format!(
            "select exists (select from steadytext_activity where request_id = '{poison}' and generated_tokens > 0)"
        );
        let row = session.query_opt(PROGRAM, &[]).expect(PROGRAM);
        if session.one::<bool>(&runs)
            && let Some(engine) = row.map(|row| row.get::<_, i32>(0))
            && !victims.contains(&engine)
        {
            kill(engine, Signal::SEGV);
            victims.push(engine);
            kills += 1;
        }
        (session.request(poison).status == "failed").then_some(())
    });
    let request = session.request(poison);
    assert!(ended.is_some(), "{kills} kills: {request:?}");
    assert_eq!((request.retry_count, request.error_code.as_deref()), (1, Some("58000")), "{request:?}");
    let error = request.error.unwrap_or_default();
    assert!(
        error.starts_with("The engine died while running this request") && !error.contains("poison"),
        "{error}"
    );
    // Beside others it was not to blame; alone it was, twice.
    assert!((2..=3).contains(&kills), "{kills} kills");
    for id in neighbours {
        session.answer(id);
        assert_eq!(session.request(id).retry_count, 0, "it was never alone at a crash");
    }
    assert_eq!(session.doubled(), 0);
    everybody_lives(&cluster, &mut session, postmaster);
}

#[test]
fn a_program_without_memory_fails_requests_or_ends_and_another_one_follows() {
    let (cluster, mut session) = audited(options());
    let postmaster = cluster.postmaster_pid();
    session.run("select steadytext_config_set('max_retries', '0')");
    let id = session.generate("load the builtin model", "max_tokens => 2");
    session.answer(id);
    let mut errors = Vec::new();
    for megabytes in [0_u64, 1, 8, 40] {
        let engine = program(&mut session);
        let status = proc(engine, "status");
        let data = status.lines().find_map(|line| line.strip_prefix("VmData:")).expect("it is there");
        let data: u64 = data.trim().trim_end_matches(" kB").parse().expect("a number");
        let limit = data * 1024 + (megabytes << 20);
        // As its user, which needs no right that root may lack.
        let owner = std::fs::metadata(format!("/proc/{engine}")).expect("it runs");
        let limited = std::process::Command::new("prlimit")
            .args(["--pid", &engine.to_string(), &format!("--data={limit}:")])
            .uid(owner.uid())
            .gid(owner.gid())
            .status()
            .expect("util-linux is there");
        assert!(limited.success());
        let mut ids =
            vec![session.generate(&"many words ".repeat(40_000), "max_tokens => 2, use_cache => false")];
        ids.extend((0..20).map(|i| {
            session
                .generate(&format!("{megabytes} {i}"), "model => 'slow', max_tokens => 5, use_cache => false")
        }));
        for id in ids {
            let request = session.wait_for_end(id);
            errors.extend(request.error_code.zip(request.error));
        }
        // By now it may be another one.
        signal(engine, Signal::KILL);
        next_program(&mut session, engine);
        let id = session.generate(&format!("after {megabytes}"), "max_tokens => 3");
        session.wait_for_end(id);
        everybody_lives(&cluster, &mut session, postmaster);
    }
    errors.sort();
    errors.dedup();
    let is_for_want_of_memory = |(code, error): &(String, String)| {
        ["53200", "54000", "53400", "58000", "58030"].contains(&&**code)
            || error.contains("thread cannot be started")
    };
    assert!(errors.iter().all(is_for_want_of_memory), "{errors:?}");
    assert!(errors.iter().any(|(code, _)| code == "53200"), "{errors:?}");
}

#[test]
fn it_dies_with_whoever_has_started_it_and_there_are_never_two() {
    let (mut cluster, mut session) = audited(options());
    let id = session.generate("goes on for ever", endless_text());
    session.wait_for_tokens(id);
    // The leader alone, by a signal that nobody can handle: the server restarts, without that engine.
    let (leader, engine) = (session.worker_pid(), program(&mut session));
    cluster.crash(leader, Signal::KILL);
    wait_until("it has gone", || !is_alive(engine));
    session = cluster.session("postgres");
    let engine = next_program(&mut session, engine);
    assert_eq!(engines_of(&cluster), [engine]);
    // The postmaster alone.
    cluster.kill_postmaster();
    wait_until("it has gone", || !is_alive(engine));
    cluster.start();
    session = cluster.session("postgres");
    let mut engine = program(&mut session);
    // In order.
    let worker = session.worker_pid();
    assert!(session.one::<bool>(&format!("select pg_terminate_backend({worker}, 180000)")));
    wait_until("it has gone", || !is_alive(engine));
    engine = next_program(&mut session, engine);
    assert_eq!(engines_of(&cluster), [engine]);
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        session.wait_for_tokens(id);
        drop(session);
        cluster.stop(how);
        wait_until("it has gone", || !is_alive(engine));
        assert!(engines_of(&cluster).is_empty());
        let socket = cluster.data().join("pg_stat_tmp/pg_steadytext.socket");
        assert!(how == Shutdown::Immediate || !socket.exists(), "{how:?}");
        cluster.start();
        session = cluster.session("postgres");
        engine = program(&mut session);
        assert_eq!(engines_of(&cluster), [engine]);
    }
    // Stopped, it does not hold up a shutdown.
    signal(engine, Signal::STOP);
    drop(session);
    cluster.stop(Shutdown::Fast);
    wait_until("it has gone", || !is_alive(engine));
}

#[test]
fn an_engine_that_fails_whatever_it_does_is_started_anew_and_loses_nothing() {
    let (cluster, mut session) =
        audited(options().environment("STEADYTEXT_TEST_FAULT", "turn").set("pg_steadytext.max_running", 1));
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
    for id in others {
        session.answer(id);
        let request = session.request(id);
        assert_eq!((request.attempt, request.retry_count), (1, 0), "{request:?}");
    }
    session.answer(first);
}

#[test]
fn a_call_that_had_not_begun_is_handed_to_the_next_engine_once() {
    let (cluster, mut session) = audited(options().set("pg_steadytext.max_running", 1));
    let long = session.generate("it takes the place", endless_text());
    session.wait_for_tokens(long);
    let call = |cluster: &Cluster| {
        let mut caller = cluster.session("postgres");
        // Of a lower priority than what runs: it waits.
        caller.run("set pg_steadytext.call_priority = 1");
        thread::spawn(move || {
            caller
                .query_one("select steadytext_generate('waits', max_tokens => 3, use_cache => false)", &[])
                .map(|_| ())
        })
    };
    let engine = program(&mut session);
    let waiting = call(&cluster);
    wait_until("it waits", || {
        session.one("select coalesce(waiting >= 1, false) from steadytext_engine_stat")
    });
    kill(engine, Signal::SEGV);
    session.cancel(long);
    next_program(&mut session, engine);
    waiting.join().expect("no panic").expect("the next engine answers");
}
