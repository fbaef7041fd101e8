//! Somebody keeps an old snapshot, so that whatever requests leave behind in the index of claims stays there:
//! claims do not walk over it each time, and find every request all the same.

use std::thread;
use std::time::{Duration, Instant};

use steadytext_test_server::{Cluster, Options, Session, audited_users, eventually, litter, wait_until};

/// Requests whose entries are dead, and cannot be taken away.
const DEAD: i64 = 20_000;

/// A server on which a user's first requests are such entries. The second session keeps the snapshot.
fn littered(cluster: &Cluster, dead: i64) -> (Session, Session) {
    let mut session = audited_users(cluster);
    let holder = litter(cluster, &mut session, dead, "5");
    session.run("select steadytext_daemon_start()");
    (session, holder)
}

#[test]
fn entries_that_cannot_be_taken_away_are_not_walked_over_by_each_claim() {
    const REQUESTS: i64 = 60;
    let cluster = Cluster::with_extension();
    let (mut session, mut holder) = littered(&cluster, DEAD);
    // Behind them in the index, and after them in time.
    let mut users = ["alice", "bob"].map(|user| cluster.session_as("postgres", user));
    for user in &mut users {
        let id = user.generate("at first", "max_tokens => 3, use_cache => false");
        user.answer(id);
    }
    let before = session.claim_entries_read();
    for i in 0..REQUESTS {
        let user = &mut users[i as usize % 2];
        let priority = 1 + i % 3 * 4;
        let id = user.generate(
            &format!("request {i}"),
            format!("max_tokens => 3, use_cache => false, priority => {priority}"),
        );
        user.answer(id);
    }
    // Statistics come with the transactions that follow.
    let read = session.claim_entries_read() - before;
    assert!(read < DEAD * REQUESTS / 3, "{REQUESTS} requests took {read} entries of the index");
    holder.run("rollback");
    assert_eq!(session.doubled(), 0);
}

#[test]
fn claims_do_not_walk_along_the_lanes_of_a_queue_that_was_never_analyzed() {
    const LANES: &str =
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'steadytext_queue_lane_idx'";
    let cluster = Cluster::with_extension();
    cluster.session("postgres").run("alter table steadytext_queue set (autovacuum_enabled = off)");
    let (mut session, mut holder) = littered(&cluster, DEAD);
    let mut users = ["alice", "bob"].map(|user| cluster.session_as("postgres", user));
    for i in 0..20 {
        let id = users[i % 2].generate(&format!("request {i}"), "max_tokens => 3, use_cache => false");
        users[i % 2].answer(id);
    }
    // Statistics of a process are there when it has nothing to do.
    let read: i64 = session.one(LANES);
    assert_eq!(
        session.one::<i64>("select count(*) from pg_stat_user_tables where relname = 'steadytext_queue' and last_analyze is null and last_autoanalyze is null"),
        1
    );
    assert_eq!(read, 0, "of the index of claims, {} were", session.claim_entries_read());
    holder.run("rollback");
}

#[test]
fn a_sweep_over_the_requests_of_very_many_users_goes_in_portions_too() {
    const USERS: usize = 5_000;
    let cluster = Options::new().set("log_min_messages", "debug1").start();
    cluster.session("postgres").create_extension();
    let (mut session, mut holder) = littered(&cluster, DEAD);
    answer_some(&cluster);
    wait_until("floors are used", || portions(&cluster).iter().any(|entries| *entries >= DEAD));
    let first = portions(&cluster).len();
    // Each of them has one request, which is before all others in the index.
    session.run(&format!(
        "do $$ begin for i in 1..{USERS} loop execute 'create role user_' || i; end loop; end $$;
         begin;
         alter table steadytext_queue disable trigger check_request;
         insert into steadytext_queue (request_type, prompt, params, owner_role, priority)
         select 'generate', 'one of many', '{{\"max_tokens\": 2, \"use_cache\": false}}', ('user_' || i)::steadytext.role_id, 10 from generate_series(1, {USERS}) as i;
         alter table steadytext_queue enable always trigger check_request;
         update steadytext_queue set priority = 6 where prompt = 'at first 0';
         commit"
    ));
    wait_until("a portion was swept", || portions(&cluster).len() > first);
    let longest = portions(&cluster)[first..].iter().copied().max();
    assert!(longest < Some(USERS as i64), "{longest:?}");
    holder.run("rollback");
}

