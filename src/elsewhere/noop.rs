//! Answers at once and without a model, to measure the queue. Only in builds with feature `noop-engine`, and
//! never in a release.

use crossbeam_channel::Sender;
use steadytext_engine::{Event, EventKind, Finish, Output, Request, Work};

/// Answers a request.
pub(crate) fn answer(request: &Request, events: &Sender<Event>) {
    let output = match &request.work {
        Work::Generate(_) => Output::Text {
            text: "ok".to_owned(),
            generated_tokens: 1,
            finish: Finish::EndOfText,
            out_of_context: false,
        },
        Work::Embed(_) => Output::Embedding(vec![1.0]),
        Work::Rerank(_) | Work::Verify(_) => Output::Score(0.5),
        Work::Likelihoods(how) => Output::LogProbabilities(vec![-1.0; how.answers.len()]),
        Work::Tokenize { .. } | Work::Chunk(_) => Output::Tokens(Vec::new()),
    };
    // Its receiver lives as long as the thread that asks.
    let _ = events.send(Event { key: request.key, turns: 0, kind: EventKind::Done(output) });
}
