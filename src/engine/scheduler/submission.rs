//! A submitted request and its listeners.
//!
//! Requests of the same deduplication key are computed once: a request that comes while another one waits or
//! runs joins its listeners. Work stops when no listener is left, and an error goes to all of them.
//!
//! Invariant: every listener gets exactly one last event.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::EngineShared;
use crate::memory::{Ledger, Reservation};
use crate::panic;
use crate::{Error, EventKind, Reply, Request, Standing, Ticket};

/// The highest priority.
pub(super) const HIGHEST: u8 = 10;
/// Bytes that a request takes beside its texts.
const REQUEST_BYTES: u64 = 1024;
/// Bytes that a byte of text takes: itself, and a token of 4 bytes, as a text has at most as many tokens as
/// bytes.
const BYTES_PER_BYTE: u64 = 5;

/// A request with its listeners.
pub(super) struct Submission {
    pub(super) request: Request,
    owner: u32,
    priority: Cell<u8>,
    shared: Arc<EngineShared>,
    listeners: RefCell<Vec<Listener>>,
    /// Events that were sent already, for listeners that join later.
    begun: RefCell<Vec<EventKind>>,
    /// Whether the last event was sent.
    ended: Cell<bool>,
    /// The memory that it takes while it waits and runs.
    held: Option<Reservation>,
}

/// A caller that waits for the request.
struct Listener {
    /// The key that the caller gave its request.
    key: u64,
    reply: Reply,
    ticket: Ticket,
    /// The turn in which it came.
    since: u64,
}

impl Listener {
    fn send(&self, now: u64, kind: EventKind) {
        // A callback that panics against its promise must not end the engine.
        let _ = panic::catch(|| self.reply.send(self.key, now.saturating_sub(self.since), kind));
    }
}

impl Submission {
    pub(super) fn new(
        request: Request,
        standing: Standing,
        reply: Reply,
        ticket: Ticket,
        shared: Arc<EngineShared>,
    ) -> Submission {
        let listener = Listener { key: request.key, reply, ticket, since: shared.statistics.turns() };
        Submission {
            request,
            owner: standing.owner,
            priority: Cell::new(standing.priority.clamp(1, HIGHEST)),
            shared,
            listeners: RefCell::new(vec![listener]),
            begun: RefCell::default(),
            ended: Cell::new(false),
            held: None,
        }
    }

    /// Reserves the memory that it takes: its texts and their tokens.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where all requests together would take more than there may be.
    pub(super) fn hold(&mut self, memory: &Arc<Ledger>) -> Result<(), Error> {
        let bytes = REQUEST_BYTES + self.request.bytes() as u64 * BYTES_PER_BYTE;
        self.held = Some(memory.hold(bytes, "what waits in the engine's queue")?);
        Ok(())
    }

    /// Whether the other request asks for the same.
    pub(super) fn is_duplicate_of(&self, other: &Submission) -> bool {
        self.request.dedup_key.is_some()
            && self.request.dedup_key == other.request.dedup_key
            && self.request.model == other.request.model
            && !self.ended.get()
    }

    /// The user whom the request is for.
    pub(super) fn owner(&self) -> u32 {
        self.owner
    }

    /// The highest priority of its listeners.
    pub(super) fn priority(&self) -> u8 {
        self.priority.get()
    }

    /// Whether all its listeners have paused it.
    pub(super) fn is_held(&self) -> bool {
        let listeners = self.listeners.borrow();
        !listeners.is_empty() && listeners.iter().all(|listener| listener.ticket.is_held())
    }

    /// The tickets of its current listeners.
    pub(super) fn tickets(&self) -> Vec<Ticket> {
        self.listeners.borrow().iter().map(|listener| listener.ticket.clone()).collect()
    }

    /// Whether a listener has cancelled and has had no answer yet.
    pub(super) fn has_unanswered_cancel(&self) -> bool {
        self.listeners.borrow().iter().any(|listener| listener.ticket.is_cancelled())
    }

    /// Moves the listeners of the other one to this one.
    pub(super) fn take_in(&self, other: Submission) {
        let joining = std::mem::take(&mut *other.listeners.borrow_mut());
        other.ended.set(true);
        let now = self.shared.statistics.turns();
        for begun in &*self.begun.borrow() {
            joining.iter().for_each(|listener| listener.send(now, begun.clone()));
        }
        self.priority.set(self.priority.get().max(other.priority.get()));
        self.listeners.borrow_mut().extend(joining);
    }

