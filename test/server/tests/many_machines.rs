//! Several workers elsewhere on one queue: each takes its own kinds, some die, networks between them and the
//! server break or stand still, clocks go wrong, and versions differ. Whatever happens, each request ends
//! once.

use std::process::Command;
use std::sync::OnceLock;

use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{
    Cluster, Proxy, Session, Shutdown, Signal, served_elsewhere, slow_model, wait_until,
};

/// Enqueues texts that take a while.
fn enqueue_slow(session: &mut Session, count: usize) {
    session.run(&format!(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'question ' || n, '{{\"model\": \"slow\", \"max_tokens\": 24, \"use_cache\": false}}'
         from generate_series(1, {count}) as n"
    ));
}

fn held(session: &mut Session) -> i64 {
    session.one("select count(*) from steadytext_queue where status = 'processing'")
}

fn workers(session: &mut Session) -> i64 {
    session.one("select count(*) from steadytext_daemon_health where daemon_id not like 'local:%'")
}

/// All have their answer, and nobody's was written twice.
#[track_caller]
fn assert_ledger(session: &mut Session, count: i64) {
    let completed: i64 = session.one("select count(*) from steadytext_queue where status = 'completed'");
    assert_eq!(completed, count, "nothing is lost");
    assert_eq!(session.doubled(), 0, "and nothing done twice");
}

#[test]
fn kinds_are_split_between_workers_and_each_takes_its_own() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    let mut workers_of_kinds = [
        Worker::start(&cluster, &["--types", "embed,batch_embed"]),
        Worker::start(&cluster, &["--types", "generate", "--models", "builtin"]),
        Worker::start(&cluster, &["--models", "slow"]),
    ];
    wait_until("all are there", || workers(&mut session) == 3);
    session.run(
        "insert into steadytext_queue (request_type, prompt, prompts, params)
         select k.request_type, k.prompt, k.prompts, k.params::jsonb || '{\"use_cache\": false}'
         from generate_series(1, 30) as n
         cross join (values
             ('embed', 'a text', null::text[], '{}'), ('batch_embed', null, array['one', 'two'], '{}'),
             ('generate', 'a question', null, '{\"max_tokens\": 3}'), ('generate', 'another', null, '{\"model\": \"slow\", \"max_tokens\": 3}'),
             ('generate_choice', 'a choice', null, '{\"choices\": [\"a\", \"b\"], \"model\": \"slow\"}')
         ) as k(request_type, prompt, prompts, params)",
    );
    wait_until("all have ended", || session.unfinished() == 0);
    let split: Vec<String> = session.list(
        "select string_agg(distinct concat_ws(' ', request_type, params ->> 'model'), ', ' order by concat_ws(' ', request_type, params ->> 'model'))
         from steadytext_queue group by worker order by 1",
    );
    assert_eq!(split, ["batch_embed, embed", "generate", "generate slow, generate_choice slow"]);
    assert_ledger(&mut session, 150);
    assert_eq!(session.one::<i32>("select max(attempt) from steadytext_queue"), 1);
    assert!(workers_of_kinds.iter_mut().all(Worker::stop));
}

#[test]
fn of_several_workers_one_that_dies_and_one_that_stands_still_are_replaced() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    // Long enough for those that live to extend it on a machine that is busy.
    let arguments = ["--lease", "5", "--concurrency", "4"];
    let mut of_all: Vec<Worker> = (0..4).map(|_| Worker::start(&cluster, &arguments)).collect();
    wait_until("all are there", || workers(&mut session) == 4);
    enqueue_slow(&mut session, 60);
    wait_until("all of them hold some", || {
        session.one::<i64>("select count(distinct worker) from steadytext_queue where status = 'processing'")
            == 4
    });
    of_all[0].signal(Signal::KILL);
    of_all[1].signal(Signal::STOP);
    wait_until("all have ended", || session.unfinished() == 0);
    of_all[1].signal(Signal::CONT);
    // It learns that its requests are others' by now, and serves on.
    let id = session.generate("one more", "max_tokens => 2, use_cache => false");
    session.answer(id);
    assert_ledger(&mut session, 61);
    // The requests that those two held, and no others, were done again.
    let again: i64 = session.one("select count(*) from steadytext_queue where attempt > 1");
    assert!((1..=8).contains(&again), "{again}");
    assert!(!of_all[0].wait(), "it was killed");
    assert!(of_all[1..].iter_mut().all(Worker::stop));
}

#[test]
fn a_network_that_stands_still_beyond_the_lease_costs_another_attempt_and_nothing_else() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    let proxy = Proxy::start(&cluster);
    enqueue_slow(&mut session, 4);
    let mut far = Worker::start_at(&proxy.url(), &cluster, &["--lease", "1"]);
    wait_until("all are held", || held(&mut session) == 4);
    proxy.stand_still();
    let mut near = Worker::start(&cluster, &["--lease", "1"]);
    wait_until("all have ended", || session.unfinished() == 0);
    // Its reports about requests that were its own are refused now.
    proxy.go_on();
    assert!(near.stop());
    let id = session.generate("one more", "max_tokens => 2, use_cache => false");
    session.answer(id);
    assert_ledger(&mut session, 5);
    assert!(far.stop());
    assert!(!far.said().contains("panicked"), "{}", far.said());
}

