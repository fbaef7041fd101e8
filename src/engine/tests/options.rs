//! The choice of tokens beyond temperature and seed: bias and penalties, on all backends; the event of the
//! first token; and texts as tokens.

use crossbeam_channel::unbounded;
use steadytext_engine::{
    Chunk, Chunking, Config, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Penalties,
    PromptLookup, Reply, Request, Sampling, Strategy, Work,
};

use crate::PATIENCE;

fn engine(config: Config) -> Engine {
    Engine::start(Config { threads: 2, nice: 0, ..config }).unwrap()
}

/// All events of some requests to the builtin model, in the order of the requests.
fn run(engine: &Engine, works: &[Work]) -> Vec<Vec<EventKind>> {
    let (sender, events) = unbounded();
    for (key, work) in (0..).zip(works) {
        let (model, work) = (ModelSource::Builtin, work.clone());
        engine.submit(Request { key, model, salt: 0, dedup_key: None, work }, Reply::new(sender.clone()));
    }
    let mut told: Vec<Vec<EventKind>> = vec![Vec::new(); works.len()];
    let mut ended = 0;
    while ended < works.len() {
        let Event { key, kind, .. } = events.recv_timeout(PATIENCE).unwrap();
        ended += usize::from(matches!(kind, EventKind::Done(_) | EventKind::Failed(_)));
        told[key as usize].push(kind);
    }
    told
}

fn outputs(engine: &Engine, works: &[Work]) -> Vec<Output> {
    let last = |told: Vec<EventKind>| match told.into_iter().last() {
        Some(EventKind::Done(output)) => output,
        other => panic!("{other:?}"),
    };
    run(engine, works).into_iter().map(last).collect()
}

fn output(engine: &Engine, work: Work) -> Output {
    outputs(engine, &[work]).remove(0)
}

fn generate(prompt: &str, sampling: Sampling) -> Work {
    Work::Generate(Generate { prompt: prompt.to_owned(), max_tokens: 40, sampling, ..Generate::default() })
}

fn penalised(repeat: f32, presence: f32, frequency: f32) -> Sampling {
    Sampling { penalties: Penalties { repeat, presence, frequency }, ..Sampling::default() }
}

