//! Counting, and to whose account: requests, cancels, retries, calls and refusals of owners' code, and
//! nothing that did not happen.

use steadytext_test_server::{Cluster, Session, wait_until};

fn prepared() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "select steadytext_config_set('worker_poll_interval', '0.05');
         create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         grant create on schema public to alice",
    );
    (cluster, session)
}

/// Requests that were counted in this database, and those of them that were cancelled.
fn counted(session: &mut Session) -> String {
    session.one(
        "select concat_ws(' ', coalesce(sum(requests), 0), coalesce(sum(completed), 0), coalesce(sum(failed), 0), coalesce(sum(cancelled), 0))
         from steadytext_stat where datname = current_database()",
    )
}

#[test]
fn what_code_of_owners_asks_for_in_the_process_of_vectorizers_is_limited_as_everywhere() {
    let (cluster, mut session) = prepared();
    session.run("select steadytext_set_limit('alice', requests_per_day => 30)");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table seen (outcome text);
         create table docs (id bigint primary key, body text, embedding vector(256));
         create function ask() returns trigger language plpgsql set search_path = public, pg_catalog as $$
         begin
             begin
                 insert into steadytext_queue (request_type, prompts)
                 select 'batch_embed', array_agg('text ' || i) from generate_series(1, 50) as i;
                 insert into seen values ('admitted');
             exception when configuration_limit_exceeded then
                 insert into seen values ('refused');
             end;
             return new;
         end $$;
         create trigger ask before update of embedding on docs for each row execute function ask();
         insert into docs values (1, 'words');
         select steadytext_create_vectorizer('docs', array['body'], target_column => 'embedding', index => 'none')",
    );
    wait_until("the vector is written", || {
        session.one("select exists (select from docs where embedding is not null)")
    });
    assert_eq!(session.list::<String>("select distinct outcome from seen"), ["refused"]);
    assert!(alice.used("requests_per_day") < 30);
}

#[test]
fn cancels_count_when_they_are_committed_and_under_names_that_there_are() {
    let (cluster, mut session) = prepared();
    session.pause();
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run("select steadytext_generate_async('number ' || i, 3, false) from generate_series(1, 3) as i");
    let all = "steadytext_cancel_async_batch(array(select request_id from steadytext_queue))";
    for _ in 0..5 {
        assert_eq!(alice.one::<i64>(&format!("select {all}")), 3, "in a transaction of its own");
        session.run("update steadytext_queue set status = 'pending', completed_at = null");
        session.run("select steadytext_stat_reset()");
        alice.run("begin");
        assert_eq!(alice.one::<i64>(&format!("select {all}")), 3);
        alice.run("rollback");
        alice.run(&format!("begin; savepoint a; select {all}; rollback to a; commit"));
        assert_eq!(counted(&mut session), "0 0 0 0");
    }
    alice.run(&format!("begin; savepoint a; select {all}; release a; savepoint b; rollback to b; commit"));
    assert_eq!(counted(&mut session), "3 0 0 3");
    // Rows of a dump say what they like.
    session.run(
        "insert into steadytext_queue (request_type, prompt, params, created_at)
         select case when i > 300 then 'type ' || i else 'generate' end, 'x', jsonb_build_object('model', 'name ' || i), now() - interval '1 day'
         from generate_series(1, 400) as i",
    );
    assert_eq!(session.one::<i64>(&format!("select {all}")), 400);
    assert_eq!(counted(&mut session), "403 0 0 403");
    assert_eq!(
        session.list::<String>(
            "select concat_ws(' ', model, request_type, cancelled) from steadytext_stat
             where datname = current_database() and model is not null order by request_type collate \"C\""
        ),
        ["(other) (other) 100", "(other) generate 300"]
    );
    // More that there are than a database has room for.
    session.run(
        "insert into steadytext_models (name, task, file) select 'model-' || i, 'generate', 'x.gguf' from generate_series(1, 300) as i;
         insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'x', jsonb_build_object('model', 'model-' || i) from generate_series(1, 300) as i",
    );
    assert_eq!(session.one::<i64>(&format!("select {all}")), 300);
    assert_eq!(counted(&mut session), "703 0 0 703");
    let entries: i64 = session.one("select count(*) from steadytext_stat where datname = current_database()");
    assert!((250..=258).contains(&entries), "{entries}");
}

