//! The engine's current activity, on a page of shared memory that its thread writes and everybody reads.
//!
//! Each number is right by itself; those that are read together may be of two moments that follow each other.
//! Nobody waits: neither the engine for its readers nor a scrape for an engine that is busy.
//!
//! Invariant: the engine's thread calls nothing of PostgreSQL, it only stores numbers.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
#[cfg(not(feature = "noop-engine"))]
use std::time::{SystemTime, UNIX_EPOCH};

use steadytext_engine::{Figures, Statistics};

use super::shmem::{SharedContent, SharedPart};

const NUMBERS: usize = 25;

/// The page. All zeros: no engine has said anything.
#[repr(C)]
pub(crate) struct EnginePage {
    /// Microseconds since 1970 when it was written; 0: not by an engine that runs now.
    written_at: AtomicU64,
    /// Time for which the engine has had something to do and not got on with it, in milliseconds. By the
    /// leader.
    silent_ms: AtomicU64,
    numbers: [AtomicU64; NUMBERS],
}

// SAFETY: zeros are a page on which nothing is written.
unsafe impl SharedContent for EnginePage {}

pub(super) static PAGE: SharedPart<EnginePage> = SharedPart::new();

/// Writes what the engine of this process is doing. By its thread.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn publish(figures: &Figures) {
    let Some(page) = PAGE.get() else { return };
    for (number, value) in page.numbers.iter().zip(to_numbers(figures)) {
        number.store(value, Relaxed);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |passed| passed.as_micros() as u64);
    page.written_at.store(now, Relaxed);
}

/// Says for how long the engine has had something to do and not got on with it. By the leader, who looks.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn note_silence(silence: Duration) {
    if let Some(page) = PAGE.get() {
        page.silent_ms.store(silence.as_millis() as u64, Relaxed);
    }
}

/// The time for which the engine has had something to do and not got on with it, as far as its leader has
/// seen.
pub(crate) fn silence() -> Duration {
    Duration::from_millis(PAGE.get().map_or(0, |page| page.silent_ms.load(Relaxed)))
}

/// Says that there is no engine.
pub(super) fn clear() {
    if let Some(page) = PAGE.get() {
        page.silent_ms.store(0, Relaxed);
        page.written_at.store(0, Relaxed);
        page.numbers.iter().for_each(|number| number.store(0, Relaxed));
    }
}

/// The figures that the engine has written last, and when, in microseconds since 1970. `None` where there is
/// none, or none has done anything.
pub(crate) fn read() -> Option<(Figures, u64)> {
    let page = PAGE.get()?;
    let written_at = page.written_at.load(Relaxed);
    let numbers = page.numbers.each_ref().map(|number| number.load(Relaxed));
    (written_at != 0).then(|| (from_numbers(numbers), written_at))
}

#[cfg(not(feature = "noop-engine"))]
fn to_numbers(figures: &Figures) -> [u64; NUMBERS] {
    let Figures {
        running,
        suspended,
        waiting,
        kv_used_bytes,
        kv_kept_bytes,
        kv_limit_bytes,
        models,
        model_bytes,
        request_bytes,
        limit_bytes,
        statistics,
    } = *figures;
    let done = statistics;
    [
        running,
        suspended,
        waiting,
        kv_used_bytes,
        kv_kept_bytes,
        kv_limit_bytes,
        models,
        model_bytes,
        request_bytes,
        limit_bytes,
        done.passes,
        done.pass_requests,
        done.computed_tokens,
        done.prefill_tokens,
        done.prefill_micros,
        done.decode_tokens,
        done.decode_micros,
        done.looked_up_tokens,
        done.reused_tokens,
        done.guessed_tokens,
        done.right_guesses,
        done.joined_requests,
        done.turns,
        done.suspended_requests,
        done.forgotten_tokens,
    ]
}

fn from_numbers(numbers: [u64; NUMBERS]) -> Figures {
    let [
        running,
        suspended,
        waiting,
        kv_used_bytes,
        kv_kept_bytes,
        kv_limit_bytes,
        models,
        model_bytes,
        request_bytes,
        limit_bytes,
        passes,
        pass_requests,
        computed_tokens,
        prefill_tokens,
        prefill_micros,
        decode_tokens,
        decode_micros,
        looked_up_tokens,
        reused_tokens,
        guessed_tokens,
        right_guesses,
        joined_requests,
        turns,
        suspended_requests,
        forgotten_tokens,
    ] = numbers;
    Figures {
        running,
        suspended,
        waiting,
        kv_used_bytes,
        kv_kept_bytes,
        kv_limit_bytes,
        models,
        model_bytes,
        request_bytes,
        limit_bytes,
        statistics: Statistics {
            passes,
            pass_requests,
            computed_tokens,
            prefill_tokens,
            prefill_micros,
            decode_tokens,
            decode_micros,
            looked_up_tokens,
            reused_tokens,
            guessed_tokens,
            right_guesses,
            joined_requests,
            turns,
            suspended_requests,
            forgotten_tokens,
            // The server counts those of all its engines.
            panics: 0,
        },
    }
}
