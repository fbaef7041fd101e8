//! Requests that have to match a constraint, from outside.
#![allow(clippy::print_stdout, reason = "it shows what it measures")]

mod conforms;
mod made_up;
mod nasty;
mod random;
mod wild;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conforms::conforms;
use crossbeam_channel::{Receiver, Sender, unbounded};
use random::Random;
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Error, Event, EventKind, Finish, Generate, ModelSource, Output, Reply,
    Request, Sampling, Ticket, Work,
};

use crate::PATIENCE;

fn engine(config: Config) -> Engine {
    Engine::start(Config { nice: 0, ..config }).unwrap()
}

fn constrained(prompt: &str, max_tokens: usize, constraint: Constraint) -> Generate {
    let (prompt, sampling) = (prompt.to_owned(), Sampling::default());
    Generate {
        prompt,
        max_tokens,
        sampling,
        stop: Vec::new(),
        constraint: Some(constraint),
        ..Generate::default()
    }
}

fn submit(engine: &Engine, key: usize, how: &Generate, to: &Sender<Event>) -> Ticket {
    let (key, work) = (key as u64, Work::Generate(how.clone()));
    let request = Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(to.clone()))
}

/// The last event of the next request that ends.
fn last(events: &Receiver<Event>) -> (usize, Result<Output, Error>) {
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(output) => return (event.key as usize, Ok(output)),
            EventKind::Failed(error) => return (event.key as usize, Err(error)),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

/// Runs all requests, `together` at a time, and returns their results.
fn run(engine: &Engine, requests: &[Generate], together: usize) -> Vec<Result<Output, Error>> {
    let (sender, events) = unbounded();
    let mut results: Vec<_> = requests.iter().map(|_| None).collect();
    let mut submitted = 0;
    for ended in 0..requests.len() {
        while submitted < requests.len().min(ended + together) {
            submit(engine, submitted, &requests[submitted], &sender);
            submitted += 1;
        }
        let (key, result) = last(&events);
        assert!(results[key].replace(result).is_none(), "two ends");
    }
    results.into_iter().flatten().collect()
}

fn text(output: &Output) -> (&str, usize, Finish) {
    match output {
        Output::Text { text, generated_tokens, finish, .. } => (text, *generated_tokens, *finish),
        _ => panic!("no text"),
    }
}

fn matches(text: &str, constraint: &Constraint) -> bool {
    match constraint {
        Constraint::Choice(choices) => choices.iter().any(|choice| choice == text),
        Constraint::Regex(pattern) => {
            regex::Regex::new(&format!("\\A(?:{pattern})\\z")).unwrap().is_match(text)
        }
        Constraint::Json(schema) => {
            let schema = serde_json::from_str(schema).unwrap();
            serde_json::from_str(text).is_ok_and(|document| conforms(&document, &schema, &schema))
        }
    }
}

/// Requests whose answers have to match generated constraints.
fn five_hundred(max_tokens: usize) -> Vec<Generate> {
    let mut random = Random(1);
    let request = |i| {
        let how = constrained(&format!("Number {i}"), max_tokens, made_up::constraint(&mut random));
        let temperature = if i % 3 == 0 { 0.9 } else { 0.0 };
        Generate { sampling: Sampling { temperature, seed: i, ..Sampling::default() }, ..how }
    };
    (0..500).map(request).collect()
}

#[test]
fn five_hundred_made_up_constraints_hold_or_say_why_not() {
    let engine = engine(Config { threads: 2, ..Config::default() });
    let requests = five_hundred(120);
    let (mut done, mut refused, mut mismatched, mut long) = (0, 0, 0, 0);
    for (how, result) in requests.iter().zip(run(&engine, &requests, 16)) {
        let constraint = how.constraint.as_ref().unwrap();
        match result {
            Ok(output) => {
                let (text, tokens, _) = text(&output);
                assert!(matches(text, constraint), "{text:?} does not match {constraint:?}");
                assert!(tokens <= 120);
                done += 1;
            }
            Err(Error::InvalidRequest(reason)) => {
                assert!(reason.contains("cannot be followed: "), "{reason}");
                println!("refused: {reason}");
                refused += 1;
            }
            Err(Error::TooFewTokens { needed, max_tokens: 120 }) => {
                assert!(needed > 120);
                long += 1;
            }
            Err(Error::Mismatch { reason }) => {
                println!("mismatch: {reason} with {constraint:?}");
                mismatched += 1;
            }
            Err(error) => panic!("{error} with {constraint:?}"),
        }
    }
    println!("done {done}, too long {long}, refused {refused}, mismatched {mismatched}");
    assert_eq!(done + long + refused + mismatched, 500);
    assert!(done > 480, "{done} done");
    assert!(mismatched <= 10, "{mismatched} were guided wrongly");
}

/// With a limit of one token, the error gives the number of tokens of the shortest answer.
#[test]
fn five_hundred_made_up_constraints_complete_with_few_tokens_more_than_they_need() {
    let engine = engine(Config { threads: 2, ..Config::default() });
    let needed = run(&engine, &five_hundred(1), 16).into_iter().map(|result| match result {
        Err(Error::TooFewTokens { needed, max_tokens: 1 }) => needed,
        // Some constraints have answers of one token.
        Ok(_) | Err(Error::Mismatch { .. }) => 1,
        Err(error) => panic!("{error}"),
    });
    let more = needed.zip(five_hundred(0));
    let requests: Vec<Generate> =
        more.map(|(needed, how)| Generate { max_tokens: needed + 8, ..how }).collect();
    let (mut last, mut mismatched) = (0, 0);
    for (how, result) in requests.iter().zip(run(&engine, &requests, 16)) {
        let constraint = how.constraint.as_ref().unwrap();
        match result {
            Ok(output) => {
                let (text, tokens, _) = text(&output);
                assert!(matches(text, constraint), "{text:?} does not match {constraint:?}");
                assert!(tokens <= how.max_tokens);
                last += usize::from(tokens == how.max_tokens);
            }
            Err(Error::Mismatch { .. }) => mismatched += 1,
            Err(error) => panic!("{error} with {constraint:?}, {} tokens", how.max_tokens),
        }
    }
    assert!(last > 50, "{last} have come to the limit");
    assert!(mismatched <= 10, "{mismatched} were guided wrongly");
}

#[test]
fn the_same_constraint_gives_the_same_bytes_alone_and_among_others() {
    let mut random = Random(7);
    let requests: Vec<Generate> = (0..40)
        .map(|i| {
            let how =
                constrained(&"some words ".repeat(1 + i * 7 % 30), 60, made_up::constraint(&mut random));
            let temperature = if i % 2 == 0 { 0.0 } else { 1.1 };
            Generate { sampling: Sampling { temperature, seed: 5, top_k: 40, ..Sampling::default() }, ..how }
        })
        .collect();
    let shown = |results: Vec<Result<Output, Error>>| -> Vec<String> {
        results.into_iter().map(|result| format!("{result:?}")).collect()
    };
    let alone = Config { threads: 1, max_running: 1, prefix_reuse: false, ..Config::default() };
    let expected = shown(run(&engine(alone), &requests, 1));
    for (threads, together, prefill_rows) in [(2, 16, vec![]), (3, 7, vec![1]), (2, 40, vec![13, 1, 64])] {
        let config = Config { threads, max_running: together, prefill_rows, ..Config::default() };
        let engine = engine(config);
        assert!(
            shown(run(&engine, &requests, together)) == expected,
            "{threads} threads, {together} together"
        );
        assert!(shown(run(&engine, &requests, 3)) == expected, "once more, compiled before");
    }
}

#[test]
fn too_few_tokens_are_a_failure_before_the_first_and_just_enough_are_not() {
    let engine = engine(Config::default());
    let schema =
        r#"{"type": "object", "properties": {"a": {"type": "string", "minLength": 50}}, "required": ["a"]}"#;
    // Each request asks for a long answer.
    let requests = |max_tokens: [usize; 4]| {
        [
            constrained("x", max_tokens[0], Constraint::Json(schema.to_owned())),
            constrained(
                "x",
                max_tokens[1],
                Constraint::Json(r#"{"const": "a text that is fixed"}"#.to_owned()),
            ),
            constrained("x", max_tokens[2], Constraint::Regex("(abc)+x".to_owned())),
            constrained("x", max_tokens[3], Constraint::Choice(vec!["so long a text".to_owned()])),
        ]
    };
    let needed = run(&engine, &requests([1; 4]), 4).into_iter().map(|result| match result {
        Err(Error::TooFewTokens { needed, max_tokens: 1 }) => needed,
        other => panic!("{other:?}"),
    });
    let needed: [usize; 4] = needed.collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(engine.statistics().computed_tokens, 0);
    for result in run(&engine, &requests(needed.map(|needed| needed - 1)), 4) {
        assert!(matches!(result, Err(Error::TooFewTokens { .. })), "{result:?}");
    }
    let enough = requests(needed);
    for (how, result) in enough.iter().zip(run(&engine, &enough, 4)) {
        let output = result.unwrap();
        let (text, tokens, _) = text(&output);
        let Some(constraint) = &how.constraint else { unreachable!() };
        match constraint {
            Constraint::Json(schema) if schema.contains("minLength") => {
                let document: serde_json::Value = serde_json::from_str(text).unwrap();
                assert!(document["a"].as_str().unwrap().chars().count() >= 50, "{text}");
            }
            constraint => assert!(matches(text, constraint), "{text}"),
        }
        assert_eq!(tokens, how.max_tokens, "{text}");
    }
}

#[test]
fn an_answer_that_its_limit_has_closed_says_so_and_whether_the_context_was_short() {
    let ask = |context_length: usize, max_tokens: usize| {
        let engine = engine(Config { context_length, ..Config::default() });
        let schema = Constraint::Json(r#"{"type": "string", "maxLength": 200}"#.to_owned());
        run(&engine, &[constrained("What does VACUUM do?", max_tokens, schema)], 1).remove(0)
    };
    let Err(Error::PromptTooLong { prompt_tokens, .. }) = ask(2, 250) else { panic!("it fits") };
    let whole = ask(prompt_tokens + 250, 250).unwrap();
    let (_, tokens, finish) = text(&whole);
    assert_eq!(finish, Finish::Complete);
    assert_eq!(ask(prompt_tokens + tokens, tokens).unwrap(), whole, "just enough");
    let closed = ask(0, tokens - 1).unwrap();
    assert!(
        matches!(closed, Output::Text { finish: Finish::Closed, out_of_context: false, .. }),
        "{closed:?}"
    );
    let cut = ask(prompt_tokens + tokens - 1, 250).unwrap();
    assert!(matches!(cut, Output::Text { finish: Finish::Closed, out_of_context: true, .. }), "{cut:?}");
    assert_eq!(text(&cut).0, text(&closed).0);
    // A text that could have been longer, and one that has no choice.
    let pattern = Constraint::Regex("a b{1,300}".to_owned());
    for (context_length, max_tokens, expected) in [(0, 9, false), (prompt_tokens + 9, 250, true)] {
        let engine = engine(Config { context_length, ..Config::default() });
        let how = constrained("What does VACUUM do?", max_tokens, pattern.clone());
        let Ok(Output::Text { finish, out_of_context, .. }) = run(&engine, &[how], 1).remove(0) else {
            panic!("no text")
        };
        if matches!(finish, Finish::Length | Finish::Closed) {
            assert_eq!(out_of_context, expected);
        }
        let fixed = constrained("What does VACUUM do?", max_tokens, Constraint::Regex("a b".to_owned()));
        let Ok(Output::Text { finish: Finish::Complete, out_of_context: false, .. }) =
            run(&engine, &[fixed], 1).remove(0)
        else {
            panic!("it has no choice")
        };
    }
}

#[test]
fn an_answer_without_a_choice_needs_no_step() {
    let engine = engine(Config::default());
    let fixed = constrained("x", 50, Constraint::Json(r#"{"const": [1, "two", null]}"#.to_owned()));
    let results = run(&engine, &[fixed], 1);
    let (text, tokens, finish) = text(results[0].as_ref().unwrap());
    assert_eq!((text, finish), (r#"[1, "two", null]"#, Finish::Complete));
    assert!(tokens > 3);
    assert_eq!(engine.statistics().computed_tokens, 0);
}

#[test]
fn an_answer_without_a_choice_is_checked_beside_the_thread_that_compiles() {
    let engine = engine(Config::default());
    let (sender, events) = unbounded();
    let of = |first: &str| {
        let schema =
            serde_json::json!({ "const": "a word", "anyOf": [{ "pattern": format!("^(?!{first})") }] });
        constrained("say it", 100, Constraint::Json(schema.to_string()))
    };
    submit(&engine, 0, &of("a"), &sender);
    let kinds = [(); 2].map(|()| events.recv_timeout(PATIENCE).unwrap().kind);
    assert!(matches!(kinds[0], EventKind::Started { .. }), "{kinds:?}");
    assert!(matches!(&kinds[1], EventKind::Failed(Error::Mismatch { .. })), "{kinds:?}");
    submit(&engine, 1, &of("b"), &sender);
    let (_, output) = last(&events);
    assert_eq!(text(&output.unwrap()).0, "\"a word\"");
}

#[test]
fn limits_and_stop_strings_are_refused_at_once() {
    let engine = engine(Config::default());
    let fine = constrained("x", 5, Constraint::Regex("a".to_owned()));
    let requests = [
        Generate { stop: vec!["b".to_owned()], ..fine.clone() },
        Generate { constraint: Some(Constraint::Json("[".repeat(100))), ..fine.clone() },
        Generate { constraint: Some(Constraint::Regex("a".repeat(10_000))), ..fine.clone() },
        Generate { constraint: Some(Constraint::Choice(Vec::new())), ..fine },
    ];
    for result in run(&engine, &requests, 1) {
        assert!(matches!(result, Err(Error::InvalidRequest(_))), "{result:?}");
    }
}

#[test]
fn what_is_being_compiled_holds_up_nobody() {
    let engine = engine(Config { threads: 2, ..Config::default() });
    let (sender, events) = unbounded();
    let corpus = nasty::corpus();
    let (_, slow) = corpus.into_iter().find(|(name, _)| *name == "many properties").unwrap();
    // The model is loaded, and its vocabulary prepared.
    submit(&engine, 0, &constrained("x", 5, Constraint::Regex("a+".to_owned())), &sender);
    let _ = last(&events);
    submit(&engine, 1, &constrained("x", 5, slow), &sender);
    submit(&engine, 2, &constrained("x", 5, Constraint::Choice(vec!["waits too".to_owned()])), &sender);
    let work = Work::Embed(Embed::passage("hello"));
    let request = Request { key: 3, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    let first = events.recv_timeout(PATIENCE).unwrap();
    assert!(first.key == 3 && matches!(first.kind, EventKind::Started { .. }), "{first:?}");
    let ended: Vec<usize> = (0..3).map(|_| last(&events).0).collect();
    assert_eq!(ended[0], 3);
    assert!(ended.contains(&1) && ended.contains(&2));
}

/// Asks for the vector of one word, again and again until it is told to stop; returns the times of all
/// requests, sorted.
fn neighbour(engine: &Engine, stop: &AtomicBool) -> Vec<Duration> {
    let (sender, events) = unbounded();
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let work = Work::Embed(Embed::passage("hello"));
        let request = Request { key: 0, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
        let (_, result) = last(&events);
        assert!(result.is_ok(), "{result:?}");
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times
}

/// The waiting times of others are printed, not asserted: the machine has other work as well.
#[test]
fn nasty_constraints_end_and_others_go_on_meanwhile() {
    let engine = engine(Config { threads: 2, ..Config::default() });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| neighbour(&engine, &stop));
        let (sender, events) = unbounded();
        for (name, constraint) in nasty::corpus() {
            let begun = Instant::now();
            submit(&engine, 0, &constrained("x", 150, constraint), &sender);
            let (_, result) = last(&events);
            let took = begun.elapsed();
            let shown: String = match &result {
                Ok(output) => text(output).0.chars().take(40).collect(),
                Err(error) => error.to_string().chars().take(160).collect(),
            };
            println!("{name}: {took:.1?} {shown:?}");
            assert!(!matches!(result, Err(Error::Panicked(_) | Error::Stopped)), "{name}: {shown}");
        }
        stop.store(true, Ordering::Relaxed);
        let times = other.join().unwrap();
        assert!(times.len() > 100, "{} requests", times.len());
        let (count, median, longest) = (times.len(), times[times.len() / 2], times[times.len() - 1]);
        println!("{count} requests of a neighbour took {median:.1?} in the median and {longest:.1?} at most");
    });
}
