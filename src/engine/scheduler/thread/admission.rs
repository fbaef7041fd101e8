//! Admission: the waiting requests that begin, and the running ones that give way to them.
//!
//! A request gives way to one of a higher priority; and to one of another user of the same priority, until
//! both have as many places or one place apart. It is suspended: it keeps its keys and values as long as
//! there is room for them, and otherwise computes them anew when it goes on. Its bytes are the same, as they
//! are those of its tokens, whenever those are computed.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{EngineThread, in_use, takes_long};
use crate::panic::catch;
use crate::scheduler::beginning::RequestBeginning;
use crate::scheduler::likelihood_memo::key_of;
use crate::scheduler::models::Missing;
use crate::scheduler::plan::Plan;
use crate::scheduler::sequence::{Sequence, Suspended};
use crate::scheduler::submission::HIGHEST;
use crate::scheduler::turns::{AGEING, Age, QUANTUM, Rank, Turn, TurnLane, WaitingRequest};
use crate::{Error, EventKind, ModelSource, Output};

/// A request that may get a place next.
#[derive(Debug, Clone, Copy)]
enum AdmissionCandidate {
    /// The request at this place of a lane.
    Waiting(TurnLane, usize),
    /// A suspended one.
    Suspended(usize),
}

/// The findings of one round of admissions.
#[derive(Default)]
struct Round {
    /// The index of the next request to consider in each lane; those before it have to wait.
    passed: HashMap<TurnLane, usize>,
    /// Suspended requests that have to wait, by the numbers of their arrival.
    passed_suspended: Vec<u64>,
    /// Models whose requests have to wait; those of the others go on.
    coming: Vec<ModelSource>,
    /// The priority of a request for whose keys and values there is no room, so that nothing less urgent gets
    /// any.
    blocked: Option<u8>,
    /// Lanes for which no running request gives way.
    closed: Vec<TurnLane>,
    /// Requests of this round that are tokenized or compiled on other threads. Later ones of their model may
    /// overtake them, unless there are more of them than may run.
    planning: usize,
}

/// The rank of a request that asks for a place.
#[derive(Clone, Copy)]
struct AdmissionRank {
    priority: u8,
    owner: u32,
    waited: u64,
}

impl EngineThread {
    /// Admits the requests that fit.
    pub(super) fn admit_all(&mut self) {
        self.suspend_held();
        self.plan_ahead();
        let mut round = Round::default();
        while !self.stopping() {
            let Some(candidate) = self.next_candidate(&round) else { break };
            match candidate {
                AdmissionCandidate::Waiting(lane, index) => self.consider(lane, index, &mut round),
                AdmissionCandidate::Suspended(index) => self.consider_suspended(index, &mut round),
            }
        }
    }

    /// Suspends requests whose listeners do not read.
    fn suspend_held(&mut self) {
        while let Some(index) = self.running.iter().position(|running| running.submission.is_held()) {
            self.suspend(index);
        }
        // Time for which a listener does not read is no waiting for a turn.
        let now = self.now;
        let held = self.suspended.iter_mut().filter(|suspended| suspended.sequence.submission.is_held());
        held.for_each(|suspended| suspended.sequence.turn.age.since = now);
    }

    /// Number of places of a user.
    fn places(&self, owner: u32) -> usize {
        self.running.iter().filter(|running| running.submission.owner() == owner).count()
    }

    /// The best candidate of those that were not passed over.
    fn next_candidate(&self, round: &Round) -> Option<AdmissionCandidate> {
        let rank = |priority: u8, owner: u32, age: &Age| {
            self.users.rank(priority, age, owner, self.places(owner), self.now)
        };
        let waiting = self.waiting.lanes().filter_map(|lane| {
            let index = round.passed.get(&lane).copied().unwrap_or(0);
            let waiting = self.waiting.get(lane, index)?;
            let (Reverse(priority), owner) = lane;
            Some((rank(priority, owner, &waiting.age), AdmissionCandidate::Waiting(lane, index)))
        });
        let suspended = self.suspended.iter().enumerate().filter_map(|(index, suspended)| {
            let submission = &suspended.sequence.submission;
            let age = suspended.sequence.turn.age;
            if submission.is_held() || round.passed_suspended.contains(&age.arrival) {
                return None;
            }
            let rank = rank(submission.priority(), submission.owner(), &age);
            Some((rank, AdmissionCandidate::Suspended(index)))
        });
        waiting
            .chain(suspended)
            .min_by_key(|(rank, _): &(Rank, AdmissionCandidate)| *rank)
            .map(|(_, next)| next)
    }

