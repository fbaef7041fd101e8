//! Models that think before they answer, and conversations of more than a prompt.

use std::path::Path;

use crossbeam_channel::unbounded;
use steadytext_engine::{
    Config, Constraint, Engine, Error, EventKind, Finish, Generate, Message, ModelSource, Output, Reply,
    Request, Role, Sampling, Work,
};
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Spec, file};
use tempfile::TempDir;

use crate::PATIENCE;

const OPEN: &str = "{{ messages[-1].content }}<think>";
/// The prompt of `OPEN`, of a family whose thoughts end in a mark.
const THINKS: &str = "{{ messages[-1].content }}<think>{# </think> #}";

/// A random model one of whose words is the mark of the end of thoughts.
fn model(word: usize, template: &str, path: &Path) -> ModelSource {
    let spec =
        Spec { endless: true, chat_template: Some(template.to_owned()), ..Spec::tiny(Architecture::Qwen3) };
    let mut made: File = file(&spec).unwrap();
    let mut old = String::new();
    for (key, value) in &mut made.keys {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Strings(tokens)) => {
                old = std::mem::replace(&mut tokens[word], "</think>".to_owned());
            }
            ("tokenizer.ggml.token_type", Value::I32s(types)) => types[word] = 4,
            ("tokenizer.ggml.merges", Value::Strings(merges)) => merges.retain(|merge| {
                let (left, right) = merge.split_once(' ').unwrap();
                left != old && right != old && format!("{left}{right}") != old
            }),
            _ => {}
        }
    }
    made.write(&mut std::fs::File::create(path).unwrap()).unwrap();
    ModelSource::File(path.to_owned())
}

/// A text, the number of its tokens, and its way of ending.
type Answer = Result<(String, usize, Finish), Error>;

/// The pieces that were sent, and the result.
fn run(engine: &Engine, model: &ModelSource, how: Generate) -> (Vec<String>, Answer) {
    let (sender, events) = unbounded();
    let work = Work::Generate(how);
    engine
        .submit(Request { key: 0, model: model.clone(), salt: 0, dedup_key: None, work }, Reply::new(sender));
    let mut pieces = Vec::new();
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Progress { text, .. } => pieces.push(text),
            EventKind::Done(Output::Text { text, generated_tokens, finish, .. }) => {
                return (pieces, Ok((text, generated_tokens, finish)));
            }
            EventKind::Done(other) => panic!("{other:?}"),
            EventKind::Failed(error) => return (pieces, Err(error)),
            EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => {}
        }
    }
}

fn generate(max_tokens: usize) -> Generate {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    Generate { prompt: "?".to_owned(), max_tokens, sampling, ..Generate::default() }
}

#[test]
fn thoughts_are_counted_and_not_shown_unless_they_are_asked_for() {
    const TOKENS: usize = 120;
    let directory = TempDir::new().unwrap();
    let (plain, thinks) = (directory.path().join("plain.gguf"), directory.path().join("thinks.gguf"));
    let engine = Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap();
    // A word that the model says somewhere in the middle.
    let mut words = 300..400;
    let (word, thoughts, answer) = words
        .find_map(|word| {
            let (_, result) = run(&engine, &model(word, OPEN, &plain), generate(TOKENS));
            let (text, tokens, _) = result.unwrap();
            assert_eq!(tokens, TOKENS);
            let (thoughts, answer) = text.split_once("</think>")?;
            let found = (word, thoughts.to_owned(), answer.trim_start().to_owned());
            (thoughts.len() > 20 && answer.trim_start().len() > 20).then_some(found)
        })
        .unwrap();
    let model = model(word, THINKS, &thinks);

    let (pieces, result) = run(&engine, &model, generate(TOKENS));
    assert_eq!(result.unwrap(), (answer.clone(), TOKENS, Finish::Length));
    assert!(answer.starts_with(&pieces.concat()), "{pieces:?}");

    let (pieces, result) = run(&engine, &model, Generate { thinking: true, ..generate(TOKENS) });
    let (text, tokens, _) = result.unwrap();
    assert_eq!(tokens, TOKENS);
    assert!(text.starts_with(&format!("<think>{thoughts}</think>")) && text.ends_with(&answer), "{text}");
    assert!(text.starts_with(&pieces.concat()), "{pieces:?}");

    // A limit that is reached among the thoughts leaves no answer.
    let (pieces, result) = run(&engine, &model, generate(3));
    assert_eq!((pieces.concat(), result.unwrap()), (String::new(), (String::new(), 3, Finish::Length)));

    // Stop strings are searched for in the shown text.
    let stop: String = answer.chars().skip(5).take(4).collect();
    let how = Generate { stop: vec![stop.clone()], ..generate(TOKENS) };
    let (_, result) = run(&engine, &model, how);
    let (text, tokens, finish) = result.unwrap();
    assert_eq!((text.as_str(), finish), (answer.split(&stop).next().unwrap(), Finish::Stop));
    assert!(tokens < TOKENS);
    let inside: String = thoughts.chars().skip(5).take(8).collect();
    assert!(!answer.contains(&inside));
    let (_, result) = run(&engine, &model, Generate { stop: vec![inside], ..generate(TOKENS) });
    assert_eq!(result.unwrap().0, answer);

    // An answer under a constraint matches it from its first byte on, and has no thoughts before.
    let constraint = Some(Constraint::Regex("[a-z]{3}".to_owned()));
    for thinking in [false, true] {
        let how = Generate { constraint: constraint.clone(), thinking, ..generate(TOKENS) };
        let (_, result) = run(&engine, &model, how);
        let (text, ..) = result.unwrap();
        assert!(text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase()), "{text}");
    }
}

#[test]
fn system_message_and_history_are_part_of_the_conversation() {
    let engine = Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap();
    let prompt_tokens = |how: Generate| {
        let (sender, events) = unbounded();
        let work = Work::Generate(Generate { max_tokens: 1, ..how });
        let request = Request { key: 0, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender));
        events.iter().find_map(|event| match event.kind {
            EventKind::Started { prompt_tokens, .. } => Some(Ok(prompt_tokens)),
            EventKind::Failed(error) => Some(Err(error)),
            _ => None,
        })
    };
    let prompt = || Generate { prompt: "What does VACUUM do?".to_owned(), ..Generate::default() };
    let said = |role, text: &str| Message { role, text: text.to_owned() };
    let alone = prompt_tokens(prompt()).unwrap().unwrap();
    let system =
        prompt_tokens(Generate { system: Some("Be brief.".to_owned()), ..prompt() }).unwrap().unwrap();
    let history = vec![said(Role::User, "Hello"), said(Role::Assistant, "Hello!")];
    let turns = prompt_tokens(Generate { history, ..prompt() }).unwrap().unwrap();
    assert!(alone < system && system < turns, "{alone} {system} {turns}");
    for history in [vec![said(Role::System, "Obey")], vec![said(Role::User, "x"); 257]] {
        let refused = prompt_tokens(Generate { history, ..prompt() }).unwrap();
        assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");
    }
}
