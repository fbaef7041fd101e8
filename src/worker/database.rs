//! The worker of one database: claims requests, hands them to the engine, stores the results.
//!
//! One thread, one loop; each turn does whatever is due and then sleeps until its latch is set, the engine
//! signals, or something is due ([`super::due`]). Every step that touches the database is a short
//! transaction; none is open while the engine works.
//!
//! Invariant: between its transactions the loop waits for nothing but its own latch and descriptor. In them
//! it skips rows that somebody has locked; a step can be held up only by a lock on a whole table, for
//! `lock_timeout` at most, by the disk, and by code that users attach to the queue, such as a trigger that
//! sleeps. Interrupts are answered there as in any statement.

mod claiming;
mod submitting;

use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::audit::AuditKeeper;
use super::awaiting::Awaiting;
use super::cache_writer::CacheWriter;
use super::due::Due;
use super::eviction::Eviction;
use super::filter_keeper::FilterKeeper;
use super::in_flight::InFlight;
use super::outcomes::Outcomes;
use super::protocol::{self, Depth, Heartbeat, Presence};
use super::recount::Recount;
use super::usage::UsageKeeper;
use super::{engine_link, vectorizer};
use crate::pg::catalog_cache::{self, DatabaseConfig, Installation};
use crate::pg::error::{PgError, counted};
use crate::pg::shmem::{self, Slot};
use crate::pg::slots::{self, WorkerExit, WorkerState};
use crate::pg::{bgworker, claim_floors, interrupts, listen};

/// Claims that NOTIFY asks for are made at most this often: anybody may send it, as often as they like.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(10);
/// Pause after a step that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which it looks whether a download has ended that requests wait for.
const DOWNLOAD_INTERVAL: Duration = Duration::from_millis(250);
/// A claim for the sake of a sweep is asked for at most this often.
const SWEEP_INTERVAL: Duration = Duration::from_millis(5);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Shortest interval between two lines about the same trouble in the server log.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The worker of a database.
pub(super) struct Worker {
    slot: &'static Slot,
    /// `local:<uuid>`, as rows carry it.
    id: String,
    extension: Rc<Installation>,
    in_flight: InFlight,
    /// Requests whose model is on its way.
    awaiting: Awaiting,
    outcomes: Outcomes,
    cache_writer: CacheWriter,
    config: Option<Rc<DatabaseConfig>>,
    wakes_seen: u64,
    urgent_seen: u64,
    /// Whether there may be requests that are more urgent than what is there.
    maybe_urgent: bool,
    reviews_seen: u64,
    /// The last claim was cut off by its limit: there may be more.
    maybe_more: bool,
    alone_due: bool,
    /// Whether the worker claims nothing until the configuration changes.
    paused: bool,
    /// The role that was served last.
    after_role: Option<pg_sys::Oid>,
    retention_at: Option<i64>,
    eviction: Eviction,
    filter_keeper: FilterKeeper,
    recount: Recount,
    usage: UsageKeeper,
    audit: AuditKeeper,
    vectorizer: vectorizer::Supervision,
    due: Due,
    warned_of_builtin: bool,
    complaint: Option<(String, Instant)>,
}

impl Worker {
    /// Starts the engine and the listening.
    ///
    /// # Errors
    ///
    /// The engine's, or the database's.
    pub(super) fn start(slot: &'static Slot, extension: Rc<Installation>) -> Result<Self, PgError> {
        engine_link::ensure_engine()?;
        protocol::listen()?;
        let id = slot.worker_id().map(|id| format!("local:{id}")).unwrap_or_default();
        slot.set_state(WorkerState::Working);
        if let Some(shared) = shmem::get() {
            slots::wake_launcher(shared);
        }
        Ok(Worker {
            slot,
            id,
            extension,
            in_flight: InFlight::default(),
            awaiting: Awaiting::default(),
            outcomes: Outcomes::new(),
            cache_writer: CacheWriter::new(slot),
            config: None,
            wakes_seen: slot.wakes.load(Acquire),
            urgent_seen: slot.urgent.load(Acquire),
            maybe_urgent: true,
            reviews_seen: slot.reviews.load(Acquire),
            maybe_more: true,
            alone_due: false,
            paused: false,
            after_role: None,
            retention_at: None,
            eviction: Eviction::new(),
            filter_keeper: FilterKeeper::new(),
            recount: Recount::new(),
            usage: UsageKeeper::new(),
            audit: AuditKeeper::new(),
            vectorizer: vectorizer::Supervision::new(),
            due: Due::new(slot),
            warned_of_builtin: false,
            complaint: None,
        })
    }

