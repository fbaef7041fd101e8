//! A submitted request and everybody who waits for it.
//!
//! Requests of the same flight are computed once: whoever comes while one of them waits or runs joins its
//! listeners. Work stops when nobody listens any more, and an error is everybody's.
//!
//! Invariant: every listener gets exactly one last event.

use std::cell::{Cell, RefCell};

use crate::panic;
use crate::{Error, EventKind, Reply, Request, Ticket};

/// A request with the ends of its lines to those who wait for it.
pub(super) struct Submission {
    pub(super) request: Request,
    listeners: RefCell<Vec<Listener>>,
    /// What those who join later have to be told first.
    started: RefCell<Option<EventKind>>,
    /// Whether the last event was sent.
    ended: Cell<bool>,
}

/// One who waits.
struct Listener {
    /// The key that it gave its request.
    key: u64,
    reply: Reply,
    ticket: Ticket,
}

impl Listener {
    fn tell(&self, kind: EventKind) {
        // A bell that panics against its promise must not take the engine with it.
        let _ = panic::catch(|| self.reply.send(self.key, kind));
    }
}

impl Submission {
    pub(super) fn new(request: Request, reply: Reply, ticket: Ticket) -> Submission {
        let listener = Listener { key: request.key, reply, ticket };
        Submission {
            request,
            listeners: RefCell::new(vec![listener]),
            started: RefCell::new(None),
            ended: Cell::new(false),
        }
    }

    /// Whether the other one asks for the same.
    pub(super) fn is_same_flight(&self, other: &Submission) -> bool {
        self.request.flight.is_some()
            && self.request.flight == other.request.flight
            && self.request.model == other.request.model
            && !self.ended.get()
    }

    /// Lets those who wait for the other one wait for this one.
    pub(super) fn take_in(&self, other: Submission) {
        let joining = std::mem::take(&mut *other.listeners.borrow_mut());
        other.ended.set(true);
        if let Some(started) = &*self.started.borrow() {
            joining.iter().for_each(|listener| listener.tell(started.clone()));
        }
        self.listeners.borrow_mut().extend(joining);
    }

    /// Whether the last event was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Tells everybody. Nothing follows the last event.
    pub(super) fn send(&self, kind: EventKind) {
        if self.ended.get() {
            return;
        }
        match &kind {
            EventKind::Done(_) | EventKind::Failed(_) => self.ended.set(true),
            EventKind::Started { .. } => *self.started.borrow_mut() = Some(kind.clone()),
            EventKind::Loading | EventKind::Progress { .. } => {}
        }
        if let [first, rest @ ..] = &**self.listeners.borrow() {
            rest.iter().for_each(|listener| listener.tell(kind.clone()));
            first.tell(kind);
        }
    }

    /// Ends it for those who have cancelled; whether it has ended for everybody.
    pub(super) fn fail_if_cancelled(&self) -> bool {
        if self.ended.get() {
            return true;
        }
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| {
            let cancelled = listener.ticket.is_cancelled();
            if cancelled {
                listener.tell(EventKind::Failed(Error::Cancelled));
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
    use super::Submission;
    use crate::{Embed, Error, EventKind, ModelIdentity, ModelSource, Reply, Request, Ticket, Work};

    fn submission(key: u64, reply: Reply, ticket: Ticket) -> Submission {
        let work = Work::Embed(Embed::passage(""));
        let flight = Some([7; 32]);
        Submission::new(Request { key, model: ModelSource::Builtin, salt: 0, flight, work }, reply, ticket)
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
        assert!(leader.is_same_flight(&second));
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
