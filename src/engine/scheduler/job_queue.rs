//! Jobs that wait for one of the threads beside the engine thread: users in turn, and each user's in their
//! order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::Submission;
use super::loaded::{Opened, RequestPlanner};
use crate::constraints::Checker;
use crate::{ModelSource, Output, Ticket, Work};

/// A job for a thread beside the engine thread.
pub(super) enum EngineJob {
    /// Look at a model's file.
    Open(ModelSource),
    /// Load a model, for which there is room now.
    Load(ModelSource, Box<Opened>),
    /// Tokenize a request, and compile its constraint.
    Plan { number: u64, work: Box<Work>, texts: RequestPlanner, owner: u32, tickets: Vec<Ticket> },
    /// Check a finished answer, and tell how its request has ended.
    Check { submission: Box<Submission>, output: Output, checker: Arc<Checker> },
}

impl EngineJob {
    /// The user of the job; 0 for jobs of no user.
    pub(super) fn owner(&self) -> u32 {
        match self {
            EngineJob::Open(_) | EngineJob::Load(..) => 0,
            EngineJob::Plan { owner, .. } => *owner,
            EngineJob::Check { submission, .. } => submission.owner(),
        }
    }
}

/// The jobs of a thread, as they come.
pub(super) struct JobQueue<'a> {
    coming: &'a Receiver<EngineJob>,
    waiting: Turns<EngineJob>,
}

impl<'a> JobQueue<'a> {
    pub(super) fn new(coming: &'a Receiver<EngineJob>) -> JobQueue<'a> {
        JobQueue { coming, waiting: Turns::default() }
    }

    /// The next job, which may have to be waited for; None when no more will come.
    pub(super) fn next(&mut self) -> Option<EngineJob> {
        if self.waiting.is_empty() {
            let job = self.coming.recv().ok()?;
            self.waiting.add(job.owner(), job);
        }
        while let Ok(job) = self.coming.try_recv() {
            self.waiting.add(job.owner(), job);
        }
        self.waiting.next()
    }
}

/// Waiting jobs of each user; users are served in turn.
struct Turns<T> {
    lanes: BTreeMap<u32, VecDeque<T>>,
    /// The user whose job was the last one.
    last: u32,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { lanes: BTreeMap::new(), last: 0 }
    }
}

impl<T> Turns<T> {
    fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn add(&mut self, owner: u32, job: T) {
        self.lanes.entry(owner).or_default().push_back(job);
    }

    /// The next job of the user whose number is the next one behind the last, and around.
    fn next(&mut self) -> Option<T> {
        let behind = self.last.checked_add(1).and_then(|next| self.lanes.range(next..).next());
        let (owner, _) = behind.or_else(|| self.lanes.first_key_value())?;
        let owner = *owner;
        self.last = owner;
        let lane = self.lanes.get_mut(&owner)?;
        let job = lane.pop_front();
        if lane.is_empty() {
            self.lanes.remove(&owner);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::Turns;

    #[test]
    fn no_job_waits_for_more_than_one_of_each_other_user() {
        let mut turns = Turns::default();
        (0..100).for_each(|i| turns.add(7, (7, i)));
        turns.add(u32::MAX, (u32::MAX, 0));
        turns.add(3, (3, 0));
        turns.add(3, (3, 1));
        let order: Vec<_> = (0..6).filter_map(|_| turns.next()).collect();
        assert_eq!(order, [(3, 0), (7, 0), (u32::MAX, 0), (3, 1), (7, 1), (7, 2)]);
        turns.add(5, (5, 0));
        turns.add(9, (9, 0));
        assert_eq!(turns.next(), Some((9, 0)), "the next one behind 7");
        assert_eq!(turns.next(), Some((5, 0)));
        assert_eq!(std::iter::from_fn(|| turns.next()).count(), 97);
        assert!(turns.is_empty());
    }
}