#[test]
fn a_report_whose_answer_is_lost_with_the_network_ends_its_request_once() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    let proxy = Proxy::start(&cluster);
    let mut worker = Worker::start_at(&proxy.url(), &cluster, &[]);
    for round in 1..=3 {
        proxy.keep_answers_to("complete_reports");
        let id = session.generate(&format!("question {round}"), "max_tokens => 8, use_cache => false");
        session.answer(id);
        wait_until("the server has answered, and nobody heard it", || proxy.keeps_answers());
        // The worker says it once more, hears that the request is no longer its own, and goes on.
        proxy.cut();
        let id = session.generate("one more", "max_tokens => 2, use_cache => false");
        session.answer(id);
        assert_ledger(&mut session, 2 * round);
    }
    assert_eq!(session.one::<i32>("select max(attempt) from steadytext_queue"), 1);
    assert!(worker.stop());
}

#[test]
fn a_claim_whose_answer_is_lost_with_the_network_is_made_again_after_its_lease() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    let proxy = Proxy::start(&cluster);
    let mut worker = Worker::start_at(&proxy.url(), &cluster, &["--lease", "1"]);
    wait_until("it is there", || workers(&mut session) == 1);
    proxy.keep_answers_to("claim_requests(");
    let id = session.generate("a question", "max_tokens => 8, use_cache => false");
    wait_until("it is claimed by somebody who does not know it", || {
        if proxy.keeps_answers() && session.request(id).status == "pending" {
            // That was a claim before there was anything to claim.
            proxy.cut();
            proxy.keep_answers_to("claim_requests(");
        }
        session.request(id).status == "processing"
    });
    wait_until("and its answer is kept", || proxy.keeps_answers());
    proxy.cut();
    session.answer(id);
    assert_ledger(&mut session, 1);
    assert!(worker.stop());
}

#[test]
fn a_network_that_breaks_at_any_moment_loses_nothing() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    let proxy = Proxy::start(&cluster);
    session.run(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'question ' || n, '{\"max_tokens\": 4, \"use_cache\": false}' from generate_series(1, 150) as n",
    );
    let mut far = Worker::start_at(&proxy.url(), &cluster, &["--lease", "1", "--concurrency", "8"]);
    let mut near = Worker::start(&cluster, &["--lease", "1", "--concurrency", "2"]);
    let (mut sent, mut cuts) = (0, 0);
    wait_until("all have ended", || {
        // Some thousand bytes after the last time, wherever in a conversation that is.
        if proxy.from_clients() > sent + 2500 && cuts < 40 {
            proxy.cut();
            (sent, cuts) = (proxy.from_clients(), cuts + 1);
        }
        session.unfinished() == 0
    });
    assert!(cuts > 0, "it was broken");
    assert_ledger(&mut session, 150);
    assert!(far.stop() && near.stop());
}

/// A library that, loaded before others, has a program believe another day.
fn wrong_clock(cluster: &Cluster) -> String {
    const SOURCE: &str = "
        #define _GNU_SOURCE
        #include <sys/syscall.h>
        #include <sys/time.h>
        #include <time.h>
        #include <unistd.h>
        #include <stdlib.h>
        static long skew(void) { const char *by = getenv(\"WRONG_BY\"); return by ? atol(by) : 0; }
        int clock_gettime(clockid_t clock, struct timespec *now) {
            int status = syscall(SYS_clock_gettime, clock, now);
            if (status == 0 && clock == CLOCK_REALTIME) now->tv_sec += skew();
            return status;
        }
        int gettimeofday(struct timeval *restrict now, void *restrict zone) {
            struct timespec exact;
            (void) zone;
            clock_gettime(CLOCK_REALTIME, &exact);
            now->tv_sec = exact.tv_sec;
            now->tv_usec = exact.tv_nsec / 1000;
            return 0;
        }
        time_t time(time_t *now) {
            struct timespec exact;
            clock_gettime(CLOCK_REALTIME, &exact);
            if (now) *now = exact.tv_sec;
            return exact.tv_sec;
        }";
    static LIBRARY: OnceLock<String> = OnceLock::new();
    let build = || {
        let directory = cluster.make_directory("clock");
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        std::fs::write(&source, SOURCE).expect("our own directory");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.expect("a C compiler, as the tests of Rust want one").success());
        library.display().to_string()
    };
    LIBRARY.get_or_init(build).clone()
}

#[test]
fn clocks_that_are_wrong_by_days_change_nothing() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    let library = wrong_clock(&cluster);
    // So that a day's error is seen where one looks: the program itself believes another day.
    let day = Command::new("date")
        .args(["-u", "+%Y"])
        .env("LD_PRELOAD", &library)
        .env("WRONG_BY", "-1000000000")
        .output()
        .expect("every system has it");
    let year: i32 = String::from_utf8_lossy(&day.stdout).trim().parse().expect("a year");
    let now: i32 = session.one("select extract(year from now())::integer");
    assert!(year <= now - 31, "the clock is wrong where it is wanted to be: {year}");
    let with_clock = |by: &str| {
        let url = format!("host={} port=5432 user=remote dbname=postgres", cluster.directory().display());
        let environment = [("LD_PRELOAD", library.as_str()), ("WRONG_BY", by)];
        Worker::start_with(&url, &cluster, &["--lease", "30", "--concurrency", "2"], &environment)
    };
    let mut early = with_clock("-1000000000");
    let mut late = with_clock("1000000000");
    wait_until("both are there", || workers(&mut session) == 2);
    enqueue_slow(&mut session, 24);
    wait_until("all have ended", || session.unfinished() == 0);
    assert_ledger(&mut session, 24);
    let by: i64 = session.one("select count(distinct worker) from steadytext_queue");
    assert_eq!(by, 2);
    let attempts: i32 = session.one("select max(attempt) from steadytext_queue");
    assert_eq!(attempts, 1, "no lease was ever believed to be over");
    let wrong: i64 = session.one(
        "select count(*) from steadytext_queue where started_at not between now() - interval '1 day' and now()
             or completed_at not between now() - interval '1 day' and now()",
    );
    assert_eq!(wrong, 0, "all times are the server's");
    assert!(early.stop() && late.stop());
}

