//! Waits of vectorizers and enrichments: for limits of their owners that have no room for a row, and for rows
//! that somebody has locked. Texts that were computed meanwhile are computed once.

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Cluster, Options, Session, wait_until};

/// Alice, who may ask for very much, with two tables.
fn alice() -> (Cluster, Session, Session) {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice login in role steadytext_user; grant create on schema public to alice;
         select steadytext_set_limit('alice', requests_per_day => 100000)",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run("create table docs (id int primary key, body text); create table other (id int primary key, body text)");
    (cluster, session, alice)
}

/// The number of alice's requests: each text that was embedded, and each prompt, is one.
fn used(alice: &mut Session) -> i64 {
    alice.one("select used from steadytext_my_limits() where limit_name = 'requests_per_day'")
}

fn limit(session: &mut Session, requests: i64) {
    session.run(&format!("select steadytext_set_limit('alice', requests_per_day => {requests})"));
}

/// A text of many chunks.
const LONG: &str = "(select string_agg(format('VACUUM reclaims the storage of dead rows, as chapter %s of the manual says.', i), ' ') from generate_series(1, 20) as i)";

#[test]
fn a_row_of_many_chunks_gets_its_room_and_holds_up_no_other() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_vectorizer('docs', array['body'], chunk_size => 16, chunk_overlap => 0, index => 'none', format => 'doc: $chunk')",
    );
    rest(&mut session);
    alice.run("select steadytext_pause_vectorizer('docs_body')");
    alice.run(&format!("insert into docs select 1, {LONG}"));
    alice.run("insert into docs select i, 'short ' || i from generate_series(2, 13) as i");
    let chunks: i64 = alice
        .one("select count(*) from docs cross join lateral steadytext_chunk_text(body, 16, 0) where id = 1");
    assert!((20..200).contains(&chunks), "{chunks}");
    // A limit that would have room for all chunks, if nobody else had asked for anything.
    alice.run(&format!(
        "select steadytext_embed_batch_async(array(select 'text ' || i from generate_series(1, {chunks}) as i), use_cache => false)"
    ));
    let before = used(&mut alice);
    let mut allowed = before;
    limit(&mut session, allowed);
    alice.run("select steadytext_resume_vectorizer('docs_body')");
    let mut asked = 0;
    wait_until(
        "every chunk of every row is embedded, though there is never room for all chunks of one",
        || {
            let all: i64 = alice.one("select count(*) from docs_body_embedding");
            if all == chunks + 12 {
                return true;
            }
            if used(&mut alice) == allowed {
                allowed += 5;
                limit(&mut session, allowed);
                // Its owner asks for something else meanwhile.
                asked += i64::from(
                    alice
                        .batch_execute("select steadytext_embed_async('something else', use_cache => false)")
                        .is_ok(),
                );
            }
            false
        },
    );
    assert!(asked > 0, "others have their turn");
    assert_eq!(used(&mut alice), before + asked + chunks + 12, "nothing is embedded twice");
    limit(&mut session, 100_000);
    rest(&mut session);
    assert_eq!(
        alice.one::<i64>(
            "select count(*) from docs_body_embedding as e
             full join (select d.id, c.seq, c.chunk from docs as d cross join lateral steadytext_chunk_text(d.body, 16, 0) as c) as c using (id, seq)
             where e.chunk is distinct from c.chunk or e.embedding::text is distinct from steadytext_embed('doc: ' || c.chunk)::text"
        ),
        0,
        "each chunk has its own vector"
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
}