/// The random requests of one user: each transaction stays open for a moment, so that ids and commits come in
/// different orders.
fn enqueue_at_random(mut user: Session, seed: u64) {
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for i in 0..60 {
        user.run("begin");
        for j in 0..=random(3) {
            let priority = 1 + random(10);
            user.run(&format!(
                "insert into steadytext_queue (request_type, prompt, params, priority)
                 values ('generate', 'random {seed} {i} {j}', '{{\"max_tokens\": 2, \"use_cache\": false}}', {priority})"
            ));
            if random(8) == 0 {
                user.run("savepoint undone");
                user.run(
                    "insert into steadytext_queue (request_type, prompt) values ('generate', 'undone'); rollback to undone",
                );
            }
        }
        // Others are answered meanwhile.
        if random(4) == 0 {
            thread::sleep(Duration::from_millis(random(120)));
        }
        if random(10) == 0 {
            user.run(&format!("prepare transaction 'random {seed} {i}'"));
            user.run(&format!("commit prepared 'random {seed} {i}'"));
        } else {
            user.run(if random(12) == 0 { "rollback" } else { "commit" });
        }
    }
}

/// The entries of each portion that was swept, as the log says it.
fn portions(cluster: &Cluster) -> Vec<i64> {
    let log = cluster.log();
    let counts = log.lines().filter_map(|line| line.split_once("a sweep has passed ")?.1.split(' ').next());
    counts.map(|count| count.parse().expect("a number")).collect()
}

/// Some requests are answered after `littered`, so that floors are known.
fn answer_some(cluster: &Cluster) -> Session {
    let mut alice = cluster.session_as("postgres", "alice");
    for i in 0..3 {
        let id = alice.generate(&format!("at first {i}"), "max_tokens => 2, use_cache => false");
        alice.answer(id);
    }
    alice
}

#[test]
fn what_is_before_the_floors_is_looked_through_in_portions() {
    const MANY: i64 = 100_000;
    let cluster = Options::new().set("log_min_messages", "debug1").start();
    cluster.session("postgres").create_extension();
    let (mut session, mut holder) = littered(&cluster, MANY);
    answer_some(&cluster);
    // The first sweep, with which floors begin to be used, is one portion.
    wait_until("floors are used", || portions(&cluster).iter().any(|entries| *entries >= MANY));
    let first = portions(&cluster).len();
    // Somebody says that something has changed, and everything is looked through again.
    session.run("update steadytext_queue set priority = 6 where prompt = 'at first 0'");
    wait_until("all is looked through again", || portions(&cluster)[first..].iter().sum::<i64>() >= MANY);
    let largest = portions(&cluster)[first..].iter().copied().max();
    assert!(largest.is_some_and(|entries| entries < MANY / 2), "{:?}", &portions(&cluster)[first..]);
    holder.run("rollback");
}

#[test]
fn what_a_worker_elsewhere_has_left_is_put_back_also_while_the_servers_own_is_paused() {
    let cluster = Options::new().set("log_min_messages", "debug1").start();
    cluster.session("postgres").create_extension();
    let (mut session, mut holder) = littered(&cluster, DEAD);
    let mut alice = answer_some(&cluster);
    wait_until("floors are used", || portions(&cluster).iter().any(|entries| *entries >= DEAD));
    session.run("select steadytext_config_set('worker_poll_interval', '0.1')");
    session.pause();
    let id = alice.generate("left by a worker elsewhere", "max_tokens => 2, use_cache => false");
    let claimed: i64 =
        session.one("select count(*) from steadytext.claim_requests('elsewhere', 1, 1, null, false)");
    assert_eq!(claimed, 1);
    session.wait_for(id, "pending");
    session.run("select steadytext_daemon_start()");
    alice.answer(id);
    holder.run("rollback");
}

#[test]
fn what_comes_far_before_the_floors_is_found_whether_it_is_said_or_not() {
    let cluster = Cluster::with_extension();
    let mut session = audited_users(&cluster);
    let mut late = cluster.session_as("postgres", "alice");
    late.run("begin");
    let latest = late.generate("late", "max_tokens => 2, use_cache => false");
    let mut holder = litter(&cluster, &mut session, DEAD, "5");
    session.run("select steadytext_daemon_start()");
    let mut alice = answer_some(&cluster);
    late.run("commit");
    session.answer(latest);
    // The server's worker hears nothing of this one.
    session.run(
        "begin;
         alter table steadytext_queue disable trigger check_request;
         insert into steadytext_queue (id, request_type, prompt, params, owner_role) overriding system value
         values (-5, 'generate', 'unsaid', '{\"max_tokens\": 2, \"use_cache\": false}', 'alice');
         alter table steadytext_queue enable always trigger check_request;
         commit",
    );
    const UNSAID: &str = "select status from steadytext_queue where id = -5";
    let found =
        eventually(Duration::from_secs(300), || (session.one::<String>(UNSAID) == "completed").then_some(()));
    assert!(found.is_some(), "{}: {}", session.one::<String>(UNSAID), session.worker_state());
    let id = alice.generate("afterwards", "max_tokens => 2, use_cache => false");
    alice.answer(id);
    assert_eq!(session.doubled(), 0);
    holder.run("rollback");
}

