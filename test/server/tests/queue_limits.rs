//! The requests that count for max_queue_size and max_queue_size_per_role, and those that do not.

use steadytext_test_server::{Cluster, Session, sqlstate_of, wait_until};

/// Alice, bob and carol, who administers; a paused worker.
fn people() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         create role carol login in role steadytext_admin",
    );
    session.pause();
    (cluster, session)
}

fn limit(session: &mut Session, key: &str, limit: i64) {
    session.run(&format!("select steadytext_config_set('{key}', '{limit}')"));
}

const ENQUEUE: &str = "select steadytext_generate_async('one more', 3)";

/// The number of further requests that `session` may enqueue: enqueues them, and takes them back.
fn room(session: &mut Session) -> i64 {
    session.run("begin");
    let mut room = 0;
    loop {
        match session.batch_execute(ENQUEUE) {
            Ok(()) => room += 1,
            Err(error) => {
                assert_eq!(sqlstate_of(&error), "53400", "{error:?}");
                break;
            }
        }
    }
    session.run("rollback");
    room
}

/// Waits until there is room for `wanted` more requests.
#[track_caller]
fn wait_for_room(session: &mut Session, wanted: i64) {
    wait_until(&format!("there is room for {wanted}"), || room(session) == wanted);
}

#[test]
fn what_is_rolled_back_to_a_savepoint_or_an_exception_block_does_not_count() {
    let (cluster, mut session) = people();
    limit(&mut session, "max_queue_size", 100);
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(room(&mut alice), 100);
    // A storm of savepoints: nested, released, rolled back to, in one transaction with three rows that stay.
    alice.run(&format!("begin; {ENQUEUE}; savepoint a"));
    for _ in 0..50 {
        alice.run(&format!("savepoint b; {ENQUEUE}; savepoint c; {ENQUEUE}; rollback to b"));
        alice.run(&format!("savepoint c; {ENQUEUE}; release c; rollback to b; release b"));
    }
    alice.run(&format!("{ENQUEUE}; savepoint b; savepoint c; {ENQUEUE}; release b"));
    for _ in 0..300 {
        alice.run(&format!("savepoint d; {ENQUEUE}; rollback to d"));
    }
    alice.run("commit");
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_queue"), 3);
    assert_eq!(room(&mut alice), 97);
    // Blocks with a handler: each second one fails.
    alice.run(
        "do $$ begin
             for i in 1 .. 200 loop
                 begin
                     perform steadytext_generate_async('row ' || i, 3);
                     if i > 10 then raise exception 'no'; end if;
                 exception when raise_exception then null;
                 end;
             end loop;
         end $$",
    );
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_queue"), 13);
    assert_eq!(room(&mut alice), 87);
    // Whole transactions, and statements that end in an error.
    for _ in 0..20 {
        alice.run(&format!("begin; {ENQUEUE}; rollback"));
        alice.error(
            "insert into steadytext_queue (request_type, prompt) values ('generate', 'a'), ('generate', '')",
        );
    }
    assert_eq!(room(&mut alice), 87);
}

#[test]
fn rows_in_whatever_way_they_come_and_go_count_as_what_they_are() {
    let (cluster, mut session) = people();
    limit(&mut session, "max_queue_size", 100);
    let mut alice = cluster.session_as("postgres", "alice");
    let file = cluster.make_directory("copy").join("requests");
    session.run(&format!(
        "copy (select 'generate', 'copied ' || i from generate_series(1, 10) as i) to '{0}';
         copy steadytext_queue (request_type, prompt) from '{0}'",
        file.display()
    ));
    assert_eq!(room(&mut alice), 90, "COPY");
    session.run(
        "insert into steadytext_queue (request_id, request_type, prompt)
         select request_id, request_type, 'in vain' from steadytext_queue on conflict do nothing;
         insert into steadytext_queue (request_id, request_type, prompt)
         select request_id, request_type, 'in vain' from steadytext_queue on conflict (request_id) do update set prompt = 'changed'",
    );
    wait_for_room(&mut alice, 90);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where prompt = 'changed'"), 10);
    session.run(
        "insert into steadytext_queue (request_type, prompt) values ('generate', 'kept') on conflict do nothing",
    );
    assert_eq!(room(&mut alice), 89, "no conflict");
    session.run("select steadytext_generate_batch_async(array['a', 'b', 'c', 'd'])");
    assert_eq!(room(&mut alice), 85, "a batch");
    session.run("insert into steadytext_queue (request_type, prompt, status, created_at) values ('generate', 'restored', 'completed', '2020-01-01')");
    assert_eq!(room(&mut alice), 85, "a row that has ended");
    let id = alice.generate("cancelled", "max_tokens => 3");
    assert_eq!(room(&mut alice), 84, "one more");
    alice.cancel(id);
    wait_for_room(&mut alice, 85);
    session.run("update steadytext_queue set status = 'failed' where prompt like '_'");
    wait_for_room(&mut alice, 89);
    session.run("update steadytext_queue set status = 'pending' where prompt in ('a', 'b')");
    wait_for_room(&mut alice, 87);
    session.run("delete from steadytext_queue where prompt in ('a', 'b')");
    wait_for_room(&mut alice, 89);
    session.run(&format!("begin; {ENQUEUE}; {ENQUEUE}; prepare transaction 'two'"));
    session.run(&format!("begin; {ENQUEUE}; prepare transaction 'one'"));
    assert_eq!(room(&mut alice), 89, "prepared");
    session.run("commit prepared 'two'");
    wait_for_room(&mut alice, 87);
    session.run("rollback prepared 'one'");
    session.run("truncate steadytext_queue");
    wait_for_room(&mut alice, 100);
    session.run("select steadytext_daemon_start()");
    for i in 0..20 {
        let id = alice.generate(&format!("answered {i}"), "max_tokens => 3");
        alice.answer(id);
    }
    assert_eq!(room(&mut alice), 100, "answered");
}

