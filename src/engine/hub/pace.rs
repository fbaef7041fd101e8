//! Slows a download down while other threads want all processors.
//!
//! The least of all priorities is not enough beside an engine: its threads compute each product of matrices
//! together, so that one that waits for a processor for a millisecond holds up all of them. The kernel tells
//! each thread how long it has run and how long it has waited for a processor. A download that waits finds
//! none idle, and takes a small share of one from then on. The server that sends stops by itself, as its
//! packets are not taken.

use std::fs;
use std::time::{Duration, Instant};

use super::error::HubError;
use super::progress::Progress;

/// The share of one processor that a download takes where none is idle.
const BUSY_SHARE: f64 = 0.03;
/// Seconds of waiting in a second of running from which on none is taken to be idle.
const BUSY_WAIT: f64 = 0.25;
/// The least time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// The longest pause at a time, after which the machine may be idle again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The pace of a download, which is that of the thread that calls it.
#[derive(Debug)]
pub(super) struct DownloadPace {
    looked: Instant,
    before: Option<ThreadTimes>,
}

/// Time that a thread has run and has waited for a processor since its start.
#[derive(Debug, Clone, Copy)]
struct ThreadTimes {
    ran: Duration,
    waited: Duration,
}

impl DownloadPace {
    /// The pace of a download, which gives way to others or does not.
    pub(super) fn new(progress: &Progress) -> DownloadPace {
        let before = if progress.gives_way() { ThreadTimes::of_this_thread() } else { None };
        DownloadPace { looked: Instant::now(), before }
    }

    /// Pauses where the thread has run too long on a busy machine. Call it after each piece of work.
    ///
    /// # Errors
    /// [`HubError::Cancelled`].
    pub(super) fn keep(&mut self, progress: &Progress) -> Result<(), HubError> {
        #[cfg(test)]
        if self.before.is_some() {
            progress.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let Some(before) = self.before.filter(|_| self.looked.elapsed() >= INTERVAL) else { return Ok(()) };
        let Some(now) = ThreadTimes::of_this_thread() else { return Ok(()) };
        progress.rest(pause(before, now))?;
        *self = DownloadPace { looked: Instant::now(), before: Some(now) };
        Ok(())
    }
}

impl ThreadTimes {
    /// Reads `/proc/thread-self/schedstat`: nanoseconds on a processor, nanoseconds of waiting for one,
    /// turns. `None` on systems that have no such file.
    fn of_this_thread() -> Option<ThreadTimes> {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut numbers =
            text.split_ascii_whitespace().map(|number| number.parse().map(Duration::from_nanos));
        Some(ThreadTimes { ran: numbers.next()?.ok()?, waited: numbers.next()?.ok()? })
    }
}

/// The pause that brings what a thread has run since `before` down to its share. The time in which it has
/// waited counts as a part of it.
fn pause(before: ThreadTimes, now: ThreadTimes) -> Duration {
    let ran = now.ran.saturating_sub(before.ran);
    let waited = now.waited.saturating_sub(before.waited);
    if waited < ran.mul_f64(BUSY_WAIT) {
        return Duration::ZERO;
    }
    ran.div_f64(BUSY_SHARE).saturating_sub(ran + waited).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DownloadPace, LONGEST_PAUSE, Progress, ThreadTimes, pause};

    fn of(ran_ms: u64, waited_ms: u64) -> ThreadTimes {
        ThreadTimes { ran: Duration::from_millis(ran_ms), waited: Duration::from_millis(waited_ms) }
    }

    #[test]
    fn a_thread_that_finds_an_idle_processor_never_pauses() {
        assert_eq!(pause(of(1000, 70), of(1100, 70)), Duration::ZERO);
        assert_eq!(pause(of(1000, 70), of(1100, 94)), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_waits_for_one_takes_three_hundredths_of_it() {
        // 30 ms in a second, 50 ms of which it has waited.
        assert_eq!(pause(of(500, 0), of(530, 50)), Duration::from_millis(1000 - 30 - 50));
        // Waiting alone has made it slow enough.
        assert_eq!(pause(of(500, 0), of(503, 99)), Duration::ZERO);
        assert_eq!(pause(of(0, 0), of(900, 900)), LONGEST_PAUSE);
    }

    #[test]
    fn a_download_that_does_not_give_way_measures_nothing() {
        let mut pace = DownloadPace::new(&Progress::default());
        assert!(pace.before.is_none());
        pace.keep(&Progress::default()).unwrap();
    }

    #[test]
    fn the_time_of_a_thread_is_read() {
        let before = ThreadTimes::of_this_thread().unwrap();
        // Waits for the clock of the thread to go on.
        while ThreadTimes::of_this_thread().unwrap().ran <= before.ran {}
    }
}
