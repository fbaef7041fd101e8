//! Summaries through the queue and in groups: what the worker says is what the call says, level by level, and
//! who looks sees how far they are.

use std::fs;

use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Spec};
use steadytext_test_server::{Cluster, Signal, copied_model, wait_until};
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

/// A random model whose prompts end where thoughts begin, and one of whose words is the mark of their end.
fn thinking_model() -> File {
    const WORD: usize = 300;
    let template = "{{ messages[-1].content }}<think>{# </think> #}".to_owned();
    let spec = Spec { endless: true, chat_template: Some(template), ..Spec::tiny(Architecture::Qwen3) };
    let mut made = steadytext_test_models::file(&spec).expect("it is made");
    let mut old = String::new();
    for (key, value) in &mut made.keys {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Strings(tokens)) => {
                old = std::mem::replace(&mut tokens[WORD], "</think>".to_owned());
            }
            ("tokenizer.ggml.token_type", Value::I32s(types)) => types[WORD] = 4,
            ("tokenizer.ggml.merges", Value::Strings(merges)) => merges.retain(|merge| {
                let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
                left != old && right != old && format!("{left}{right}") != old
            }),
            _ => {}
        }
    }
    made
}

/// Its thoughts are no part of a summary, and of a part of a text nothing would be left.
#[test]
fn a_model_that_thinks_until_its_tokens_are_used_up_gives_an_error_and_no_empty_summary() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let path = cluster.directory().join("thinker.gguf");
    let model = thinking_model();
    model.write(&mut fs::File::create(&path).expect("a new file")).expect("it is written");
    copied_model(&cluster, &mut session, "thinker", &path);
    let thought: String = session.one("select steadytext_generate('a text', 128, model => 'thinker')");
    assert_eq!(thought, "", "it thinks all the time");
    for text in ["'VACUUM reclaims storage'", LONG] {
        let error = session
            .batch_execute(&format!("select steadytext_summarize_text({text}, model => 'thinker')"))
            .expect_err("there is no summary");
        let error = error.as_db_error().expect("the server's error");
        assert_eq!(error.code().code(), "54000");
        assert!(error.message().ends_with("tokens without a word of a summary"), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("does not think")), "{error:?}");
        let id: Uuid =
            session.one(&format!("select steadytext_summarize_text_async({text}, model => 'thinker')"));
        let request = session.wait_for_end(id);
        assert_eq!((request.status.as_str(), request.attempt), ("failed", 1), "{request:?}");
        assert_eq!(request.error_code.as_deref(), Some("54000"));
    }
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
