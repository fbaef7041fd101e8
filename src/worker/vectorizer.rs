//! The processes that work for the vectorizers of a database: they turn changed rows into requests of the
//! queue, and write their answers where they belong.
//!
//! They are processes of their own because they run code that users have put on their tables, with the users'
//! rights: a trigger that sleeps, or a table that is locked, holds up vectorizers and no request. Functions
//! of schema steadytext decide which vectorizer does which step; each step is one transaction for one
//! vectorizer.
//!
//! There are two of them, so that vectorizers do not hold up each other either. The fast one takes short
//! steps. A vectorizer whose step was not short is the slow one's for a while, as is one whose index is to be
//! built. A step that catches its cancel ends its process, and the next one passes over its vectorizer for a
//! while.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::protocol::{self, Presence};
use crate::pg::error::PgError;
use crate::pg::interrupts::Termination;
use crate::pg::shmem::{self, PACES, Slot, VectorizerPace};
use crate::pg::{bgworker, catalog_cache, interrupts};

/// Time limit of one step, users' triggers included, and the time after which the process ends if that has
/// not ended the step.
const FAST_LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// The limits of the slow process, which gives the parts of a step that failed a few seconds each.
const SLOW_LIMITS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(150));
/// Time by which an owner's steps may have taken longer than those of others before these come first, in
/// seconds.
const HEAD_START_S: f64 = 0.5;
/// SQLSTATE of a step whose time was over.
const CANCELED: &str = "57014";
/// Pause after a round that has found nothing to do, before a look at what was noted since: those who commit
/// one row after the other do not pay for a look at each of them, and the rows gather.
const GATHER_INTERVAL: Duration = Duration::from_millis(20);
/// Longest such pause, after several such rounds while nothing is under way: the notes then belong to
/// definitions that are paused, or are tried later.
const LONGEST_GATHER_INTERVAL: Duration = Duration::from_millis(160);
/// Interval at which it looks whether its requests have ended, where nobody says so.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which it looks around while nothing happens, in multiples of `worker_poll_interval`.
const IDLE_FACTOR: f64 = 30.0;
/// Pause after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between attempts to start the process.
const START_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest interval between two lines about the same trouble in the server log.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The worker's knowledge of the processes.
pub(super) struct Supervision {
    notes_seen: u64,
    /// The earliest time of the next attempt to start each process, by pace.
    not_before: [Instant; PACES],
    wanted: [bool; PACES],
}

impl Supervision {
    /// The state at the start: all processes are looked for at once.
    pub(super) fn new() -> Self {
        Supervision { notes_seen: 0, not_before: [Instant::now(); PACES], wanted: [true; PACES] }
    }

    /// Starts the processes that are missing and for which there is a vectorizer. `look`: there may be one of
    /// which nobody has said anything.
    ///
    /// # Errors
    ///
    /// The database's; all of max_worker_processes are in use.
    pub(super) fn step(&mut self, slot: &'static Slot, look: bool) -> Result<(), PgError> {
        let notes = slot.vectorizer_notes.load(SeqCst).wrapping_add(slot.vectorizer_calls.load(SeqCst));
        if look || notes != self.notes_seen {
            self.wanted = [true; PACES];
        }
        self.notes_seen = notes;
        for pace in VectorizerPace::ALL {
            let index = pace as usize;
            // The fast process asks for the other one when there is something for it.
            if pace == VectorizerPace::Slow
                && slot.vectorizers[VectorizerPace::Fast as usize].pid.load(SeqCst) == 0
            {
                self.wanted[index] = false;
                continue;
            }
            if !self.wanted[index]
                || Instant::now() < self.not_before[index]
                || slot.vectorizers[index].pid.load(SeqCst) != 0
            {
                continue;
            }
            self.wanted[index] = false;
            if !protocol::has_vectorizers(pace == VectorizerPace::Slow)? {
                slot.note_place(shmem::DatabaseProcess::Vectorizer(pace), true);
                continue;
            }
            self.not_before[index] = Instant::now() + START_INTERVAL;
            let Some(shared) = shmem::get() else { return Ok(()) };
            let database = pg_sys::Oid::from(slot.database.load(Acquire));
            let is_started = bgworker::start_vectorizer(shared.index_of(slot), pace, database);
            slot.note_place(shmem::DatabaseProcess::Vectorizer(pace), is_started);
            if !is_started {
                self.wanted[index] = true;
                return Err(PgError::new(
                    PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                    "a process that works for vectorizers cannot be started: all of max_worker_processes are in use",
                )
                .hint("Raise max_worker_processes and restart the server."));
            }
        }
        Ok(())
    }

