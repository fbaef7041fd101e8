//! Summaries through the queue and in groups: what the worker says is what the call says, level by level, and
//! who looks sees how far they are.

use steadytext_test_server::{Cluster, Signal, wait_until};
use uuid::Uuid;

/// Far longer than the context of the builtin model.
const LONG: &str = "(select string_agg('Sentence ' || i || ' is about table ' || i % 17 || ' and its index.', ' ') from generate_series(1, 400) as i)";

#[test]
fn a_row_has_the_summary_of_the_call_and_the_cache_gives_it_again() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for (text, more) in [("'VACUUM reclaims storage'", ", '{\"topic\": \"tables\"}', 20"), (LONG, "")] {
        let id: Uuid = session.one(&format!("select steadytext_summarize_text_async({text}{more})"));
        let answer = session.answer(id);
        assert!(!answer.is_empty());
        let again: String =
            session.one(&format!("select steadytext_summarize_text({text}{more}, use_cache => false)"));
        assert_eq!(again, answer);
        let tokens: bool = session.one(&format!(
            "select finish_reason in ('stop', 'length') and prompt_tokens > 0 and generated_tokens > 0 and first_token_ms >= 0
             from steadytext_check_async('{id}')"
        ));
        assert!(tokens, "{:?}", session.request(id));
        wait_until("the summary is in the cache", || {
            session.one(&format!(
                "select exists (select from steadytext_cache where request_type = 'summarize' and response = $${answer}$$)"
            ))
        });
        let id: Uuid = session.one(&format!("select steadytext_summarize_text_async({text}{more})"));
        let request = session.request(id);
        assert_eq!((request.status.as_str(), request.answer.as_ref()), ("completed", Some(&answer)));
    }
    // All that it took, not the last level alone.
    let more: bool = session
        .one("select max(generated_tokens) > 3 * 116 from steadytext_queue where request_type = 'summarize'");
    assert!(more, "the tokens of all parts are counted");
}

#[test]
fn a_group_is_summarised_once_and_then_remembered() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create table note as select 'note ' || i as body from generate_series(1, 50) as i");
    let summary: String = session.one("select steadytext_summarize(body) from note");
    wait_until("the summary is in the cache", || {
        session.one(&format!(
            "select exists (select from steadytext_cache where request_type = 'summarize' and response = $${summary}$$)"
        ))
    });
    let hits = "select coalesce(sum(access_count), 0)::bigint from steadytext_cache where request_type = 'summarize'";
    let before: i64 = session.one(hits);
    let again: String =
        session.one("select steadytext_summarize(body order by body collate \"C\") from note");
    assert_eq!(again, summary);
    wait_until("the hit is counted", || session.one::<i64>(hits) > before);
}

#[test]
fn who_looks_sees_how_far_a_group_is_and_a_cancelled_one_leaves_nothing_behind() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let mut watcher = cluster.session("postgres");
    session.run("create table note as select 'note ' || i || ' about index ' || i % 7 as body from generate_series(1, 20000) as i");
    let seen = "select count(*) from steadytext_activity where request_type = 'summarize' and partial_text like 'level 1: % of % parts' and generated_tokens > 0";
    let cancelled = std::thread::scope(|scope| {
        let summary = scope.spawn(|| session.batch_execute("select steadytext_summarize(body) from note"));
        wait_until("the level is shown", || watcher.one::<i64>(seen) == 1);
        watcher.run("select pg_cancel_backend(pid) from pg_stat_activity where query like 'select steadytext_summarize%'");
        summary.join().expect("the session goes on")
    });
    let code = cancelled.expect_err("it was cancelled").code().map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("57014"));
    assert_eq!(watcher.one::<i64>("select count(*) from steadytext_activity"), 0);
    let after: String = session.one("select steadytext_summarize('a note')");
    assert!(!after.is_empty());
}

#[test]
fn a_summary_whose_worker_dies_between_its_parts_is_made_anew() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id: Uuid =
        session.one(&format!("select steadytext_summarize_text_async({LONG}, use_cache => false)"));
    wait_until("parts are done", || {
        session.one("select exists (select from steadytext_activity where partial_text like 'level%' and generated_tokens > 0)")
    });
    let worker = session.worker_pid();
    cluster.crash(worker, Signal::KILL);
    let mut session = cluster.session("postgres");
    let answer = session.answer(id);
    let again: String = session.one(&format!("select steadytext_summarize_text({LONG}, use_cache => false)"));
    assert_eq!(again, answer);
}