#[test]
fn retries_that_are_none_are_not_pending() {
    let (cluster, mut session) = prepared();
    session.run("select steadytext_set_limit('alice', max_pending => 10)");
    session.pause();
    let mut alice = cluster.session_as("postgres", "alice");
    let said: i64 =
        alice.one("select count(*) filter (where steadytext.admit_retry()) from generate_series(1, 5)");
    assert_eq!(said, 5);
    assert_eq!(alice.used("max_pending"), 0);
    let id = alice.generate("a request", "max_tokens => 3");
    assert_eq!(alice.used("max_pending"), 1);
    // One that is.
    session.run("update steadytext_queue set status = 'failed'");
    wait_until("it is not pending any more", || alice.used("max_pending") == 0);
    alice.run("begin");
    alice.run("update steadytext_queue set status = 'pending', retry_count = 0");
    assert_eq!(alice.used("max_pending"), 1);
    alice.run("commit");
    wait_until("it is pending again", || alice.used("max_pending") == 1);
    assert_eq!(alice.request(id).status, "pending");
}

#[test]
fn a_call_that_a_limit_refuses_is_no_request() {
    let (cluster, mut session) = prepared();
    session.run("select steadytext_set_limit('alice', requests_per_day => 1)");
    session.run("select steadytext_stat_reset()");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run("select steadytext_generate('the only one', 3, use_cache => false)");
    for call in [
        "steadytext_generate('one more', 3, use_cache => false)",
        "steadytext_if(array['one', 'more'], use_cache => false)",
        "steadytext_generate_stream('one more', 3)",
        "steadytext_generate_details('one more', 3)",
    ] {
        assert_eq!(alice.error(&format!("select {call}")).code().code(), "53400", "{call}");
    }
    assert_eq!(counted(&mut session), "1 1 0 0");
}

#[test]
fn refusals_are_noted_though_they_are_caught_with_the_role_that_had_logged_in() {
    let (cluster, mut session) = prepared();
    session.run("create role carol login; grant bob to carol");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table docs (id bigint primary key, body text, summary text);
         select steadytext_create_vectorizer('docs', array['body'], name => 'of-alice', index => 'none');
         select steadytext_prompt_create('of-alice', 'A prompt {{ x }}')",
    );
    let mut carol = cluster.session_as("postgres", "carol");
    carol.run("set role bob");
    for call in [
        "steadytext_pause_vectorizer('of-alice')",
        "steadytext_prompt_update('of-alice', 'Another one')",
        "steadytext_prompt_delete('of-alice')",
        "* from steadytext_audit_log",
    ] {
        carol.run(&format!(
            "do $$ begin
                 for i in 1 .. 5 loop
                     begin
                         perform {call};
                         raise exception 'it was done';
                     exception when insufficient_privilege then null;
                     end;
                 end loop;
             end $$"
        ));
    }
    assert!(steadytext_test_server::signal(session.worker_pid(), steadytext_test_server::Signal::TERM));
    const REFUSALS: &str = "select string_agg(concat_ws(' ', user_id, session_user_id, error_message, count), ', ' order by error_message)
         from (select user_id, session_user_id, error_message, sum((details ->> 'count')::bigint) as count
               from steadytext_audit_log where action = 'right_refused' group by 1, 2, 3) as r";
    wait_until("they are written down", || {
        session.one::<Option<String>>(REFUSALS).as_deref()
            == Some(
                "bob carol must be owner of vectorizer \"…\" 5, bob carol permission denied for table steadytext_audit_log 5, \
                 bob carol prompt \"…\" belongs to another role 10",
            )
    });
}
