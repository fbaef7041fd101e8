//! Eviction by the worker, by pg_cron, and by several at once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use steadytext_test_server::{Cluster, Options, Session, eventually, wait_until};

/// `count` entries, each a day older and less used than the one before.
fn fill(session: &mut Session, count: i32) {
    session.run(&format!(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, access_count, last_accessed, created_at)
         select 'key ' || n, 'prompt', 'answer', 'generate', 1, now() - n * interval '1 minute', now() - interval '30 days'
         from generate_series(1, {count}) as n
         on conflict do nothing"
    ));
}

fn entries(session: &mut Session) -> i64 {
    session.one("select count(*) from steadytext_cache")
}

fn keys(session: &mut Session) -> Vec<String> {
    session.list("select cache_key from steadytext_cache order by last_accessed desc")
}

#[test]
fn the_worker_evicts_by_itself_in_batches_what_is_worth_least() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("select steadytext_config_set('cache_eviction_enabled', 'false')");
    fill(&mut session, 12_000);
    session.run(
        "select steadytext_config_set('cache_max_entries', '7');
         select steadytext_config_set('cache_eviction_batch_size', '1000');
         select steadytext_config_set('cache_eviction_interval', '1')",
    );
    // A worker that answers has read the settings; switched off, it evicts nothing.
    let id = session.generate("What is a tuple?", "max_tokens => 3, use_cache => false");
    session.answer(id);
    assert_eq!(entries(&mut session), 12_000);
    // More than are chosen in one look.
    session.run("select steadytext_config_set('cache_eviction_enabled', 'true')");
    wait_until("the cache is small", || entries(&mut session) == 7);
    let wanted: Vec<String> = (1..=7).map(|n| format!("key {n}")).collect();
    assert_eq!(keys(&mut session), wanted);
    // It goes on.
    session.run("delete from steadytext_cache");
    fill(&mut session, 50);
    wait_until("the cache is small again", || entries(&mut session) == 7);
}

#[test]
fn an_entry_that_is_locked_stays_and_stops_nothing() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "select steadytext_config_set('cache_max_entries', '10');
         select steadytext_config_set('cache_eviction_interval', '1')",
    );
    let mut other = cluster.session("postgres");
    other.run("begin");
    session.run("begin");
    fill(&mut session, 30);
    session.run("commit");
    other.run("select from steadytext_cache where cache_key in ('key 30', 'key 12') for update");
    let evicted =
        session.query_one("select * from steadytext_cache_evict_by_frecency(10, null, 3)", &[]).unwrap();
    assert!(evicted.get::<_, i32>(0) <= 18);
    wait_until("the others are gone", || entries(&mut session) == 12);
    let id = session.generate("The worker works", "max_tokens => 3, use_cache => false");
    session.answer(id);
    other.run("rollback");
    wait_until("so are those two", || entries(&mut session) == 10);
}

#[test]
fn many_evict_and_write_at_once_without_deadlock_and_no_one_evicts_too_much() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("select steadytext_config_set('cache_eviction_enabled', 'false')");
    fill(&mut session, 3_000);
    let address = cluster.address();
    std::thread::scope(|scope| {
        for client in 0..6 {
            let address = &address;
            scope.spawn(move || {
                let mut session = address.session("postgres", "postgres").unwrap();
                for round in 0..5 {
                    let target = 2_900 - round * 500;
                    // A transaction each: what locks more afterwards has to look after its own order.
                    session.run(&format!("select steadytext_cache_evict_by_frecency({target}, null, 37)"));
                    session.run(&format!(
                        "update steadytext_cache set access_count = access_count where id in
                            (select id from steadytext_cache where id % 6 = {client} order by id for update)"
                    ));
                }
            });
        }
    });
    let left = entries(&mut session);
    assert!((900..=2_900).contains(&left), "{left} entries are left");
    session.run("select steadytext_cache_evict_by_frecency(900)");
    assert_eq!(entries(&mut session), 900);
}

