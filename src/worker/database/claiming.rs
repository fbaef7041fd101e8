//! Claiming: as many requests as the engine has room for, and beyond that those that are more urgent than all
//! that it has, for which it makes room. Requests that a separate engine had when it crashed are claimed
//! again as those of a worker that died: one at a time.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::{RETRY_INTERVAL, Worker};
use crate::worker::{engine_link, protocol};

/// Results that the database does not take, as multiples of the engine's capacity, before no more requests
/// are claimed.
const BACKLOG_FACTOR: usize = 8;
/// Texts and parameters of the requests that are held, and answers that wait, in bytes: with so many no more
/// are claimed, and a claim ends with the request that exceeds them.
const MAX_BYTES: usize = 64 << 20;
/// Requests that are claimed beyond the engine's room if they are more urgent than what is there.
const URGENT_ROOM: usize = 16;
/// While many enqueue at once, a claim begins no sooner than so many times what the last one took: larger
/// claims cost less for each request, and leave more of the processors to those who enqueue. As long as the
/// engine has enough to do, the same holds for storing and claiming together.
const PACE: u32 = 4;
/// However long it took.
const LONGEST_PACE: Duration = Duration::from_millis(50);
/// Fewer requests in a claim are not many.
const PACED_CLAIM: usize = 8;
/// No commit need wake the worker: above the highest priority.
const DEAF: u32 = 11;

/// The numbers of requests that there is room for.
struct Appetite {
    /// Requests of any priority.
    room: usize,
    /// More of them, if their priority is `least` or more.
    urgent_room: usize,
    /// The lowest priority that is worth a claim; 0: any.
    least: u32,
}

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

    fn appetite(&self) -> Appetite {
        let capacity = engine_link::capacity();
        let room = capacity.saturating_sub(self.in_flight.len());
        let busy = self.in_flight.has_alone()
            || self.outcomes.ready() > capacity * BACKLOG_FACTOR
            || self.bytes_left() == 0;
        if busy || self.paused || capacity == 0 {
            return Appetite { room: 0, urgent_room: 0, least: DEAF };
        }
        if room > 0 {
            return Appetite { room, urgent_room: 0, least: 0 };
        }
        let urgent_room = (capacity + URGENT_ROOM).saturating_sub(self.in_flight.len());
        let lowest = self.in_flight.lowest_priority().filter(|_| urgent_room > 0);
        Appetite { room, urgent_room, least: lowest.map_or(DEAF, |lowest| u32::from(lowest) + 1) }
    }

    fn bytes_left(&self) -> usize {
        MAX_BYTES.saturating_sub(self.in_flight.bytes() + self.outcomes.bytes())
    }

    /// Claims what the engine has room for. True: look at the engine again at once.
    pub(super) fn claim(&mut self) -> bool {
        let now = Instant::now();
        let Appetite { room, urgent_room, mut least } = self.appetite();
        let paced = least == 0 && now < self.due.pace;
        if paced {
            least = DEAF;
        }
        self.due.paced = paced;
        // This order is the other way round in the commit, so that no wake is missed.
        let before = self.slot.deaf_below.swap(least, SeqCst);
        let wakes = self.slot.wakes.load(SeqCst);
        let urgent = self.slot.urgent.load(SeqCst);
        // Commits before the threshold was this low did not count. A claim takes the most urgent, so that
        // nothing which was there then is more urgent than what it has taken.
        self.maybe_urgent |= least != before && wakes != self.wakes_seen;
        if paced {
            return false;
        }
        let notified = self.due.notified.is_some_and(|at| now >= at);
        if least > 0 {
            if notified {
                // A notification does not say what it is for, so both are due.
                self.due.notified = None;
                (self.maybe_more, self.maybe_urgent) = (!self.paused, true);
            }
            let is_due = self.maybe_urgent || urgent != self.urgent_seen;
            return least < DEAF
                && is_due
                && !self.alone_due
                && now >= self.due.claim
                && self.claim_urgent(urgent, urgent_room, least);
        }
        let woken = notified || wakes != self.wakes_seen;
        if !(self.maybe_more || woken) || now < self.due.claim {
            return false;
        }
        let alone = self.alone_due;
        if alone && self.in_flight.len() > 0 {
            return false;
        }
        (self.wakes_seen, self.urgent_seen) = (wakes, urgent);
        if notified {
            self.due.notified = None;
            self.due.last_notified_claim = Some(now);
        }
        let limit = if alone { 1 } else { room };
        let bytes = self.bytes_left();
        self.due.busy();
        match protocol::claim(self.extension.extension, &self.id, limit, self.after_role, alone, 1, bytes) {
            Ok(claims) => {
                if (PACED_CLAIM..limit).contains(&claims.requests.len()) {
                    self.due.pace = now + (now.elapsed() * PACE).min(LONGEST_PACE);
                }
                self.submit(claims, limit, alone, bytes)
            }
            Err(error) => {
                self.due.claim = Instant::now() + RETRY_INTERVAL;
                self.maybe_more = true;
                self.complain(error);
                false
            }
        }
    }

    /// Claims requests that are more urgent than the least urgent one that is there, although the engine has
    /// enough to do.
    fn claim_urgent(&mut self, urgent: u64, room: usize, least: u32) -> bool {
        (self.urgent_seen, self.maybe_urgent) = (urgent, false);
        let least = u8::try_from(least).unwrap_or(u8::MAX);
        let bytes = self.bytes_left();
        self.due.busy();
        match protocol::claim(self.extension.extension, &self.id, room, self.after_role, false, least, bytes)
        {
            Ok(claims) => {
                // Whether there is something for the room that comes free it does not say.
                let maybe_more = self.maybe_more;
                let claimed = self.submit(claims, room, false, bytes);
                self.maybe_urgent |= self.maybe_more;
                self.maybe_more |= maybe_more && !self.paused;
                claimed
            }
            Err(error) => {
                self.due.claim = Instant::now() + RETRY_INTERVAL;
                self.maybe_urgent = true;
                self.complain(error);
                false
            }
        }
    }
}