#[test]
fn a_worker_of_another_version_is_told_so_and_takes_nothing_from_the_others() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    let version: String = session.one("select split_part(steadytext_version(), '+', 1)");
    let other: String = version.chars().map(|character| if character == '.' { '.' } else { '9' }).collect();
    assert_ne!(version, other);
    let proxy = Proxy::start(&cluster);
    proxy.replace(&version, &other);
    enqueue_slow(&mut session, 12);
    let mut stale = Worker::start_at(&proxy.url(), &cluster, &[]);
    assert!(!stale.wait(), "it ends, as it can serve nothing");
    let said = stale.said();
    assert!(said.contains(&version) && said.contains(&other), "{said}");
    let touched: i64 =
        session.one("select count(*) from steadytext_queue where attempt > 0 or status <> 'pending'");
    assert_eq!(touched, 0, "it has cost nobody an attempt");
    // Beside one of the server's version, too.
    let mut own = Worker::start(&cluster, &["--concurrency", "2"]);
    wait_until("some are held", || held(&mut session) > 0);
    let mut again = Worker::start_at(&proxy.url(), &cluster, &[]);
    assert!(!again.wait());
    wait_until("all have ended", || session.unfinished() == 0);
    assert_ledger(&mut session, 12);
    assert_eq!(session.one::<i32>("select max(attempt) from steadytext_queue"), 1);
    assert!(own.stop());
}

#[test]
fn a_failover_to_a_standby_in_the_middle_of_the_work_loses_nothing() {
    let (mut primary, mut session) = served_elsewhere();
    session.audit();
    slow_model(&primary, &mut session);
    let standby = primary.standby();
    // As libpq's clients find the server that takes writes.
    let url = format!(
        "host={},{} port=5432,5432 user=remote dbname=postgres target_session_attrs=read-write",
        primary.directory().display(),
        standby.directory().display()
    );
    let arguments = ["--lease", "5", "--concurrency", "3"];
    let mut of_all: Vec<Worker> = (0..2).map(|_| Worker::start_at(&url, &primary, &arguments)).collect();
    wait_until("both are there", || workers(&mut session) == 2);
    enqueue_slow(&mut session, 40);
    wait_until("some have ended, and both hold others", || {
        session.one(
            "select count(*) filter (where status = 'completed') > 3
                    and count(distinct worker) filter (where status = 'processing') = 2 from steadytext_queue",
        )
    });
    primary.wait_for_replay(&standby);
    drop(session);
    primary.stop(Shutdown::Immediate);
    standby.promote();
    let mut session = standby.session("postgres");
    let before: i64 = session.one("select count(*) from steadytext_queue where status = 'completed'");
    assert!(before < 40, "there is work left");
    wait_until("all have ended", || session.unfinished() == 0);
    assert_ledger(&mut session, 40);
    // Nobody else has served it, and what was in flight is all that may have been done again.
    let by: i64 = session.one("select count(distinct worker) from steadytext_queue");
    assert_eq!(by, 2);
    let again: i64 = session.one("select count(*) from steadytext_queue where attempt > 1");
    assert!(again <= 6, "{again}");
    assert!(of_all.iter_mut().all(Worker::stop));
    for worker in &of_all {
        assert!(!worker.said().contains("panicked"), "{}", worker.said());
    }
}
