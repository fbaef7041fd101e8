//! The server stops promptly in every way while the worker is in mid-inference, and nothing is lost.

use steadytext_test_server::{Cluster, Shutdown, Signal, signal, slow_model, wait_until};
use uuid::Uuid;

#[test]
fn every_shutdown_while_busy_ends_promptly_and_loses_nothing() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    slow_model(&cluster, &mut session);
    drop(session);
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        let mut session = cluster.session("postgres");
        let long: Vec<Uuid> = (0..3)
            .map(|i| session.generate(&format!("{how:?} {i}"), "model => 'slow', max_tokens => 300"))
            .collect();
        let short: Vec<Uuid> =
            (0..5).map(|i| session.generate(&format!("short {i}"), "max_tokens => 3")).collect();
        session.wait_for_tokens(long[0]);
        drop(session);
        // It panics when it does not end.
        cluster.stop(how);
        cluster.start();
        let mut session = cluster.session("postgres");
        for id in long.iter().chain(&short) {
            session.answer(*id);
            assert_eq!(session.request(*id).retry_count, 0);
        }
        assert_eq!(session.doubled(), 0);
    }
    let log = cluster.log();
    assert!(!log.contains("PANIC"), "{log}");
}

#[test]
fn a_crash_recovery_does_not_leave_a_second_worker() {
    let cluster = Cluster::with_extension();
    for _ in 0..3 {
        let mut session = cluster.session("postgres");
        let worker = session.worker_pid();
        cluster.crash(worker, steadytext_test_server::Signal::KILL);
    }
    let mut session = cluster.session("postgres");
    let id = session.generate("afterwards", "max_tokens => 3");
    session.answer(id);
    let sql = "select count(*) from pg_stat_activity where backend_type like 'pg_steadytext%'";
    assert_eq!(session.one::<i64>(sql), 2, "launcher and worker");
}

#[test]
fn a_stop_in_the_middle_of_a_claim_costs_what_is_in_flight_no_try() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    slow_model(&cluster, &mut session);
    // The first claim of that request goes on until all sessions have gone.
    session.run(
        "create function linger() returns trigger language plpgsql as $$
         begin
             while exists (select from pg_catalog.pg_stat_activity where backend_type = 'client backend') loop
                 perform pg_catalog.pg_sleep(0.01), pg_catalog.pg_stat_clear_snapshot();
             end loop;
             return null;
         end $$;
         create trigger linger after update of status on steadytext_queue
         for each row when (new.status = 'processing' and new.prompt = 'lingers' and new.attempt = 1)
         execute function linger()",
    );
    let running: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, max_retries)
         values ('generate', 'runs', '{\"model\": \"slow\", \"max_tokens\": 300}', 0) returning request_id",
    );
    session.wait_for_tokens(running);
    let lingers = session.generate("lingers", "max_tokens => 3");
    wait_until("the worker is in its claim", || {
        session.one(
            "select exists (select from pg_stat_activity where application_name like 'pg_steadytext worker%' and wait_event = 'PgSleep')",
        )
    });
    cluster.stop(Shutdown::Fast);
    cluster.start();
    let mut session = cluster.session("postgres");
    for id in [running, lingers] {
        session.answer(id);
        assert_eq!(session.request(id).retry_count, 0);
    }
    assert_eq!(session.doubled(), 0);
}

#[test]
fn a_statement_that_would_go_on_for_ever_does_not_hold_up_the_shutdown() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    session.run(
        "create table first_start as select pg_postmaster_start_time() as at;
         create function linger() returns trigger language plpgsql as $$
         begin
             -- Until the server is started again.
             if pg_catalog.pg_postmaster_start_time() = (select at from public.first_start) then
                 perform pg_catalog.pg_sleep(86400);
             end if;
             return null;
         end $$;
         create trigger linger after update of status on steadytext_queue
         for each row when (new.status = 'processing' and new.prompt = 'lingers' and new.attempt = 1)
         execute function linger()",
    );
    let lingers = session.generate("lingers", "max_tokens => 3");
    wait_until("the worker is in its claim", || {
        session.one(
            "select exists (select from pg_stat_activity where application_name like 'pg_steadytext worker%' and wait_event = 'PgSleep')",
        )
    });
    cluster.stop(Shutdown::Fast);
    cluster.start();
    let mut session = cluster.session("postgres");
    session.answer(lingers);
    assert_eq!(session.request(lingers).retry_count, 0);
    assert_eq!(session.doubled(), 0);
}

#[test]
fn a_wish_to_end_that_arrives_twice_is_one() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    slow_model(&cluster, &mut session);
    // It computes: signals of one process that sleeps would arrive as one.
    session.run(
        "create table hold ();
         insert into hold default values;
         create function compute() returns trigger language plpgsql as $$
         begin
             perform pg_catalog.pg_advisory_lock(4711);
             while exists (select from public.hold) loop
             end loop;
             perform pg_catalog.pg_advisory_unlock(4711);
             return null;
         end $$;
         create trigger compute after update of status on steadytext_queue
         for each row when (new.status = 'processing' and new.prompt = 'computes' and new.attempt = 1)
         execute function compute()",
    );
    let running: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, max_retries)
         values ('generate', 'runs', '{\"model\": \"slow\", \"max_tokens\": 300}', 0) returning request_id",
    );
    session.wait_for_tokens(running);
    let computes = session.generate("computes", "max_tokens => 3");
    let mut worker = 0;
    wait_until("the worker is in its claim", || {
        worker = session
            .list::<i32>("select pid from pg_locks where locktype = 'advisory' and objid = 4711")
            .first()
            .copied()
            .unwrap_or(0);
        worker != 0
    });
    // As the postmaster does it, which signals the process and its group, and slower than it.
    assert!(signal(worker, Signal::TERM));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(signal(worker, Signal::TERM));
    session.run("delete from hold");
    for id in [running, computes] {
        session.answer(id);
        assert_eq!(session.request(id).retry_count, 0);
    }
    assert_eq!(session.doubled(), 0);
}

#[test]
fn what_somebody_elses_code_does_with_what_is_given_back_does_not_hold_up_the_shutdown() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    slow_model(&cluster, &mut session);
    session.run(
        "create table first_start as select pg_postmaster_start_time() as at;
         create function linger() returns trigger language plpgsql as $$
         begin
             -- Until the server is started again.
             if pg_catalog.pg_postmaster_start_time() = (select at from public.first_start) then
                 perform pg_catalog.pg_sleep(86400);
             end if;
             return null;
         end $$;
         create trigger linger after update of status on steadytext_queue
         for each row when (old.status = 'processing' and new.status = 'pending') execute function linger()",
    );
    let running: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params)
         values ('generate', 'runs', '{\"model\": \"slow\", \"max_tokens\": 300}') returning request_id",
    );
    session.wait_for_tokens(running);
    cluster.stop(Shutdown::Fast);
    cluster.start();
    let mut session = cluster.session("postgres");
    session.answer(running);
    assert_eq!(session.doubled(), 0);
}
