//! Judgements through the queue: what the worker says is what the call says, and what is cached is given
//! again.

use steadytext_test_server::{Cluster, Session, wait_until};
use uuid::Uuid;

/// Calls without the last of their parameters, and how a result's text is made of what they return.
const CALLS: [(&str, &str, &str); 14] = [
    ("if", "'Is VACUUM a command?'", "r::text"),
    ("if_score", "'Is VACUUM a command?'", "r::text"),
    ("score", "'How good is it?'", "r::text"),
    ("similarity", "'reclaim storage', 'it rains'", "r::text"),
    ("classify", "'The parcel is late', array['billing', 'delivery', 'delivery of furniture']", "r"),
    ("classify", "'The parcel is late', array['billing', 'delivery'], method => 'embed'", "r"),
    (
        "classify_multi",
        "'The parcel is late', array['billing', 'delivery'], threshold => 0",
        "to_jsonb(r)::text",
    ),
    (
        "extract",
        "'Bello is a dog of 7', array['age: integer', 'is_dog: boolean', 'name']",
        "to_jsonb(r)::text",
    ),
    ("extract", "'It works', '{\"type\": \"boolean\"}'", "to_jsonb(r)::text"),
    ("translate", "'Hello', 'French'", "r"),
    ("analyze_sentiment", "'I love it'", "r"),
    ("mask", "'Ann met Bob. ' || repeat('Nothing happened. ', 30), array['person', 'place']", "r"),
    ("extract_facts", "'VACUUM reclaims storage.', 3", "to_jsonb(r)::text"),
    (
        "deduplicate_facts",
        "'[\"It rains\", {\"text\": \"It rains\"}, \"The sea is wet\"]', 0.99",
        "to_jsonb(r)::text",
    ),
];

#[test]
fn a_row_has_the_answer_of_the_call_and_the_cache_gives_it_again() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for (name, arguments, text) in CALLS {
        let id: Uuid = session.one(&format!("select steadytext_{name}_async({arguments})"));
        let answer = session.answer(id);
        let call = |more: &str| format!("select {text} from steadytext_{name}({arguments}{more}) as r");
        let same = |session: &mut Session, more: &str| {
            let expected: String = session.one(&call(more));
            let same: bool = match text {
                "to_jsonb(r)::text" => {
                    session.one(&format!("select $${expected}$$::jsonb = $${answer}$$::jsonb"))
                }
                _ => expected == answer,
            };
            assert!(same, "{name}: {answer} in the row, {expected} by the call");
        };
        same(&mut session, ", use_cache => false");
        // Of the cache, once the worker has written it down.
        wait_until("the answer is in the cache", || {
            session.one(&format!("select exists (select from steadytext_cache where request_type = '{name}' and response = $${answer}$$)"))
        });
        let id: Uuid = session.one(&format!("select steadytext_{name}_async({arguments})"));
        let again = session.request(id);
        assert_eq!((again.status.as_str(), again.answer.as_ref()), ("completed", Some(&answer)), "{name}");
        same(&mut session, "");
    }
    // A text of several pieces. What the end of the builtin model's context has closed is not kept: another
    // length of the context would lead to another answer.
    let arguments = "'Ann met Bob. ' || repeat('Nothing happened. ', 300), array['person', 'place']";
    let id: Uuid = session.one(&format!("select steadytext_mask_async({arguments})"));
    let answer = session.answer(id);
    assert_eq!(
        session.one::<String>(&format!("select steadytext_mask({arguments}, use_cache => false)")),
        answer
    );
}

