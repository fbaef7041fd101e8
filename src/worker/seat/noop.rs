//! An engine that answers at once, to measure the queue without a model. Only in builds with feature `noop-engine`.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use steadytext_engine::{Event, EventKind, Finish, Output, Request, Ticket, Work};

use super::Seat;
use crate::pg::guc::EngineSettings;

const CAPACITY: usize = 1000;

/// Answers waiting to be read.
pub(super) struct NoopSeat {
    events: VecDeque<Event>,
}

impl NoopSeat {
    /// Needs no threads.
    pub(super) fn start(_settings: &EngineSettings) -> Self {
        NoopSeat { events: VecDeque::with_capacity(CAPACITY) }
    }
}

impl Seat for NoopSeat {
    fn submit(&mut self, request: Request) -> Ticket {
        let output = match request.work {
            Work::Generate(_) => {
                Output::Text { text: "ok".to_owned(), generated_tokens: 1, finish: Finish::EndOfText }
            }
            Work::Embed(_) => Output::Embedding(vec![1.0]),
        };
        self.events.push_back(Event { key: request.key, kind: EventKind::Done(output) });
        Ticket::new()
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn bell(&self) -> Option<RawFd> {
        None
    }

    fn silence(&mut self) {}

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn models(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}
