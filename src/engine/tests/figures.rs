//! The figures of an engine while it works, and when it has nothing to do.

use std::sync::Arc;

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Embed, Engine, EventKind, Figures, FiguresSink, Generate, ModelSource, Reply, Request,
    Statistics, Work,
};

use crate::PATIENCE;

/// An engine, and the figures that it publishes.
fn watched(config: Config) -> (Engine, Receiver<Figures>) {
    let (sender, said) = unbounded();
    let tell: FiguresSink = Arc::new(move |figures| {
        let _ = sender.send(*figures);
    });
    (Engine::start(Config { figures: Some(tell), ..config }).unwrap(), said)
}

fn run(engine: &Engine, works: Vec<Work>) {
    let (sender, events) = unbounded();
    let count = works.len();
    for (key, work) in (1..).zip(works) {
        let request = Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
    }
    let mut ended = 0;
    while ended < count {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(_) => ended += 1,
            EventKind::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// The last figures of an engine that has nothing left to do.
fn last(said: &Receiver<Figures>) -> Figures {
    loop {
        let figures = said.recv_timeout(PATIENCE).unwrap();
        if (figures.running, figures.waiting, said.is_empty()) == (0, 0, true) {
            return figures;
        }
    }
}

fn text(number: usize) -> Work {
    Work::Generate(Generate {
        prompt: format!("{number}: what does VACUUM do?"),
        max_tokens: 40,
        ..Generate::default()
    })
}

#[test]
fn work_is_counted_and_nothing_is_left_of_it_in_the_end() {
    let (engine, said) = watched(Config { kv_cache_mb: 64, ..Config::default() });
    run(&engine, (0..8).map(text).collect());
    let figures = last(&said);
    let done = figures.statistics;
    assert_eq!((figures.suspended, figures.kv_used_bytes, figures.kv_limit_bytes), (0, 0, 64 << 20));
    assert_eq!((figures.models, figures.limit_bytes), (1, 0));
    assert!(figures.model_bytes > 1 << 20, "{figures:?}");
    assert_eq!(done, Statistics { panics: 0, ..engine.statistics() });
    assert_eq!(done.prefill_tokens + done.decode_tokens, done.computed_tokens);
    assert!(done.pass_requests > done.passes, "some were computed together: {done:?}");
    assert!(done.prefill_micros > 0 && done.decode_micros > 0, "{done:?}");
    assert!(done.looked_up_tokens >= done.reused_tokens + done.prefill_tokens, "{done:?}");
    // An idle engine publishes nothing more.
    assert!(said.is_empty());
    run(&engine, vec![Work::Embed(Embed::passage("a text"))]);
    let more = last(&said).statistics;
    assert!(more.prefill_tokens > done.prefill_tokens && more.decode_tokens == done.decode_tokens);
}

#[test]
fn what_runs_is_told_while_it_runs() {
    let (engine, said) = watched(Config { max_running: 2, endless: true, ..Config::default() });
    let (sender, _events) = unbounded();
    let tickets: Vec<_> = (1..=4)
        .map(|key| {
            let work = Work::Generate(Generate {
                prompt: "What does VACUUM do?".to_owned(),
                max_tokens: 30_000,
                ..Generate::default()
            });
            let request = Request { key, model: ModelSource::Builtin, salt: key, dedup_key: None, work };
            engine.submit(request, Reply::new(sender.clone()))
        })
        .collect();
    let told = |holds: &dyn Fn(&Figures) -> bool| {
        while !holds(&said.recv_timeout(PATIENCE).unwrap()) {}
    };
    told(&|figures| figures.running == 2 && figures.waiting == 2 && figures.kv_used_bytes > 0);
    tickets.iter().for_each(steadytext_engine::Ticket::cancel);
    told(&|figures| (figures.running, figures.waiting, figures.kv_used_bytes) == (0, 0, 0));
}
