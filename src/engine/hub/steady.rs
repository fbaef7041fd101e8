//! Bodies of answers that must not trickle: a hub that sends a byte now and then would hold a download for
//! ever, as no single read takes too long.
//!
//! The time that counts is the one in which the reader waits for bytes. A download that pauses for others, or
//! for the disk, is not the hub's fault.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// Bytes that must arrive in the time in which a connection may be silent.
const LEAST: u64 = 64 << 10;

/// A body that is given up when hardly anything comes.
pub(super) struct Steady<R> {
    body: R,
    patience: Duration,
    /// Since when so many bytes have come: the time that was waited for them.
    waited: Duration,
    read: u64,
}

impl<R> Steady<R> {
    /// `patience` is the time that a connection may be silent.
    pub(super) fn new(body: R, patience: Duration) -> Steady<R> {
        Steady { body, patience, waited: Duration::ZERO, read: 0 }
    }

    /// Counts bytes and the time that was waited for them.
    fn count(&mut self, read: usize, waited: Duration) -> io::Result<usize> {
        self.read += read as u64;
        self.waited += waited;
        if read == 0 || self.waited < self.patience {
            return Ok(read);
        }
        if self.read < LEAST {
            return Err(io::Error::new(ErrorKind::TimedOut, "it sends hardly anything"));
        }
        (self.read, self.waited) = (0, Duration::ZERO);
        Ok(read)
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let begin = Instant::now();
        let read = self.body.read(buffer)?;
        self.count(read, begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LEAST, Steady};

    const PATIENCE: Duration = Duration::from_secs(60);
    const LONG: Duration = Duration::from_secs(59);

    #[test]
    fn a_body_that_trickles_is_given_up() {
        let mut body = Steady::new(std::io::empty(), PATIENCE);
        assert_eq!(body.count(1, LONG).unwrap(), 1);
        assert!(body.count(1, LONG).unwrap_err().to_string().contains("hardly anything"));
    }

    #[test]
    fn a_slow_body_is_read_to_its_end() {
        let mut body = Steady::new(std::io::empty(), PATIENCE);
        for _ in 0..100 {
            assert!(body.count(LEAST as usize / 2, LONG / 2).is_ok());
        }
        assert_eq!(body.count(0, LONG).unwrap(), 0, "the end is the end, whenever it comes");
    }
}
