//! Batches: what one query enqueues is worked on, waited for, cancelled and limited as a whole.

use steadytext_test_server::{Cluster, Session, begins_to_wait, wait_until};
use uuid::Uuid;

/// A cluster with a paused worker that nothing but events will wake, and 300 notes.
fn with_notes() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "select steadytext_config_set('worker_poll_interval', '3600');
         create table note (id integer primary key, body text);
         insert into note select i, 'note ' || i from generate_series(1, 300) as i",
    );
    (cluster, session)
}

#[test]
fn a_batch_runs_to_its_end_and_its_answers_are_found_by_key() {
    let (_cluster, mut session) = with_notes();
    let batch: Uuid = session.one(
        "select steadytext_enqueue_query('select id, nullif(body, ''note 7'') as prompt from note', 'embed')",
    );
    assert!(session.one::<bool>(&format!("select steadytext_wait('{batch}', timeout_seconds => 3000)")));
    let progress = format!(
        "select format('%s %s %s %s', total, done, failed, time_left) from steadytext_batches where batch = '{batch}' and completed_at is not null"
    );
    assert_eq!(session.one::<String>(&progress), "300 299 1 00:00:00");
    let wrong = format!(
        "select count(*) from note left join steadytext_batch_results('{batch}') as r on note.id = (r.key ->> 'id')::integer
          where id <> 7 and r.embedding is distinct from steadytext_embed(body)"
    );
    assert_eq!(session.one::<i64>(&wrong), 0);
    let failed = format!(
        "select format('%s %s %s', key ->> 'id', error_code, split_part(error, E'\\n', 1))
           from steadytext_batch_results('{batch}') where status = 'failed'"
    );
    assert_eq!(session.list::<String>(&failed), ["7 P0001 Text input cannot be empty"]);
    // Requests that have ended are not waited for, and not cancelled.
    assert!(session.one::<bool>(&format!("select steadytext_wait('{batch}'::uuid, 'any', 0)")));
    assert_eq!(session.one::<i64>(&format!("select steadytext_cancel_batch('{batch}')")), 0);
}

#[test]
fn whoever_waits_for_a_batch_is_woken_by_its_first_or_its_last() {
    let (cluster, mut session) = with_notes();
    session.pause();
    let enqueue = "select steadytext_enqueue_query('select id, body as prompt from note where id < 40', \
                   params => '{\"max_tokens\": 2, \"use_cache\": false}')";
    let batch: Uuid = session.one(enqueue);
    let other: Uuid = session.one(enqueue);
    let any =
        begins_to_wait(&cluster, &mut session, format!("steadytext_wait('{batch}'::uuid, 'any', 3000)"));
    let all =
        begins_to_wait(&cluster, &mut session, format!("steadytext_wait('{batch}'::uuid, 'all', 3000)"));
    let of_other =
        begins_to_wait(&cluster, &mut session, format!("steadytext_wait('{other}'::uuid, 'any', 3000)"));
    let first: Uuid =
        session.one(&format!("select request_id from steadytext_batch_results('{batch}') limit 1"));
    session.cancel(first);
    assert!(any.join().expect("one has ended"));
    assert!(!all.is_finished() && !of_other.is_finished(), "38 have not ended, and none of the other batch");
    assert!(!session.one::<bool>(&format!("select steadytext_wait('{batch}'::uuid, 'all', 0)")));
    assert_eq!(session.one::<i64>(&format!("select steadytext_cancel_batch('{other}')")), 39);
    assert!(of_other.join().expect("all of the other one are cancelled"));
    session.run("select steadytext_daemon_start()");
    assert!(all.join().expect("all have ended"));
    let states =
        format!("select format('%s %s', done, cancelled) from steadytext_batches where batch = '{batch}'");
    assert_eq!(session.one::<String>(&states), "38 1");
}

#[test]
fn a_batch_that_the_queue_has_no_room_for_is_refused_as_a_whole() {
    let (cluster, mut session) = with_notes();
    session.pause();
    session.run(
        "create role alice login in role steadytext_user; grant select on note to alice;
         select steadytext_config_set('max_queue_size_per_role', '200')",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    let error = alice.error("select steadytext_enqueue_query('select body as prompt from note')");
    assert_eq!(error.code().code(), "53400");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue"), 0);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_batches"), 0);
    alice.run("select steadytext_enqueue_query('select body as prompt from note where id <= 200')");
    assert_eq!(session.one::<i64>("select pending from steadytext_batches"), 200);
    assert_eq!(alice.error("select steadytext_generate_async('one more')").code().code(), "53400");
}

#[test]
fn a_cancel_reaches_the_query_of_a_batch() {
    let (cluster, mut session) = with_notes();
    let mut enqueuer = cluster.session("postgres");
    let pid = enqueuer.backend_pid();
    let endless = std::thread::spawn(move || {
        enqueuer.error("select steadytext_enqueue_query('select pg_sleep(3000)::text as prompt')")
    });
    wait_until("the query runs", || {
        session.one::<bool>(&format!(
            "select wait_event is not distinct from 'PgSleep' from pg_stat_activity where pid = {pid}"
        ))
    });
    session.run(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(endless.join().expect("it ends").code().code(), "57014");
}
