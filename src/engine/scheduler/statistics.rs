//! Counts of what the engine has computed and of what it did not have to.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Passes through a model.
    pub passes: u64,
    /// Tokens that went through a model, guesses included.
    pub computed_tokens: u64,
    /// Tokens of prompts whose keys and values were there already.
    pub reused_tokens: u64,
    /// Tokens guessed by prompt lookup.
    pub guessed_tokens: u64,
    /// Those of them that were right.
    pub right_guesses: u64,
    /// Requests that got the result of another one that asked for the same at the same time.
    pub joined_requests: u64,
    /// Turns in which something was computed: steps of models, and slices of texts on encoders.
    pub turns: u64,
    /// How often a running request has given its place to another one, or paused.
    pub suspended_requests: u64,
    /// Tokens of such requests whose keys and values had to make room, and are computed again.
    pub forgotten_tokens: u64,
    /// Panics that the engine's thread has caught. Each is a bug.
    pub panics: u64,
}

/// The counters behind [`Statistics`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    passes: AtomicU64,
    computed: AtomicU64,
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
    /// Counts a pass.
    pub(super) fn computed(&self, tokens: usize) {
        add(&self.passes, 1);
        add(&self.computed, tokens);
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

    /// Counts a turn; returns how many there were.
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
            computed_tokens: self.computed.load(Ordering::Relaxed),
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
