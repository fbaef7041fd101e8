//! The cache: answers that were there before, in whatever asks for them, counted exactly, and never those of
//! another request.

use std::fs;
use std::thread::{self, JoinHandle};

use steadytext_test_models::{Architecture, Spec, write};
use steadytext_test_server::{Options, Session, Signal, slow_model, wait_until, with_session};
use uuid::Uuid;

/// Waits until so many entries match.
#[track_caller]
fn wait_for_entries(session: &mut Session, count: i64, condition: &str) {
    wait_until(&format!("{count} entries where {condition}"), || {
        session.one::<i64>(&format!("select count(*) from steadytext_cache where {condition}")) == count
    });
}

fn hits(session: &mut Session) -> i64 {
    session.one("select hits from steadytext.cache_counters()")
}

#[test]
fn what_was_answered_once_is_answered_at_once_while_the_worker_is_paused() {
    let (_cluster, mut session) = with_session();
    let id = session.generate("asked twice", "");
    let answer = session.answer(id);
    let id = session.embed("asked twice", "");
    let vector = session.answer(id);
    wait_for_entries(&mut session, 2, "prompt = 'asked twice'");
    session.pause();
    let text = session.generate("asked twice", "");
    let embedding = session.embed("asked twice", "");
    for (id, answer) in [(text, &answer), (embedding, &vector)] {
        let request = session.request(id);
        assert_eq!((request.status.as_str(), request.attempt), ("completed", 0), "{request:?}");
        assert_eq!(request.answer.as_ref(), Some(answer));
    }
    // Calls get what the queue has computed, and the other way round.
    assert_eq!(session.one::<String>("select steadytext_generate('asked twice')"), answer);
    assert_eq!(session.one::<String>("select steadytext_embed('asked twice')::text"), vector);
    assert_eq!(hits(&mut session), 4);
    let called: String = session.one("select steadytext_generate('called first', max_tokens => 7)");
    wait_for_entries(&mut session, 1, "prompt = 'called first'");
    let id = session.generate("called first", "max_tokens => 7");
    assert_eq!(session.request(id).answer, Some(called));
    let other = session.generate("called first", "max_tokens => 8");
    assert_eq!(session.request(other).status, "pending");
}

/// A longer context would have given another answer, to the same question.
#[test]
fn what_the_end_of_the_context_has_cut_is_not_kept() {
    let cluster = Options::new().set("pg_steadytext.context_length", 96).start();
    let mut session = cluster.session("postgres");
    session.run("create extension pg_steadytext cascade");
    let long = "What does VACUUM do with dead rows, and what does VACUUM FULL do, and what is the difference between both of them? Explain all that there is to say.";
    let cut: bool = session.one(&format!(
        "select finish_reason = 'length' and generated_tokens < 64 from steadytext_generate_details('{long}', 64)"
    ));
    assert!(cut, "the context ends it");
    // As an element of an array, beside one that is whole.
    session.run(&format!("select steadytext_generate_batch(array['{long}', 'short'], max_tokens => 64)"));
    wait_for_entries(&mut session, 1, "prompt = 'short'");
    // Under a constraint, which the answer matches all the same.
    let schema = r#"{"type": "array", "minItems": 12, "maxItems": 200, "items": {"enum": ["a", "b"]}}"#;
    let words = "long word ".repeat(18);
    for (prompt, ended) in [(words.as_str(), "length"), ("short of items", "constraint")] {
        let id: Uuid = session
            .one(&format!("select steadytext_generate_json_async('{prompt}', '{schema}', max_tokens => 64)"));
        session.answer(id);
        let finish: String =
            session.one(&format!("select finish_reason from steadytext_check_async('{id}')"));
        assert_eq!(finish, ended, "{prompt}");
    }
    // Entries are written in the order in which they were computed.
    wait_for_entries(&mut session, 1, "prompt = 'short of items'");
    wait_for_entries(&mut session, 0, &format!("prompt in ('{long}', '{words}')"));
}

#[test]
fn texts_that_are_cut_at_the_end_of_the_context_are_other_ones_where_that_is_another() {
    let (cluster, mut session) = with_session();
    let keys = "select array[
        steadytext_cache_key('embed', 'x', '{\"truncate\": true, \"model\": \"builtin\"}'),
        steadytext_cache_key('embed', 'x', '{\"model\": \"builtin\"}')]";
    session.run("select steadytext_embed('x', model => 'builtin', truncate => true)");
    let before: Vec<String> = session.one(keys);
    cluster.configure("pg_steadytext.context_length", 64);
    cluster.reload();
    wait_until("the context is short", || session.one::<String>("show pg_steadytext.context_length") == "64");
    let after: Vec<String> = session.one(keys);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1], before[1], "what is not cut is the same");
}

