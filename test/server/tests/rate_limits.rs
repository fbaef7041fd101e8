//! Limits of roles while others work: sessions side by side, rollbacks, restarts, vectorizers, dumps.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use steadytext_test_server::{Cluster, Options, Session, Shutdown, Signal, signal, sqlstate_of, wait_until};

/// Compiled once more, as it needs no server.
#[path = "../../../src/pg/sliding_window.rs"]
#[expect(dead_code, reason = "the extension uses all of it")]
mod sliding_window;

use sliding_window::{BUCKETS, PERIODS, SlidingWindow};

const ENQUEUE: &str = "select steadytext_generate_async('one more', 3, false)";

/// Alice and bob; a paused worker.
fn people() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    session.pause();
    (cluster, session)
}

#[test]
fn no_stretch_of_a_period_has_more_than_its_window_says() {
    for period in PERIODS {
        let (window, mut random) = (SlidingWindow::default(), 1_u64);
        let mut history: Vec<(i64, u64)> = Vec::new();
        let mut second = 800_000_000;
        for _ in 0..3000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let step = (random >> 33) % (period.bucket_s as u64 * 3);
            // Now and then nothing happens for longer than the window is.
            second += if random >> 60 == 0 { period.seconds() * 2 } else { step as i64 };
            let count = (random >> 40) % 5;
            window.add(period, second, count);
            history.push((second, count));
            if random >> 62 == 1 {
                window.give_back(period, second, second, count);
                history.last_mut().unwrap().1 = 0;
            }
            let exact = |seconds: i64| -> u64 {
                let recent = history.iter().rev().take_while(|(at, _)| *at > second - seconds);
                recent.map(|(_, count)| count).sum()
            };
            let said = window.used(period, second);
            assert!(said >= exact(period.seconds()), "{} at {second}", period.name);
            assert!(said <= exact(period.seconds() + period.bucket_s), "{} at {second}", period.name);
            // After the wait, and not before it, so many have gone.
            if said > 0 {
                let to_go = 1 + (random >> 20) % said;
                let wait = window.wait(period, second, to_go).unwrap();
                let later = SlidingWindow::default();
                later.restore(period, second, second, &window.counts(period, second));
                assert!(later.used(period, second + wait - 1) > said - to_go, "{} at {second}", period.name);
                assert!(later.used(period, second + wait) <= said - to_go, "{} at {second}", period.name);
            }
            assert_eq!(window.wait(period, second, said + 1), None);
        }
    }
}

#[test]
fn a_clock_that_is_put_back_neither_empties_a_window_nor_keeps_it_full() {
    let (period, window) = (PERIODS[0], SlidingWindow::default());
    window.add(period, 1000, 5);
    assert_eq!(window.used(period, 990), 5);
    window.add(period, 990, 1);
    assert_eq!(window.used(period, 1000), 6);
    assert_eq!(window.used(period, 1000 + BUCKETS as i64), 0);
    window.add(period, 2000, 7);
    assert_eq!(window.used(period, 1000), 0);
    window.add(period, 1000, 2);
    assert_eq!(window.used(period, 1001), 2);
}

#[test]
fn sessions_side_by_side_get_exactly_what_is_allowed() {
    let (cluster, mut session) = people();
    session.run("select steadytext_set_limit('alice', requests_per_hour => 200)");
    thread::scope(|scope| {
        for number in 0..6 {
            let mut alice = cluster.session_as("postgres", "alice");
            scope.spawn(move || {
                loop {
                    // Some of them are taken back.
                    let end = if number % 3 == 2 { "rollback" } else { "commit" };
                    if let Err(error) = alice.batch_execute(&format!("begin; {ENQUEUE}; {end}")) {
                        assert_eq!(sqlstate_of(&error), "53400", "{error:?}");
                        alice.run("rollback");
                        if number % 3 != 2 {
                            break;
                        }
                    }
                    if number % 3 == 2
                        && alice.one::<i64>("select count(*) from steadytext_queue where prompt = 'one more'")
                            >= 200
                    {
                        break;
                    }
                    if number % 3 != 2 {
                        continue;
                    }
                }
            });
        }
        // Requests that were refused because of what was taken back later leave room, which is filled here.
        let mut alice = cluster.session_as("postgres", "alice");
        wait_until("everything that is allowed was asked for", || {
            let _ = alice.batch_execute(ENQUEUE);
            alice.one::<i64>("select count(*) from steadytext_queue") >= 200
        });
    });
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_queue"), 200);
    assert_eq!(alice.used("requests_per_hour"), 200);
    assert_eq!(alice.error(ENQUEUE).code().code(), "53400");
}

