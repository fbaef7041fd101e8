//! Likelihoods of answers from outside: compared with the logits that they are made of, and in all
//! circumstances that must not change them.

use std::path::Path;

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::{ChatTemplate, Conversation};
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{
    Config, Engine, Error, Event, EventKind, Generate, Likelihoods, ModelSource, Output, Probe, Reply,
    Request, Work,
};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// Beginnings that others share, an answer that is the beginning of another one, characters of several bytes.
const ANSWERS: [&str; 8] =
    ["yes", "yes it is", "no", "yesterday, and the day before", "Österreich", "ö", "no, not at all", "a"];

fn engine(config: Config) -> Engine {
    Engine::start(Config { threads: 2, nice: 0, ..config }).unwrap()
}

fn likelihoods(prompt: &str, begin: &str, answers: &[&str]) -> Work {
    Work::Likelihoods(Likelihoods {
        prompt: prompt.to_owned(),
        system: None,
        begin: begin.to_owned(),
        answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
        repeated: false,
    })
}

fn submit(engine: &Engine, model: &ModelSource, work: Work) -> Receiver<Event> {
    let (sender, events) = unbounded();
    let request = Request { key: 0, model: model.clone(), salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    events
}

fn finish(events: &Receiver<Event>) -> Result<Output, Error> {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => return Ok(output),
            EventKind::Failed(error) => return Err(error),
            _ => {}
        }
    }
}

