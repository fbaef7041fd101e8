//! `generate` and `embed`: text from a prompt, with its progress, and the vector of a text.

use std::time::Instant;

use steadytext_engine::{Config, Embed, Engine, EventKind, Finish, Generate, Output, Reply, Request, Work};

use super::Error;
use super::arguments::Arguments;
use super::json::JsonObject;

/// Prints a line for each event, the last one with the whole text.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let work = Work::Generate(Generate {
        prompt: arguments.text()?,
        max_tokens: arguments.max_tokens.unwrap_or(512),
        sampling: arguments.sampling.clone(),
        stop: arguments.stop.clone(),
        constraint: arguments.constraint.clone(),
        system: arguments.system.clone(),
        history: Vec::new(),
        thinking: arguments.thinking,
    });
    follow(arguments, work)
}

/// Prints the events of the embedding of a text, the last one with the vector.
pub(super) fn run_embed(arguments: &Arguments) -> Result<(), Error> {
    follow(arguments, Work::Embed(Embed::passage(arguments.text()?)))
}

/// Runs one request on an engine of its own and prints its events.
fn follow(arguments: &Arguments, work: Work) -> Result<(), Error> {
    let config = Config {
        threads: arguments.threads,
        nice: 0,
        context_length: arguments.context,
        kv_cache_mb: 1 << 20,
        backend: arguments.backend,
        kv_cache_type: arguments.kv_cache_type,
        ..Config::default()
    };
    let engine = Engine::start(config)?;
    let (sender, events) = crossbeam_channel::unbounded();
    engine.submit(
        Request { key: 0, model: arguments.source(), salt: 0, dedup_key: None, work },
        Reply::new(sender),
    );
    let mut started = Instant::now();
    for event in events {
        match event.kind {
            EventKind::Loading => JsonObject::default().text("event", "loading").print()?,
            EventKind::Started { prompt_tokens, .. } => {
                started = Instant::now();
                JsonObject::default()
                    .text("event", "started")
                    .number("prompt_tokens", prompt_tokens)
                    .print()?;
            }
            EventKind::FirstToken { .. } => {}
            EventKind::Progress { generated_tokens, text } => JsonObject::default()
                .text("event", "progress")
                .number("generated_tokens", generated_tokens)
                .text("text", &text)
                .print()?,
            EventKind::Done(output) => {
                let seconds = started.elapsed().as_secs_f64();
                return done(output).number("seconds", format!("{seconds:.3}")).print();
            }
            EventKind::Failed(error) => return Err(error.into()),
        }
    }
    Err(steadytext_engine::Error::Stopped.into())
}

fn done(output: Output) -> JsonObject {
    let object = JsonObject::default().text("event", "done");
    match output {
        Output::Text { text, generated_tokens, finish, .. } => {
            let finish = match finish {
                Finish::EndOfText => "end_of_text",
                Finish::Stop => "stop",
                Finish::Length => "length",
                Finish::Complete => "complete",
                Finish::Closed => "closed",
            };
            object.text("text", &text).number("generated_tokens", generated_tokens).text("finish", finish)
        }
        Output::Embedding(vector) => object.numbers("embedding", vector),
        Output::Score(score) => object.number("score", score),
        Output::Verification(verified) => object.number("passed", verified.passed()),
        Output::LogProbabilities(values) => object.numbers("log_probabilities", values),
        // Commands of their own.
        Output::Tokens(_) | Output::Chunks(_) => object,
    }
}