#[test]
fn what_a_trigger_of_somebody_elses_frees_while_the_worker_writes_an_answer_is_claimed_at_once() {
    let cluster = Cluster::with_extension();
    let (mut session, mut holder) = littered(&cluster, DEAD);
    session.run(
        "create function free_another() returns trigger language plpgsql as $$
         begin
             update public.steadytext_queue set status = 'pending', started_at = null, completed_at = null
             where prompt = substr(new.prompt, length('frees ') + 1) and status = 'cancelled';
             return null;
         end $$;
         create trigger free_another after update of status on steadytext_queue
         for each row when (new.status = 'completed' and new.prompt like 'frees %') execute function free_another();
         create function free_itself() returns trigger language plpgsql as $$
         begin
             if new.status = 'completed' and new.prompt = 'once more' and new.retry_count = 0 then
                 new.status = 'pending';
                 new.retry_count = 1;
                 new.started_at = null;
                 new.completed_at = null;
                 new.result = null;
             end if;
             return new;
         end $$;
         create trigger free_itself before update of status on steadytext_queue for each row execute function free_itself()",
    );
    let mut alice = answer_some(&cluster);
    let once_more = alice.generate("once more", "max_tokens => 2, use_cache => false");
    // Requests that come without notice are looked for thirty seconds after the last look, so that one after
    // the other they would take four minutes.
    let begun = Instant::now();
    for i in 1..=8 {
        alice.generate(&format!("frees alice {i}"), "max_tokens => 2, use_cache => false");
        let freed = eventually(Duration::from_mins(2).saturating_sub(begun.elapsed()), || {
            session
                .one::<bool>(&format!(
                    "select status = 'completed' from steadytext_queue where prompt = 'alice {i}'"
                ))
                .then_some(())
        });
        assert!(freed.is_some(), "alice {i}: {}", session.worker_state());
    }
    alice.answer(once_more);
    holder.run("rollback");
}

#[test]
fn whatever_commits_late_is_put_back_or_moved_is_answered_once() {
    let cluster = steadytext_test_server::Options::new().set("max_prepared_transactions", 8).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let (mut session, mut holder) = littered(&cluster, DEAD);
    // One that has its id before all others, and commits when they have long been answered.
    let mut late = cluster.session_as("postgres", "alice");
    late.run("begin");
    let latest = late.generate("late", "max_tokens => 2, use_cache => false");
    let users: Vec<_> = (0..4_u64)
        .map(|seed| {
            let user = cluster.session_as("postgres", if seed % 2 == 0 { "alice" } else { "bob" });
            thread::spawn(move || enqueue_at_random(user, seed))
        })
        .collect();
    // Beside them, a worker elsewhere takes some and gives them back, and an administrator puts some back and
    // moves others.
    let mut admin = cluster.session("postgres");
    while users.iter().any(|user| !user.is_finished()) {
        admin.run(
            "with taken as (select id, attempt from steadytext.claim_requests('elsewhere', 2, 600, null, false))
             select count(*) from taken cross join lateral steadytext.release_requests('elsewhere', array[id], array[attempt])",
        );
        admin.run(
            "update steadytext_queue set priority = 11 - priority
             where id in (select id from steadytext_queue where status = 'pending' order by id limit 2 for update skip locked)",
        );
        admin.run("select steadytext_cancel_async(request_id) from steadytext_queue where status = 'pending' and id % 37 = 0");
        admin.run(
            "update steadytext_queue set status = 'pending', started_at = null, completed_at = null
             where status = 'cancelled' and prompt like 'random%'",
        );
    }
    for user in users {
        user.join().expect("no panic");
    }
    late.run("commit");
    session.answer(latest);
    admin.run(
        "update steadytext_queue set status = 'pending', started_at = null, completed_at = null
         where status = 'cancelled' and prompt like 'random%'",
    );
    let open = "select count(*) from steadytext_queue where status in ('pending', 'processing')";
    let done = eventually(Duration::from_secs(600), || (session.one::<i64>(open) == 0).then_some(()));
    assert!(done.is_some(), "{} are left: {}", session.one::<i64>(open), session.worker_state());
    assert_eq!(
        session.one::<i64>(
            "select count(*) from steadytext_queue where prompt like 'random%' and status <> 'completed'"
        ),
        0
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where prompt = 'undone'"), 0);
    holder.run("rollback");
    wait_until("the session goes on", || session.one("select true"));
}