    /// The time at which a process that is missing is to be started. One that runs wakes the worker when it
    /// ends.
    pub(super) fn due(&self, slot: &Slot) -> Option<Instant> {
        let is_missing = |pace: &VectorizerPace| slot.vectorizers[*pace as usize].pid.load(SeqCst) == 0;
        let missing = VectorizerPace::ALL.into_iter().filter(is_missing).map(|pace| pace as usize);
        missing.filter(|index| self.wanted[*index]).map(|index| self.not_before[index]).min()
    }
}

/// The life of a process; `index` is that of a slot and its pace.
pub(super) fn run(index: usize) {
    interrupts::accept_signals(Termination::AtOnce);
    let Some(slot) = shmem::get().and_then(|shared| shared.slots.get(index / PACES)) else { return };
    let pace = VectorizerPace::ALL[index % PACES];
    let database = bgworker::my_assignment();
    if !slot.begin_vectorizing(pace, database, interrupts::my_latch()) {
        return;
    }
    // Before the process connects, so that it runs after the process has left the database.
    interrupts::at_exit(leave);
    bgworker::connect(Some(database));
    bgworker::pin_settings();
    let extension = match protocol::presence() {
        Ok(Presence::Present(extension, _)) => extension.extension,
        Ok(Presence::Absent) => return,
        Err(error) => return error.report(PgLogLevel::LOG),
    };
    interrupts::prepare_time_limits(&slot.vectorizers[pace as usize].overran);
    VectorizerProcess { slot, pace, database, extension, complaint: None, turns: HashMap::new() }.work();
}

fn leave() {
    let Some(shared) = shmem::get() else { return };
    for slot in &shared.slots {
        if let Some(pace) = slot.pace_of_me() {
            slot.end_vectorizing(pace);
        }
    }
}

struct VectorizerProcess {
    slot: &'static Slot,
    pace: VectorizerPace,
    database: pg_sys::Oid,
    extension: pg_sys::Oid,
    complaint: Option<(String, Instant)>,
    /// Seconds of steps that each owner has had, more than the one who had least.
    turns: HashMap<pg_sys::Oid, f64>,
}

