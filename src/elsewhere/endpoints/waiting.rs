//! The jobs of an endpoint, waiting and under way, and whether the endpoint is left alone at the moment.
//!
//! Invariant: the thread that takes a job out sends its last word.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use steadytext_engine::remote_job::JobRefusal;
use steadytext_engine::{Error, Output, Ticket, Work};
use ureq::Agent;

use super::settings::ApiKey;

/// Bytes of the texts of a call, as far as there is more than one.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// A piece of work for an endpoint.
pub(crate) struct EndpointJob {
    pub(crate) key: u64,
    pub(crate) work: Work,
    pub(crate) ticket: Ticket,
    pub(crate) to: Sender<EndpointEvent>,
}

/// An event of a job at an endpoint.
#[derive(Debug)]
pub(crate) struct EndpointEvent {
    pub(crate) key: u64,
    pub(crate) kind: EndpointEventKind,
}

/// The kind of an event.
#[derive(Debug)]
pub(crate) enum EndpointEventKind {
    /// The endpoint is asked.
    Began,
    /// The result; last word.
    Done { output: Output, prompt_tokens: Option<u32>, cached_tokens: Option<u32> },
    /// There is no result, for a reason that the engine has as well; last word.
    Failed(Error),
    /// There is no result, and the endpoint is why; last word.
    Refused(JobRefusal),
    /// The endpoint takes nothing now; last word.
    NotNow,
}

impl EndpointJob {
    /// Sends an event of the job. Its receiver may be gone.
    pub(super) fn say(&self, kind: EndpointEventKind) {
        let _ = self.to.send(EndpointEvent { key: self.key, kind });
    }
}

/// The state of an endpoint.
#[derive(Default)]
pub(super) struct EndpointState {
    pub(super) jobs: VecDeque<EndpointJob>,
    /// The calls under way, by the number of their thread.
    pub(super) under_way: HashMap<usize, EndpointCall>,
    pub(super) key: Option<ApiKey>,
    /// The endpoint is left alone until then.
    pub(super) rest_until: Option<Instant>,
    /// Time for which the endpoint will be left alone the next time.
    pub(super) next_rest: Duration,
    /// Whether the endpoint has taken nothing the last time: then there is one call at a time.
    pub(super) is_doubtful: bool,
    /// The last message logged about it, which is not logged again.
    pub(super) said: Option<String>,
}

impl std::fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("jobs", &self.jobs.len()).finish_non_exhaustive()
    }
}

/// A call, or a pause between two.
pub(super) struct EndpointCall {
    pub(super) agent: Agent,
    pub(super) tickets: Vec<Ticket>,
    pub(super) is_cut: bool,
}

impl EndpointState {
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rest_until.is_some_and(|until| until > now)
    }

    pub(super) fn drop_cancelled(&mut self) {
        if self.jobs.iter().any(|job| job.ticket.is_cancelled()) {
            let jobs = std::mem::take(&mut self.jobs).into_iter();
            let (cancelled, kept): (Vec<EndpointJob>, Vec<EndpointJob>) =
                jobs.partition(|job| job.ticket.is_cancelled());
            self.jobs = kept.into();
            cancelled.iter().for_each(|job| job.say(EndpointEventKind::Failed(Error::Cancelled)));
        }
    }

    /// The oldest job, and others that go into the same call.
    pub(super) fn take(&mut self, most: usize) -> Vec<EndpointJob> {
        let Some(first) = self.jobs.pop_front() else { return Vec::new() };
        let mut bytes = first.work.text_bytes();
        let mut taken = vec![first];
        let mut place = 0;
        while taken.len() < most && place < self.jobs.len() {
            let is_fit = self.jobs.get(place).is_some_and(|job| go_together(&taken[0].work, &job.work));
            let more = self.jobs.get(place).map_or(0, |job| job.work.text_bytes());
            if !is_fit {
                place += 1;
                continue;
            }
            bytes = bytes.saturating_add(more);
            if bytes > MAX_BATCH_BYTES {
                break;
            }
            taken.extend(self.jobs.remove(place));
        }
        taken
    }
}

/// Whether two pieces of work go into one call.
fn go_together(one: &Work, other: &Work) -> bool {
    match (one, other) {
        (Work::Embed(_), Work::Embed(_)) => true,
        (Work::Rerank(one), Work::Rerank(other)) => {
            one.query == other.query && one.truncate == other.truncate
        }
        _ => false,
    }
}

/// Ends jobs that the endpoint does not take now: cancelled ones with [`Error::Cancelled`], the others with
/// [`EndpointEventKind::NotNow`].
pub(super) fn give_back(jobs: &[EndpointJob]) {
    for job in jobs {
        job.say(if job.ticket.is_cancelled() {
            EndpointEventKind::Failed(Error::Cancelled)
        } else {
            EndpointEventKind::NotNow
        });
    }
}
