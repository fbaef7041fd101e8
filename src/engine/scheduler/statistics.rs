//! Counters of work that the engine has computed, and of work that it has avoided.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Statistics;

/// The counters behind [`Statistics`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    passes: AtomicU64,
    pass_requests: AtomicU64,
    computed: AtomicU64,
    prefill: AtomicU64,
    prefill_micros: AtomicU64,
    decode: AtomicU64,
    decode_micros: AtomicU64,
    looked_up: AtomicU64,
    reused: AtomicU64,
    guessed: AtomicU64,
    right: AtomicU64,
    joined: AtomicU64,
    turns: AtomicU64,
    suspended: AtomicU64,
    forgotten: AtomicU64,
    panics: AtomicU64,
}

impl Counters {
    /// Counts a pass, of so many requests.
    pub(super) fn computed(&self, requests: usize, prompt_tokens: usize, other_tokens: usize) {
        add(&self.passes, 1);
        add(&self.pass_requests, requests);
        add(&self.computed, prompt_tokens + other_tokens);
        add(&self.prefill, prompt_tokens);
        add(&self.decode, other_tokens);
    }

    /// Counts the time of a pass, divided equally among its tokens.
    pub(super) fn took(&self, time: Duration, prompt_tokens: usize, other_tokens: usize) {
        let micros = time.as_micros() as u64;
        let prefill = match prompt_tokens + other_tokens {
            0 => 0,
            all => micros * prompt_tokens as u64 / all as u64,
        };
        self.prefill_micros.fetch_add(prefill, Ordering::Relaxed);
        self.decode_micros.fetch_add(micros - prefill, Ordering::Relaxed);
    }

    /// Counts the tokens of a prompt that was looked up among the kept blocks.
    pub(super) fn looked_up(&self, tokens: usize) {
        add(&self.looked_up, tokens);
    }

    pub(super) fn reused(&self, tokens: usize) {
        add(&self.reused, tokens);
    }

    pub(super) fn guessed(&self, tokens: usize, right: usize) {
        add(&self.guessed, tokens);
        add(&self.right, right);
    }

    pub(super) fn joined(&self) {
        add(&self.joined, 1);
    }

    /// Counts a turn; returns the number of turns so far.
    pub(super) fn turned(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn suspended(&self) {
        add(&self.suspended, 1);
    }

    pub(super) fn forgotten(&self, tokens: usize) {
        add(&self.forgotten, tokens);
    }

    pub(super) fn panicked(&self) {
        add(&self.panics, 1);
    }

    pub(super) fn read(&self) -> Statistics {
        Statistics {
            passes: self.passes.load(Ordering::Relaxed),
            pass_requests: self.pass_requests.load(Ordering::Relaxed),
            computed_tokens: self.computed.load(Ordering::Relaxed),
            prefill_tokens: self.prefill.load(Ordering::Relaxed),
            prefill_micros: self.prefill_micros.load(Ordering::Relaxed),
            decode_tokens: self.decode.load(Ordering::Relaxed),
            decode_micros: self.decode_micros.load(Ordering::Relaxed),
            looked_up_tokens: self.looked_up.load(Ordering::Relaxed),
            reused_tokens: self.reused.load(Ordering::Relaxed),
            guessed_tokens: self.guessed.load(Ordering::Relaxed),
            right_guesses: self.right.load(Ordering::Relaxed),
            joined_requests: self.joined.load(Ordering::Relaxed),
            turns: self.turns(),
            suspended_requests: self.suspended.load(Ordering::Relaxed),
            forgotten_tokens: self.forgotten.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    if count > 0 {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}