fn text(output: &Output) -> &str {
    match output {
        Output::Text { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

fn tokens(engine: &Engine, text: &str) -> Vec<u32> {
    match output(engine, Work::Tokenize { text: text.to_owned() }) {
        Output::Tokens(tokens) => tokens,
        other => panic!("{other:?}"),
    }
}

#[test]
fn penalties_and_bias_give_the_same_text_alone_in_a_batch_with_guesses_and_in_any_slices() {
    let prompt = "again and again and again and again and again and again and";
    let bias = Sampling { logit_bias: vec![(300, 2.5), (17, -4.0)], ..Sampling::default() };
    let hot = Sampling { temperature: 0.8, seed: 3, top_p: 0.9, ..penalised(1.3, 0.2, 0.1) };
    let samplings = [
        penalised(1.0, 0.0, 20.0),
        penalised(1.0, 20.0, 0.0),
        penalised(20.0, 0.0, 0.0),
        bias,
        hot,
        Sampling::default(),
    ];
    let works: Vec<Work> = samplings.iter().map(|sampling| generate(prompt, sampling.clone())).collect();
    let usual = engine(Config { prompt_lookup: PromptLookup::Off, max_running: 1, ..Config::default() });
    let alone: Vec<Output> = works.iter().map(|work| output(&usual, work.clone())).collect();
    for penalised in &alone[..3] {
        assert_ne!(text(penalised), text(&alone[5]), "a penalty that changes nothing");
    }
    let guessing =
        Config { prompt_lookup: PromptLookup::On, prefill_rows: vec![1, 7, 3], ..Config::default() };
    assert_eq!(outputs(&engine(guessing), &works), alone);
    assert_eq!(outputs(&engine(Config { prefix_reuse: false, ..Config::default() }), &works), alone);
}

#[test]
fn with_the_highest_penalty_no_token_comes_twice() {
    let engine = engine(Config::default());
    let work = Work::Generate(Generate {
        prompt: "What does VACUUM do?".to_owned(),
        max_tokens: 20,
        sampling: penalised(1.0, 100.0, 0.0),
        ..Generate::default()
    });
    let mut said = tokens(&engine, text(&output(&engine, work)));
    let count = said.len();
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), count);
}

#[test]
fn a_bias_is_for_tokens_of_the_model_and_within_its_limits() {
    let engine = engine(Config::default());
    let refused = |logit_bias: Vec<(u32, f32)>| {
        let sampling = Sampling { logit_bias, ..Sampling::default() };
        match run(&engine, &[generate("x", sampling)]).remove(0).pop() {
            Some(EventKind::Failed(Error::InvalidRequest(reason))) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(vec![(u32::MAX, 1.0)]).contains("logit_bias names token"));
    assert!(refused(vec![(1, 101.0)]).contains("bias"));
    assert!(refused(vec![(1, f32::NAN)]).contains("bias"));
    assert!(refused((0..1025).map(|token| (token, 1.0)).collect()).contains("1,024"));
    for sampling in [penalised(0.0, 0.0, 0.0), penalised(f32::NAN, 0.0, 0.0), penalised(1.0, 101.0, 0.0)] {
        let told = run(&engine, &[generate("x", sampling)]).remove(0);
        assert!(matches!(told.last(), Some(EventKind::Failed(Error::InvalidRequest(_)))), "{told:?}");
    }
}

#[test]
fn the_first_token_is_told_once_with_what_did_not_have_to_be_computed() {
    let engine = engine(Config::default());
    let prompt = "word ".repeat(300);
    let cached = |max_tokens| {
        let work = Work::Generate(Generate { prompt: prompt.clone(), max_tokens, ..Generate::default() });
        let told = run(&engine, &[work]).remove(0);
        let started = told.iter().position(|kind| matches!(kind, EventKind::Started { .. })).unwrap();
        let first: Vec<(usize, usize)> = told
            .iter()
            .enumerate()
            .filter_map(|(at, kind)| match kind {
                EventKind::FirstToken { cached_tokens } => Some((at, *cached_tokens)),
                _ => None,
            })
            .collect();
        let EventKind::Started { prompt_tokens, .. } = told[started] else { panic!("{told:?}") };
        let [(at, cached)] = first[..] else { panic!("{told:?}") };
        assert_eq!(at, started + 1, "before any progress");
        assert!(cached < prompt_tokens);
        (cached, prompt_tokens)
    };
    assert_eq!(cached(5).0, 0);
    let (again, prompt_tokens) = cached(1);
    assert!(again > 0 && again + 64 >= prompt_tokens - 1, "{again} of {prompt_tokens}: all whole blocks");
}

#[test]
fn long_texts_are_tokenized_and_cut_beside_what_is_being_generated() {
    let engine = engine(Config::default());
    let long = "A sentence of some words. ".repeat(4000);
    let chunking = |text: &str| {
        Work::Chunk(Chunking {
            text: text.to_owned(),
            size: 50,
            overlap: 10,
            strategy: Strategy::Sentence,
            beside: None,
        })
    };
    let works = [
        generate("What does VACUUM do?", Sampling::default()),
        chunking(&long),
        Work::Tokenize { text: long.clone() },
    ];
    let found = outputs(&engine, &works);
    let (Output::Chunks(chunks), Output::Tokens(all)) = (&found[1], &found[2]) else { panic!("{found:?}") };
    assert!(chunks.len() > all.len() / 50);
    let Chunk { start, bytes, characters_before, tokens: count } = chunks[chunks.len() - 1];
    assert_eq!((start + bytes, characters_before), (long.trim_end().len(), start));
    assert_eq!(tokens(&engine, &long[start..start + bytes]).len(), count);
    assert_eq!(
        outputs(&engine, &[chunking(""), Work::Tokenize { text: String::new() }]),
        [Output::Chunks(Vec::new()), Output::Tokens(Vec::new()),]
    );
    let wrong = Work::Chunk(Chunking {
        text: String::new(),
        size: 0,
        overlap: 0,
        strategy: Strategy::Token,
        beside: None,
    });
    assert!(matches!(run(&engine, &[wrong])[0][..], [EventKind::Failed(Error::InvalidRequest(_))]));
}