    fn consider(&mut self, lane: TurnLane, index: usize, round: &mut Round) {
        let (Reverse(priority), owner) = lane;
        let Some(waiting) = self.waiting.get(lane, index) else { return };
        let source = waiting.submission.request.model.clone();
        let claim = AdmissionRank { priority, owner, waited: waiting.age.waited(self.now) };
        let is_ready = waiting.planning.is_none()
            && (waiting.plan.is_some() || !takes_long(&waiting.submission.request.work));
        let mut pass = round.coming.contains(&source);
        // Texts on encoders need neither a place nor keys and values.
        let mut is_over = false;
        if !pass && !self.models.is_encoder(&source) {
            pass = round.blocked.is_some_and(|blocked| priority <= blocked) || round.closed.contains(&lane);
            if !pass && self.running.len() >= self.max_running {
                match self.victim(claim) {
                    Some(_) if !self.models.has(&source) => {}
                    Some(victim) if is_ready => self.suspend(victim),
                    Some(_) => pass = true,
                    None => {
                        round.closed.push(lane);
                        pass = true;
                    }
                }
            }
            is_over = round.closed.contains(&lane) && !self.models.have_encoders();
        }
        if pass {
            let passed = round.passed.entry(lane).or_default();
            *passed = if is_over { usize::MAX } else { *passed + 1 };
            return;
        }
        let Some(next) = self.waiting.take(lane, index) else { return };
        let later = self.try_admit(next, claim);
        let Some(later) = later else {
            self.users.note(owner);
            return;
        };
        let is_planned = later.planning.is_some();
        round.planning += usize::from(is_planned);
        self.waiting.add(later);
        *round.passed.entry(lane).or_default() += 1;
        if is_planned && round.planning <= self.max_running {
            return;
        }
        if is_planned || self.models.is_coming(&source) || self.models.is_encoder(&source) {
            round.coming.push(source);
        } else {
            round.blocked = round.blocked.max(Some(priority));
        }
    }

    fn consider_suspended(&mut self, index: usize, round: &mut Round) {
        let running = &self.suspended[index].sequence;
        let (arrival, source) = (running.turn.age.arrival, running.source().clone());
        let (priority, owner) = (running.submission.priority(), running.submission.owner());
        let claim = AdmissionRank { priority, owner, waited: running.turn.age.waited(self.now) };
        round.passed_suspended.push(arrival);
        let lane = (Reverse(priority), owner);
        if round.coming.contains(&source)
            || round.closed.contains(&lane)
            || round.blocked.is_some_and(|blocked| priority <= blocked)
        {
            return;
        }
        if self.running.len() >= self.max_running && !self.make_way(claim) {
            round.closed.push(lane);
            return;
        }
        // The suspension of others may have moved it.
        let found =
            self.suspended.iter().position(|suspended| suspended.sequence.turn.age.arrival == arrival);
        let Some(index) = found else { return };
        let suspended = self.suspended.remove(index);
        match catch(|| self.resume(suspended, claim)) {
            Ok(None) => self.users.note(owner),
            Ok(Some(later)) => {
                self.suspended.push(*later);
                if self.models.is_coming(&source) {
                    round.coming.push(source);
                } else {
                    round.blocked = round.blocked.max(Some(priority));
                }
            }
            Err(_) => self.shared.statistics.panicked(),
        }
    }

    /// Suspends the running request that must give way to such a claim, if there is one.
    fn make_way(&mut self, claim: AdmissionRank) -> bool {
        let Some(index) = self.victim(claim) else { return false };
        self.suspend(index);
        true
    }

