//! Waiting for an event with a deadline: bounded polling in one place.

use std::time::{Duration, Instant};

/// Longest wait of a test for something that should take milliseconds. It is no measure of anything: tests
/// assert what happens and in which order, and a machine may be busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(180);

const POLL: Duration = Duration::from_millis(5);

/// Polls `look` until it yields something; `None` when `patience` is used up.
pub fn eventually<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Polls until `holds`, and panics naming `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    if eventually(PATIENCE, || holds().then_some(())).is_none() {
        panic!("waited {} s in vain for: {what}", PATIENCE.as_secs());
    }
}

/// Runs work that must not have to wait for anything that goes on, and panics naming `what` where it takes
/// longer than [`PATIENCE`].
#[track_caller]
pub fn promptly<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = work();
    assert!(begun.elapsed() < PATIENCE, "{what} took {:?}", begun.elapsed());
    value
}
