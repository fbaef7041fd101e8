//! The launcher: keeps one worker running in each database that has the extension.
//!
//! It is connected to no database, so it cannot know which ones have the extension: it starts a worker in
//! each, one at a time, and a worker that finds no extension says so and ends. After that it starts one only
//! when asked.
//!
//! Invariant: nobody else hands out or frees slots, so there is never a second worker for a database.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

use crate::pg::bgworker::{self, Handle};
use crate::pg::catalog::{self, Database};
use crate::pg::engine_leader;
use crate::pg::error::PgError;
use crate::pg::files;
use crate::pg::interrupts::{self, Termination};
use crate::pg::request_statistics;
use crate::pg::shmem::{self, DatabaseProcess, SLOTS, Shared, Slot};
use crate::pg::slots::{self, WorkerExit, WorkerState};
use crate::pg::transaction::transaction;
use crate::pg::{access_counters, cache_queue, pending};

/// Interval at which the list of databases is read, beside the occasions on which somebody asks for it.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Interval at which the launcher looks where it waits for something that does not wake it.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const STANDBY_INTERVAL: Duration = Duration::from_secs(1);
/// The longest pause before a worker that keeps failing, or does not fit into max_worker_processes, is
/// started again.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// The launcher's knowledge of a database.
#[derive(Default)]
struct DatabaseKnowledge {
    /// A worker looked and found no extension.
    absent: bool,
    /// A worker found the extension.
    confirmed: bool,
    /// Somebody asked for a worker since the last one was started: that one may have looked too early.
    called: bool,
    /// Number of times in a row that its worker ended unexpectedly.
    failures: u32,
    /// No worker before this.
    not_before: Option<Instant>,
}

struct Launcher {
    shared: &'static Shared,
    known: HashMap<Oid, DatabaseKnowledge>,
    /// The handles of the workers that this process started, by slot.
    handles: HashMap<usize, Handle>,
    databases: Vec<Database>,
    scanned_at: Option<Instant>,
    /// The pause after a start that failed for want of worker processes, and its end.
    full: Option<(Duration, Instant)>,
    slots_warned: bool,
    /// The handle of the process that only runs the engine.
    engine: Option<Handle>,
}

/// The launcher's life.
pub(super) fn run() {
    interrupts::accept_signals(Termination::AtOnce);
    bgworker::connect(None);
    let Some(shared) = shmem::get() else { return };
    shared.launcher_latch.store(interrupts::my_latch(), Release);
    interrupts::at_exit(|| {
        if let Some(shared) = shmem::get() {
            shared.launcher_latch.store(std::ptr::null_mut(), Release);
        }
    });
    let mut launcher = Launcher {
        shared,
        known: HashMap::new(),
        handles: HashMap::new(),
        databases: Vec::new(),
        scanned_at: None,
        full: None,
        slots_warned: false,
        engine: None,
    };
    let mut new = true;
    loop {
        interrupts::check_between_transactions();
        let reloaded = interrupts::reload_configuration();
        if (reloaded || std::mem::replace(&mut new, false))
            && let Err(error) = files::make_model_directory()
        {
            error.report(PgLogLevel::WARNING);
        }
        launcher.start_engine();
        let pause = if catalog::in_recovery() { STANDBY_INTERVAL } else { launcher.step() };
        interrupts::wait(pause, None);
    }
}

impl Launcher {
    /// One look at everything; returns how long to sleep unless woken.
    fn step(&mut self) -> Duration {
        let called = self.take_calls();
        let due = self.scanned_at.is_none_or(|at| at.elapsed() >= SCAN_INTERVAL);
        if self.shared.rescan.swap(false, AcqRel) || called || due {
            self.scan();
        }
        if self.note_ended() {
            // Perhaps because its database refuses connections now, or is gone: then it is left alone.
            self.scan();
        }
        let pause = self.start_missing();
        self.shared.answering.iter().for_each(|database| database.store(0, SeqCst));
        pause
    }

    /// Reads which databases were asked for. True if there were any.
    fn take_calls(&mut self) -> bool {
        let mut any = false;
        for (call, answering) in self.shared.calls.iter().zip(&self.shared.answering) {
            // Noted before the call is gone, so that whoever looks finds one of them.
            answering.store(call.load(SeqCst), SeqCst);
            let database = call.swap(0, SeqCst);
            if database == 0 {
                continue;
            }
            any = true;
            let database = Oid::from(database);
            *self.known.entry(database).or_default() =
                DatabaseKnowledge { called: true, ..DatabaseKnowledge::default() };
            if let Some(slot) = slots::find(self.shared, database) {
                slot.reviews.fetch_add(1, Release);
                slot.wake();
            }
        }
        if self.shared.reprobe.swap(false, AcqRel) {
            any = true;
            self.known.values_mut().for_each(|known| *known = DatabaseKnowledge::default());
        }
        any
    }

    fn scan(&mut self) {
        match transaction("list databases", || Ok(catalog::databases())) {
            Ok(databases) => {
                self.scanned_at = Some(Instant::now());
                self.known.retain(|oid, _| databases.iter().any(|database| database.oid == *oid));
                request_statistics::keep_only(
                    &databases.iter().map(|database| database.oid).collect::<Vec<_>>(),
                );
                self.databases = databases;
            }
            Err(error) => error.report(PgLogLevel::LOG),
        }
    }

    fn is_running(&self, index: usize, slot: &Slot) -> bool {
        slot.pid.load(SeqCst) != 0 || self.handles.get(&index).is_some_and(|handle| !handle.has_ended())
    }