/// Asks at random, in all ways in which rows come, until it was refused some times. The number of requests
/// that it has prepared and taken back: these count, as whoever ends a prepared transaction knows nothing of
/// it.
fn ask_at_random(mut alice: Session, seed: u64) -> i64 {
    const ROWS: &str = "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'at random', '{\"use_cache\": false}' from generate_series(1, ";
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut refused, mut kept, mut number) = (0, 0, 0);
    // As long as others may give something back, it is asked for again.
    while refused < 12 {
        number += 1;
        let count = 1 + random(6);
        let insert = format!("{ROWS}{count})");
        let outcome = match random(6) {
            0 => alice.batch_execute(&insert),
            1 => alice.batch_execute(&format!("begin; {insert}; rollback")),
            2 => alice.batch_execute(&format!(
                "begin; savepoint a; {insert}; savepoint b; {insert}; rollback to b; release a; commit"
            )),
            3 => alice.batch_execute(&format!(
                "do $do$ begin
                     begin
                         {insert};
                         {insert};
                     exception when configuration_limit_exceeded then
                         {ROWS}1);
                     end;
                 end $do$"
            )),
            4 => {
                let row = "generate\tat random\t{\"use_cache\": false}\n";
                let copied = alice
                    .copy_in("copy steadytext_queue (request_type, prompt, params) from stdin")
                    .and_then(|mut writer| {
                        writer.write_all(row.repeat(count as usize).as_bytes()).expect("the rows are sent");
                        writer.finish()
                    });
                copied.map(|_| ())
            }
            _ => {
                let name = format!("'{seed} {number}'");
                let prepared = alice.batch_execute(&format!("begin; {insert}; prepare transaction {name}"));
                prepared.inspect(|()| {
                    if random(2) == 0 {
                        alice.run(&format!("commit prepared {name}"));
                    } else {
                        alice.run(&format!("rollback prepared {name}"));
                        kept += count as i64;
                    }
                })
            }
        };
        if let Err(error) = outcome {
            assert_eq!(sqlstate_of(&error), "53400", "{error:?}");
            alice.run("rollback");
            refused += 1;
        }
    }
    kept
}

#[test]
fn savepoints_copies_and_prepared_transactions_get_exactly_what_is_allowed_at_the_border() {
    const ALLOWED: i64 = 150;
    for round in 0..4 {
        let cluster = Options::new().set("max_prepared_transactions", 16).start();
        let mut session = cluster.session("postgres");
        session.create_extension();
        session.run(&format!(
            "create role alice login bypassrls in role steadytext_user; select steadytext_set_limit('alice', requests_per_day => {ALLOWED})"
        ));
        session.pause();
        let sessions: Vec<_> = (0..5)
            .map(|number| {
                let alice = cluster.session_as("postgres", "alice");
                thread::spawn(move || ask_at_random(alice, 100 * round + number))
            })
            .collect();
        let kept: i64 = sessions.into_iter().map(|session| session.join().expect("no panic")).sum();
        // Nobody has anything open: one at a time, what is left is taken to the last.
        let mut alice = cluster.session_as("postgres", "alice");
        while alice.batch_execute(ENQUEUE).is_ok() {}
        let rows = session.one::<i64>("select count(*) from steadytext_queue");
        assert_eq!(
            rows + kept,
            ALLOWED,
            "round {round}: {rows} rows, and {kept} that were prepared and taken back"
        );
        assert_eq!(alice.used("requests_per_day"), ALLOWED);
    }
}