    /// The running request that has to give way first.
    fn victim(&self, claim: AdmissionRank) -> Option<usize> {
        let order = |running: &Sequence| {
            let theirs = self.places(running.submission.owner());
            let latest = (Reverse(running.turn.begun), Reverse(running.turn.age.arrival));
            (running.submission.priority(), Reverse(theirs), latest)
        };
        let giving = self.running.iter().enumerate().filter(|(_, running)| self.gives_way(running, claim));
        giving.min_by_key(|(_, running)| order(running)).map(|(index, _)| index)
    }

    /// Whether a running request has to give its place to such a claim.
    fn gives_way(&self, running: &Sequence, claim: AdmissionRank) -> bool {
        let (priority, owner) = (running.submission.priority(), running.submission.owner());
        if self.now < running.turn.kept_until {
            return false;
        }
        if priority != claim.priority || owner == claim.owner {
            return priority < claim.priority;
        }
        let (mine, theirs) = (self.places(claim.owner), self.places(owner));
        let has_turn = mine == 0 && claim.waited >= QUANTUM && self.now >= running.turn.begun + QUANTUM;
        mine + 1 < theirs || has_turn
    }

    /// Suspends a running request.
    fn suspend(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        sequence.pause();
        // The time that it had waited before counts, less that for one priority, so that requests which have
        // waited long come back soon.
        let waited = sequence.turn.begun.saturating_sub(sequence.turn.age.since).saturating_sub(AGEING);
        sequence.turn.age.since = self.now - waited.min(self.now);
        let source = sequence.source();
        let (identity, load) = (self.models.identity(source), self.models.load_number(source));
        self.shared.statistics.suspended();
        self.suspended.push(Suspended { sequence, identity, load });
    }

    /// Bytes of keys and values that belong to single requests: those that running ones will have, and those
    /// that suspended ones have now.
    pub(super) fn own_bytes(&self) -> u64 {
        let running: u64 = self.running.iter().map(Sequence::own_bytes).sum();
        let suspended: u64 = self.suspended.iter().map(|suspended| suspended.sequence.taken_bytes()).sum();
        running + suspended
    }

    /// Whether so many bytes of keys and values fit, after suspended requests have given up their state and
    /// running ones their places as far as needed. False also where they do not fit beside the requests that
    /// stay.
    fn make_room(&mut self, new: u64, most: u64, claim: AdmissionRank) -> bool {
        let staying = self.running.iter().filter(|running| !self.gives_way(running, claim));
        let staying: u64 = staying.map(Sequence::own_bytes).sum();
        if staying.saturating_add(new) > most {
            // There would be too little room even if all that may give way did.
            return false;
        }
        loop {
            if self.own_bytes().saturating_add(self.models.held_bytes()).saturating_add(new) <= most {
                return true;
            }
            // The suspended request that will be resumed last gives up its state first.
            let now = self.now;
            let having = self.suspended.iter_mut().filter(|suspended| suspended.sequence.has_state());
            let last = having.min_by_key(|suspended| {
                let running = &suspended.sequence;
                let priority = running.turn.age.priority(running.submission.priority(), now);
                (!running.submission.is_held(), priority, Reverse(running.turn.age.arrival))
            });
            if let Some(suspended) = last {
                self.shared.statistics.forgotten(suspended.sequence.forget_state());
                continue;
            }
            if !self.make_way(claim) {
                return false;
            }
        }
    }

    /// The turn until which a place is not taken away again. Of the requests that have become urgent by
    /// waiting, one at a time is protected.
    fn kept_until(&self, claim: AdmissionRank) -> u64 {
        let aged = claim.waited >= u64::from(HIGHEST - claim.priority.min(HIGHEST)) * AGEING;
        let is_first = self.running.iter().all(|running| running.turn.kept_until <= self.now);
        if claim.waited >= AGEING && aged && is_first { self.now + QUANTUM } else { self.now }
    }

    /// Begins a request or fails it; returns it where it has to wait. A panic is that request's.
    fn try_admit(&mut self, waiting: WaitingRequest, claim: AdmissionRank) -> Option<WaitingRequest> {
        match catch(|| self.admit(waiting, claim)) {
            Ok(later) => later,
            Err(_) => {
                // The request was told when it was dropped, and its place in the queue is free again.
                self.shared.statistics.panicked();
                None
            }
        }
    }