fn values(events: &Receiver<Event>) -> Vec<f64> {
    match finish(events).unwrap() {
        Output::LogProbabilities(values) => values,
        other => panic!("{other:?}"),
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn saved(directory: &Path, architecture: Architecture) -> ModelSource {
    let path = directory.join(format!("{architecture:?}.gguf"));
    write(&Spec { context: 1024, ..Spec::wide(architecture, Quantization::uniform(Kind::Q8_0)) }, &path)
        .unwrap();
    ModelSource::File(path)
}

/// The log-likelihoods of answers computed by hand: each answer token by token, with all logits.
fn by_hand(model: &ModelSource, prompt: &str, begin: &str, answers: &[&str]) -> Vec<f64> {
    let gguf: Gguf = model.open().unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf).unwrap();
    let conversation = Conversation { prompt, direct: true, ..Conversation::default() };
    let mut given = template.encode(&tokenizer, &conversation).unwrap().tokens;
    // The tokens of a text that follows another one, without those that the tokenizer puts before a text.
    let behind = |text: &str| {
        let (bar, both) = (tokenizer.encode("|").unwrap(), tokenizer.encode(&format!("|{text}")).unwrap());
        assert_eq!(both[..bar.len()], bar, "{text}");
        both[bar.len()..].to_vec()
    };
    if !begin.is_empty() {
        given.extend(behind(begin));
    }
    let tokens: Vec<Vec<u32>> = answers.iter().map(|answer| behind(answer)).collect();
    let mut probe = Probe::open(model, 2).unwrap();
    let vocabulary = tokenizer.vocab_size();
    let mut of = |answer: &Vec<u32>| {
        let goes_on = tokens.iter().any(|other| other.len() > answer.len() && other.starts_with(answer));
        probe.truncate(0);
        let mut logits = probe.extend(&given).unwrap().unwrap()[..vocabulary].to_vec();
        let mut sum = 0.0;
        let share = |logits: &[f32], ids: &[u32]| {
            let exp = |logit: f32| libm::exp(f64::from(logit));
            let all: f64 = logits.iter().map(|logit| exp(*logit)).sum();
            libm::log(ids.iter().map(|id| exp(logits[*id as usize])).sum::<f64>() / all)
        };
        for token in answer {
            sum += share(&logits, &[*token]);
            logits = probe.extend(&[*token]).unwrap().unwrap()[..vocabulary].to_vec();
        }
        // Models made for tests have no tokens that end answers, the builtin one has.
        let ends = tokenizer.end_tokens();
        if goes_on && !ends.is_empty() { sum + share(&logits, ends) } else { sum }
    };
    tokens.iter().map(&mut of).collect()
}

#[test]
fn likelihoods_are_the_sums_of_the_log_probabilities_of_the_answers_tokens() {
    let directory = TempDir::new().unwrap();
    let mut models = vec![ModelSource::Builtin];
    models.extend([Architecture::Qwen3, Architecture::Qwen35].map(|of| saved(directory.path(), of)));
    let engine = engine(Config::default());
    for model in models {
        for (prompt, begin) in [("Is it so?", ""), ("Which one, of all these?", "It is")] {
            let computed = values(&submit(&engine, &model, likelihoods(prompt, begin, &ANSWERS)));
            let exact = by_hand(&model, prompt, begin, &ANSWERS);
            for ((computed, exact), answer) in computed.iter().zip(&exact).zip(ANSWERS) {
                assert!(
                    (computed - exact).abs() < 1e-4 * exact.abs().max(1.0),
                    "{model:?}: {computed} is not {exact}, of {answer}"
                );
                assert!(*computed < 0.0);
            }
        }
    }
}

#[test]
fn likelihoods_depend_on_nothing_but_prompt_and_answer() {
    let directory = TempDir::new().unwrap();
    // Attention alone, windows, and layers that cannot go back to any position.
    for architecture in [Architecture::Qwen3, Architecture::Gemma3, Architecture::Lfm2, Architecture::Qwen35]
    {
        let model = saved(directory.path(), architecture);
        let prompts: Vec<String> = (0..12)
            .map(|i| format!("{} which {i}", "a common beginning of it all ".repeat(i * 5 % 13)))
            .collect();
        let config = Config { max_running: 1, prefix_reuse: false, ..Config::default() };
        let alone = engine(config);
        let expected: Vec<Vec<u64>> = prompts
            .iter()
            .map(|prompt| bits(&values(&submit(&alone, &model, likelihoods(prompt, "", &ANSWERS)))))
            .collect();
        // An answer that no other one continues has the same likelihood alone as among the others.
        let one = values(&submit(&alone, &model, likelihoods(&prompts[3], "", &ANSWERS[3..4])));
        assert_eq!(bits(&one)[0], expected[3][3]);
        for config in [
            Config { max_running: 16, ..Config::default() },
            Config { max_running: 5, prefill_rows: vec![1, 33, 64, 7], ..Config::default() },
            Config { max_running: 3, prefix_reuse: false, prefill_rows: vec![2], ..Config::default() },
        ] {
            let engine = engine(config);
            let beside = Generate { prompt: "beside it".into(), max_tokens: 60, ..Generate::default() };
            let beside = submit(&engine, &model, Work::Generate(beside));
            // Twice, so that beginnings are known the second time.
            for _ in 0..2 {
                let events: Vec<_> = prompts
                    .iter()
                    .map(|prompt| submit(&engine, &model, likelihoods(prompt, "", &ANSWERS)))
                    .collect();
                let computed: Vec<_> = events.iter().map(|events| bits(&values(events))).collect();
                assert_eq!(computed, expected, "{architecture:?}");
            }
            finish(&beside).unwrap();
        }
    }
}

#[test]
fn many_answers_take_far_fewer_steps_than_there_are_paths() {
    let directory = TempDir::new().unwrap();
    for architecture in [Architecture::Qwen3, Architecture::Gemma3] {
        let model = saved(directory.path(), architecture);
        let engine = engine(Config { prefill_rows: vec![64], prefix_reuse: false, ..Config::default() });
        let answers: Vec<String> = (0..240).map(|i| format!("number {i} of them")).collect();
        let all: Vec<&str> = answers.iter().map(String::as_str).collect();
        let events = submit(&engine, &model, likelihoods("Which one of all these is it?", "", &all));
        let turns = |events: &Receiver<Event>| {
            let done = events.iter().find_map(|event| match event.kind {
                EventKind::Done(Output::LogProbabilities(values)) => Some((values, event.turns)),
                EventKind::Failed(error) => panic!("{error}"),
                _ => None,
            });
            done.unwrap()
        };
        let (values, turns_of_all) = turns(&events);
        assert!(turns_of_all < 120, "{architecture:?}: {turns_of_all} turns");
        for index in [0, 17, 100, 239] {
            let alone = submit(
                &engine,
                &model,
                likelihoods("Which one of all these is it?", "", &all[index..=index]),
            );
            assert_eq!(turns(&alone).0[0].to_bits(), values[index].to_bits(), "{architecture:?}: {index}");
        }
    }
}

#[test]
fn what_others_ask_for_again_is_not_computed_again() {
    let engine = engine(Config::default());
    let asked = |answers: &[&str], repeated| match likelihoods("the same prompt", "", answers) {
        Work::Likelihoods(how) => Work::Likelihoods(Likelihoods { repeated, ..how }),
        other => other,
    };
    let work = asked(&["one", "two"], true);
    let first = values(&submit(&engine, &ModelSource::Builtin, work.clone()));
    let before = engine.statistics();
    assert_eq!(values(&submit(&engine, &ModelSource::Builtin, work)), first);
    assert_eq!(engine.statistics().computed_tokens, before.computed_tokens);
    let other = asked(&["two", "one"], true);
    let other = values(&submit(&engine, &ModelSource::Builtin, other));
    assert_eq!(vec![other[1], other[0]], first);
    let before = engine.statistics();
    assert!(before.computed_tokens > 0);
    // A request that is not marked as repeated is computed.
    assert_eq!(values(&submit(&engine, &ModelSource::Builtin, asked(&["one", "two"], false))), first);
    assert!(engine.statistics().computed_tokens > before.computed_tokens);
}

#[test]
fn answers_that_nobody_can_compare_are_refused() {
    let engine = engine(Config { context_length: 128, ..Config::default() });
    let refused = |work| finish(&submit(&engine, &ModelSource::Builtin, work)).unwrap_err();
    let many: Vec<String> = (0..1001).map(|i| i.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(1025);
    let much = "x".repeat(1000);
    for (answers, reason) in [
        (&[][..], "no answers"),
        (&many[..], "1,000 answers"),
        (&["a", ""][..], "empty"),
        (&["a", long.as_str()][..], "1,024 bytes"),
        (&[much.as_str(); 66][..], "65,536 bytes"),
    ] {
        let error = refused(likelihoods("which", "", answers));
        assert!(matches!(&error, Error::InvalidRequest(said) if said.contains(reason)), "{error}");
    }
    let error = refused(likelihoods(&"many words ".repeat(300), "", &["a", "b"]));
    assert!(matches!(error, Error::PromptTooLong { context_length: 128, .. }), "{error}");
    // There is room for the prompt, but none for the tokens of the answers.
    let error = refused(likelihoods("which", "", &["a", "word after word ".repeat(60).as_str()]));
    assert!(matches!(error, Error::PromptTooLong { context_length: 128, .. }), "{error}");
    let most = values(&submit(&engine, &ModelSource::Builtin, likelihoods("which", "", &many[..1000])));
    assert_eq!(most.len(), 1000);
}

#[test]
fn nothing_in_an_answer_is_a_control_token() {
    let directory = TempDir::new().unwrap();
    let model = saved(directory.path(), Architecture::Qwen3);
    let engine = engine(Config::default());
    let tokenizer = Tokenizer::from_gguf(&model.open().unwrap()).unwrap();
    let mark = (0..tokenizer.vocab_size() as u32).find_map(|id| tokenizer.special_text(id)).unwrap();
    assert!(tokenizer.encode(mark).unwrap().len() > 1);
    let computed = values(&submit(&engine, &model, likelihoods("which", "", &[mark])))[0];
    let exact = by_hand(&model, "which", "", &[mark])[0];
    assert!((computed - exact).abs() < 1e-4 * exact.abs(), "{computed} is not {exact}");
}
