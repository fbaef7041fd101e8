//! An administrator has made indexes of the extension's tables otherwise: with more columns, or in another
//! order. The worker reads them entry by entry, takes no harm, and misses nothing.

use std::time::Duration;

use steadytext_test_server::{Cluster, Session, audited_users, eventually, litter, wait_until};

/// Asserts that no process has died since the server started.
#[track_caller]
fn assert_alive(cluster: &Cluster) {
    let log = cluster.log();
    assert!(!log.contains("was terminated by signal"), "{log}");
}

#[test]
fn a_key_of_the_cache_that_brings_other_columns_along_is_read() {
    const ENTRIES: i64 = 500;
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.pause();
    session.run(&format!(
        "alter table steadytext_cache drop constraint steadytext_cache_key_hash_key,
             add constraint steadytext_cache_key_hash_key unique (key_hash)
             include (id, cache_key, prompt, response, request_type, imported, access_count, created_at);
         insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         select steadytext_cache_key('generate', 'text ' || i, '{{}}'), 'text ' || i, 'answer ' || i, 'generate', true
         from generate_series(1, {ENTRIES}) as i;
         select steadytext_daemon_start()"
    ));
    wait_until("the filter was filled from it: what the cache has not is not looked up", || {
        const READS: &str =
            "select idx_scan from pg_stat_user_indexes where indexrelname = 'steadytext_cache_key_hash_key'";
        session.run("select pg_stat_force_next_flush()");
        let before: i64 = session.one(READS);
        session.run("select steadytext_generate_cached('a text that nobody has asked for')");
        session.run("select pg_stat_force_next_flush()");
        session.one::<i64>(READS) == before
    });
    let found = format!(
        "select count(*) from generate_series(1, {ENTRIES}) as i where steadytext_generate_cached('text ' || i) = 'answer ' || i"
    );
    assert_eq!(session.one::<i64>(&found), ENTRIES);
    assert_alive(&cluster);
}

/// The worker is stopped, and the second session keeps a snapshot in which alice has many requests at each
/// priority that were cancelled since.
fn littered(cluster: &Cluster) -> (Session, Session) {
    let mut session = audited_users(cluster);
    let holder = litter(cluster, &mut session, 20_000, "1 + i % 10");
    (session, holder)
}

/// Requests at each priority are answered, and one before them all of which the worker hears nothing.
fn answers_all(cluster: &Cluster, session: &mut Session) {
    session.run("select steadytext_daemon_start()");
    let mut alice = cluster.session_as("postgres", "alice");
    for i in 0..20 {
        let priority = 1 + i * 7 % 10;
        let id = alice.generate(
            &format!("request {i}"),
            format!("max_tokens => 2, use_cache => false, priority => {priority}"),
        );
        alice.answer(id);
    }
    session.run(
        "begin;
         alter table steadytext_queue disable trigger check_request;
         insert into steadytext_queue (id, request_type, prompt, params, owner_role, priority) overriding system value
         select -10 - i, 'generate', 'unsaid', '{\"max_tokens\": 2, \"use_cache\": false}', 'alice', i from generate_series(1, 10) as i;
         alter table steadytext_queue enable always trigger check_request;
         commit",
    );
    const OPEN: &str =
        "select count(*) from steadytext_queue where prompt = 'unsaid' and status <> 'completed'";
    let done = eventually(Duration::from_secs(300), || (session.one::<i64>(OPEN) == 0).then_some(()));
    assert!(done.is_some(), "{} are left: {}", session.one::<i64>(OPEN), session.worker_state());
    assert_eq!(session.doubled(), 0);
    assert_alive(cluster);
}

#[test]
fn indexes_of_the_queue_that_bring_other_columns_along_are_walked_through() {
    let cluster = Cluster::with_extension();
    let (mut session, mut holder) = littered(&cluster);
    session.run(
        "drop index steadytext_queue_claim_idx, steadytext_queue_processing_idx;
         create index steadytext_queue_claim_idx on steadytext_queue (priority desc, owner_role oid_ops, id)
             include (request_type, prompt, status, attempt, created_at, retry_count, session_id)
             where status = 'pending' and run_after is null and not alone;
         create index steadytext_queue_processing_idx on steadytext_queue (id)
             include (request_type, prompt, status, attempt, worker, created_at, retry_count)
             where status = 'processing'",
    );
    answers_all(&cluster, &mut session);
    holder.run("rollback");
}

#[test]
fn an_index_of_claims_in_another_order_keeps_no_request_waiting() {
    let cluster = Cluster::with_extension();
    let (mut session, mut holder) = littered(&cluster);
    session.run(
        "drop index steadytext_queue_claim_idx;
         create index steadytext_queue_claim_idx on steadytext_queue (priority, owner_role oid_ops, id)
             where status = 'pending' and run_after is null and not alone",
    );
    answers_all(&cluster, &mut session);
    holder.run("rollback");
}