    /// Has long texts tokenized and constraints compiled on other threads before it is their turn.
    fn plan_ahead(&mut self) {
        let mut ahead = 0;
        for waiting in self.waiting.iter_mut() {
            let request = &waiting.submission.request;
            if !self.models.has(&request.model) {
                continue;
            }
            ahead += 1;
            if ahead > self.max_running {
                break;
            }
            if waiting.plan.is_none() && waiting.planning.is_none() && takes_long(&request.work) {
                let Some(texts) = self.models.texts(&request.model) else { continue };
                self.planned += 1;
                waiting.planning = Some(self.planned);
                self.helpers.plan(self.planned, &waiting.submission, texts);
            }
        }
    }

    /// Begins a request or fails it; returns it where it has to wait.
    fn admit(&mut self, mut waiting: WaitingRequest, claim: AdmissionRank) -> Option<WaitingRequest> {
        self.fault("admit");
        let reserved = self.own_bytes() + self.models.held_bytes();
        let source = waiting.submission.request.model.clone();
        let (running, suspended, encode_batches) = (&self.running, &self.suspended, &self.encode_batches);
        if !self.models.renew(&source, &|source| in_use(running, suspended, encode_batches, source)) {
            return Some(waiting);
        }
        if !self.models.has(&source) {
            // The tokens of the request belong to a model that is gone.
            let same = self.waiting.iter_mut().filter(|other| other.submission.request.model == source);
            for waiting in same.chain([&mut waiting]) {
                (waiting.plan, waiting.planning) = (None, None);
            }
            if matches!(source, ModelSource::File(_)) && !waiting.loading_sent {
                waiting.loading_sent = true;
                waiting.submission.send(EventKind::Loading);
            }
        }
        let mut plan = match self.plan(&mut waiting, &source, reserved) {
            Ok(planned) => planned,
            Err(Missing::NoRoom | Missing::Coming) => return Some(waiting),
            Err(Missing::Failed(error)) => {
                waiting.submission.fail(error);
                return None;
            }
        };
        let known = plan.take_output().or_else(|| Some((self.known_output(&waiting)?, None)));
        if let Some((output, checker)) = known {
            let submission = waiting.submission;
            submission.send(EventKind::Started {
                prompt_tokens: plan.prompt_tokens(),
                model: self.models.identity(&source),
            });
            match checker {
                Some(checker) => self.helpers.check(submission, output, checker),
                None => submission.send(EventKind::Done(output)),
            }
            return None;
        }
        if self.models.is_encoder(&source) {
            if self.encode_batches.is_full() {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            self.encode_batches.add(waiting.submission, plan, self.models.identity(&source));
            return None;
        }
        let Some(loaded) = self.models.get(&source) else { return Some(waiting) };
        let beginning = RequestBeginning::of(&plan, &waiting.submission.request, loaded, self.prefix_reuse);
        let (new, whole) = (beginning.own_bytes(), beginning.whole_bytes());
        // Kept blocks that no request holds make room; those that this request has found are held by now.
        let most = self.kv_budget.min(self.models.room(0));
        if !self.make_room(new, most, claim) {
            // A request that does not fit even by itself never will.
            if whole <= most && reserved > 0 {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            waiting.submission.fail(no_room(plan.positions, whole, most));
            return None;
        }
        if self.prefix_reuse {
            self.shared.statistics.looked_up(plan.prompt_tokens);
        }
        self.shared.statistics.reused(beginning.reused());
        let identity = self.models.identity(&source);
        let turn = self.turn_of(waiting.age, claim);
        let sequence = match self.models.get(&source) {
            Some(loaded) => Sequence::new(waiting.submission, plan, beginning, loaded, identity, turn),
            None => return None,
        };
        self.run_sequence(sequence, new, most);
        None
    }

    /// Gives a place to a request whose `new` bytes fit. The room left beside it may go to more paths through
    /// answers at a time.
    fn run_sequence(&mut self, mut sequence: Sequence, new: u64, most: u64) {
        let taken = self.own_bytes() + new;
        let lanes = sequence.allow_lanes(most.saturating_sub(taken + self.models.held_bytes()));
        self.models.trim_prefixes(most.saturating_sub(taken + lanes));
        self.running.push(sequence);
    }

    /// The result of an earlier request that asked the model for the same.
    fn known_output(&mut self, waiting: &WaitingRequest) -> Option<Output> {
        let request = &waiting.submission.request;
        let key = key_of(request).filter(|_| self.prefix_reuse)?;
        let loaded = self.models.get(&request.model)?;
        loaded.likelihoods.find(&key).map(Output::LogProbabilities)
    }

    /// Lets a suspended request go on, or fails it; returns it where it has to wait.
    fn resume(&mut self, mut suspended: Suspended, claim: AdmissionRank) -> Option<Box<Suspended>> {
        let source = suspended.sequence.source().clone();
        if !self.models.has(&source) {
            let reserved = self.own_bytes() + self.models.held_bytes();
            let (running, others, encode_batches) = (&self.running, &self.suspended, &self.encode_batches);
            let loaded = self.models.load(
                &source,
                &|source| in_use(running, others, encode_batches, source),
                reserved,
            );
            return match loaded {
                Err(Missing::Failed(error)) => {
                    suspended.sequence.submission.fail(error);
                    None
                }
                Ok(()) | Err(Missing::NoRoom | Missing::Coming) => Some(Box::new(suspended)),
            };
        }
        if self.models.identity(&source).hash != suspended.identity.hash {
            // Its model was replaced meanwhile, and a part of the answer is sent already.
            if let ModelSource::File(path) = source {
                suspended.sequence.submission.fail(Error::LostModel { path });
            }
            return None;
        }
        let most = self.kv_budget.min(self.models.room(0));
        let is_same_load = self.models.load_number(&source) == suspended.load;
        let loaded = self.models.get(&source)?;
        if !is_same_load {
            self.shared.statistics.forgotten(suspended.sequence.forget_state());
        }
        if !suspended.sequence.has_state() {
            self.shared.statistics.reused(suspended.sequence.reattach(&mut loaded.prefixes));
        }
        let (new, whole) = (suspended.sequence.own_bytes(), suspended.sequence.whole_bytes());
        if !self.make_room(new, most, claim) {
            if whole <= most {
                return Some(Box::new(suspended));
            }
            let error = no_room(suspended.sequence.positions(), whole, most);
            suspended.sequence.submission.fail(error);
            return None;
        }
        let mut sequence = suspended.sequence;
        sequence.turn = self.turn_of(sequence.turn.age, claim);
        self.run_sequence(sequence, new, most);
        None
    }

    /// The turn in which a place is given now.
    fn turn_of(&self, age: Age, claim: AdmissionRank) -> Turn {
        Turn { age, begun: self.now, kept_until: self.kept_until(claim) }
    }

    /// Loads the model and tokenizes the request, unless that is done already.
    fn plan(
        &mut self,
        waiting: &mut WaitingRequest,
        source: &ModelSource,
        reserved: u64,
    ) -> Result<Plan, Missing> {
        let (running, suspended, encode_batches) = (&self.running, &self.suspended, &self.encode_batches);
        let (models, helpers) = (&mut self.models, &self.helpers);
        let number = self.planned + 1;
        let memory = &self.shared.memory;
        let planned = catch(|| {
            models.load(source, &|source| in_use(running, suspended, encode_batches, source), reserved)?;
            if waiting.planning.is_some() {
                return Err(Missing::Coming);
            }
            match waiting.plan.take() {
                Some(plan) => Ok(plan),
                None if takes_long(&waiting.submission.request.work) => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    waiting.planning = Some(number);
                    helpers.plan(number, &waiting.submission, texts);
                    Err(Missing::Coming)
                }
                None => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    texts.plan(&waiting.submission.request.work, memory).map_err(Missing::Failed)
                }
            }
        });
        self.planned = number;
        planned.map_err(Missing::Failed)?
    }
}

/// The error for a request whose keys and values never fit.
fn no_room(positions: usize, bytes: u64, most: u64) -> Error {
    Error::OutOfMemory {
        what: format!("the key-value cache for {positions} tokens"),
        needed_mb: bytes.div_ceil(1 << 20),
        limit_mb: Some(most >> 20),
    }
}