#[test]
fn what_is_rolled_back_in_whatever_way_is_given_back() {
    let (cluster, mut session) = people();
    session.run("select steadytext_set_limit('alice', requests_per_day => 10)");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(&format!("begin; {ENQUEUE}; savepoint a; {ENQUEUE}; savepoint b; {ENQUEUE}; release b; rollback to a; {ENQUEUE}; commit"));
    assert_eq!(alice.used("requests_per_day"), 2);
    for _ in 0..30 {
        alice.run(&format!("begin; {ENQUEUE}; {ENQUEUE}; savepoint a; {ENQUEUE}; rollback"));
    }
    assert_eq!(alice.used("requests_per_day"), 2);
    // A block with a handler, in which every second one fails.
    alice.run(
        "do $$ begin
             for i in 1 .. 40 loop
                 begin
                     perform steadytext_generate_async('row ' || i, 3);
                     raise exception 'no';
                 exception when raise_exception then null;
                 end;
             end loop;
         end $$",
    );
    assert_eq!(alice.used("requests_per_day"), 2);
    // COPY, whose ninth row is too much, and whose eighth is not; of a superuser, whom a limit of the own
    // binds.
    session.run("select steadytext_set_limit(current_user, requests_per_day => 8)");
    let file = cluster.make_directory("copy").join("requests");
    session.run(&format!(
        "copy (select 'generate', 'copied ' || i from generate_series(1, 9) as i) to '{}'",
        file.display()
    ));
    let copy = |last: i32| {
        format!(
            "copy steadytext_queue (request_type, prompt) from '{}' where prompt <= 'copied {last}'",
            file.display()
        )
    };
    let error = session.error(&copy(9));
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(error.where_().is_none_or(|context| !context.contains("copied")), "{error:?}");
    session.run(&copy(8));
    assert_eq!(session.error(ENQUEUE).code().code(), "53400");
    assert_eq!(alice.used("requests_per_day"), 2);
    // A session that ends in the middle.
    session.run("select steadytext_reset_usage('alice')");
    let mut other = cluster.session_as("postgres", "alice");
    other.run(&format!("begin; {ENQUEUE}; {ENQUEUE}"));
    assert_eq!(alice.used("requests_per_day"), 2);
    let pid = other.backend_pid();
    session.run(&format!("select pg_terminate_backend({pid})"));
    wait_until("what it had asked for is given back", || alice.used("requests_per_day") == 0);
}

#[test]
fn tokens_count_as_the_rows_say_and_whoever_ends_early_pays_for_what_was_made() {
    let (cluster, mut session) = people();
    session.run(
        "select steadytext_set_limit('alice', tokens_per_day => 1000000); select steadytext_daemon_start()",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    for i in 0..5 {
        let id = alice.generate(&format!("question {i}"), "max_tokens => 7, use_cache => false");
        alice.answer(id);
    }
    let id = alice.embed("to be embedded", "use_cache => false");
    alice.answer(id);
    let sum: i64 =
        alice.one("select sum(prompt_tokens + coalesce(generated_tokens, 0)) from steadytext_queue");
    assert!(sum > 0);
    wait_until("all of them count", || alice.used("tokens_per_day") == sum);
    // A call says itself what it took.
    let call: i64 = alice.one(
        "select (prompt_tokens + generated_tokens)::bigint from steadytext_generate_details('a call', 7, false)",
    );
    assert_eq!(alice.used("tokens_per_day"), sum + call);
    alice.run("begin; declare pieces cursor for select steadytext_generate_stream('a call', 60); fetch 1 from pieces; rollback");
    wait_until("what was begun counts", || alice.used("tokens_per_day") > sum + call);
    // The next one is refused once they are used up.
    session.run("select steadytext_set_limit('alice', tokens_per_day => 1)");
    assert_eq!(alice.error(ENQUEUE).code().code(), "53400");
}

#[test]
fn what_was_used_outlives_the_worker_and_the_server() {
    let (mut cluster, mut session) = people();
    session.run("select steadytext_set_limit('alice', requests_per_day => 5)");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(&format!("{ENQUEUE}; {ENQUEUE}; {ENQUEUE}"));
    let worker = session.worker_pid();
    assert!(signal(worker, Signal::TERM));
    wait_until("there is another worker", || {
        session
            .list::<i32>("select pid from pg_stat_activity where backend_type = 'pg_steadytext worker'")
            .first()
            .is_some_and(|pid| *pid != worker)
    });
    assert_eq!(alice.used("requests_per_day"), 3);
    wait_until("it is written down", || {
        session.one::<i64>("select coalesce(sum(current_day_count), 0)::bigint from steadytext_rate_limits")
            == 3
    });
    // A stop in peace, and one in haste.
    for how in [Shutdown::Fast, Shutdown::Immediate] {
        drop((session, alice));
        cluster.stop(how);
        cluster.start();
        session = cluster.session("postgres");
        alice = cluster.session_as("postgres", "alice");
        wait_until("it is known again", || alice.used("requests_per_day") == 3);
    }
    alice.run(&format!("{ENQUEUE}; {ENQUEUE}"));
    assert_eq!(alice.error(ENQUEUE).code().code(), "53400");
    // The worker's writing makes no session read the limits again, and changes none of them.
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_rate_limits where requests_per_day = 5"),
        1
    );
}