#[test]
fn one_role_cannot_lock_the_others_out() {
    let (cluster, mut session) = people();
    limit(&mut session, "max_queue_size", 60);
    limit(&mut session, "max_queue_size_per_role", 20);
    let mut alice = cluster.session_as("postgres", "alice");
    let mut bob = cluster.session_as("postgres", "bob");
    let mut carol = cluster.session_as("postgres", "carol");
    alice.run("select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 20) as i");
    let error = alice.error(ENQUEUE);
    assert_eq!(error.code().code(), "53400", "{error}");
    assert_eq!(error.message(), "the queue is full for this role: 20 of its requests are pending");
    assert!(error.hint().is_some_and(|hint| hint.contains("max_queue_size_per_role")), "{error:?}");
    assert_eq!(room(&mut bob), 20);
    // In a transaction of the own, and one after the other in it.
    bob.run("begin");
    bob.run("select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 15) as i");
    bob.run("savepoint here");
    assert_eq!(
        bob.error("select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 6) as i")
            .code()
            .code(),
        "53400"
    );
    bob.run("rollback to here; select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 5) as i; commit");
    assert_eq!(room(&mut bob), 0);
    // Administrators and superusers are bound by the whole queue only.
    assert_eq!(room(&mut carol), 20);
    assert_eq!(room(&mut session), 20);
    // A new name is no new share, and a new role of the old name has one of its own.
    session.run("alter role alice rename to alicia; create role alice login in role steadytext_user");
    assert_eq!(room(&mut alice), 0);
    assert_eq!(room(&mut cluster.session_as("postgres", "alice")), 20);
    let error = carol
        .error("select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 21) as i");
    assert_eq!(error.message(), "the queue is full: 60 requests are pending");
    // An answered request makes room for its role.
    session.run("select steadytext_daemon_start()");
    for id in session.list("select request_id from steadytext_queue") {
        session.answer(id);
    }
    assert_eq!((room(&mut alice), room(&mut bob)), (20, 20));
}

#[test]
fn the_counters_come_right_by_themselves_where_triggers_were_switched_off() {
    let (cluster, mut session) = people();
    limit(&mut session, "max_queue_size", 30);
    let mut alice = cluster.session_as("postgres", "alice");
    session.run(
        "alter table steadytext_queue disable trigger user;
         insert into steadytext_queue (request_type, prompt) select 'generate', i::text from generate_series(1, 10) as i;
         alter table steadytext_queue enable trigger user",
    );
    // Something else happens in the queue, and something that nobody counts.
    alice.generate("beside them", "max_tokens => 3");
    session.run("update steadytext_queue set status = 'pending' where prompt = '1'");
    wait_for_room(&mut alice, 19);
    // A server that starts anew knows nothing, and counts.
    drop((session, alice));
    let mut cluster = cluster;
    cluster.restart();
    let mut alice = cluster.session_as("postgres", "alice");
    wait_for_room(&mut alice, 19);
}

#[test]
fn requests_that_are_put_back_count_like_new_ones() {
    const AGAIN: &str =
        "update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed'";
    let (cluster, mut session) = people();
    let mut bob = cluster.session_as("postgres", "bob");
    bob.run("select steadytext_embed_batch_async(array_agg(i::text)) from generate_series(1, 30) as i");
    session.run("update steadytext_queue set status = 'failed', error = 'a failure', completed_at = now()");
    limit(&mut session, "max_queue_size", 60);
    limit(&mut session, "max_queue_size_per_role", 20);
    wait_for_room(&mut bob, 20);
    let error = bob.error(AGAIN);
    assert_eq!(error.code().code(), "53400", "{error}");
    assert_eq!(bob.one::<i64>("select count(*) from steadytext_queue where status = 'failed'"), 30);
    bob.run(&format!("{AGAIN} and id in (select id from steadytext_queue order by id limit 20)"));
    assert_eq!(bob.error(AGAIN).code().code(), "53400");
    // Others have the rest of the queue, and a role that could raise the limit is not bound by it.
    assert_eq!(room(&mut cluster.session_as("postgres", "alice")), 20);
    session.run(AGAIN);
}
