//! Options, conversations and what answers took on a live server: the queue beside the synchronous functions.

use steadytext_test_models::Bert;
use steadytext_test_server::{Cluster, Session, encoders, wait_until};
use uuid::Uuid;

/// The usage of a request, as steadytext_check_async shows it.
#[derive(Debug, PartialEq)]
struct Took {
    prompt: Option<i32>,
    cached: Option<i32>,
    generated: Option<i32>,
    finish: Option<String>,
    first_ms: Option<i32>,
}

fn took(session: &mut Session, id: Uuid) -> Took {
    let rows = session
        .query(
            "select prompt_tokens, cached_tokens, generated_tokens, finish_reason, first_token_ms, processing_time_ms
               from steadytext_check_async($1)",
            &[&id],
        )
        .expect("the request is there");
    let row = &rows[0];
    let took = Took {
        prompt: row.get(0),
        cached: row.get(1),
        generated: row.get(2),
        finish: row.get(3),
        first_ms: row.get(4),
    };
    let whole: Option<i32> = row.get(5);
    assert!(took.first_ms <= whole, "{took:?} of {whole:?}");
    took
}

#[test]
fn queued_answers_with_options_are_those_of_the_synchronous_functions() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let messages = r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a tuple?"},
        {"role": "assistant", "content": "A row."}, {"role": "user", "content": "And a page?"}]"#;
    let calls = [
        "generate{}('What is a tuple?', 30, options => '{\"repeat_penalty\": 1.3, \"stop\": [\"the\"]}')".to_owned(),
        "generate{}('What is a tuple?', 30, temperature => 1, seed => 5, system_prompt => 'Be brief.', options => '{\"top_p\": 0.8, \"frequency_penalty\": 0.4}')".to_owned(),
        "generate_regex{}('A word', '[a-z]{3,9}', options => '{\"presence_penalty\": 2}')".to_owned(),
        format!("chat{{}}('{messages}', 20, options => '{{\"top_k\": 30}}')"),
    ];
    for call in &calls {
        let id: Uuid = session.one(&format!("select steadytext_{}", call.replace("{}", "_async")));
        let queued = session.answer(id);
        let at_once: String = session.one(&format!("select steadytext_{}", call.replace("{}", "")));
        assert_eq!(queued, at_once, "{call}");
    }
    let batch: Vec<Uuid> = session.list(
        "select unnest(steadytext_generate_batch_async(array['What is a tuple?', 'What is a page?'], 30, options => '{\"repeat_penalty\": 1.3}'))",
    );
    for (id, prompt) in batch.into_iter().zip(["What is a tuple?", "What is a page?"]) {
        let queued = session.answer(id);
        let call =
            format!("select steadytext_generate('{prompt}', 30, options => '{{\"repeat_penalty\": 1.3}}')");
        assert_eq!(session.one::<String>(&call), queued);
    }
}

#[test]
fn a_request_says_what_it_took_and_one_that_the_cache_has_answered_says_nothing() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let long = "a long beginning that is the same for both ".repeat(20);
    let first = session.generate(&format!("{long} one"), "max_tokens => 5, use_cache => false");
    session.answer(first);
    let first = took(&mut session, first);
    assert_eq!((first.cached, first.generated, first.finish.as_deref()), (Some(0), Some(5), Some("length")));
    let counted: i32 = session.one(&format!("select steadytext_count_tokens('{long} one')"));
    assert!(first.prompt >= Some(counted) && first.first_ms.is_some(), "{first:?}");

    let second = session.generate(&format!("{long} two"), "max_tokens => 5, use_cache => false");
    session.answer(second);
    let second = took(&mut session, second);
    assert!(second.cached >= Some(64) && second.cached < second.prompt, "{second:?}");

    let choice: Uuid = session.one("select steadytext_generate_choice_async('Is it?', array['yes', 'no'])");
    session.answer(choice);
    assert_eq!(took(&mut session, choice).finish.as_deref(), Some("constraint"));

    let embedding = session.embed("some words", "");
    session.answer(embedding);
    let embedding = took(&mut session, embedding);
    assert!(embedding.prompt > Some(0) && embedding.generated.is_none() && embedding.finish.is_none());

    let computed: String = session.one("select steadytext_generate('What is a page?', 5)");
    let nothing = Took { prompt: None, cached: None, generated: None, finish: None, first_ms: None };
    wait_until("the cache has it", || {
        session.one("select steadytext_generate_cached('What is a page?', 5) is not null")
    });
    let cached = session.generate("What is a page?", "max_tokens => 5");
    assert_eq!(session.answer(cached), computed);
    assert_eq!(took(&mut session, cached), nothing);
}

#[test]
fn details_are_computed_anew_and_kept_where_that_is_wanted() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for (use_cache, kept) in [("false", false), ("true", true)] {
        let text: String = session.one(&format!(
            "select text from steadytext_generate_details('What is a tuple?', 7, {use_cache}) where generated_tokens = 7 and total_ms >= first_token_ms"
        ));
        if kept {
            wait_until("the cache has it", || {
                session.one("select steadytext_generate_cached('What is a tuple?', 7) is not null")
            });
        }
        assert_eq!(session.one::<String>("select steadytext_generate('What is a tuple?', 7)"), text);
    }
}

#[test]
fn the_tokenizer_of_any_registered_model_counts_and_cuts() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    encoders(&cluster, &mut session, &Bert::default());
    let name = "folder";
    let text = "Some words to be counted. And some more of them! ".repeat(30);
    let counts: bool = session.one(&format!(
        "select steadytext_count_tokens('{text}', '{name}') = cardinality(steadytext_tokenize('{text}', '{name}'))"
    ));
    assert!(counts);
    for strategy in ["token", "recursive", "sentence", "markdown"] {
        let sound: bool = session.one(&format!(
            "select bool_and(substr('{text}', start_offset, length(chunk)) = chunk and tokens <= 20
                and tokens = steadytext_count_tokens(chunk, '{name}')) and count(*) > 10
               from steadytext_chunk_text('{text}', 20, 5, '{strategy}', '{name}')"
        ));
        assert!(sound, "{strategy}");
    }
}
