//! The progress of a download: written by its thread, read by the threads that wait for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;

use super::error::HubError;

/// Interval at which a waiting download checks whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Seconds over which the rate is averaged, approximately.
const WINDOW_S: f64 = 5.0;

/// The progress of a download, and the way to stop it.
#[derive(Debug)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    stopped: AtomicBool,
    gives_way: AtomicBool,
    inner: Mutex<ProgressInner>,
    /// The number of times that the download has looked whether it should pause.
    #[cfg(test)]
    pub(super) looks: AtomicU64,
}

#[derive(Debug)]
struct ProgressInner {
    /// The current step, in words; empty while bytes arrive.
    note: String,
    /// The choice, in words.
    choice: Option<String>,
    /// The agent whose connections are interrupted when the download is stopped.
    agent: Option<Agent>,
    measured: Instant,
    /// Bytes that have arrived since `measured`.
    arrived: u64,
    rate: Option<f64>,
}

/// A moment of a download.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moment {
    /// Bytes that the model has; 0 while that is not known.
    pub total: u64,
    /// Bytes of them that are there.
    pub done: u64,
    /// Bytes in a second; `None` while none has arrived.
    pub rate: Option<f64>,
    /// The current step or the reason for waiting, in words; empty while bytes arrive.
    pub note: String,
    /// The choice, in words, if there was one.
    pub choice: Option<String>,
}

impl Moment {
    /// Time until the end at the present rate.
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0.0)?;
        let seconds = self.total.checked_sub(self.done).filter(|_| self.total > 0)? as f64 / rate;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress {
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            inner: Mutex::new(ProgressInner {
                note: String::new(),
                choice: None,
                agent: None,
                measured: Instant::now(),
                arrived: 0,
                rate: None,
            }),
            #[cfg(test)]
            looks: AtomicU64::new(0),
        }
    }
}

impl Progress {
    fn inner<R>(&self, work: impl FnOnce(&mut ProgressInner) -> R) -> R {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The current state of the download.
    pub fn moment(&self) -> Moment {
        let (total, done) = (self.total.load(Relaxed), self.done.load(Relaxed));
        self.inner(|inner| {
            // A rate that nothing has been added to for a while goes down.
            let elapsed = inner.measured.elapsed().as_secs_f64();
            let rate =
                inner.rate.map(|rate| if elapsed > WINDOW_S { rate * WINDOW_S / elapsed } else { rate });
            Moment { total, done, rate, note: inner.note.clone(), choice: inner.choice.clone() }
        })
    }

    /// Stops the download at the next occasion, which is now where it waits for the network.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
        if let Some(agent) = self.inner(|inner| inner.agent.take()) {
            agent.shutdown();
        }
    }

    /// # Errors
    /// [`HubError::Cancelled`] after [`Progress::stop`].
    pub(super) fn check(&self) -> Result<(), HubError> {
        if self.stopped.load(Relaxed) { Err(HubError::Cancelled) } else { Ok(()) }
    }

    /// Says whether the download slows down while others want all processors.
    pub(super) fn set_gives_way(&self, gives_way: bool) {
        self.gives_way.store(gives_way, Relaxed);
    }

    pub(super) fn gives_way(&self) -> bool {
        self.gives_way.load(Relaxed)
    }

    /// Waits, and says why.
    ///
    /// # Errors
    /// [`HubError::Cancelled`].
    pub(super) fn pause(&self, time: Duration, why: &str) -> Result<(), HubError> {
        self.note(why);
        self.rest(time)?;
        self.note("");
        self.check()
    }

    /// Waits.
    ///
    /// # Errors
    /// [`HubError::Cancelled`].
    pub(super) fn rest(&self, time: Duration) -> Result<(), HubError> {
        let begin = Instant::now();
        while let Some(left) = time.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            self.check()?;
            std::thread::sleep(left.min(LOOK));
        }
        Ok(())
    }

    pub(super) fn note(&self, note: &str) {
        self.inner(|inner| note.clone_into(&mut inner.note));
    }

    pub(super) fn chosen(&self, choice: Option<&str>) {
        self.inner(|inner| inner.choice = choice.map(str::to_owned));
    }

    pub(super) fn interrupts(&self, agent: &Agent) {
        self.inner(|inner| inner.agent = Some(agent.clone()));
    }

    pub(super) fn expect(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// Bytes that were there already, or have been thrown away.
    pub(super) fn set_done(&self, done: u64) {
        self.done.store(done, Relaxed);
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Bytes that have arrived.
    pub(super) fn arrived(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.inner(|inner| {
            inner.arrived += bytes;
            let elapsed = inner.measured.elapsed().as_secs_f64();
            if elapsed < 0.25 {
                return;
            }
            let now = inner.arrived as f64 / elapsed;
            let weight = (elapsed / WINDOW_S).min(1.0);
            inner.rate = Some(inner.rate.map_or(now, |rate| rate + (now - rate) * weight));
            (inner.measured, inner.arrived) = (Instant::now(), 0);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Moment, Progress};

    #[test]
    fn the_time_that_is_left_follows_from_the_rate() {
        let moment = Moment { total: 1000, done: 250, rate: Some(250.0), ..Moment::default() };
        assert_eq!(moment.left(), Some(Duration::from_secs(3)));
        assert_eq!(Moment { rate: None, ..moment.clone() }.left(), None);
        assert_eq!(Moment { rate: Some(1e-300), ..moment.clone() }.left(), None);
        assert_eq!(Moment { total: 0, ..moment }.left(), None);
    }

    #[test]
    fn a_pause_ends_when_the_download_is_stopped() {
        let progress = Progress::default();
        progress.stop();
        assert!(progress.pause(Duration::from_secs(3600), "for nothing").is_err());
    }
}