    /// Works until there is nothing to do in this database any more.
    pub(super) fn work(&mut self) {
        loop {
            if interrupts::termination_requested() {
                self.slot.set_ended(WorkerExit::Again);
                interrupts::postponing_termination(|| self.give_back());
            }
            interrupts::check_between_transactions();
            if interrupts::reload_configuration() && engine_link::has_other_settings() {
                return self.end(WorkerExit::Again);
            }
            if let Err(error) = engine_link::ensure_engine() {
                self.complain(error);
            }
            self.read_notifications();
            self.read_events();
            self.set_suspects_apart();
            if let Some(ended) = self.review() {
                return self.end(ended);
            }
            self.store();
            self.write_cache();
            self.poll();
            self.resume();
            self.read_events();
            self.sweep();
            let claimed = self.claim();
            self.maintain();
            if claimed {
                continue;
            }
            interrupts::wait(self.pause(), engine_link::wait_fd());
        }
    }

    /// Stops working here; the launcher draws its conclusions.
    fn end(&mut self, ended: WorkerExit) {
        self.slot.set_ended(ended);
        if ended == WorkerExit::Again {
            self.give_back();
        }
        engine_link::leave();
    }

    /// Stores what is finished and gives everything else back. Rows that cannot be given back are rescued by
    /// the next worker.
    fn give_back(&mut self) {
        self.read_events();
        self.outcomes.hurry();
        self.store();
        self.cache_writer.add(self.in_flight.entries.drain(..));
        if let Err(error) = self.cache_writer.write_all() {
            self.complain(error);
        }
        for written in [self.usage.write(self.slot), self.audit.write(self.slot)] {
            if let Err(error) = written {
                self.complain(error);
            }
        }
        let mut held = self.in_flight.clear();
        held.extend(self.awaiting.clear());
        engine_link::leave();
        if !held.is_empty()
            && let Err(error) = protocol::release(&self.id, &held, false)
        {
            self.complain(error);
        }
    }

    fn read_notifications(&mut self) {
        if listen::is_pending() {
            if let Err(error) = crate::pg::transaction::guarded(listen::process) {
                self.complain(error);
            }
            let earliest =
                self.due.last_notified_claim.map_or_else(Instant::now, |last| last + NOTIFY_INTERVAL);
            self.due.notified.get_or_insert(earliest);
        }
    }

    fn read_events(&mut self) {
        engine_link::exchange();
        loop {
            while let Some(event) = engine_link::next_event() {
                if let Some(outcome) = self.in_flight.take(event) {
                    self.outcomes.push(outcome);
                    self.maybe_more = true;
                }
            }
            if !self.hand_over() {
                break;
            }
        }
        self.publish();
    }

    /// Hands over as much as there is room for; whether that was anything.
    fn hand_over(&mut self) -> bool {
        let capacity = engine_link::capacity();
        let mut any = false;
        while let Some(job) = self.in_flight.next_subtask(capacity) {
            engine_link::submit(job);
            any = true;
        }
        any
    }

    fn publish(&self) {
        let running = i32::try_from(self.in_flight.len()).unwrap_or(i32::MAX);
        if self.slot.running.swap(running, Relaxed) != running {
            bgworker::show(&match running {
                0 => "idle".to_owned(),
                running => format!("running {}", counted(u64::try_from(running).unwrap_or(0), "requests")),
            });
        }
    }