impl VectorizerProcess {
    /// Works until there is no vectorizer any more.
    fn work(&mut self) {
        let own = &self.slot.vectorizers[self.pace as usize];
        while let Err(error) = self.note_overrun() {
            self.complain(error);
            interrupts::wait(RETRY_INTERVAL, None);
            interrupts::check_between_transactions();
        }
        let mut look = Instant::now();
        let mut reviews_seen = None;
        // The beginning of the last round that found nothing to do, and what had been noted then.
        let mut idle: Option<(Instant, u64)> = None;
        let mut gather = GATHER_INTERVAL;
        loop {
            if let Some((begun, seen)) = idle.take()
                && self.slot.vectorizer_notes.load(SeqCst) != seen
            {
                while let rest = gather.saturating_sub(begun.elapsed())
                    && !rest.is_zero()
                {
                    std::thread::sleep(rest.min(GATHER_INTERVAL));
                    interrupts::check_between_transactions();
                }
            }
            interrupts::check_between_transactions();
            interrupts::reload_configuration();
            if self.slot.database.load(Acquire) != self.database.to_u32() {
                return;
            }
            let reviews = self.slot.reviews.load(Acquire);
            let is_told = reviews_seen.replace(reviews) != Some(reviews);
            if is_told {
                catalog_cache::forget();
            }
            // The requests that it enqueues keep the default models of its own beginning. Where there are
            // others, the worker starts another process.
            let compares = is_told || Instant::now() >= look;
            let (is_paused, interval) = match protocol::presence_and_defaults(compares) {
                Ok((Presence::Present(now, config), false))
                    if now.extension == self.extension && now.version == env!("CARGO_PKG_VERSION") =>
                {
                    let interval = config.worker_poll_interval_s.clamp(0.01, 120.0) * IDLE_FACTOR;
                    (config.worker_paused, Duration::from_secs_f64(interval))
                }
                Ok(_) => return,
                Err(error) => {
                    self.complain(error);
                    interrupts::wait(RETRY_INTERVAL, None);
                    continue;
                }
            };
            let begun = Instant::now();
            let notes = self.slot.vectorizer_notes.load(SeqCst);
            let looks = Instant::now() >= look;
            if looks {
                look = Instant::now() + interval;
            }
            if is_paused {
                interrupts::wait(look.saturating_duration_since(Instant::now()), None);
                continue;
            }
            // This order is the other way round where requests end, so that no end is missed.
            own.waits.store(true, SeqCst);
            let outlook = match self.round(looks) {
                Ok(Some(outlook)) => outlook,
                Ok(None) => return,
                Err(error) => {
                    self.complain(error);
                    RoundOutcome { progressed: false, waits: true, due_in_s: None }
                }
            };
            if outlook.progressed {
                gather = GATHER_INTERVAL;
                continue;
            }
            gather = if outlook.waits { GATHER_INTERVAL } else { (gather * 2).min(LONGEST_GATHER_INTERVAL) };
            idle = Some((begun, notes));
            if self.slot.vectorizer_notes.load(SeqCst) != notes {
                continue;
            }
            own.waits.store(outlook.waits, SeqCst);
            let mut pause = look.saturating_duration_since(Instant::now());
            if outlook.waits {
                pause = pause.min(ANSWER_INTERVAL);
            }
            if let Some(seconds) = outlook.due_in_s {
                pause = pause.min(Duration::try_from_secs_f64(seconds.max(0.01)).unwrap_or(pause));
            }
            interrupts::wait(pause, None);
        }
    }

    /// Writes down that a step of the process before this one has not ended in its time: it is not tried
    /// again soon.
    fn note_overrun(&self) -> Result<(), PgError> {
        let own = &self.slot.vectorizers[self.pace as usize];
        let step = [&own.step[0], &own.step[1]].map(|half| half.load(SeqCst));
        if own.overran.load(SeqCst) && step != [0; 2] {
            let id = uuid::Uuid::from_u64_pair(step[0], step[1]);
            self.note_error(
                pgrx::Uuid::from_bytes(*id.as_bytes()),
                "a step did not end when its time was over, so that its process was ended: code of the table's catches the cancel (57014) of the statement that runs it",
                None,
            )?;
        }
        own.step.iter().for_each(|half| half.store(0, SeqCst));
        own.overran.store(false, SeqCst);
        Ok(())
    }

    /// `code`: the SQLSTATE; `None` where the process was ended.
    fn note_error(&self, id: pgrx::Uuid, message: &str, code: Option<String>) -> Result<(), PgError> {
        let is_slow = self.pace == VectorizerPace::Slow;
        protocol::note_definition_error(id, message, code, is_slow)
    }

