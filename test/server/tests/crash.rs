//! Processes of the server die in mid-inference: no request is lost, none is completed twice.

use std::time::Instant;

use steadytext_test_server::{
    PATIENCE, Session, Shutdown, Signal, audited_with_slow_model, endless_text, wait_until,
};
use uuid::Uuid;

/// Some short requests, some long ones; the first long one is generating when this returns.
fn load(session: &mut Session) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = (0..3)
        .map(|i| session.generate(&format!("long {i}"), "model => 'slow', max_tokens => 120"))
        .collect();
    ids.extend((0..12).map(|i| session.generate(&format!("short {i}"), "max_tokens => 4")));
    ids.push(session.embed("a text beside them", ""));
    session.wait_for_tokens(ids[0]);
    ids
}

fn all_complete_once(session: &mut Session, ids: &[Uuid]) {
    for id in ids {
        session.answer(*id);
    }
    assert_eq!(session.doubled(), 0);
    let stored: i64 = session.one("select count(*) from audit.changed where becomes = 'completed'");
    assert_eq!(stored, ids.len() as i64);
}

#[test]
fn a_worker_killed_in_mid_inference_loses_nothing_and_completes_nothing_twice() {
    for how in [Signal::KILL, Signal::SEGV, Signal::ABORT] {
        let (cluster, mut session) = audited_with_slow_model();
        let ids = load(&mut session);
        let killed = session.worker_pid();
        cluster.crash(killed, how);
        let mut session = cluster.session("postgres");
        all_complete_once(&mut session, &ids);
        assert_ne!(session.worker_pid(), killed);
    }
}

#[test]
fn a_killed_postmaster_loses_nothing_and_completes_nothing_twice() {
    let (mut cluster, mut session) = audited_with_slow_model();
    let ids = load(&mut session);
    cluster.kill_postmaster();
    cluster.start();
    all_complete_once(&mut cluster.session("postgres"), &ids);
}

#[test]
fn a_killed_backend_of_somebody_loses_nothing_and_completes_nothing_twice() {
    let (cluster, mut session) = audited_with_slow_model();
    let ids = load(&mut session);
    cluster.crash(session.backend_pid(), Signal::KILL);
    all_complete_once(&mut cluster.session("postgres"), &ids);
}

#[test]
fn a_request_that_kills_its_worker_every_time_fails_after_max_retries_and_its_neighbours_complete() {
    let (cluster, mut session) = audited_with_slow_model();
    let neighbours = load(&mut session);
    let poison: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, max_retries)
         values ('generate', 'poison', '{\"model\": \"slow\", \"max_tokens\": 2000}', 2) returning request_id",
    );
    let mut kills = 0;
    let begun = Instant::now();
    // The worker that is running it: rows of a dead one wait for their rescue in the same state.
    let running_it = format!(
        "select s.pid from steadytext.worker_state() s join steadytext_queue q on q.worker = s.worker
         where q.request_id = '{poison}' and q.status = 'processing' and s.pid <> 0"
    );
    loop {
        if let Some(worker) = session.list::<i32>(&running_it).first() {
            cluster.crash(*worker, Signal::KILL);
            session = cluster.session("postgres");
            kills += 1;
        }
        let request = session.request(poison);
        match request.status.as_str() {
            "failed" => break,
            "pending" | "processing" => {}
            status => panic!("the poison ended as {status}"),
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "not failed after {kills} kills: {request:?}");
    }
    let request = session.request(poison);
    assert_eq!((request.retry_count, request.error_code.as_deref()), (2, Some("58000")), "{request:?}");
    assert!(request.error.as_deref().is_some_and(|error| !error.contains("poison")), "{request:?}");
    // Beside others it was not to blame; alone it was, three times.
    assert!((3..=4).contains(&kills), "{kills} kills");
    for id in neighbours {
        session.answer(id);
    }
    assert_eq!(session.doubled(), 0);
}

#[test]
fn a_terminated_worker_gives_its_rows_back_uncounted_and_the_server_stays_up() {
    let (_cluster, mut session) = audited_with_slow_model();
    let ids = load(&mut session);
    let worker = session.worker_pid();
    assert!(session.one::<bool>(&format!("select pg_terminate_backend({worker}, 180000)")));
    // This connection is still usable: no other process was disturbed.
    all_complete_once(&mut session, &ids);
    let counted: i64 = session.one("select count(*) from steadytext_queue where retry_count > 0");
    assert_eq!(counted, 0);
    let given_back: i64 =
        session.one("select count(*) from audit.changed where was = 'processing' and becomes = 'pending'");
    assert!(given_back >= 1);
}