#[test]
fn scores_are_json_and_the_categories_of_a_row_are_its_results() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let arguments = "'The parcel is late', array['billing', 'delivery', 'praise']";
    let id: Uuid = session.one(&format!("select steadytext_classify_scores_async({arguments})"));
    session.answer(id);
    let same: bool = session.one(&format!(
        "select q.result::jsonb = r.objects and q.results = r.names
           from steadytext_check_async('{id}') as q,
                (select jsonb_agg(to_jsonb(r)) as objects, array_agg(category) as names
                   from steadytext_classify_scores({arguments}, use_cache => false) as r) as r"
    ));
    assert!(same, "{:?}", session.request(id));
    let id: Uuid =
        session.one(&format!("select steadytext_classify_multi_async({arguments}, threshold => 1)"));
    assert_eq!(session.answer(id), "[]");
    assert!(session.one::<bool>(&format!("select results = '{{}}' from steadytext_check_async('{id}')")));
}

#[test]
fn a_request_is_asked_in_the_words_of_the_moment_when_it_was_made() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let mut other = cluster.session("postgres");
    let call = "select steadytext_if_score('Is VACUUM a command?', use_cache => false)";
    let enqueue = "select steadytext_if_score_async('Is VACUUM a command?', use_cache => false)";
    let usual: f64 = other.one(call);
    // While the worker waits nothing is answered.
    session.run("select steadytext_daemon_stop()");
    let before: Uuid = session.one(enqueue);
    session.run(
        "select steadytext_prompt_create('steadytext/if', 'Say yes, or say no: {{ prompt }}');
         select steadytext_prompt_update('steadytext/if', 'Yes or no? {{ prompt }}')",
    );
    let changed: f64 = other.one(call);
    assert_ne!(usual, changed, "another session has not heard of the prompt");
    let between: Uuid = session.one(enqueue);
    assert_eq!(
        session.one::<String>(&format!(
            "select params->>'template' from steadytext_queue where request_id = '{between}'"
        )),
        "Yes or no? {{ prompt }}"
    );
    session.run("select steadytext_prompt_delete('steadytext/if')");
    assert_eq!(other.one::<f64>(call), usual, "another session has not heard that the prompt is gone");
    let after: Uuid = session.one(enqueue);
    session.run("select steadytext_daemon_start()");
    for (id, expected) in [(before, usual), (between, changed), (after, usual)] {
        assert_eq!(session.answer(id).parse::<f64>().ok(), Some(expected));
    }
}

#[test]
fn a_text_that_is_too_long_fails_its_row_and_leaves_the_others_of_an_array() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id: Uuid = session.one("select steadytext_if_async(repeat('word ', 50000))");
    let request = session.wait_for_end(id);
    assert_eq!(
        (request.status.as_str(), request.error_code.as_deref()),
        ("failed", Some("54000")),
        "{request:?}"
    );
    let answers: Vec<Option<bool>> = session.one(
        "select steadytext_if(array['one', repeat('word ', 50000), null, 'two'], use_cache => false, on_error => 'null')",
    );
    assert!(matches!(answers[..], [Some(_), None, None, Some(_)]), "{answers:?}");
}

#[test]
fn parallel_plans_say_the_same() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create table ticket as select i, 'ticket ' || i as body from generate_series(1, 100) as i;
         alter table ticket set (parallel_workers = 2);
         analyze ticket;
         create function plan_of(statement text) returns text language plpgsql as $$
         declare line text; plan text := '';
         begin
             for line in execute 'explain ' || statement loop plan := plan || line; end loop;
             return plan;
         end $$;",
    );
    let sum = "select sum(steadytext_if_score(body, use_cache => false)::numeric), min(steadytext_classify(body, array['a', 'b'], use_cache => false)) from ticket";
    let answer = |session: &mut Session| -> (bool, String) {
        let plan: String = session.one(&format!("select plan_of($${sum}$$)"));
        (plan.contains("Gather"), session.one(&format!("select t::text from ({sum}) as t")))
    };
    session.run("set max_parallel_workers_per_gather = 0");
    let (is_parallel, alone) = answer(&mut session);
    assert!(!is_parallel);
    session.run(
        "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0;
         set min_parallel_table_scan_size = 0",
    );
    let (is_parallel, together) = answer(&mut session);
    assert!(is_parallel);
    assert_eq!(alone, together);
}
