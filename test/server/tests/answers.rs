//! The answers themselves: unit vectors, and the same bytes for the same request, whatever else happens.

use steadytext_test_server::{Cluster, Session, slow_model};
use uuid::Uuid;

const PROMPTS: [&str; 4] = [
    "What does VACUUM do?",
    "What is the syntax of CREATE INDEX?",
    "Grüße aus München 🐘",
    "Write a haiku about PostgreSQL",
];

fn ask(session: &mut Session) -> Vec<String> {
    let mut ids: Vec<Uuid> = PROMPTS
        .iter()
        .map(|prompt| session.generate(prompt, "max_tokens => 24, use_cache => false"))
        .collect();
    ids.extend(PROMPTS.iter().map(|prompt| {
        session.generate(prompt, "max_tokens => 24, use_cache => false, temperature => 0.8, seed => 7")
    }));
    ids.extend(PROMPTS.iter().map(|text| session.embed(text, "use_cache => false")));
    ids.into_iter().map(|id| session.answer(id)).collect()
}

#[test]
fn the_same_request_gets_the_same_bytes_beside_others_and_after_a_restart() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let first = ask(&mut session);
    assert_eq!(first, ask(&mut session));
    slow_model(&cluster, &mut session);
    for i in 0..6 {
        session.generate(&format!("noise {i}"), "model => 'slow', max_tokens => 150");
        session.generate(&"much noise ".repeat(30 * i + 1), "max_tokens => 60");
    }
    assert_eq!(first, ask(&mut session), "beside others");
    drop(session);
    cluster.restart();
    assert_eq!(first, ask(&mut cluster.session("postgres")), "after a restart");
}

#[test]
fn different_seeds_and_parameters_give_different_answers() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let mut answers: Vec<String> = (0..4)
        .map(|seed| {
            let id =
                session.generate(PROMPTS[0], format!("max_tokens => 24, temperature => 1.5, seed => {seed}"));
            session.answer(id)
        })
        .collect();
    answers.sort();
    answers.dedup();
    assert!(answers.len() > 1, "{answers:?}");
    // Greedy decoding draws nothing.
    let greedy = ["seed => 1", "seed => 2"].map(|more| {
        let id = session.generate(PROMPTS[0], format!("max_tokens => 24, use_cache => false, {more}"));
        session.answer(id)
    });
    assert_eq!(greedy[0], greedy[1]);
}

#[test]
fn a_longer_answer_begins_with_the_shorter_one_and_a_stop_string_ends_it() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let [short, long] = [10, 40].map(|tokens| {
        let id = session.generate(PROMPTS[1], format!("max_tokens => {tokens}"));
        session.answer(id)
    });
    assert!(long.starts_with(short.trim_end_matches('\u{fffd}')), "{short:?} {long:?}");
    let characters: Vec<char> = long.chars().collect();
    let stop: String = characters[characters.len() / 2..characters.len() / 2 + 2].iter().collect();
    let id = session
        .query_one("select steadytext_generate_async($1, 40, eos_string => $2)", &[&PROMPTS[1], &stop])
        .expect("it is enqueued")
        .get(0);
    assert_eq!(session.answer(id), long[..long.find(&stop).expect("it was taken from there")]);
}

#[test]
fn an_embedding_is_a_unit_vector_and_close_texts_are_close() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for text in PROMPTS {
        let id = session.embed(text, "");
        session.answer(id);
        let norm: f64 = session.one(&format!("select vector_norm(steadytext_get_async_embedding('{id}'))"));
        assert!((norm - 1.0).abs() < 1e-4, "{norm}");
        assert!(session.one::<bool>(&format!(
            "select steadytext_get_async_result('{id}') = embedding::text and result is null
             from steadytext_queue where request_id = '{id}'"
        )));
    }
    let same = [PROMPTS[0], PROMPTS[0]].map(|text| {
        let id = session.embed(text, "use_cache => false");
        session.answer(id)
    });
    assert_eq!(same[0], same[1]);
}

#[test]
fn batches_answer_in_order_and_an_empty_text_fails_alone() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let ids: Vec<Uuid> =
        session.one("select steadytext_generate_batch_async(array['one', 'two', 'three'], 5)");
    let texts: Vec<Uuid> =
        session.one("select steadytext_embed_batch_async(array['one', '', 'three', null])");
    assert_eq!((ids.len(), texts.len()), (3, 4));
    let single = session.generate("two", "max_tokens => 5, use_cache => false");
    assert_eq!(session.answer(single), session.answer(ids[1]));
    for (i, id) in texts.iter().enumerate() {
        if i % 2 == 0 {
            session.answer(*id);
        } else {
            let request = session.wait_for(*id, "failed");
            assert_eq!(request.error.as_deref(), Some("Text input cannot be empty"));
            assert_eq!((request.error_code.as_deref(), request.retry_count), (Some("P0001"), 0));
        }
    }
    let order: Vec<Uuid> = session
        .query("select request_id from steadytext_check_async_batch($1)", &[&texts])
        .expect("it is known")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(order, texts);
}