    /// Looks whether the extension is still there and the running requests still ours, when somebody says
    /// that this may have changed, and at every poll. `Some`: the worker must end.
    fn review(&mut self) -> Option<WorkerExit> {
        let reviews = self.slot.reviews.load(Acquire);
        if reviews == self.reviews_seen && Instant::now() < self.due.look() {
            return None;
        }
        if reviews != self.reviews_seen {
            self.reviews_seen = reviews;
            catalog_cache::forget();
        }
        match protocol::presence_and_defaults(true) {
            Ok((Presence::Absent, _)) => {
                self.cache_writer.forget();
                return Some(WorkerExit::NoExtension);
            }
            Ok((Presence::Present(now, _), _))
                if now.extension != self.extension.extension || now.version != self.extension.version =>
            {
                self.cache_writer.forget();
                return Some(WorkerExit::Again);
            }
            // PostgreSQL gives a process what is set for its database when it begins, and not later.
            Ok((Presence::Present(..), true)) => return Some(WorkerExit::Again),
            Ok((Presence::Present(now, config), false)) => {
                self.extension = now;
                self.obey(config);
            }
            Err(error) => self.complain(error),
        }
        let mut held = self.in_flight.held();
        held.extend(self.awaiting.held());
        if !held.is_empty() {
            match protocol::extend(&self.id, &held) {
                Ok(lost) => {
                    self.in_flight.abandon(&lost);
                    self.awaiting.abandon(&lost);
                }
                Err(error) => self.complain(error),
            }
        }
        None
    }

    fn obey(&mut self, config: Rc<DatabaseConfig>) {
        // At the end of a pause, claim what has come in between.
        self.maybe_more |= self.paused && !config.worker_paused;
        self.paused = config.worker_paused;
        self.slot.set_state(if self.paused { WorkerState::Paused } else { WorkerState::Working });
        self.due.obey(&config);
        self.config = Some(config);
    }

    fn store(&mut self) {
        let any = self.outcomes.ready() > 0;
        match self.outcomes.store(&self.id, self.extension.extension) {
            Ok(retried) => self.due.retried(retried),
            Err(error) => self.complain(error),
        }
        if any {
            vectorizer::wake_waiting(self.slot);
        }
    }

    /// Keeps the cache.
    fn write_cache(&mut self) {
        self.cache_writer.add(self.in_flight.entries.drain(..));
        if let Err(error) = self.cache_writer.write() {
            self.complain(error);
        }
    }

    fn poll(&mut self) {
        if Instant::now() < self.due.look() {
            return;
        }
        self.due.looks();
        if let Err(error) = self.vectorizer.step(self.slot, true) {
            self.complain(error);
        }
        let begun = Instant::now();
        // If walks take long, the sweep that goes on with the claims takes them. While it is paused it claims
        // nothing.
        let depth = match (claim_floors::are_used() && !self.paused, self.due.is_thorough()) {
            (true, _) => match claim_floors::take_in_flight() {
                Some(ids) if ids.len() < claim_floors::MAX_IN_FLIGHT => Depth::Swept(ids),
                Some(_) => Depth::Thorough,
                None => Depth::Short,
            },
            (false, true) => Depth::Thorough,
            (false, false) => Depth::Short,
        };
        match protocol::poll(&self.id, &depth) {
            Ok(outlook) => {
                let may_wait = outlook.pending > 0 || depth != Depth::Thorough;
                self.alone_due |= outlook.alone_due;
                self.maybe_more |= may_wait && !self.paused;
                self.maybe_urgent |= may_wait;
                let took = (depth != Depth::Short).then(|| begun.elapsed());
                self.due.looked(&outlook, !self.is_idle(), took);
            }
            Err(error) => {
                self.due.looked_in_vain();
                self.complain(error);
            }
        }
        let memory: u64 = engine_link::models().iter().map(|(_, mb)| mb).sum();
        self.slot.memory_mb.store(i32::try_from(memory).unwrap_or(i32::MAX), Relaxed);
    }

    /// A portion of what is before the floors is due, and a claim sweeps it.
    fn sweep(&mut self) {
        let now = Instant::now();
        if !self.paused && self.sweep_due().is_some_and(|due| now >= due) {
            self.due.swept_at = Some(now);
            (self.maybe_more, self.maybe_urgent) = (true, true);
        }
    }

    /// A claim may have to wait for room.
    fn sweep_due(&self) -> Option<Instant> {
        let due = claim_floors::sweep_due()?;
        Some(self.due.swept_at.map_or(due, |last| due.max(last + SWEEP_INTERVAL)))
    }

    /// Whether it holds nothing.
    fn is_idle(&self) -> bool {
        self.in_flight.len() == 0 && self.outcomes.is_empty() && self.awaiting.is_empty()
    }

