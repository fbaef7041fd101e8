//! The order of waiting requests: by priority, then users in turn, then by age.
//!
//! Time is counted in turns of the engine thread in which something was computed, so that the order does not
//! depend on the speed of the machine.
//!
//! No request starves. A waiting request rises by one priority every [`AGEING`] turns, up to the highest; one
//! that has reached the highest keeps its place for [`QUANTUM`] turns against all others, one such request at
//! a time. And a user without any place gets one of another user of the same priority after at most
//! [`QUANTUM`] turns.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use super::QueueSlot;
use super::plan::Plan;
use super::submission::{HIGHEST, Submission};

/// Turns that a request waits for one more priority.
pub(super) const AGEING: u64 = 256;
/// Turns for which a place is not taken away again.
pub(super) const QUANTUM: u64 = 64;

/// The arrival of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Age {
    /// Its number in the order of arrival.
    pub(super) arrival: u64,
    /// The turn from which on it has waited, without those in which it ran.
    pub(super) since: u64,
}

impl Age {
    /// Number of turns that it has waited.
    pub(super) fn waited(&self, now: u64) -> u64 {
        now.saturating_sub(self.since)
    }

    /// The priority after its wait: one more for every [`AGEING`] turns, up to [`HIGHEST`].
    pub(super) fn priority(&self, priority: u8, now: u64) -> u8 {
        let risen = u64::from(priority) + self.waited(now) / AGEING;
        u8::try_from(risen).map_or(HIGHEST, |risen| risen.min(HIGHEST))
    }
}

/// The turn in which a request got its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) age: Age,
    pub(super) begun: u64,
    /// The place is not taken away before this turn.
    pub(super) kept_until: u64,
}

/// A request that has not begun.
pub(super) struct WaitingRequest {
    pub(super) submission: Submission,
    /// Its place in the queue, which is free again when this is dropped.
    pub(super) _slot: QueueSlot,
    /// Its tokens, if it only waits for memory.
    pub(super) plan: Option<Plan>,
    /// Its number, while it is tokenized on another thread.
    pub(super) planning: Option<u64>,
    pub(super) loading_sent: bool,
    pub(super) age: Age,
}

/// Requests of one priority and user, which go in the order of their arrival.
pub(super) type TurnLane = (Reverse<u8>, u32);

/// All requests that have not begun.
#[derive(Default)]
pub(super) struct WaitingRequests {
    lanes: BTreeMap<TurnLane, VecDeque<WaitingRequest>>,
}

impl WaitingRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// All of them, the highest priority first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &WaitingRequest> {
        self.lanes.values().flatten()
    }

    /// As [`WaitingRequests::iter`].
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut WaitingRequest> {
        self.lanes.values_mut().flatten()
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = TurnLane> {
        self.lanes.keys().copied()
    }

    /// The request at this place of a lane.
    pub(super) fn get(&self, lane: TurnLane, index: usize) -> Option<&WaitingRequest> {
        self.lanes.get(&lane)?.get(index)
    }

    /// Adds a request behind those that have come before it.
    pub(super) fn add(&mut self, waiting: WaitingRequest) {
        let lane = lane_of(&waiting.submission);
        let requests = self.lanes.entry(lane).or_default();
        let index = requests.partition_point(|other| other.age.arrival < waiting.age.arrival);
        requests.insert(index, waiting);
    }

    /// Takes out the request at this place.
    pub(super) fn take(&mut self, lane: TurnLane, index: usize) -> Option<WaitingRequest> {
        let requests = self.lanes.get_mut(&lane)?;
        let waiting = requests.remove(index);
        if requests.is_empty() {
            self.lanes.remove(&lane);
        }
        waiting
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&WaitingRequest) -> bool) {
        self.lanes.retain(|_, requests| {
            requests.retain(&mut keep);
            !requests.is_empty()
        });
    }

    /// Adds the listeners of a request to the waiting one that asks for the same.
    pub(super) fn join(&mut self, other: Submission) {
        let found = self.lanes.iter().find_map(|(lane, requests)| {
            let same = |waiting: &WaitingRequest| waiting.submission.is_duplicate_of(&other);
            Some((*lane, requests.iter().position(same)?))
        });
        if let Some((lane, index)) = found
            && let Some(waiting) = self.take(lane, index)
        {
            // A request that joins may be more urgent than the one that waits.
            waiting.submission.take_in(other);
            self.add(waiting);
        }
    }

    /// Removes and returns all requests.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = WaitingRequest> + use<> {
        std::mem::take(&mut self.lanes).into_values().flatten()
    }
}

fn lane_of(submission: &Submission) -> TurnLane {
    (Reverse(submission.priority()), submission.owner())
}

/// The order of users of one priority and number of places: those who got a place least recently go first.
#[derive(Default)]
pub(super) struct Users {
    /// The last time at which they got a place, by a number that only grows.
    served: HashMap<u32, u64>,
    count: u64,
}

/// Most users that are remembered.
const MOST_USERS: usize = 4096;

impl Users {
    /// The order of waiting requests: the least rank goes first.
    pub(super) fn rank(&self, priority: u8, age: &Age, user: u32, places: usize, now: u64) -> Rank {
        Rank(
            Reverse(age.priority(priority, now)),
            places,
            self.served.get(&user).copied().unwrap_or(0),
            age.arrival,
        )
    }

    /// Notes that a request of the user has begun.
    pub(super) fn note(&mut self, user: u32) {
        if self.served.len() >= MOST_USERS {
            self.served.clear();
        }
        self.count += 1;
        self.served.insert(user, self.count);
    }
}

/// See [`Users::rank`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(Reverse<u8>, usize, u64, u64);

#[cfg(test)]
mod tests {
    use super::{AGEING, Age, HIGHEST, Users};

    #[test]
    fn who_waits_rises_to_the_highest_priority_and_no_further() {
        let age = Age { arrival: 1, since: 100 };
        assert_eq!(age.priority(1, 100), 1);
        assert_eq!(age.priority(1, 100 + AGEING - 1), 1);
        assert_eq!(age.priority(1, 100 + AGEING), 2);
        assert_eq!(age.priority(1, 100 + 9 * AGEING), HIGHEST);
        assert_eq!(age.priority(1, u64::MAX), HIGHEST);
        assert_eq!(age.priority(HIGHEST, 100), HIGHEST);
        assert_eq!(age.priority(4, 7), 4, "before it has waited at all");
    }

    #[test]
    fn priority_goes_first_then_the_user_with_the_fewest_places_then_turns_then_age() {
        let mut users = Users::default();
        users.note(7);
        users.note(8);
        let now = 1000;
        let age = |arrival| Age { arrival, since: now };
        let rank = |priority, arrival, user, places| users.rank(priority, &age(arrival), user, places, now);
        assert!(rank(6, 9, 8, 5) < rank(5, 1, 7, 0));
        assert!(rank(5, 9, 8, 0) < rank(5, 1, 7, 1));
        assert!(rank(5, 9, 7, 1) < rank(5, 1, 8, 1), "7 was served before 8");
        assert!(rank(5, 9, 9, 1) < rank(5, 1, 7, 1), "9 was never served");
        assert!(rank(5, 1, 7, 1) < rank(5, 2, 7, 1));
        let old = Age { arrival: 3, since: 0 };
        assert!(
            users.rank(3, &old, 7, 4, 2 * AGEING)
                == users.rank(5, &Age { arrival: 3, since: 2 * AGEING }, 7, 4, 2 * AGEING)
        );
    }
}