#[test]
fn rows_of_many_chunks_that_change_or_go_while_they_wait_leave_nothing() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_vectorizer('docs', array['body'], chunk_size => 16, chunk_overlap => 0, index => 'none')",
    );
    rest(&mut session);
    alice.run("select steadytext_embed_batch_async(array(select 'text ' || i from generate_series(1, 200) as i), use_cache => false)");
    let allowed = used(&mut alice) + 4;
    limit(&mut session, allowed);
    alice.run(&format!("insert into docs select i, {LONG} from generate_series(1, 3) as i"));
    wait_until("some chunks of a row are kept", || {
        session.one("select exists (select from steadytext_vectorizer_kept)")
    });
    alice.run("delete from docs where id = 1; update docs set body = 'changed' where id = 2; update docs set body = body || ' More.' where id = 3");
    limit(&mut session, 100_000);
    rest(&mut session);
    assert_eq!(
        alice.one::<i64>(
            "select count(*) from docs_body_embedding as e
             full join (select d.id, c.seq, c.chunk from docs as d cross join lateral steadytext_chunk_text(d.body, 16, 0) as c) as c using (id, seq)
             where e.chunk is distinct from c.chunk or e.embedding::text is distinct from steadytext_embed(c.chunk)::text"
        ),
        0
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
}

#[test]
fn rows_that_a_limit_refuses_are_embedded_when_it_is_raised_or_goes() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_vectorizer('docs', array['body'], chunk_size => 16, chunk_overlap => 0, index => 'none')",
    );
    rest(&mut session);
    let embedded =
        |alice: &mut Session| -> i64 { alice.one("select count(*) from docs_body_embedding where seq = 1") };
    for (round, raised) in [(1, "requests_per_day => 100000"), (2, "requests_per_day => null")] {
        session.run(
            "select steadytext_set_limit('alice', requests_per_day => 6), steadytext_reset_usage('alice')",
        );
        alice.run(&format!("insert into docs select {round}, {LONG}"));
        wait_until("the row is put aside", || {
            alice.one("select state = 'waiting_for_limit' and problem like '1 rows have more chunks than steadytext_rate_limits %'
                from steadytext_vectorizer_status")
        });
        assert_eq!(
            alice.one::<String>(
                "select error_code from steadytext_vectorizer_errors where hint like '%by itself%'"
            ),
            "53400"
        );
        assert_eq!(embedded(&mut alice), round - 1);
        session.run(&format!("select steadytext_set_limit('alice', {raised})"));
        wait_until("it is embedded by itself", || embedded(&mut alice) == round);
        rest(&mut session);
        assert_eq!(alice.one::<i64>("select count(*) from steadytext_vectorizer_errors"), 0);
        assert_eq!(alice.one::<String>("select state from steadytext_vectorizer_status"), "idle");
    }
}

