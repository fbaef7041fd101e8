//! The filter of the cache's keys: what it excludes is not looked up, and it excludes nothing that the cache
//! has.

use std::thread;

use steadytext_test_server::{Cluster, Options, Session, Signal, signal, wait_until};

/// The number of times that the index of keys was read in this session for `sql`. The worker is paused, and
/// reads it for its own only to fill a filter.
fn reads(session: &mut Session, sql: &str) -> i64 {
    const READS: &str =
        "select idx_scan from pg_stat_user_indexes where indexrelname = 'steadytext_cache_key_hash_key'";
    session.run("select pg_stat_force_next_flush()");
    let before: i64 = session.one(READS);
    session.run(sql);
    session.run("select pg_stat_force_next_flush()");
    session.one::<i64>(READS) - before
}

/// Waits until the filter is complete.
#[track_caller]
fn wait_for_filter(session: &mut Session) {
    wait_until("an unknown text is not looked up", || {
        reads(session, "select steadytext_generate_cached('a text that nobody has asked for')") == 0
    });
}

/// An entry that answers whatever the model is.
fn insert(name: &str) -> String {
    format!(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         values (steadytext_cache_key('generate', '{name}', '{{}}'), '{name}', 'answer to {name}', 'generate', true)"
    )
}

fn is_found(session: &mut Session, name: &str) -> bool {
    let found: Option<String> = session.one(&format!("select steadytext_generate_cached('{name}')"));
    found.is_some_and(|answer| answer == format!("answer to {name}"))
}

fn with_paused_worker() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.pause();
    (cluster, session)
}

#[test]
fn what_the_cache_cannot_have_is_not_looked_up() {
    let (_cluster, mut session) = with_paused_worker();
    session.run(&insert("one"));
    wait_for_filter(&mut session);
    // Some of so many could be found by chance in a filter of a tenth of the size.
    let unknown =
        "select count(steadytext_generate_cached('unknown ' || n)) from generate_series(1, 300) as n";
    assert_eq!(reads(&mut session, unknown), 0);
    assert!(is_found(&mut session, "one"));
    assert!(reads(&mut session, "select steadytext_generate_cached('one')") > 0);
    // Nor when a request is enqueued.
    assert_eq!(reads(&mut session, "select steadytext_generate_async('unknown')"), 0);
}

#[test]
fn an_entry_is_found_in_whatever_way_it_came() {
    let (cluster, mut session) = with_paused_worker();
    session.run(&insert("before the filter"));
    wait_for_filter(&mut session);
    let mut other = cluster.session("postgres");
    // Found by the transaction itself, and by others when it has committed.
    other.run("begin");
    other.run(&insert("in a transaction"));
    assert!(is_found(&mut other, "in a transaction"));
    assert!(!is_found(&mut session, "in a transaction"));
    other.run("savepoint a");
    other.run(&insert("in a savepoint"));
    other.run("release a; commit");
    session.run(&format!(
        "set session_replication_role = replica; {}; reset session_replication_role",
        insert("replicated")
    ));
    session.run(&format!(
        "{}; update steadytext_cache set cache_key = steadytext_cache_key('generate', 'renamed', '{{}}'), response = 'answer to renamed'
         where prompt = 'another'",
        insert("another")
    ));
    session.run(&format!(
        "create table aside as select cache_key, prompt, response, request_type, imported from steadytext_cache limit 0;
         {}",
        insert("copied").replace("into steadytext_cache", "into aside")
    ));
    session.run(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, imported) table aside",
    );
    for name in ["before the filter", "in a transaction", "in a savepoint", "replicated", "renamed", "copied"]
    {
        assert!(is_found(&mut session, name), "{name}");
    }
    // A key that was inserted without the triggers is found when the filter has been filled anew.
    session.run(&format!(
        "alter table steadytext_cache disable trigger all; {}; alter table steadytext_cache enable trigger all;
         alter table steadytext_cache enable always trigger note_key",
        insert("without triggers")
    ));
    wait_until("it is found", || {
        session.generate("something that wakes the worker", "");
        is_found(&mut session, "without triggers")
    });
}

#[test]
fn the_filter_outlives_nothing_that_it_would_be_wrong_after() {
    let (cluster, mut session) = with_paused_worker();
    session.run(&insert("one"));
    wait_for_filter(&mut session);
    // Another index.
    session.run("reindex index concurrently steadytext_cache_key_hash_key");
    wait_until("it is found in the new index", || is_found(&mut session, "one"));
    wait_until("the filter is that of the new index", || {
        session.generate("something that wakes the worker", "");
        reads(&mut session, "select steadytext_generate_cached('an unknown text')") == 0
    });
    assert!(is_found(&mut session, "one"));
    // A worker that ends leaves the filter, which is still filled by sessions; a new one has it.
    assert!(signal(session.worker_pid(), Signal::TERM));
    session.run(&insert("two"));
    assert!(is_found(&mut session, "two"));
    wait_for_filter(&mut session);
    assert!(is_found(&mut session, "one") && is_found(&mut session, "two"));
    // Another extension in the same database.
    session.run("drop extension pg_steadytext");
    session.create_extension();
    session.pause();
    session.run(&insert("three"));
    assert!(is_found(&mut session, "three") && !is_found(&mut session, "one"));
    wait_for_filter(&mut session);
    assert!(is_found(&mut session, "three"));
    // After a crash, shared memory is new.
    let me = session.backend_pid();
    cluster.crash(me, Signal::KILL);
    let mut session = cluster.session("postgres");
    assert!(is_found(&mut session, "three"));
    wait_for_filter(&mut session);
    assert!(is_found(&mut session, "three"));
}

#[test]
fn nothing_is_missing_that_comes_while_the_filter_is_filled() {
    const WRITERS: usize = 4;
    const ENTRIES: usize = 300;
    let (cluster, mut session) = with_paused_worker();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut session = cluster.session("postgres");
            scope.spawn(move || {
                for number in 0..ENTRIES {
                    let name = format!("entry {number} of {writer}");
                    // One in three is rolled back, and the others are open for a while.
                    session.run("begin");
                    session.run(&insert(&name));
                    session.run("select steadytext_generate_async('something that wakes the worker')");
                    session.run(if number % 3 == 0 { "rollback" } else { "commit" });
                }
            });
        }
        // Each time, the filter is emptied and filled.
        for _ in 0..20 {
            session.run("reindex index concurrently steadytext_cache_key_hash_key");
        }
    });
    wait_for_filter(&mut session);
    for writer in 0..WRITERS {
        for number in 0..ENTRIES {
            let name = format!("entry {number} of {writer}");
            assert_eq!(is_found(&mut session, &name), number % 3 != 0, "{name}");
        }
    }
}

#[test]
fn each_database_has_a_filter_of_its_own() {
    let cluster = Options::new().start();
    let mut sessions: Vec<Session> = ["first", "second"]
        .into_iter()
        .map(|database| {
            cluster.session("postgres").run(&format!("create database {database}"));
            let mut session = cluster.session(database);
            session.create_extension();
            session.pause();
            session.run(&insert(database));
            session
        })
        .collect();
    for session in &mut sessions {
        wait_for_filter(session);
    }
    let [first, second] = &mut sessions[..] else { unreachable!("there are two") };
    assert!(is_found(first, "first") && !is_found(first, "second"));
    assert!(is_found(second, "second") && !is_found(second, "first"));
}