    /// Draws the consequences of workers that have ended. Whether there were any.
    fn note_ended(&mut self) -> bool {
        let mut any = false;
        for (index, slot) in self.shared.slots.iter().enumerate() {
            let database = Oid::from(slot.database.load(Acquire));
            if database == Oid::INVALID {
                continue;
            }
            let known = self.known.entry(database).or_default();
            if slot.pid.load(SeqCst) != 0
                || self.handles.get(&index).is_some_and(|handle| !handle.has_ended())
            {
                if !matches!(slot.state(), WorkerState::Starting | WorkerState::Stopped) {
                    known.confirmed = true;
                    known.failures = 0;
                }
                continue;
            }
            if self.handles.remove(&index).is_some() || slot.state() != WorkerState::Stopped {
                any = true;
                slot.set_state(WorkerState::Stopped);
                match slot.ended() {
                    WorkerExit::NoExtension => known.absent = !known.called,
                    WorkerExit::Again => {}
                    WorkerExit::Unexpectedly => {
                        known.failures += 1;
                        known.not_before = Some(Instant::now() + backoff(known.failures));
                    }
                }
            }
            let exists = self.databases.iter().any(|d| d.oid == database);
            if known.absent || !exists {
                cache_queue::close(slot);
                pending::clear(slot);
                access_counters::take(slot);
                slot.free();
            }
        }
        any
    }

    /// Starts the workers that should run and do not.
    fn start_missing(&mut self) -> Duration {
        let mut pause = SCAN_INTERVAL;
        let databases = self.databases.clone();
        for database in databases.iter().filter(|database| database.eligible) {
            let known = self.known.entry(database.oid).or_default();
            if known.absent {
                continue;
            }
            let confirmed = known.confirmed;
            if let Some(left) = known.not_before.map(|at| at.saturating_duration_since(Instant::now()))
                && !left.is_zero()
            {
                pause = pause.min(left);
                continue;
            }
            let Some(index) = self.slot_for(database.oid) else { continue };
            if self.is_running(index, &self.shared.slots[index]) {
                continue;
            }
            // One unknown database at a time: a server may have hundreds of them.
            let probing = self.shared.slots.iter().any(|slot| slot.state() == WorkerState::Starting);
            if slots::is_evicted(self.shared, database.oid) || (probing && !confirmed) {
                pause = pause.min(RETRY_INTERVAL);
                continue;
            }
            if let Some((_, until)) = self.full
                && Instant::now() < until
            {
                pause = pause.min(until.saturating_duration_since(Instant::now()));
                self.shared.slots[index].note_place(DatabaseProcess::Worker, false);
                continue;
            }
            self.start(index, database.oid);
            pause = pause.min(RETRY_INTERVAL);
        }
        pause
    }

    /// The database's slot, or a free one that becomes it.
    fn slot_for(&mut self, database: Oid) -> Option<usize> {
        let holds = |oid: u32| self.shared.slots.iter().position(|slot| slot.database.load(Acquire) == oid);
        if let Some(index) = holds(database.to_u32()) {
            return Some(index);
        }
        let Some(index) = holds(0) else {
            if !std::mem::replace(&mut self.slots_warned, true) {
                PgError::new(
                    PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                    format!("pg_steadytext serves {SLOTS} databases of a server at most"),
                )
                .hint("Drop the extension where it is not needed.")
                .report(PgLogLevel::WARNING);
            }
            return None;
        };
        self.shared.slots[index].database.store(database.to_u32(), SeqCst);
        Some(index)
    }

    /// Starts a process for the engine, if somebody waits for one and no worker is there that would run it.
    fn start_engine(&mut self) {
        if !engine_leader::is_wanted() || self.engine.as_ref().is_some_and(|handle| !handle.has_ended()) {
            return;
        }
        if self
            .shared
            .slots
            .iter()
            .any(|slot| matches!(slot.state(), WorkerState::Working | WorkerState::Paused))
        {
            return;
        }
        self.engine = bgworker::start_engine();
        if self.engine.is_none() {
            PgError::new(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "pg_steadytext could not start its engine: all background worker slots are in use",
            )
            .hint("Raise max_worker_processes and restart the server.")
            .report(PgLogLevel::WARNING);
        }
    }

    fn start(&mut self, index: usize, database: Oid) {
        let slot = &self.shared.slots[index];
        slot.set_ended(WorkerExit::Unexpectedly);
        slot.set_state(WorkerState::Starting);
        self.known.entry(database).or_default().called = false;
        match bgworker::start_worker(index, database) {
            Some(handle) => {
                slot.note_place(DatabaseProcess::Worker, true);
                self.handles.insert(index, handle);
                self.full = None;
            }
            None => {
                slot.note_place(DatabaseProcess::Worker, false);
                slot.set_state(WorkerState::Stopped);
                let pause = self.full.map_or(RETRY_INTERVAL, |(pause, _)| (pause * 2).min(LONGEST_BACKOFF));
                if self.full.is_none() {
                    PgError::new(
                        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                        "pg_steadytext could not start a worker: all background worker slots are in use",
                    )
                    .hint("Raise max_worker_processes and restart the server.")
                    .report(PgLogLevel::WARNING);
                }
                self.full = Some((pause, Instant::now() + pause));
            }
        }
    }
}

/// Half a second after the first failure, doubling.
fn backoff(failures: u32) -> Duration {
    (RETRY_INTERVAL * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_BACKOFF)
}