/// Holds the worker up within one of its transactions, in a trigger that waits when the request "mine"
/// becomes `event`. Returns the request and the worker.
fn held_within_a_transaction(session: &mut Session, event: &str) -> (Uuid, i32) {
    session.run(&format!(
        "create table public.gate as select true as closed;
         create function wait() returns trigger language plpgsql as
         $$ begin perform pg_sleep(86400) from public.gate; return new; end $$;
         create trigger wait after update of status on steadytext_queue for each row
         when (new.status = '{event}' and new.prompt = 'mine') execute function wait()"
    ));
    let mine = session.generate("mine", "max_tokens => 3");
    let worker = session.worker_pid();
    let sleeps = format!("select wait_event = 'PgSleep' from pg_stat_activity where pid = {worker}");
    wait_until("the worker waits in the trigger", || session.one::<Option<bool>>(&sleeps) == Some(true));
    // The next worker does not wait.
    session.run("delete from public.gate");
    (mine, worker)
}

#[test]
fn a_worker_that_is_terminated_within_a_transaction_ends_at_once_and_its_requests_complete_once() {
    for event in ["processing", "completed"] {
        let (_cluster, mut session) = audited_with_slow_model();
        let (mine, worker) = held_within_a_transaction(&mut session, event);
        assert!(session.one::<bool>(&format!("select pg_terminate_backend({worker}, 180000)")), "{event}");
        session.answer(mine);
        assert_eq!(session.doubled(), 0, "{event}");
        assert_ne!(session.worker_pid(), worker);
    }
}

#[test]
fn a_server_that_stops_while_its_worker_is_within_a_transaction_stops_and_loses_nothing() {
    for event in ["processing", "completed"] {
        let (mut cluster, mut session) = audited_with_slow_model();
        let (mine, _) = held_within_a_transaction(&mut session, event);
        drop(session);
        // It panics when it does not end.
        cluster.stop(Shutdown::Fast);
        cluster.start();
        let mut session = cluster.session("postgres");
        session.answer(mine);
        assert_eq!(session.doubled(), 0, "{event}");
    }
}

#[test]
fn a_killed_launcher_comes_back_and_so_do_the_workers() {
    let (cluster, mut session) = audited_with_slow_model();
    let ids = load(&mut session);
    let launcher: i32 =
        session.one("select pid from pg_stat_activity where backend_type like 'pg_steadytext%launcher%'");
    cluster.crash(launcher, Signal::KILL);
    all_complete_once(&mut cluster.session("postgres"), &ids);
}

#[test]
fn a_terminated_launcher_comes_back_and_starts_workers_again() {
    let (cluster, mut session) = audited_with_slow_model();
    let sql = "select pid from pg_stat_activity where backend_type like 'pg_steadytext%launcher%'";
    let launcher: i32 = session.one(sql);
    session.one::<bool>(&format!("select pg_terminate_backend({launcher}, 10000)"));
    session.run("create database later");
    let mut later = cluster.session("later");
    later.create_extension();
    let id = later.generate("after the launcher's end", "max_tokens => 3");
    later.answer(id);
    assert_ne!(session.one::<i32>(sql), launcher);
}

#[test]
fn a_model_cut_short_in_mid_inference_fails_its_requests_and_not_the_server() {
    let (cluster, mut session) = audited_with_slow_model();
    let lost = session.generate("it loses its model", endless_text());
    session.wait_for_tokens(lost);
    let (worker, backend) = (session.worker_pid(), session.backend_pid());
    for file in ["slow.gguf", "slow.gguf.panels"] {
        let path = cluster.model_directory().join(file);
        let file = std::fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    // It is tried again, with a file that is empty then.
    let request = session.wait_for_end(lost);
    assert_eq!(
        (request.status.as_str(), request.error_code.as_deref()),
        ("failed", Some("XX001")),
        "{request:?}"
    );
    assert!(request.retry_count > 0, "{request:?}");
    let id = session.generate("beside it", "max_tokens => 4");
    session.answer(id);
    assert_eq!((session.worker_pid(), session.backend_pid()), (worker, backend));
}