#[test]
fn a_text_of_more_chunks_than_a_request_may_have_is_embedded_by_several() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "select steadytext_config_set('max_batch_size', '8');
         create table docs (id int primary key, body text);
         select steadytext_create_vectorizer('docs', array['body'], chunk_size => 16, chunk_overlap => 0, index => 'none', format => 'doc: $chunk')",
    );
    session.run(&format!("insert into docs select 1, {LONG}; insert into docs values (2, 'short'); insert into docs select 3, {LONG}"));
    rest(&mut session);
    let chunks: i64 = session
        .one("select count(*) from docs cross join lateral steadytext_chunk_text(body, 16, 0) where id = 1");
    assert!(chunks > 16, "{chunks}");
    assert_eq!(
        session.list::<String>(
            "select concat_ws('|', id, count(*)) from docs_body_embedding group by id order by id"
        ),
        [format!("1|{chunks}"), "2|1".to_owned(), format!("3|{chunks}")]
    );
    assert_eq!(
        session.one::<i64>(
            "select count(*) from docs_body_embedding as e
             full join (select d.id, c.seq, c.chunk from docs as d cross join lateral steadytext_chunk_text(d.body, 16, 0) as c) as c using (id, seq)
             where e.chunk is distinct from c.chunk or e.embedding::text is distinct from steadytext_embed('doc: ' || c.chunk)::text"
        ),
        0,
        "each chunk has its own vector"
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
    assert_eq!(session.one::<String>("select state from steadytext_vectorizer_status"), "idle");
    // Beside the text by which the model is known, there is room for none: that is said, and nothing is tried
    // without end.
    session
        .run("select steadytext_config_set('max_batch_size', '1'); insert into docs values (4, 'no room')");
    rest(&mut session);
    assert_eq!(
        session.list::<String>("select concat_ws('|', key, error_code, hint ~ 'raises max_batch_size') from steadytext_vectorizer_errors"),
        [r#"{"id": 4}|53400|t"#]
    );
    session.run("select steadytext_config_set('max_batch_size', '8'); select steadytext_retry_vectorizer('docs_body')");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from docs_body_embedding where id = 4"), 1);
}

#[test]
fn a_row_of_many_chunks_that_cannot_be_looked_at_any_more_holds_up_no_other() {
    let (_cluster, mut session, mut alice) = alice();
    session.run(
        "select steadytext_config_set('max_batch_size', '8');
         create table trouble (is_there bool);
         create function may_be_seen(id int) returns bool language plpgsql security definer as $$
         begin
             -- Vectors of some of its chunks have come, and are about to be kept.
             if id = 1 and exists (select from trouble) and exists (
                 select from public.steadytext_vectorizer_batches as b join public.steadytext_queue as q using (request_id)
                 where q.status = 'completed' and b.keys -> 0 ? 'seqs')
             then
                 raise exception 'row % is not to be seen', id;
             end if;
             return true;
         end $$ set search_path = public, pg_temp;
         insert into trouble values (true)",
    );
    alice.run(
        "create policy seen on docs using (may_be_seen(id));
         alter table docs enable row level security;
         alter table docs force row level security;
         select steadytext_create_vectorizer('docs', array['body'], chunk_size => 16, chunk_overlap => 0, index => 'none', format => 'doc: $chunk')",
    );
    rest(&mut session);
    alice.run(&format!("insert into docs select 1, {LONG}; insert into docs values (2, 'short'); insert into docs select 3, {LONG}"));
    wait_until("the other rows are embedded, and that one has failed", || {
        session.one(
            "select (select count(distinct id) = 2 from docs_body_embedding where id in (2, 3))
                and exists (select from steadytext_vectorizer_errors where key = '{\"id\": 1}' and error = 'row 1 is not to be seen')",
        )
    });
    session.run("delete from trouble");
    alice.run("select steadytext_retry_vectorizer('docs_body')");
    rest(&mut session);
    assert_eq!(
        session.one::<i64>(
            "select count(*) from docs_body_embedding as e
             full join (select d.id, c.seq, c.chunk from docs as d cross join lateral steadytext_chunk_text(d.body, 16, 0) as c) as c using (id, seq)
             where e.chunk is distinct from c.chunk or e.embedding::text is distinct from steadytext_embed('doc: ' || c.chunk)::text"
        ),
        0,
        "each chunk has its own vector"
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
}

#[test]
fn what_waits_for_a_limit_goes_on_when_its_use_is_reset_or_it_is_raised() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_vectorizer('docs', array['body'], index => 'none');
         select steadytext_create_enrichment('other', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"], \"use_cache\": false}')",
    );
    rest(&mut session);
    // Only what is asked for wakes the processes: looks around are an hour apart, and so are tries.
    session.run("select steadytext_config_set('worker_poll_interval', '120')");
    let steps = [
        "select steadytext_reset_usage('alice')",
        "select steadytext_set_limit('alice', requests_per_day => 100000)",
    ];
    for (round, goes_on) in (1..).zip(steps) {
        limit(&mut session, 100_000);
        alice.run("select steadytext_embed_batch(array['one', 'two'], use_cache => false)");
        let used = used(&mut alice);
        limit(&mut session, used);
        alice.run(&format!(
            "insert into docs values ({round}, 'text'); insert into other values ({round}, 'text')"
        ));
        wait_until("both wait", || {
            session.one("select count(*) = 2 from steadytext_vectorizer_state where is_limited and is_out_of_requests")
        });
        session.run("update steadytext_vectorizer_state set retry_at = now() + interval '1 hour'");
        session.run(goes_on);
        wait_until("the row has its vector, and the other one its value", || {
            alice.one(&format!("select (select count(*) = {round} from docs_body_embedding) and (select count(*) = {round} from other where kind is not null)"))
        });
    }
}

#[test]
fn a_role_that_may_ask_for_nothing_and_never_has_waits_without_turning_in_circles() {
    let (cluster, mut session) = prepared(Options::new());
    session.run("create role alice login in role steadytext_user; grant create on schema public to alice");
    let mut alice = cluster.session_as("postgres", "alice");
    // As long as there is no limit, nothing is counted of her.
    alice.run(
        "create table docs (id int primary key, body text);
         select steadytext_create_vectorizer('docs', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run("select steadytext_set_limit('alice', requests_per_day => 0)");
    alice.run("insert into docs values (1, 'text')");
    wait_until("it says what it waits for", || {
        alice.one("select state = 'waiting_for_limit' and problem like '%steadytext_rate_limits%' from steadytext_vectorizer_status")
    });
    session.run("select steadytext_set_limit('alice', requests_per_day => 1)");
    wait_until("it goes on when it may", || {
        alice.one::<i64>("select count(*) from docs_body_embedding") == 1
    });
}

/// Waits until it was tried again and again to write a row: each time it is noted anew.
fn wait_for_tries(session: &mut Session, table: &str) {
    let mut seen = Vec::new();
    wait_until("it is tried several times", || {
        let noted: Vec<i64> = session.list(&format!(
            "select w.id from steadytext_vectorizer_work as w join steadytext_vectorizers as v on v.id = w.vectorizer_id
             where v.source = 'public.{table}' and w.run_after is not null"
        ));
        for id in noted {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        seen.len() >= 3
    });
}

#[test]
fn a_row_that_is_locked_is_embedded_once_however_often_it_is_tried() {
    let (cluster, mut session, mut alice) = alice();
    alice.run(
        "insert into docs values (1, 'locked'), (2, 'free');
         select steadytext_create_vectorizer('docs', array['body'], target_column => 'embedding', index => 'none');
         select steadytext_create_vectorizer('other', array['body'], index => 'none');
         insert into other values (1, 'before'), (2, 'before')",
    );
    rest(&mut session);
    let before = used(&mut alice);
    let mut holder = cluster.session_as("postgres", "alice");
    // The row that is read, and in the other table that of the vectors.
    holder.run("begin; select from docs where id = 1 for share; select from other_body_embedding where id = 1 for update");
    alice.run("update docs set embedding = null where id = 2; update other set body = 'after'");
    session.run("insert into steadytext_vectorizer_work (vectorizer_id, key, is_forced) select id, '[1]', true from steadytext_vectorizers where target_column is not null");
    wait_until("what is not locked is written", || {
        alice.one("select (select embedding is not null from docs where id = 2) and (select chunk = 'after' from other_body_embedding where id = 2)")
    });
    wait_for_tries(&mut session, "docs");
    wait_for_tries(&mut session, "other");
    assert_eq!(used(&mut alice), before + 4, "each text is embedded once");
    let paused: bool = session.one(
        "select coalesce(bool_and(w.run_after - k.kept_at >= interval '4 seconds'), true) from steadytext_vectorizer_work as w
         join steadytext_vectorizer_kept as k using (vectorizer_id, key)",
    );
    assert!(paused, "each try waits longer");
    holder.run("commit");
    rest(&mut session);
    assert_eq!(used(&mut alice), before + 4, "and what was kept is written");
    assert_eq!(
        alice.one::<i64>(
            "select (select count(*) from docs where embedding::text is distinct from steadytext_embed(body)::text)
                + (select count(*) from other_body_embedding where chunk <> 'after' or embedding::text is distinct from steadytext_embed(chunk)::text)"
        ),
        0
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
}

#[test]
fn a_model_is_asked_once_about_a_row_that_is_locked() {
    let (cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_enrichment('docs', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"], \"use_cache\": false}')",
    );
    rest(&mut session);
    alice.run("insert into docs values (1, 'locked'), (2, 'free')");
    rest(&mut session);
    let before = used(&mut alice);
    let mut holder = cluster.session_as("postgres", "alice");
    alice.run("select steadytext_pause_enrichment('docs_kind'); update docs set body = 'changed'");
    holder.run("begin; select from docs where id = 1 for share");
    alice.run("select steadytext_resume_enrichment('docs_kind')");
    wait_until("what is not locked is written", || {
        session.one("select not exists (select from steadytext_vectorizer_batches) and exists (select from steadytext_vectorizer_kept)")
    });
    wait_for_tries(&mut session, "docs");
    assert_eq!(used(&mut alice), before + 2, "each row is asked about once");
    holder.run("commit");
    rest(&mut session);
    assert_eq!(used(&mut alice), before + 2);
    assert_eq!(alice.one::<i64>("select count(*) from docs where kind is distinct from steadytext_generate_choice(body, array['a', 'b'])"), 0);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_kept"), 0);
}

#[test]
fn what_is_due_of_a_paused_vectorizer_is_no_reason_to_look_again_and_again() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run(
        "select steadytext_create_vectorizer('docs', array['body'], name => 'paused', index => 'none');
         select steadytext_create_vectorizer('other', array['body'], name => 'going on', index => 'none')",
    );
    rest(&mut session);
    session.run("select steadytext_config_set('worker_poll_interval', '1')");
    alice.run("select steadytext_pause_vectorizer('paused')");
    // As of a row that somebody had locked.
    let note = |of: &str, after: &str| {
        format!(
            "insert into steadytext_vectorizer_work (vectorizer_id, key, run_after)
             select id, '[1]', clock_timestamp() + interval '{after}' from steadytext_vectorizers where name = '{of}'"
        )
    };
    session.run(&note("paused", "0 seconds"));
    // Later work of another definition is not forgotten for that.
    session.run(&note("going on", "1 second"));
    wait_until("the other one goes on", || {
        session.one("select not exists (select from steadytext_vectorizer_work as w join steadytext_vectorizers as v on v.id = w.vectorizer_id where v.name = 'going on')")
    });
    // Statistics come a second later. A look takes three transactions, and there were a hundred looks a
    // second.
    let count = "select xact_commit from pg_stat_database where datname = current_database()";
    session.run("select pg_sleep(2)");
    let before: i64 = session.one(count);
    session.run("select pg_sleep(4)");
    let committed = session.one::<i64>(count) - before;
    assert!(committed < 60, "{committed} transactions while there was nothing to do");
    alice.run("select steadytext_resume_vectorizer('paused')");
    rest(&mut session);
}

#[test]
fn a_text_that_is_too_long_stops_no_other_where_a_limit_has_no_room_for_them() {
    let (_cluster, mut session, mut alice) = alice();
    alice.run("select steadytext_create_vectorizer('docs', array['body'], chunk_size => 0, index => 'none')");
    rest(&mut session);
    alice.run("select steadytext_pause_vectorizer('docs_body')");
    alice.run(
        "insert into docs select i, 'short ' || i from generate_series(1, 8) as i; insert into docs values (9, repeat('word ', 20000))",
    );
    // The request of all rows fails for one of them, and none is allowed for the others.
    let allowed = used(&mut alice) + 10;
    limit(&mut session, allowed);
    alice.run("select steadytext_resume_vectorizer('docs_body')");
    wait_until("the long one has failed", || {
        alice.one("select count(*) = 1 from steadytext_vectorizer_errors where key = '{\"id\": 9}'")
    });
    wait_until("its request is done with", || {
        session.one("select not exists (select from steadytext_vectorizer_batches)")
    });
    wait_until("it says what it waits for", || {
        alice.one("select state = 'waiting_for_limit' from steadytext_vectorizer_status")
    });
    limit(&mut session, 100_000);
    rest(&mut session);
    assert_eq!(alice.one::<i64>("select count(*) from docs_body_embedding"), 8);
}
