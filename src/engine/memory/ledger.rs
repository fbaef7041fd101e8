//! Memory of requests beside models, keys and values: prompts that wait, compiled constraints, messages on
//! their way through the socket. It is reserved before it is taken, so that it cannot exceed the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// An account of bytes, shared by the threads of an engine.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit_bytes: u64,
    /// Bytes that are reserved here.
    held: AtomicU64,
    /// Bytes on their way through the socket, as its thread last counted them.
    buffers: AtomicU64,
    /// Models, keys and values, as the engine thread last counted them.
    others: AtomicU64,
}

/// Bytes that are reserved until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Default for Ledger {
    /// A ledger without a limit.
    fn default() -> Ledger {
        Ledger {
            limit_bytes: u64::MAX,
            held: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            others: AtomicU64::new(0),
        }
    }
}

impl Ledger {
    /// An account with a limit in MB; 0 for none.
    pub(crate) fn new(limit_mb: u64) -> Arc<Ledger> {
        let limit_bytes = match limit_mb {
            0 => u64::MAX,
            mb => mb.saturating_mul(1 << 20),
        };
        Arc::new(Ledger {
            limit_bytes,
            held: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            others: AtomicU64::new(0),
        })
    }

    /// The limit for all memory of the engine.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes that are reserved here, and those on their way.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed).saturating_add(self.buffers.load(Ordering::Relaxed))
    }

    /// Notes the current bytes of models, keys and values.
    pub(crate) fn note_others(&self, bytes: u64) {
        self.others.store(bytes, Ordering::Relaxed);
    }

    /// Notes the bytes on their way through the socket. False if that exceeds the limit.
    pub(crate) fn note_buffers(&self, bytes: u64) -> bool {
        self.buffers.store(bytes, Ordering::Relaxed);
        self.held_bytes().saturating_add(self.others.load(Ordering::Relaxed)) <= self.limit_bytes
    }

    /// Reserves bytes for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where they are more than the limit leaves.
    pub(crate) fn hold(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Reservation, Error> {
        let others = self.others.load(Ordering::Relaxed).saturating_add(self.buffers.load(Ordering::Relaxed));
        let room = self.limit_bytes.saturating_sub(others);
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= room);
        match self.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more) {
            Ok(_) => Ok(Reservation { ledger: Arc::clone(self), bytes }),
            Err(held) => Err(Error::OutOfMemory {
                what: what.to_owned(),
                needed_mb: held.saturating_add(bytes).div_ceil(1 << 20),
                limit_mb: Some(room >> 20),
            }),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;
    use crate::Error;

    #[test]
    fn nothing_is_reserved_beyond_the_limit_and_all_of_it_comes_back() {
        let ledger = Ledger::new(10);
        let first = ledger.hold(6 << 20, "this").unwrap();
        let Err(Error::OutOfMemory { what, needed_mb: 11, limit_mb: Some(10) }) =
            ledger.hold(5 << 20, "that")
        else {
            panic!("more than there is")
        };
        assert_eq!(what, "that");
        let second = ledger.hold(4 << 20, "that").unwrap();
        assert_eq!(ledger.held_bytes(), 10 << 20);
        drop((first, second));
        ledger.note_others(7 << 20);
        assert!(ledger.hold(4 << 20, "models leave no room").is_err());
        ledger.note_others(0);
        assert!(ledger.note_buffers(9 << 20) && !ledger.note_buffers(11 << 20));
        assert!(ledger.hold(1, "what is on its way leaves no room").is_err());
        assert!(ledger.note_buffers(0));
        assert!(ledger.hold(u64::MAX, "a number from outside").is_err());
        assert_eq!(ledger.held_bytes(), 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|i| drop(ledger.hold(i << 10, "threads"))));
            }
        });
        assert_eq!(ledger.held_bytes(), 0);
        assert!(Ledger::new(0).hold(1 << 60, "no limit").is_ok());
    }
}