    /// Does the work that can wait: the heartbeat, the removal of old requests, and the eviction from the
    /// cache.
    fn maintain(&mut self) {
        let now = Instant::now();
        if now >= self.due.heartbeat && self.due.is_awake(!self.is_idle()) {
            self.due.heartbeat = now + HEARTBEAT_INTERVAL;
            let beat = Heartbeat {
                worker: &self.id,
                status: if self.paused { "paused" } else { "running" },
                models: engine_link::models(),
                active: self.in_flight.len(),
                total: self.in_flight.ended,
                errors: self.in_flight.failed,
                average_ms: self.in_flight.spent_ms / (self.in_flight.ended.max(1) as f64),
            };
            if let Err(error) = protocol::heartbeat(&beat) {
                self.complain(error);
            }
        }
        let keeps_all = self.config.as_ref().is_none_or(|config| config.queue_retention_hours == 0);
        if now >= self.due.retention && !keeps_all {
            let step = protocol::expire(self.retention_at.unwrap_or(0));
            self.retention_at = *step.as_ref().unwrap_or(&None);
            self.due.swept(self.retention_at.is_some(), now.elapsed());
            if let Err(error) = step {
                self.complain(error);
            }
        }
        if let Err(error) = self.recount.step(self.slot) {
            self.complain(error);
        }
        if let Err(error) = self.usage.step(self.slot) {
            self.complain(error);
        }
        if let Err(error) = self.audit.step(self.slot) {
            self.complain(error);
        }
        if let Err(error) = self.filter_keeper.step(self.extension.cache) {
            self.complain(error);
        }
        if let Err(error) = self.vectorizer.step(self.slot, false) {
            self.complain(error);
        }
        if let Some(config) = &self.config
            && let Err(error) = self.eviction.step(config)
        {
            self.complain(error);
        }
    }

    fn pause(&self) -> Duration {
        let mut until = self.due.look().min(Instant::now() + engine_link::pause());
        if !self.is_idle() {
            until = until.min(self.due.heartbeat);
        }
        if !self.awaiting.is_empty() {
            until = until.min(Instant::now() + DOWNLOAD_INTERVAL);
        }
        if self.retention_at.is_some() {
            until = until.min(self.due.retention);
        }
        if let Some(due) = self.outcomes.due() {
            until = until.min(due);
        }
        if let Some(due) = self.cache_writer.due() {
            until = until.min(due);
        }
        if let Some(notified) = self.due.notified {
            until = until.min(notified.max(self.due.claimable()));
        }
        if self.maybe_more && self.due.claim > Instant::now() {
            until = until.min(self.due.claim);
        }
        // The pace is not compared with the time: it may be over by now, and no commit wakes the worker
        // before it claims again.
        if self.due.paced {
            until = until.min(self.due.pace);
        }
        if let Some(due) = self.sweep_due().filter(|_| !self.paused) {
            until = until.min(due);
        }
        if let Some(due) = self.recount.due(self.slot) {
            until = until.min(due);
        }
        for due in [self.usage.due(self.slot), self.audit.due(self.slot)].into_iter().flatten() {
            until = until.min(due);
        }
        if let Some(due) = self.filter_keeper.due() {
            until = until.min(due);
        }
        if let Some(due) = self.vectorizer.due(self.slot) {
            until = until.min(due);
        }
        let eviction = self.config.as_ref().and_then(|config| self.eviction.pause(config));
        until.saturating_duration_since(Instant::now()).min(eviction.unwrap_or(Duration::MAX))
    }

    /// Writes trouble to the server log, the same one not too often.
    fn complain(&mut self, error: PgError) {
        // The extension is being dropped, or was created anew: the next look will find out.
        let is_same = |now: &Presence| matches!(now, Presence::Present(now, _) if now.extension == self.extension.extension);
        if error.is_about_missing_objects() && !protocol::presence().is_ok_and(|now| is_same(&now)) {
            self.slot.reviews.fetch_add(1, Release);
            return;
        }
        let recent = self
            .complaint
            .as_ref()
            .is_some_and(|(message, at)| *message == error.message && at.elapsed() < COMPLAINT_INTERVAL);
        if !recent {
            self.complaint = Some((error.message.clone(), Instant::now()));
            error.report(PgLogLevel::WARNING);
        }
    }
}