#[test]
fn requests_that_could_differ_in_one_byte_never_share_an_answer() {
    let (cluster, mut session) = with_session();
    slow_model(&cluster, &mut session);
    let variants = [
        "max_tokens => 30, temperature => 0.9, seed => 1",
        "max_tokens => 30, temperature => 0.9, seed => 2",
        "max_tokens => 30, temperature => 0.6, seed => 1",
        "max_tokens => 30",
        "max_tokens => 29",
        "max_tokens => 30, eos_string => 'e'",
        "max_tokens => 30, eos_string => 'a'",
        "max_tokens => 30, model => 'slow'",
    ];
    let alone: Vec<String> = variants
        .iter()
        .map(|arguments| {
            session.one(&format!("select steadytext_generate('the prompt', use_cache => false, {arguments})"))
        })
        .collect();
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 0);
    assert_eq!(session.one::<i64>("select hits + misses from steadytext.cache_counters()"), 0);
    for round in 0..2 {
        for (arguments, alone) in variants.iter().zip(&alone) {
            let answer: String =
                session.one(&format!("select steadytext_generate('the prompt', {arguments})"));
            assert_eq!(answer, *alone, "{arguments}");
        }
        wait_for_entries(&mut session, variants.len() as i64, "prompt = 'the prompt'");
        assert_eq!(hits(&mut session), round * variants.len() as i64);
    }
    // The seed does not matter without a temperature, nor does use_cache for what is there.
    let same = "select steadytext_generate_cached('the prompt', 30, seed => 9)";
    assert_eq!(session.one::<String>(same), alone[3]);
}

#[test]
fn accesses_of_sixteen_clients_to_a_hundred_keys_add_up_exactly() {
    const CLIENTS: i64 = 16;
    const ROUNDS: i64 = 3;
    let (cluster, mut session) = with_session();
    session.run("select steadytext_embed('key ' || i) from generate_series(1, 100) i");
    wait_for_entries(&mut session, 100, "prompt like 'key %'");
    session.run("select steadytext.reset_cache_counters()");
    let clients: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|client| {
            let mut session = cluster.session("postgres");
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    // Each in its own order.
                    let keys = format!("from generate_series(1, 100) i order by md5((i * {client} + {round})::text)");
                    session.run(&format!(
                        "select count(steadytext_embed('key ' || i)) from (select i {keys}) k;
                         select count(steadytext_embed_cached('key ' || i)) from (select i {keys}) k;
                         insert into steadytext_queue (request_type, prompt) select 'embed', 'key ' || i {keys}"
                    ));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("a client fails");
    }
    let expected = 100 * 3 * CLIENTS * ROUNDS;
    assert_eq!(hits(&mut session), expected);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status <> 'completed'"), 0);
    wait_until("every access is written down", || {
        session.one::<i64>("select sum(access_count) - count(*) from steadytext_cache") >= expected
    });
    let each: i64 = 1 + 3 * CLIENTS * ROUNDS;
    let wrong = format!("select count(*) from steadytext_cache where access_count <> {each}");
    assert_eq!(session.one::<i64>(&wrong), 0);
    assert!(!cluster.log().contains("deadlock"), "{}", cluster.log());
}

#[test]
fn accesses_to_an_entry_that_somebody_has_locked_are_counted_later() {
    let (cluster, mut session) = with_session();
    session.run("select steadytext_embed('held'); select steadytext_embed('free')");
    wait_for_entries(&mut session, 2, "true");
    let mut other = cluster.session("postgres");
    other.run("begin; select from steadytext_cache where prompt = 'held' for update");
    // Twice, so that what could not be written down meets what came after it.
    for uses in [5, 10] {
        session.run(
            "select steadytext_embed(prompt || repeat('', i)) from generate_series(1, 5) i, (values ('held'), ('free')) v (prompt)",
        );
        wait_until("the free one is counted", || {
            session.one::<i32>("select access_count from steadytext_cache where prompt = 'free'") == 1 + uses
        });
        assert_eq!(session.one::<i32>("select access_count from steadytext_cache where prompt = 'held'"), 1);
    }
    other.run("commit");
    wait_until("the other one is counted", || {
        session.one("select access_count = 11 from steadytext_cache where prompt = 'held'")
    });
}