#[test]
fn pg_cron_evicts_instead_of_the_worker_when_it_is_told_to() {
    if !has_cron() {
        return skipped();
    }
    let cluster = Options::new()
        .set("shared_preload_libraries", "pg_cron,pg_steadytext")
        .set("cron.database_name", "postgres")
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    // pg_cron is preloaded, but not installed.
    let message: String = session.one("select steadytext_setup_cache_eviction_cron()");
    assert!(message.starts_with("Error: pg_cron extension is not installed"), "{message}");
    let hint = session.notices().iter().find_map(|notice| notice.hint().map(str::to_owned));
    assert!(hint.unwrap_or_default().contains("cron.database_name"));
    session.run(
        "create extension pg_cron;
         create role ada login in role steadytext_admin;
         select steadytext_config_set('cache_max_entries', '10');
         select steadytext_config_set('cron_port', '5432');
         select steadytext_config_set('cache_eviction_interval', '30')",
    );
    // An administrator needs no rights in pg_cron's schema.
    let mut ada = cluster.session_as("postgres", "ada");
    // Nor leads its job, which runs as the owner, to another machine.
    for host in ["db.example.com", "/nowhere,db.example.com", "localhost,db.example.com"] {
        ada.run(&format!("select steadytext_config_set('cron_host', '{host}')"));
        let message: String = ada.one("select steadytext_setup_cache_eviction_cron()");
        assert_eq!(message, format!("Error: cron_host is \"{host}\", which is not this machine."));
    }
    ada.run(&format!("select steadytext_config_set('cron_host', '{}')", cluster.directory().display()));
    // Somebody else's job of that name is none of ours.
    session.run(
        "create role eve login superuser; set role eve;
         select cron.schedule('steadytext_cache_eviction', '0 0 1 1 *', 'select steadytext_cache_scheduled_eviction()');
         reset role",
    );
    assert!(!session.one::<bool>("select steadytext.has_eviction_job()"));
    assert_eq!(
        ada.one::<String>("select steadytext_disable_cache_eviction_cron()"),
        "No cache eviction cron job found."
    );
    session.run("delete from cron.job");
    let message: String = ada.one("select steadytext_setup_cache_eviction_cron()");
    assert!(message.starts_with("Error: cache_eviction_interval is 30 seconds"), "{message}");
    for (interval, schedule) in [
        (60, "*/1 * * * *"),
        (300, "*/5 * * * *"),
        (7_200, "0 */2 * * *"),
        (172_800, "0 0 */2 * *"),
        (61, "*/1 * * * *"),
    ] {
        ada.run(&format!("select steadytext_config_set('cache_eviction_interval', '{interval}')"));
        let message: String = ada.one("select st_setup_cache_eviction_cron()");
        assert!(message.contains("scheduled successfully") && message.contains(schedule), "{message}");
        assert_eq!(session.list::<String>("select schedule from cron.job"), [schedule], "one job");
    }
    assert_eq!(session.one::<String>("select username from cron.job"), "postgres");
    // The worker leaves the cache alone.
    fill(&mut session, 40);
    assert_eq!(session.one::<i64>("select count(*) from steadytext.plan_eviction(100)"), 0);
    // pg_cron begins with the next minute.
    let evicted = eventually(Duration::from_secs(130), || (entries(&mut session) == 10).then_some(()));
    assert!(evicted.is_some(), "{}", cluster.log());
    let audit = "select count(*) from steadytext_audit_log where action = 'cache_eviction' and details ->> 'evicted_count' = '30'";
    assert_eq!(session.one::<i64>(audit), 1, "it was the job, not the worker");

    fill(&mut session, 40);
    session.run("select steadytext_config_set('cache_eviction_interval', '1')");
    let message: String = ada.one("select steadytext_disable_cache_eviction_cron()");
    assert_eq!(message, "Cache eviction cron job disabled successfully.");
    assert_eq!(session.one::<i64>("select count(*) from cron.job"), 0);
    wait_until("the worker evicts again", || entries(&mut session) == 10);
    assert_eq!(
        ada.one::<String>("select st_disable_cache_eviction_cron()"),
        "No cache eviction cron job found."
    );
    let acts: Vec<String> =
        session.list("select distinct concat_ws(' ', user_id, action, success) from steadytext_audit_log where action like '%cron%' and user_id = 'ada' order by 1");
    assert_eq!(
        acts,
        [
            "ada cache_eviction_cron_disable f",
            "ada cache_eviction_cron_disable t",
            "ada cache_eviction_cron_setup f",
            "ada cache_eviction_cron_setup t"
        ]
    );
}

/// Whether the server under test has pg_cron's files: not every platform has them.
fn has_cron() -> bool {
    Cluster::with_extension()
        .session("postgres")
        .one("select exists (select from pg_available_extensions where name = 'pg_cron')")
}

#[allow(clippy::print_stderr, reason = "so that it can be seen")]
fn skipped() {
    assert!(std::env::var_os("CI").is_none(), "pg_cron is not installed: scripts/setup.sh does that");
    eprintln!("skipped: pg_cron is not installed here (make setup installs it where the platform has it)");
}