#[test]
fn other_sessions_hear_of_limits_and_of_memberships_at_once() {
    let (cluster, mut session) = people();
    session.run("create role team");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(ENQUEUE);
    let allowed = |alice: &mut Session| -> Option<i64> {
        alice.list("select allowed from steadytext_my_limits()").pop()
    };
    assert_eq!(allowed(&mut alice), None);
    session.run("select steadytext_set_limit('team', requests_per_minute => 7)");
    assert_eq!(allowed(&mut alice), None);
    session.run("grant team to alice");
    assert_eq!(allowed(&mut alice), Some(7));
    session.run("select steadytext_set_limit('alice', requests_per_minute => 6)");
    assert_eq!(allowed(&mut alice), Some(6));
    session.run("begin; select steadytext_set_limit('alice', requests_per_minute => 2); rollback");
    assert_eq!(allowed(&mut alice), Some(6));
    session.run("select steadytext_set_limit('alice')");
    assert_eq!(allowed(&mut alice), Some(7));
    session.run("alter role alice superuser");
    assert_eq!(allowed(&mut alice), None);
    session.run("alter role alice nosuperuser; revoke team from alice; grant steadytext_admin to alice");
    assert_eq!(allowed(&mut alice), None);
    session.run("truncate steadytext_rate_limits");
    assert_eq!(allowed(&mut alice), None);
}

#[test]
fn a_vectorizer_waits_for_its_owner_and_goes_on() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "select steadytext_config_set('worker_poll_interval', '0.05');
         create role alice login in role steadytext_user; grant create on schema public to alice;
         select steadytext_set_limit('alice', requests_per_day => 10)",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table docs (id bigint primary key, body text);
         insert into docs select i, 'text ' || i from generate_series(1, 20) as i;
         select steadytext_create_vectorizer('docs', array['body'], index => 'none')",
    );
    let embedded = |session: &mut Session| -> i64 { session.one("select count(*) from docs_body_embedding") };
    // One was asked for when the vectorizer was made, and each text is one.
    wait_until("the first request of the vectorizer", || embedded(&mut session) == 9);
    assert_eq!(alice.used("requests_per_day"), 10);
    wait_until("it says what it waits for", || {
        session.one::<bool>("select exists (select from steadytext_vectorizer_state where problem like '%steadytext_rate_limits%')")
    });
    assert_eq!(embedded(&mut session), 9);
    assert_eq!(alice.error("select steadytext_embed('a call of the same role')").code().code(), "53400");
    session.run("select steadytext_reset_usage('alice')");
    wait_until("it goes on", || embedded(&mut session) == 19);
    session.run("select steadytext_reset_usage('alice')");
    wait_until("to the end", || embedded(&mut session) == 20);
}

