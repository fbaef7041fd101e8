//! The cache beside those who rebuild, lock or drop it, and beside processes that end in the middle: a miss,
//! never an error, and nothing is left behind.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use steadytext_test_server::{Cluster, Options, Session, Signal, signal, sqlstate_of, wait_until};

/// The key of an entry whose answer lies outside of its row.
const LONG: &str = "a long answer";

fn with_entries() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(&format!(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, imported) values ('known', 'known', 'yes', 'generate', true);
         insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         select '{LONG}', '{LONG}', string_agg(md5(i::text), ''), 'generate', true from generate_series(1, 1000) as i"
    ));
    assert!(has(&mut session, "known") && has(&mut session, LONG));
    (cluster, session)
}

/// Whether the cache has an answer; never waits for a lock.
fn has(session: &mut Session, prompt: &str) -> bool {
    session.one(&format!("select steadytext_generate_cached('{prompt}') is not null"))
}

fn toast_index(session: &mut Session) -> String {
    session.one(
        "select i.indexrelid::regclass::text from pg_class as c join pg_index as i on i.indrelid = c.reltoastrelid
         where c.oid = 'steadytext_cache'::regclass",
    )
}

#[test]
fn look_ups_while_indexes_are_rebuilt_are_answered_or_missed_and_never_fail() {
    let (cluster, mut session) = with_entries();
    let toast_index = toast_index(&mut session);
    session.pause();
    let (stop, hits, looks) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for prompt in ["known", LONG, "never asked"] {
            let mut looker = cluster.session("postgres");
            let (stop, hits, looks) = (&stop, &hits, &looks);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let found = has(&mut looker, prompt);
                    assert!(!(found && prompt == "never asked"));
                    hits.fetch_add(usize::from(found), Ordering::Relaxed);
                    looks.fetch_add(1, Ordering::Relaxed);
                    looker.run(&format!("select steadytext_generate_async('{prompt}')"));
                }
            });
        }
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..25 {
                let before = looks.load(Ordering::Relaxed);
                session.run("reindex index concurrently steadytext_cache_key_hash_key");
                session.run("reindex table concurrently steadytext_cache");
                session.run(&format!("reindex index concurrently {toast_index}"));
                session.run("reindex table steadytext_cache");
                wait_until("looks go on", || looks.load(Ordering::Relaxed) > before);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(hits.load(Ordering::Relaxed) > 0);
    // The index that is there now is found.
    let mut fresh = cluster.session("postgres");
    for session in [&mut session, &mut fresh] {
        assert!(has(session, "known") && has(session, LONG));
    }
}

#[test]
fn look_ups_beside_locks_of_whatever_they_need_are_missed_at_once() {
    let (cluster, mut session) = with_entries();
    let toast_index = toast_index(&mut session);
    let mut looker = cluster.session("postgres");
    // A wait for a lock would be an error, however long anything else takes.
    looker.run("set lock_timeout = '1s'");
    assert!(has(&mut looker, "known") && has(&mut looker, LONG));
    for (work, short) in [
        (format!("reindex index {toast_index}"), true),
        ("reindex index steadytext_cache_key_hash_key".to_owned(), false),
        ("lock table steadytext_cache".to_owned(), false),
        ("drop extension pg_steadytext cascade".to_owned(), false),
    ] {
        session.run(&format!("begin; {work}"));
        assert_eq!(has(&mut looker, "known"), short, "{work}");
        assert!(!has(&mut looker, LONG), "{work}");
        session.run("rollback");
        assert!(has(&mut looker, "known") && has(&mut looker, LONG), "{work}");
    }
}

#[test]
fn an_answer_never_gets_into_the_cache_of_a_database_that_took_the_slot_of_its_own() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("drop extension pg_steadytext");
    let names = ["one", "two"];
    for name in names {
        session.run(&format!("create database {name}"));
        cluster.session(name).run("create extension vector");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for name in names.into_iter().chain(names) {
            let mut caller = cluster.session(name);
            let stop = &stop;
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    // Often there is no extension; then there is nothing to be called.
                    let call = format!("select steadytext_generate('{name} {number}', 1)");
                    if caller.simple_query(&call).is_err() {
                        thread::yield_now();
                    }
                }
            });
        }
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut sessions = names.map(|name| cluster.session(name));
            for round in 0..12 {
                let (name, other) = (names[round % 2], names[1 - round % 2]);
                let session = &mut sessions[round % 2];
                session.run("create extension pg_steadytext");
                wait_until("answers of this database are cached", || {
                    session.one::<bool>(&format!(
                        "select exists (select from steadytext_cache where prompt like '{name} %')"
                    ))
                });
                let foreign: i64 = session
                    .one(&format!("select count(*) from steadytext_cache where prompt like '{other} %'"));
                assert_eq!(foreign, 0, "answers of {other} in {name}");
                session.run("drop extension pg_steadytext");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Whether a process has a file open that is in this directory.
fn has_open(pid: i32, directory: &Path) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
        .any(|file| file.starts_with(directory) && file != directory)
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("the directory is there");
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_export_that_is_stopped_leaves_no_draft_however_it_is_stopped() {
    let cluster = Options::new().start();
    let directory = cluster.make_directory("exchange");
    cluster.configure("pg_steadytext.exchange_dir", directory.display());
    cluster.reload();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         select 'question ' || n, 'question ' || n, repeat(md5(n::text), 20000), 'generate', true from generate_series(1, 400) as n",
    );
    for how in [Signal::INT, Signal::TERM, Signal::QUIT, Signal::KILL] {
        // Now and then an export is faster than the session that wants to stop it.
        let stopped = (0..50).any(|_| {
            let mut exporter = cluster.session("postgres");
            let pid = exporter.backend_pid();
            let exporting = thread::spawn(move || {
                exporter.simple_query("select steadytext_cache_export('a.db', replace => true)").map(drop)
            });
            wait_until("it is writing, or has ended", || {
                has_open(pid, &directory) || exporting.is_finished()
            });
            if matches!(how, Signal::QUIT | Signal::KILL) {
                cluster.crash(pid, how);
            } else {
                signal(pid, how);
            }
            let ended = exporting.join().expect("no panic");
            let left = files(&directory);
            match &ended {
                Ok(()) => assert_eq!(left, ["a.db"], "{how:?}"),
                Err(error) => {
                    let expected = match how {
                        Signal::INT => "57014",
                        Signal::TERM => "57P01",
                        _ => "",
                    };
                    // The end of a session may be seen before its last words.
                    let is_cut = how == Signal::TERM && error.is_closed();
                    assert!(
                        expected.is_empty() || is_cut || sqlstate_of(error) == expected,
                        "{how:?}: {error}"
                    );
                    assert!(left.is_empty() || left == ["a.db"], "{how:?}: {left:?}");
                }
            }
            ended.is_err()
        });
        assert!(stopped, "{how:?}");
    }
    let mut session = cluster.session("postgres");
    // A draft of an earlier process is removed by the next one.
    std::fs::write(directory.join(".a.db.4711.draft"), "half").expect("a file can be written");
    session.run("select steadytext_cache_export('a.db', replace => true)");
    assert_eq!(files(&directory), ["a.db"]);
}
