//! The protocol as workers on other machines call it, and what it refuses them.

use steadytext_test_server::{Cluster, Session, endless_text, slow_model};

/// The superuser's session and that of a member of steadytext_worker.
fn worker_elsewhere() -> (Cluster, Session, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role remote login in role steadytext_worker");
    let remote = cluster.session_as("postgres", "remote");
    (cluster, session, remote)
}

#[test]
fn nobody_but_the_servers_own_worker_speaks_in_its_name() {
    let (cluster, mut session, mut remote) = worker_elsewhere();
    slow_model(&cluster, &mut session);
    let id = session.generate("takes its time", endless_text());
    session.wait_for_tokens(id);
    let row = session
        .query_one("select id, attempt, worker from steadytext_queue where request_id = $1", &[&id])
        .expect("the request can be read");
    let (number, attempt, own) = (row.get::<_, i64>(0), row.get::<_, i32>(1), row.get::<_, String>(2));
    assert!(own.starts_with("local:"), "{own}");
    let names = [
        format!("'{own}'"),
        "'local:'".into(),
        "'local:made-up'".into(),
        "null".into(),
        "''".into(),
        "' '".into(),
    ];
    for name in &names {
        for call in [
            format!("claim_requests({name}, 1, 60, null, false)"),
            format!("claim_requests({name}, 1, 60, null, true)"),
            format!("extend_leases({name}, '{{{number}}}', '{{{attempt}}}', 60)"),
            format!("release_requests({name}, '{{{number}}}', '{{{attempt}}}')"),
            format!(
                "complete_requests({name}, '{{{number}}}', '{{{attempt}}}', '{{forged}}', '{{}}', '{{0}}')"
            ),
            format!(
                "fail_requests({name}, '{{{number}}}', '{{{attempt}}}', '{{forged}}', '{{XX000}}', '{{f}}')"
            ),
            format!("record_heartbeat({name}, 'elsewhere', 'running', '2.0.0', '[]', 0, 0, 0, 0, 0)"),
        ] {
            for caller in [&mut remote, &mut session] {
                let error = caller.error(&format!("select * from steadytext.{call}"));
                assert_eq!(error.code().code(), "22023", "{call}: {error}");
                assert!(error.hint().is_some(), "{call}: {error}");
            }
        }
    }
    for call in [
        "rescue_requests('{}')",
        "rescue_requests(array['local:made-up'])",
        "record_heartbeat('elsewhere-1', 'local', 'running', '2.0.0', '[]', 0, 0, 0, 0, 0)",
        "record_heartbeat('elsewhere-1', null, 'running', '2.0.0', '[]', 0, 0, 0, 0, 0)",
    ] {
        for caller in [&mut remote, &mut session] {
            let error = caller.error(&format!("select * from steadytext.{call}"));
            assert_eq!(error.code().code(), "22023", "{call}: {error}");
        }
    }
    assert_eq!(session.request(id).status, "processing");
    assert_eq!(session.request(id).attempt, attempt);
    assert!(session.cancel(id));
}

#[test]
fn leases_have_bounds_and_a_worker_elsewhere_works_within_them() {
    let (_cluster, mut session, mut remote) = worker_elsewhere();
    session.pause();
    let id = session.generate("for somebody else", "max_tokens => 3, use_cache => false");
    for lease in ["0", "-1", "-2147483648", "3601", "2147483647", "null"] {
        for call in [
            format!("claim_requests('elsewhere-1', 1, {lease}, null, false)"),
            format!("extend_leases('elsewhere-1', '{{1}}', '{{1}}', {lease})"),
        ] {
            for caller in [&mut remote, &mut session] {
                let error = caller.error(&format!("select * from steadytext.{call}"));
                assert_eq!(error.code().code(), "22023", "{call}: {error}");
            }
        }
    }
    assert_eq!(session.request(id).status, "pending");
    let outcome: String = remote.one(
        "with claimed as (
             select array_agg(id) as ids, array_agg(attempt) as attempts
             from steadytext.claim_requests('elsewhere-1', 1, 3600, null, false)
         )
         select o.outcome from claimed as c
         cross join lateral steadytext.complete_requests('elsewhere-1', c.ids, c.attempts, '{answer}', null, null) as o",
    );
    assert_eq!(outcome, "done");
    assert_eq!(session.answer(id), "answer");
    remote.run("select steadytext.record_heartbeat('elsewhere-1', 'host-1', 'running', '2.0.0', '[]', 0, 0, 1, 0, 0)");
    assert_eq!(remote.one::<i32>("select steadytext.rescue_requests(null)"), 0);
}

/// An index entry of a row that has a MultiXact is never marked as dead, so that each claim would walk over
/// those of all before it.
#[test]
fn claiming_and_completing_leave_no_multixact() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create extension pageinspect");
    session.pause();
    let ids: Vec<_> =
        (0..20).map(|n| session.generate(&format!("question {n}"), "max_tokens => 1")).collect();
    session.run("select steadytext_daemon_start()");
    for id in ids {
        session.answer(id);
    }
    // HEAP_XMAX_IS_MULTI is 0x1000. Of each request there are the pending version, the claimed one and the
    // one with the answer.
    let versions = "from generate_series(0, pg_relation_size('steadytext_queue') / 8192 - 1) as page,
         heap_page_items(get_raw_page('steadytext_queue', page::int)) as item
         where item.t_infomask is not null";
    assert!(session.one::<i64>(&format!("select count(*) {versions}")) >= 20);
    let multi = format!("select count(*) {versions} and item.t_infomask & 4096 <> 0");
    assert_eq!(session.one::<i64>(&multi), 0);
}
