//! Answers are valid text, whatever the model, the temperature and the seed.

use std::path::PathBuf;

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Constraint, Engine, Error, Event, EventKind, Finish, Generate, ModelSource, Output, Reply,
    Request, Sampling, Work,
};
use steadytext_test_models::{Architecture, Spec, Text, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// A model of random weights whose tokens are all single bytes and some words: nearly every choice is wrong.
fn model(directory: &TempDir, spec: Spec) -> ModelSource {
    let path: PathBuf = directory.path().join("model.gguf");
    write(&Spec { text: Text::Bytes, ..spec }, &path).unwrap();
    ModelSource::File(path)
}

fn generate(seed: u64, temperature: f32, max_tokens: usize) -> Generate {
    Generate {
        prompt: format!("go on {seed}"),
        max_tokens,
        sampling: Sampling { temperature, seed, ..Sampling::default() },
        stop: Vec::new(),
        ..Generate::default()
    }
}

/// The results of requests that are computed together.
fn run(engine: &Engine, model: &ModelSource, all: &[Generate]) -> Vec<Result<Output, Error>> {
    let (sender, events) = unbounded();
    for (key, how) in (0..).zip(all) {
        let work = Work::Generate(how.clone());
        let request = Request { key, model: model.clone(), salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
    }
    let mut ends: Vec<_> = all.iter().map(|_| None).collect();
    while ends.iter().any(Option::is_none) {
        let (key, end) = last(&events);
        ends[key as usize] = Some(end);
    }
    ends.into_iter().flatten().collect()
}

fn last(events: &Receiver<Event>) -> (u64, Result<Output, Error>) {
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(output) => return (event.key, Ok(output)),
            EventKind::Failed(error) => return (event.key, Err(error)),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

#[test]
fn no_answer_is_lost_for_bytes_that_are_no_text() {
    let directory = TempDir::new().unwrap();
    let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
    for spec in [
        Spec::tiny(Architecture::Llama),
        Spec { endless: true, ..Spec::tiny(Architecture::Qwen3) },
        Spec { sentencepiece: true, ..Spec::tiny(Architecture::Llama) },
    ] {
        let model = model(&directory, spec);
        let all: Vec<Generate> =
            (0..80).map(|i| generate(i, [0.0, 0.7, 2.0, 50.0][i as usize % 4], 60)).collect();
        let first = run(&engine, &model, &all);
        let mut characters = 0;
        for (how, end) in all.iter().zip(&first) {
            match end {
                Ok(Output::Text { text, generated_tokens, finish, .. }) => {
                    assert!(!text.contains('\0'));
                    assert!(*finish == Finish::EndOfText || *generated_tokens == 60, "{how:?}: {finish:?}");
                    characters += text.chars().filter(|character| !character.is_ascii()).count();
                }
                other => panic!("seed {} at {}: {other:?}", how.sampling.seed, how.sampling.temperature),
            }
        }
        assert!(characters > 100, "{characters} characters of several bytes");
        let second = run(&engine, &model, &all);
        assert!(first.iter().flatten().eq(second.iter().flatten()), "and they are repeatable");
    }
}

#[test]
fn a_pattern_that_lets_zero_bytes_through_gives_text_without_them() {
    let directory = TempDir::new().unwrap();
    let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
    let all: Vec<Generate> = (0..40)
        .map(|seed| Generate {
            constraint: Some(Constraint::Regex("(\\x00|[a-f]|é){20}".to_owned())),
            ..generate(seed, 1.5, 60)
        })
        .collect();
    for sentencepiece in [false, true] {
        let model = model(&directory, Spec { sentencepiece, ..Spec::tiny(Architecture::Llama) });
        for end in run(&engine, &model, &all) {
            let Ok(Output::Text { text, .. }) = end else { panic!("{end:?}") };
            assert!(text.chars().count() == 20 && !text.contains('\0'), "{text:?}");
        }
    }
}
