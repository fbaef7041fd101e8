//! An engine that does nothing more, although it has not ended: it is seen, and as a program of its own it is
//! killed.

use steadytext_test_server::{
    Cluster, Options, PATIENCE, Session, Signal, eventually, is_alive, signal, wait_until,
};
use uuid::Uuid;

use crate::engine_process::{PROGRAM, RESTART, audited, kill, next_program, options, program};

const TIMEOUT: &str = "pg_steadytext.engine_hang_timeout";
/// The log message about an engine that was killed for it.
const KILLED: &str = "gave no sign of life";

/// Whether the figures and the diagnosis say that the engine does not get on.
fn is_seen(session: &mut Session) -> bool {
    session.one(
        "select coalesce((select stalled_seconds > 0 from steadytext_engine_stat), false)
            and exists (select from steadytext_diagnose()
                where \"check\" = 'listening' and status = 'warning' and detail like '%has not got on%')",
    )
}

fn gets_on(session: &mut Session) {
    wait_until("it gets on", || {
        session.one("select coalesce((select stalled_seconds = 0 from steadytext_engine_stat), false)")
    });
}

/// Has the engine hang in its next turn, as long as the file is there.
fn hang(cluster: &Cluster) -> std::path::PathBuf {
    let fault = cluster.data().join("pg_stat_tmp/pg_steadytext.fault");
    std::fs::write(&fault, "hang").expect("the directory can be written");
    fault
}

#[test]
fn a_program_that_was_stopped_is_killed_and_its_requests_are_answered_once() {
    let (cluster, mut session) = audited(options().set(TIMEOUT, "40s"));
    let postmaster = cluster.postmaster_pid();
    let mut bystander = cluster.session("postgres");
    bystander.run("begin; create temporary table mine as select 1 as n");
    let ids: Vec<Uuid> = (0..3)
        .map(|i| session.generate(&format!("long {i}"), "model => 'slow', max_tokens => 200"))
        .collect();
    session.wait_for_tokens(ids[0]);
    let engine = program(&mut session);
    assert!(signal(engine, Signal::STOP));
    wait_until("it is seen", || is_seen(&mut session));
    assert!(is_alive(engine), "it may take as long as the setting says");
    let from = cluster.log().len();
    cluster.configure(TIMEOUT, "1s");
    cluster.reload();
    let next = next_program(&mut session, engine);
    assert!(!is_alive(engine));
    // The requests that follow take their time on a busy machine.
    cluster.configure(TIMEOUT, "120s");
    cluster.reload();
    for id in ids {
        session.answer(id);
    }
    let said = cluster.wait_for_log(from, KILLED);
    assert!(said.contains(&format!("(process {engine})")), "{said}");
    cluster.wait_for_log(from, "HINT:  Somebody may have stopped it");
    assert!(session.one::<i64>("select crashes from steadytext_engine_stat") >= 1);
    assert_eq!(program(&mut session), next);
    gets_on(&mut session);
    assert_eq!(session.doubled(), 0);
    assert_eq!(bystander.one::<i32>("select n from mine"), 1);
    assert_eq!(cluster.postmaster_pid(), postmaster);
    assert!(!cluster.log().contains(RESTART));
}

#[test]
fn a_program_that_answers_but_computes_nothing_any_more_is_killed_too() {
    let (cluster, mut session) =
        audited(options().environment("STEADYTEXT_TEST_FAULT", "turn").set(TIMEOUT, "30s"));
    let id = session.generate("it has begun", "model => 'slow', max_tokens => 300");
    session.wait_for_tokens(id);
    let engine = program(&mut session);
    let from = cluster.log().len();
    let fault = hang(&cluster);
    wait_until("it is seen", || is_seen(&mut session));
    cluster.configure(TIMEOUT, "1s");
    cluster.reload();
    cluster.wait_for_log(from, KILLED);
    std::fs::remove_file(&fault).expect("it was just written");
    cluster.configure(TIMEOUT, "120s");
    cluster.reload();
    next_program(&mut session, engine);
    session.answer(id);
    assert_eq!(session.doubled(), 0);
    assert!(!cluster.log().contains(RESTART));
}

#[test]
fn one_that_stands_still_again_and_again_and_goes_on_each_time_is_left_alone() {
    const ROUNDS: u32 = 5;
    let (cluster, mut session) = audited(options().set(TIMEOUT, "24s"));
    let id = session.generate("for a while", "model => 'slow', max_tokens => 4096");
    session.wait_for_tokens(id);
    let engine = program(&mut session);
    // Longer in all than it may be at a time.
    for _ in 0..ROUNDS {
        assert!(signal(engine, Signal::STOP));
        wait_until("it is seen", || {
            session.one("select coalesce((select stalled_seconds >= 5 from steadytext_engine_stat), false)")
        });
        assert!(signal(engine, Signal::CONT));
        gets_on(&mut session);
    }
    assert_eq!(program(&mut session), engine);
    session.cancel(id);
    // An engine that has nothing to do is not silent.
    wait_until("it has nothing to do", || session.one("select running = 0 from steadytext_engine_stat"));
    cluster.configure(TIMEOUT, "1s");
    cluster.reload();
    let answered = session.generate("after a rest", "max_tokens => 3");
    session.answer(answered);
    assert!(!cluster.log().contains(KILLED));
}

#[test]
fn an_engine_in_a_worker_that_hangs_is_seen_and_may_go_on() {
    let (cluster, mut session) =
        audited(Options::new().environment("STEADYTEXT_TEST_FAULT", "turn").set(TIMEOUT, "2s"));
    let id = session.generate("it has begun", "model => 'slow', max_tokens => 300");
    session.wait_for_tokens(id);
    let from = cluster.log().len();
    let fault = hang(&cluster);
    wait_until("it is seen", || is_seen(&mut session));
    cluster.wait_for_log(from, "has not got on for");
    std::fs::remove_file(&fault).expect("it was just written");
    session.answer(id);
    gets_on(&mut session);
    assert!(!cluster.log().contains(RESTART));
}

#[test]
fn while_no_program_runs_there_is_no_process_of_the_engine() {
    const ENGINE: &str = "select pid from steadytext_engine_stat";
    let (_cluster, mut session) = audited(options());
    let leader = session.worker_pid();
    let mut missing = 0;
    // Each time it is started a little later, so that somebody can see it.
    for _ in 0..6 {
        let engine = program(&mut session);
        kill(engine, Signal::KILL);
        let next = eventually(PATIENCE, || {
            let pid = session.one::<Option<i32>>(ENGINE);
            assert_ne!(pid, Some(leader), "the engine never computes there");
            missing += u32::from(pid.is_none());
            pid.filter(|pid| *pid != engine)
        });
        assert!(next.is_some(), "{engine} has no successor");
    }
    assert!(missing > 0);
    let programs = session.query(PROGRAM, &[]).expect(PROGRAM);
    assert_eq!(programs.len(), 1);
}