    /// Whether the last event was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Sends an event to all listeners. Nothing follows the last event.
    pub(super) fn send(&self, kind: EventKind) {
        if self.ended.get() {
            return;
        }
        match &kind {
            EventKind::Done(_) | EventKind::Failed(_) => self.ended.set(true),
            EventKind::Started { .. } | EventKind::FirstToken { .. } => {
                self.begun.borrow_mut().push(kind.clone());
            }
            EventKind::Loading | EventKind::Progress { .. } => {}
        }
        let now = self.shared.statistics.turns();
        if let [first, rest @ ..] = &**self.listeners.borrow() {
            rest.iter().for_each(|listener| listener.send(now, kind.clone()));
            first.send(now, kind);
        }
    }

    /// Fails it for the listeners that have cancelled; true if it has ended for all of them.
    pub(super) fn fail_if_cancelled(&self) -> bool {
        if self.ended.get() {
            return true;
        }
        let now = self.shared.statistics.turns();
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| {
            let cancelled = listener.ticket.is_cancelled();
            if cancelled {
                listener.send(now, EventKind::Failed(Error::Cancelled));
            }
            !cancelled
        });
        self.ended.set(listeners.is_empty());
        self.ended.get()
    }

    pub(super) fn fail(&self, error: Error) {
        self.send(EventKind::Failed(error));
    }
}

impl Drop for Submission {
    /// Whatever happened to it, a request gets its last event.
    fn drop(&mut self) {
        if !self.ended.get() {
            let why = panic::current().unwrap_or_else(|| "the request was lost".to_owned());
            self.fail(Error::Panicked(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Submission;
    use crate::{
        Embed, Error, EventKind, ModelIdentity, ModelSource, Reply, Request, Standing, Ticket, Work,
    };

    fn submission(key: u64, reply: Reply, ticket: Ticket) -> Submission {
        let work = Work::Embed(Embed::passage(""));
        let dedup_key = Some([7; 32]);
        let request = Request { key, model: ModelSource::Builtin, salt: 0, dedup_key, work };
        Submission::new(request, Standing::default(), reply, ticket, Arc::default())
    }

    #[test]
    fn a_request_gets_exactly_one_last_event_even_when_it_is_lost() {
        let (sender, events) = crossbeam_channel::unbounded();
        drop(submission(1, Reply::new(sender.clone()), Ticket::new()));
        assert!(matches!(events.try_recv().unwrap().kind, EventKind::Failed(Error::Panicked(_))));
        submission(1, Reply::new(sender), Ticket::new()).fail(Error::Stopped);
        assert!(matches!(events.try_recv().unwrap().kind, EventKind::Failed(Error::Stopped)));
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn who_joins_is_told_that_it_has_started_and_who_cancels_leaves_the_others_their_answer() {
        let (sender, events) = crossbeam_channel::unbounded();
        let tickets: Vec<Ticket> = (0..3).map(|_| Ticket::new()).collect();
        let [leader, second, third] =
            [0, 1, 2].map(|i| submission(i as u64, Reply::new(sender.clone()), tickets[i].clone()));
        assert!(leader.is_duplicate_of(&second));
        leader.take_in(second);
        leader.send(EventKind::Started { prompt_tokens: 3, model: ModelIdentity::default() });
        leader.take_in(third);
        let told: Vec<u64> = events.try_iter().map(|event| event.key).collect();
        assert_eq!(told, [1, 0, 2]);
        tickets[0].cancel();
        assert!(!leader.fail_if_cancelled());
        let event = events.try_recv().unwrap();
        assert!(event.key == 0 && matches!(event.kind, EventKind::Failed(Error::Cancelled)));
        leader.fail(Error::Stopped);
        let mut told: Vec<u64> = events.try_iter().map(|event| event.key).collect();
        told.sort();
        assert_eq!(told, [1, 2]);
        drop(leader);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn work_ends_when_the_last_of_those_who_wait_cancels() {
        let (sender, events) = crossbeam_channel::unbounded();
        let tickets = [Ticket::new(), Ticket::new()];
        let leader = submission(0, Reply::new(sender.clone()), tickets[0].clone());
        leader.take_in(submission(1, Reply::new(sender), tickets[1].clone()));
        tickets.iter().for_each(Ticket::cancel);
        assert!(leader.fail_if_cancelled());
        assert_eq!(events.try_iter().count(), 2);
    }
}
