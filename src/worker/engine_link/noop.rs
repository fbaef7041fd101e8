//! An engine that answers at once, to measure the queue without a model. Only in builds with feature
//! `noop-engine`.

use std::collections::VecDeque;
use std::time::Duration;

use steadytext_engine::{Event, EventKind, Finish, Output, Work};

use super::{EngineLink, EngineSubmission};
use crate::pg::interrupts::WaitFd;

const CAPACITY: usize = 1000;

/// Answers waiting to be read; it needs no threads.
#[derive(Default)]
pub(super) struct NoopLink {
    events: VecDeque<Event>,
}

impl EngineLink for NoopLink {
    fn submit(&mut self, EngineSubmission { request, .. }: EngineSubmission) {
        let output = match request.work {
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
        self.events.push_back(Event { key: request.key, turns: 0, kind: EventKind::Done(output) });
    }

    fn exchange(&mut self) -> bool {
        true
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn wait_fd(&self) -> Option<WaitFd> {
        None
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn models(&mut self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn idle_for(&self) -> Duration {
        Duration::ZERO
    }

    fn leave(self: Box<Self>) -> Vec<EngineSubmission> {
        Vec::new()
    }
}