#[test]
fn identical_requests_in_flight_are_computed_once_and_all_complete() {
    const REQUESTS: i64 = 16;
    // Without joining, no more than two would generate at a time.
    let cluster = Options::new().set("pg_steadytext.max_running", 2).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    session.wait_for_worker("idle");
    let arguments = "model => 'slow', max_tokens => 1500";
    let call = {
        let mut session = cluster.session("postgres");
        thread::spawn(move || {
            session.one::<String>(&format!("select steadytext_generate('the same', {arguments})"))
        })
    };
    let ids: Vec<_> = (0..REQUESTS).map(|_| session.generate("the same", arguments)).collect();
    wait_until("all of them generate", || {
        session.one::<i64>("select count(*) from steadytext_activity where generated_tokens > 0")
            == REQUESTS + 1
    });
    // One that is cancelled takes none of the others with it.
    assert!(session.cancel(ids[0]));
    let answer = call.join().expect("the call is answered");
    for id in &ids[1..] {
        assert_eq!(session.answer(*id), answer);
    }
    assert_eq!(session.request(ids[0]).status, "cancelled");
    wait_for_entries(&mut session, 1, "prompt = 'the same'");
}

#[test]
fn hits_work_in_read_only_transactions_old_snapshots_and_parallel_queries() {
    let (_cluster, mut session) = with_session();
    session
        .run("create table word as select 'word ' || i as word, repeat('x', 500) as room from generate_series(1, 200) i; analyze word");
    session.run("begin isolation level repeatable read read only; select count(*) from word");
    session.run("select steadytext_embed('word 1')");
    // Written after the transaction's snapshot.
    wait_until("a hit", || session.one("select steadytext_embed_cached('word 1') is not null"));
    session.run("commit; select steadytext_embed(word) from word");
    wait_for_entries(&mut session, 200, "true");
    session.run(
        "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
         set max_parallel_workers_per_gather = 2; set parallel_leader_participation = off;
         select steadytext.reset_cache_counters()",
    );
    let query = "select count(*) from word where steadytext_embed(word) is not null";
    let plan: Vec<String> = session.list(&format!("explain {query}"));
    assert!(plan.iter().any(|line| line.contains("Workers Planned")), "{plan:?}");
    assert_eq!(session.one::<i64>(query), 200);
    assert_eq!(session.list::<i64>("select hits from steadytext.cache_counters()"), [200]);
    wait_until("they are written down", || {
        session.one("select min(access_count) > 1 from steadytext_cache where prompt <> 'word 1'")
    });
}

#[test]
fn a_standby_answers_from_the_cache_without_an_engine() {
    let (primary, mut session) = with_session();
    let answer: String = session.one("select steadytext_generate('asked on the primary')");
    wait_for_entries(&mut session, 1, "true");
    let standby = primary.standby();
    primary.wait_for_replay(&standby);
    let mut there = standby.session("postgres");
    assert_eq!(there.one::<String>("select steadytext_generate('asked on the primary')"), answer);
    assert_eq!(there.one::<String>("select steadytext_generate_cached('asked on the primary')"), answer);
    assert_eq!(
        there.one::<i64>("select count(*) from pg_stat_activity where backend_type = 'pg_steadytext engine'"),
        0
    );
    // Another one is computed, and nothing of it is kept.
    there.run("select steadytext_generate('asked on the standby', max_tokens => 4)");
    assert!(!standby.log().contains("cannot execute"), "{}", standby.log());
}