    /// One step for a vectorizer; true if there may be more to do.
    fn step(&self, id: pgrx::Uuid, looks: bool) -> Result<bool, PgError> {
        let own = &self.slot.vectorizers[self.pace as usize];
        let is_slow = self.pace == VectorizerPace::Slow;
        let limits = if is_slow { SLOW_LIMITS } else { FAST_LIMITS };
        let halves = uuid::Uuid::from_bytes(*id.as_bytes()).as_u64_pair();
        own.step[0].store(halves.0, SeqCst);
        own.step[1].store(halves.1, SeqCst);
        let step = protocol::vectorizer_step(id, looks, is_slow, limits);
        own.step.iter().for_each(|half| half.store(0, SeqCst));
        step
    }

    fn had(&self, owner: pg_sys::Oid) -> f64 {
        self.turns.get(&owner).copied().unwrap_or(0.0)
    }

    /// One step for each vectorizer for which something can be done, but for those whose owners have had more
    /// time than others who wait. `None`: there are none at all.
    fn round(&mut self, looks: bool) -> Result<Option<RoundOutcome>, PgError> {
        let is_slow = self.pace == VectorizerPace::Slow;
        let round = Instant::now();
        let mut due = protocol::vectorizers_due(looks, is_slow)?;
        // An owner with nothing to do saves up no time.
        self.turns.retain(|owner, _| due.iter().any(|(_, of)| of == owner));
        for (_, owner) in &due {
            self.turns.entry(*owner).or_insert(0.0);
        }
        let least = self.turns.values().copied().min_by(f64::total_cmp).unwrap_or(0.0);
        self.turns.values_mut().for_each(|had| *had -= least);
        due.sort_by(|one, other| self.had(one.1).total_cmp(&self.had(other.1)));
        let mut progressed = false;
        let mut passed_over = false;
        for (id, owner) in due {
            interrupts::check_between_transactions();
            if self.had(owner) > HEAD_START_S {
                passed_over = true;
                continue;
            }
            let begun = Instant::now();
            let step = self.step(id, looks);
            *self.turns.entry(owner).or_insert(0.0) += begun.elapsed().as_secs_f64();
            match step {
                Ok(step) => progressed |= step,
                Err(error) => {
                    self.note_error(id, &error.message, Some(error.sqlstate()))?;
                    if !is_slow && error.sqlstate() == CANCELED {
                        // The definition is the other process's now.
                        self.slot.call_vectorizer(self.pace.other());
                    }
                    self.complain(error);
                }
            }
        }
        if passed_over && !progressed {
            self.turns.clear();
            progressed = true;
        }
        let Some(found) = protocol::vectorizers_outlook(is_slow, round.elapsed().as_secs_f64())? else {
            return Ok(None);
        };
        if found.hands_over {
            let other = self.pace.other();
            if progressed || self.slot.vectorizers[other as usize].pid.load(SeqCst) == 0 {
                self.slot.call_vectorizer(other);
            }
        }
        let outlook = RoundOutcome { progressed, waits: found.waits, due_in_s: found.due_in_s };
        Ok(found.any_left.then_some(outlook))
    }

    /// Writes trouble to the server log, the same one not too often.
    fn complain(&mut self, error: PgError) {
        let is_recent = self
            .complaint
            .as_ref()
            .is_some_and(|(message, at)| *message == error.message && at.elapsed() < COMPLAINT_INTERVAL);
        if !is_recent {
            self.complaint = Some((error.message.clone(), Instant::now()));
            error.report(PgLogLevel::WARNING);
        }
    }
}

/// The work that there is to be done next.
struct RoundOutcome {
    /// Whether work was done: there may be more.
    progressed: bool,
    /// Requests are under way.
    waits: bool,
    /// Seconds until something comes due.
    due_in_s: Option<f64>,
}

/// Wakes the processes because requests have ended, if one of them waits for some.
pub(super) fn wake_waiting(slot: &Slot) {
    if slot.vectorizers.iter().any(|process| process.waits.load(Relaxed)) {
        slot.wake_vectorizers();
    }
}