#[test]
fn limits_are_dumped_and_restored_by_the_names_of_roles() {
    let (cluster, mut session) = people();
    session.run(
        "select steadytext_set_limit('alice', requests_per_minute => 11, tokens_per_day => 12);
         select steadytext_set_limit('bob', requests_per_minute => 13);
         select steadytext_set_limit('*', max_pending => 14);
         select steadytext_config_set('default_seed', '5')",
    );
    const LIMITS: &str = "select string_agg(concat_ws(' ', coalesce(user_id::name, '*'), requests_per_minute, tokens_per_day, max_pending), ', ' \
         order by user_id::name) from steadytext_rate_limits";
    const ACTS: &str = "select string_agg(concat_ws(' ', id, user_id, action, details), ', ' order by id) from steadytext_audit_log";
    let (limits, acts) = (session.one::<String>(LIMITS), session.one::<String>(ACTS));
    assert_eq!(limits, "alice 11 12, bob 13, * 14");
    let file = cluster.make_directory("dump").join("dump");
    let run = |program: &str, arguments: &[&str]| {
        let output = cluster.client_program(program).args(arguments).output().expect("it starts");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("pg_dump", &["-Fc", "-f", file.to_str().expect("a path"), "postgres"]);
    session.run("create database restored");
    run("pg_restore", &["--exit-on-error", "-d", "restored", file.to_str().expect("a path")]);
    let mut restored = cluster.session("restored");
    assert_eq!(restored.one::<String>(LIMITS), limits);
    // Earlier acts are known there, and the restore itself is no act.
    assert_eq!(restored.one::<String>(ACTS), acts);
    restored.run("select steadytext_config_set('default_seed', '6')");
    assert_eq!(
        restored.one::<i64>("select count(*) from steadytext_audit_log"),
        session.one::<i64>("select count(*) + 1 from steadytext_audit_log")
    );
    // Where a role is not there its limit is nobody's, and no obstacle.
    session.run("create database elsewhere");
    session.run("drop owned by bob; drop role bob");
    run("pg_restore", &["-d", "elsewhere", "--exit-on-error", file.to_str().expect("a path")]);
    let mut elsewhere = cluster.session("elsewhere");
    assert_eq!(elsewhere.one::<i64>("select count(*) from steadytext_rate_limits"), 2);
}

#[test]
fn the_first_refusal_of_each_role_is_written_down_at_once_whoever_else_is_refused() {
    let (cluster, mut session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    let mut bob = cluster.session_as("postgres", "bob");
    const DENIED: &str = "select * from steadytext_audit_log";
    let begun = Instant::now();
    const OF: &str = "select coalesce(sum((details ->> 'count')::bigint), 0)::bigint from steadytext_audit_log where not success and user_id = ";
    assert_eq!(alice.error(DENIED).code().code(), "42501");
    wait_until("the first one is written down", || session.one::<i64>(&format!("{OF}'alice'")) == 1);
    for _ in 0..20 {
        assert_eq!(alice.error(DENIED).code().code(), "42501");
    }
    assert_eq!(bob.error(DENIED).code().code(), "42501");
    wait_until("the first one of somebody else is written down", || {
        session.one::<i64>(&format!("{OF}'bob'")) == 1
    });
    // The refusals of alice since then are written a minute after her first one.
    let written = session.one::<i64>(&format!("{OF}'alice'"));
    assert!(
        written == 1 || begun.elapsed() >= Duration::from_secs(59),
        "{written} of alice's are written down"
    );
    assert!(signal(session.worker_pid(), Signal::TERM));
    wait_until("all of them are written down", || session.one::<i64>(&format!("{OF}'alice'")) == 21);
}

#[test]
fn refusals_outlive_their_transactions_in_the_audit_log_and_a_flood_of_them_is_one_row() {
    let (cluster, mut session) = people();
    session.run("select steadytext_set_limit('alice', requests_per_day => 1)");
    let mut alice = cluster.session_as("postgres", "alice");
    let mut bob = cluster.session_as("postgres", "bob");
    alice.run(ENQUEUE);
    const REFUSALS: &str = "select string_agg(concat_ws(' ', user_id, action, details - 'last', error_message), ', ' order by id) \
         from steadytext_audit_log where not success";
    assert_eq!(alice.error(ENQUEUE).code().code(), "53400");
    wait_until("the refusal is written down", || session.one::<Option<String>>(REFUSALS).is_some());
    assert_eq!(
        session.one::<String>(REFUSALS),
        "alice limit_refused {\"count\": 1, \"limit\": \"requests_per_day\", \"sqlstate\": \"53400\"} \
         role \"alice\" has used up its 1 request per day"
    );
    // Caught or not, and of whatever kind; all that are not written yet come with the end of the worker.
    alice.run(
        "do $$ begin
             for i in 1 .. 5000 loop
                 begin
                     perform steadytext_generate_async('a secret');
                 exception when configuration_limit_exceeded then null;
                 end;
             end loop;
         end $$",
    );
    for _ in 0..20 {
        assert_eq!(bob.error("select steadytext_config_set('default_seed', '1')").code().code(), "42501");
        assert_eq!(bob.error("select * from steadytext_audit_log").code().code(), "42501");
    }
    assert!(signal(session.worker_pid(), Signal::TERM));
    wait_until("all of them are written down", || {
        session.one::<i64>("select coalesce(sum((details ->> 'count')::bigint), 0)::bigint from steadytext_audit_log where not success") == 1 + 5000 + 40
    });
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_audit_log where action = 'limit_refused'"),
        2
    );
    assert!(
        session.one::<i64>(
            "select count(*) from steadytext_audit_log where action = 'right_refused' and user_id = 'bob'"
        ) <= 3
    );
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_audit_log as l where l::text like '%secret%'"),
        0
    );
}