#[test]
fn another_model_in_the_place_of_the_old_one_is_a_miss_and_its_answer_replaces_the_old() {
    let cluster = Options::new().set("pg_steadytext.generation_model", "house.gguf").start();
    let replace = |seed: u64| {
        let path = cluster.model_directory().join("house.gguf");
        let new = cluster.model_directory().join("new");
        // A context with room for the longest answer: one that the context ends is not kept.
        write(&Spec { seed, context: 2048, ..Spec::tiny(Architecture::Qwen3) }, &new)
            .expect("the model can be written");
        fs::rename(new, path).expect("our own directory");
    };
    replace(1);
    let mut session = cluster.session("postgres");
    session.create_extension();
    let sql = "select steadytext_generate('which model are you?')";
    let cached = "select steadytext_generate_cached('which model are you?')";
    let hash = "select model_hash from steadytext_cache";
    let first: String = session.one(sql);
    wait_for_entries(&mut session, 1, "true");
    assert_eq!(session.one::<Option<String>>(cached), Some(first.clone()));
    let first_hash: String = session.one(hash);
    replace(2);
    assert_eq!(session.one::<Option<String>>(cached), None);
    let id = session.generate("which model are you?", "");
    let second = session.answer(id);
    assert_ne!(second, first);
    wait_until("the entry is replaced", || session.one::<String>(hash) != first_hash);
    assert_eq!(session.one::<String>(sql), second);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 1);
    // The first one is back, in another file: the same bytes, the same answer, but it has to be read to know.
    replace(1);
    assert_eq!(session.one::<Option<String>>(cached), None);
    assert_eq!(session.one::<String>(sql), first);
    wait_until("the entry is the first one's again", || session.one::<String>(hash) == first_hash);
    // A new process knows the file without loading the model.
    let other: String = cluster.session("postgres").one(cached);
    assert_eq!(other, first);
}

#[test]
fn a_request_that_waited_is_answered_by_what_came_into_the_cache_meanwhile() {
    let (_cluster, mut session) = with_session();
    session.pause();
    let id = session.generate("answered meanwhile", "");
    let other = session.generate("not answered", "max_tokens => 3");
    session.run(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         values ('answered meanwhile', '', 'from the cache', 'generate', true)",
    );
    session.run("select steadytext.reset_cache_counters()");
    session.run("select steadytext_daemon_start()");
    assert_eq!(session.answer(id), "from the cache");
    // Through the worker, which had claimed it.
    assert_eq!(session.request(id).attempt, 1);
    session.answer(other);
    let counted: String = session.one("select concat_ws(' ', hits, misses) from steadytext.cache_counters()");
    assert_eq!(counted, "1 1");
}

#[test]
fn rankings_and_constrained_answers_come_from_the_cache_as_they_were_computed() {
    let (_cluster, mut session) = with_session();
    let calls = [
        "select string_agg(document || score, ',' order by n)
         from steadytext_rerank('vacuum', array['an index', 'VACUUM frees rows', 'a table']) with ordinality
             as r(document, score, index, document_id, n)",
        "select string_agg(query_index || document || score, ',' order by n)
         from steadytext_rerank_batch(array['vacuum', 'index'], array['an index', 'VACUUM frees rows'])
             with ordinality as r(query_index, document, score, index, document_id, n)",
        "select steadytext_generate_json('a person', '{\"type\": \"object\", \"properties\": {\"n\": {\"type\": \"integer\", \"maximum\": 9}}, \"required\": [\"n\"], \"additionalProperties\": false}')",
        "select steadytext_generate_regex('a number', '[0-9]{3}')",
        "select steadytext_generate_choice('yes or no', array['yes', 'no'])",
    ];
    let computed: Vec<String> = calls.iter().map(|call| session.one(call)).collect();
    wait_for_entries(&mut session, calls.len() as i64, "true");
    let before = hits(&mut session);
    for (call, computed) in calls.iter().zip(&computed) {
        assert_eq!(session.one::<String>(call), *computed, "{call}");
    }
    assert_eq!(hits(&mut session), before + calls.len() as i64);
    // And through the queue, in the statement that enqueues.
    session.pause();
    let id: uuid::Uuid = session
        .one("select steadytext_rerank_async('vacuum', array['an index', 'VACUUM frees rows', 'a table'])");
    let ranked = "select string_agg(d.document || (s.score ->> 'score'), ',' order by d.n) from steadytext_queue as q
        cross join unnest(q.results) with ordinality as d(document, n)
        join jsonb_array_elements(q.result::jsonb) with ordinality as s(score, n) on s.n = d.n where q.request_id = $1";
    let ranking: Option<String> = session.query_one(ranked, &[&id]).expect("it is a ranking").get(0);
    assert_eq!(ranking.as_ref(), Some(&computed[0]));
}

