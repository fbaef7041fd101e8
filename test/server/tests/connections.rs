//! Connections to the engine: there are fewer of them than sessions, and nobody hangs for want of one.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use postgres::error::DbError;
use steadytext_test_server::{Cluster, Options, Session, slow_model, wait_until};

/// A server whose processes may open 200 files, with room for many sessions.
fn small() -> (Cluster, Session) {
    let cluster =
        Options::new().set("max_connections", 450).set("shared_buffers", "32MB").open_files(200).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    (cluster, session)
}

/// The sockets that the process of the engine has open.
fn sockets_of_the_engine(session: &mut Session) -> usize {
    let pid = session.worker_pid();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let of_sockets = |entry: std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    descriptors.into_iter().flatten().flatten().filter_map(|entry| of_sockets(entry).then_some(())).count()
}

#[test]
fn four_hundred_sessions_call_the_engine_of_a_process_with_200_open_files() {
    let (cluster, mut session) = small();
    let expected: String = session.one("select steadytext_embed('the same for all', false)::text");
    let mut sessions: Vec<Session> = (0..400).map(|_| cluster.session("postgres")).collect();
    // One after the other: each keeps its connection as long as nobody else needs it.
    for session in &mut sessions {
        assert_eq!(
            session.one::<String>("select steadytext_embed('the same for all', false)::text"),
            expected
        );
    }
    // All of them anew, some of them at the same time: what was closed in the meantime is no error.
    let chunks: Vec<Vec<Session>> = std::iter::from_fn(|| {
        let rest = sessions.len().saturating_sub(25);
        (!sessions.is_empty()).then(|| sessions.split_off(rest))
    })
    .collect();
    let threads: Vec<JoinHandle<Vec<Session>>> = chunks
        .into_iter()
        .map(|mut chunk| {
            let expected = expected.clone();
            thread::spawn(move || {
                for session in &mut chunk {
                    let got: String = session.one("select steadytext_embed('the same for all', false)::text");
                    assert_eq!(got, expected);
                }
                chunk
            })
        })
        .collect();
    let sessions: Vec<Session> =
        threads.into_iter().flat_map(|thread| thread.join().expect("every call is answered")).collect();
    assert_eq!(sessions.len(), 400);
    // They are all connected to the server, and none to the engine any more, which has nothing to do.
    wait_until("connections that nobody uses are closed", || sockets_of_the_engine(&mut session) < 20);
    let id = session.embed("and the queue works", "");
    session.answer(id);
}

/// Opens so many streams in a session and asks each for its first piece.
fn open_streams(session: &mut Session, count: usize) -> Result<(), Box<DbError>> {
    session.run("begin");
    for i in 0..count {
        let opened = session.batch_execute(&format!(
            "declare stream_{i} cursor for
                 select steadytext_generate_stream('stream {i}', model => 'slow', max_tokens => 4096);
             fetch 1 from stream_{i}"
        ));
        if let Err(error) = opened {
            return Err(Box::new(error.as_db_error().expect("the server answers").clone()));
        }
    }
    Ok(())
}

#[test]
fn five_sessions_with_60_streams_each_are_refused_in_time_and_others_are_answered_beside_them() {
    let (cluster, mut session) = small();
    slow_model(&cluster, &mut session);
    session.run("select steadytext_generate('loads the model', model => 'slow', max_tokens => 1)");
    // More than one session may have, all of them by the same role.
    let (done, refusals) = mpsc::channel();
    let holders: Vec<_> = (0..5)
        .map(|_| {
            let mut holder = cluster.session("postgres");
            let done = done.clone();
            thread::spawn(move || {
                let outcome = open_streams(&mut holder, 60);
                done.send(outcome).expect("the test waits");
                holder
            })
        })
        .collect();
    for _ in 0..5 {
        let refusal = refusals.recv().expect("each session comes to an end").expect_err("60 are too many");
        assert_eq!(refusal.code().code(), "53300", "{refusal:?}");
        assert!(refusal.hint().is_some_and(|hint| hint.contains("cursors")), "{refusal:?}");
    }
    let holders: Vec<Session> =
        holders.into_iter().map(|holder| holder.join().expect("it does not panic")).collect();
    // Their open connections stay, and the others are answered.
    for i in 0..20 {
        let mut other = cluster.session("postgres");
        other.run(&format!("select steadytext_embed('beside {i}', false)"));
    }
    let line = cluster.wait_for_log(0, "pg_steadytext's engine has refused");
    assert!(line.contains("WARNING"), "{line}");
    drop(holders);
    session.run("select steadytext_generate('afterwards', max_tokens => 2, use_cache => false)");
}
