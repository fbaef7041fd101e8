//! What becomes of requests that a separate engine had when it crashed: the same as of those that a worker
//! had.

use super::Worker;
use crate::worker::engine_link;

impl Worker {
    /// Requests that an engine had which has crashed are tried one at a time from now on; one that was alone
    /// there has failed, and is tried again as often as others that fail.
    pub(super) fn set_suspects_apart(&mut self) {
        let keys = engine_link::take_suspects();
        if keys.is_empty() {
            return;
        }
        let suspects = self.in_flight.suspect(&keys);
        suspects.ended.into_iter().for_each(|outcome| self.outcomes.push(outcome));
        self.alone_due |= !suspects.others.is_empty();
        self.maybe_more = !self.paused;
        suspects.others.into_iter().for_each(|(held, owner)| self.outcomes.set_apart(held, owner));
        self.publish();
    }
}
