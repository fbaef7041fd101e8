//! Measures for how long an engine has had something to do without progress, or has not answered when it was
//! asked.
//!
//! Time counts in pieces that this process was awake for: a machine that sleeps, or that gives this process
//! no processor, adds two pieces at most however long that was. Nor does the time count for which a thread of
//! the engine was kept waiting for a processor.
//!
//! Invariant: nothing but [`Watchdog::observe`] decides that the engine lives, and it goes by what the engine
//! has counted, not by time.

use std::time::{Duration, Instant};

use crate::pulse::Pulse;

/// Pieces of what is waited for an engine; each is a look.
const PIECES: u32 = 8;
const SHORTEST_PIECE: Duration = Duration::from_millis(100);
const LONGEST_PIECE: Duration = Duration::from_secs(15);

/// Watches whether an engine hangs, by its signs of life.
#[derive(Debug)]
pub struct Watchdog {
    pulse: Pulse,
    /// Whether the engine was asked for a sign of life and has not answered.
    asked: bool,
    /// The moment up to which `silence` was counted.
    counted_at: Instant,
    silence: Duration,
}

impl Default for Watchdog {
    /// The watchdog of an engine that is being started, and owes a sign of life.
    fn default() -> Watchdog {
        Watchdog { pulse: Pulse::default(), asked: true, counted_at: Instant::now(), silence: Duration::ZERO }
    }
}

impl Watchdog {
    /// The length of a piece, where an engine is given so much time.
    pub fn piece(patience: Duration) -> Duration {
        (patience / PIECES).clamp(SHORTEST_PIECE, LONGEST_PIECE)
    }

    /// Notes that the engine is asked for a sign of life.
    pub fn ask(&mut self) {
        // At rest it has owed nothing until now.
        if !self.asked && self.pulse.at_rest {
            self.counted_at = Instant::now();
        }
        self.asked = true;
    }

    /// Whether it owes an answer.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// Notes what the engine has answered.
    pub fn observe(&mut self, pulse: Pulse) {
        let lives = pulse.at_rest || pulse.beats != self.pulse.beats;
        (self.pulse, self.asked) = (pulse, false);
        if lives {
            (self.silence, self.counted_at) = (Duration::ZERO, Instant::now());
        }
    }

    /// Counts what has passed, in pieces; `kept_waiting` says for how long it had no processor since this was
    /// called last. For how long it has given no sign of life.
    pub fn count(&mut self, piece: Duration, kept_waiting: impl FnOnce() -> Duration) -> Duration {
        let passed = self.counted_at.elapsed();
        let owes = self.asked || !self.pulse.at_rest;
        if owes && passed >= piece {
            self.counted_at += passed;
            self.silence += passed.min(piece * 2).saturating_sub(kept_waiting());
        }
        self.silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Duration = Duration::from_millis(5);

    fn wait(watchdog: &mut Watchdog, pieces: u32) -> Duration {
        let mut silence = Duration::ZERO;
        for _ in 0..pieces {
            std::thread::sleep(PIECE);
            silence = watchdog.count(PIECE, || Duration::ZERO);
        }
        silence
    }

    #[test]
    fn what_does_not_answer_or_does_not_get_on_is_silent_and_what_does_is_not() {
        let mut watchdog = Watchdog::default();
        assert!(wait(&mut watchdog, 3) >= PIECE * 3, "it owes the first sign");
        watchdog.observe(Pulse { beats: 1, at_rest: false });
        assert_eq!(watchdog.count(PIECE * 1000, || Duration::ZERO), Duration::ZERO);
        // The engine answers, but does nothing else.
        for _ in 0..3 {
            std::thread::sleep(PIECE);
            watchdog.ask();
            watchdog.count(PIECE, || Duration::ZERO);
            watchdog.observe(Pulse { beats: 1, at_rest: false });
        }
        assert!(watchdog.count(PIECE, || Duration::ZERO) >= PIECE * 3);
        watchdog.observe(Pulse { beats: 2, at_rest: false });
        watchdog.observe(Pulse { beats: 2, at_rest: true });
        assert_eq!(wait(&mut watchdog, 3), Duration::ZERO, "at rest it owes nothing");
        watchdog.ask();
        assert!(wait(&mut watchdog, 2) >= PIECE * 2, "but an answer");
    }

    #[test]
    fn time_that_nobody_was_awake_for_is_two_pieces_and_waiting_for_a_processor_is_none() {
        let mut watchdog = Watchdog::default();
        std::thread::sleep(PIECE * 20);
        assert!(watchdog.count(PIECE, || Duration::ZERO) <= PIECE * 2);
        let before = watchdog.count(PIECE * 1000, || Duration::ZERO);
        std::thread::sleep(PIECE * 2);
        assert_eq!(watchdog.count(PIECE, || Duration::from_secs(60)), before);
    }
}