#[test]
fn a_lock_on_the_whole_table_or_its_index_holds_up_no_request_and_loses_no_answer() {
    let (cluster, mut session) = with_session();
    session.run("select steadytext_embed('kept')");
    wait_for_entries(&mut session, 1, "true");
    session.run("set statement_timeout = '10min'");
    let mut other = cluster.session("postgres");
    let mut count = 1;
    for lock in ["lock table steadytext_cache", "reindex index steadytext_cache_key_hash_key"] {
        other.run(&format!("begin; {lock}"));
        let vector: String = session.one("select steadytext_embed('kept')::text");
        let id = session.embed("kept", "");
        assert_eq!(session.answer(id), vector);
        session.run(&format!("select steadytext_embed('{lock} ' || i) from generate_series(1, 300) as i"));
        let id = session.embed(&format!("{lock}: another"), "");
        session.answer(id);
        other.run("commit");
        count += 301;
        wait_for_entries(&mut session, count, "true");
    }
}

#[test]
fn an_answer_too_long_for_the_settings_is_not_kept_and_one_whose_key_is_locked_holds_up_no_other() {
    let (cluster, mut session) = with_session();
    session.run("select steadytext_config_set('cache_max_entry_bytes', '1024')");
    session.run("select steadytext_embed(repeat('long ', 200)), steadytext_embed('short', true)");
    let mut other = cluster.session("postgres");
    other.run(
        "begin; insert into steadytext_cache (cache_key, prompt, response, request_type)
         select steadytext_cache_key('embed', 'text ' || i), '', '', 'embed' from generate_series(1, 100, 3) as i",
    );
    session.run("select steadytext_config_set('cache_max_entry_bytes', null)");
    session.run("select steadytext_embed('text ' || i) from generate_series(1, 100) as i");
    wait_for_entries(&mut session, 66, "prompt like 'text%'");
    other.run("rollback");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache where prompt like 'long%'"), 0);
}

#[test]
fn a_cache_that_cannot_be_written_costs_nobody_an_answer() {
    let (cluster, mut session) = with_session();
    session.run(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'no more'; end $$;
         create trigger refuse before insert on steadytext_cache for each row execute function refuse()",
    );
    let id = session.generate("not kept", "max_tokens => 3");
    let answer = session.answer(id);
    assert_eq!(session.one::<String>("select steadytext_generate('not kept', max_tokens => 3)"), answer);
    cluster.wait_for_log(0, "no more");
    assert!(!cluster.log().contains("not kept"), "a prompt is in the log");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 0);
    session.run("drop trigger refuse on steadytext_cache");
    session.run("select steadytext_generate('kept again', max_tokens => 3)");
    wait_for_entries(&mut session, 1, "prompt = 'kept again'");
}

#[test]
fn after_a_crash_what_was_written_is_there_and_what_was_under_way_is_computed_anew() {
    let (cluster, mut session) = with_session();
    session.run("select steadytext_embed('text ' || i) from generate_series(1, 50) i");
    wait_for_entries(&mut session, 50, "true");
    // Counts and answers are on their way when the worker dies.
    session.run("select steadytext_embed('text ' || i) from generate_series(1, 200) i");
    cluster.crash(session.worker_pid(), Signal::KILL);
    let mut session = cluster.session("postgres");
    session.wait_for_worker("idle");
    let kept: i64 = session.one("select count(*) from steadytext_cache");
    assert!((50..=200).contains(&kept), "{kept}");
    let agree = "select count(*) from steadytext_cache where embedding::text <> steadytext_embed(prompt, false)::text";
    assert_eq!(session.one::<i64>(agree), 0);
    session.run("select steadytext_embed('text ' || i) from generate_series(1, 200) i");
    wait_for_entries(&mut session, 200, "true");
}

#[test]
fn another_role_is_served_and_cannot_read_prompts_and_another_database_has_its_own() {
    let (cluster, mut session) = with_session();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    session.run("create database other");
    let mut alice = cluster.session_as("postgres", "alice");
    let id = alice.generate("what alice asks", "");
    let answer = alice.answer(id);
    wait_for_entries(&mut session, 1, "true");
    let mut bob = cluster.session_as("postgres", "bob");
    let id = bob.generate("what alice asks", "");
    assert_eq!(bob.request(id).answer, Some(answer.clone()));
    assert_eq!(bob.one::<String>("select steadytext_generate('what alice asks')"), answer);
    for query in ["select * from steadytext_cache", "select * from steadytext_cache_with_frecency"] {
        assert_eq!(bob.error(query).code().code(), "42501");
    }
    let mut other = cluster.session("other");
    other.create_extension();
    assert_eq!(other.one::<Option<String>>("select steadytext_generate_cached('what alice asks')"), None);
    assert_eq!(other.one::<String>("select steadytext_generate('what alice asks')"), answer);
    wait_for_entries(&mut other, 1, "true");
}
