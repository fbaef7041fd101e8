//! The process that works for the vectorizers of a database: it turns what has changed into requests of the queue, and writes
//! their answers where they belong.
//!
//! It is a process of its own because it runs what users have put on their tables, with their rights: a trigger that sleeps, or a table that is
//! locked, holds up vectorizers and no request. Which vectorizer does what is decided by functions of schema
//! steadytext; each step is one transaction for one vectorizer.
//!
//! Invariant: this file has all SQL that the process sends.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::protocol::{self, Presence, in_queue};
use crate::pg::error::PgError;
use crate::pg::shmem::{self, Slot};
use crate::pg::spi::{self, Mode};
use crate::pg::{bgworker, catalog_cache, interrupts};

/// How long one step may take, users' triggers included.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// How soon it looks whether its requests have ended, where nobody says so.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks around while nothing happens, in multiples of `worker_poll_interval`.
const IDLE_FACTOR: f64 = 30.0;
/// How soon it goes on after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often the worker tries to start the process.
const START_INTERVAL: Duration = Duration::from_secs(2);
/// How often the same trouble is written to the server log.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// What the worker knows about the process.
pub(super) struct Supervision {
    notes_seen: u64,
    not_before: Instant,
    wanted: bool,
}

impl Supervision {
    /// It is looked for at once.
    pub(super) fn new() -> Self {
        Supervision { notes_seen: 0, not_before: Instant::now(), wanted: true }
    }

    /// Starts the process where it is missing and there is a vectorizer. `look`: there may be one of which nobody
    /// has said anything.
    ///
    /// # Errors
    ///
    /// The database's; all of max_worker_processes are in use.
    pub(super) fn step(&mut self, slot: &'static Slot, look: bool) -> Result<(), PgError> {
        let notes = slot.vectorizer_notes.load(SeqCst);
        self.wanted |= look || notes != self.notes_seen;
        self.notes_seen = notes;
        if !self.wanted || Instant::now() < self.not_before || slot.vectorizer_pid.load(SeqCst) != 0 {
            return Ok(());
        }
        self.wanted = false;
        if !has_definitions()? {
            return Ok(());
        }
        self.not_before = Instant::now() + START_INTERVAL;
        let Some(shared) = shmem::get() else { return Ok(()) };
        let database = pg_sys::Oid::from(slot.database.load(Acquire));
        if bgworker::start_vectorizer(shared.index_of(slot), database) {
            return Ok(());
        }
        self.wanted = true;
        Err(PgError::new(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "the process that works for vectorizers cannot be started: all of max_worker_processes are in use",
        )
        .hint("Raise max_worker_processes and restart the server."))
    }

    /// When it is to be tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.wanted.then_some(self.not_before)
    }
}

/// The life of the process.
pub(super) fn run(slot_index: usize) {
    interrupts::accept_signals();
    let Some(slot) = shmem::get().and_then(|shared| shared.slots.get(slot_index)) else { return };
    let database = bgworker::my_assignment();
    if !slot.begin_vectorizing(database, interrupts::my_latch()) {
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
    Process { slot, database, extension, complaint: None }.work();
}

fn leave() {
    let Some(shared) = shmem::get() else { return };
    let me = std::process::id() as i32;
    if let Some(slot) = shared.slots.iter().find(|slot| slot.vectorizer_pid.load(SeqCst) == me) {
        slot.end_vectorizing();
    }
}

struct Process {
    slot: &'static Slot,
    database: pg_sys::Oid,
    extension: pg_sys::Oid,
    complaint: Option<(String, Instant)>,
}

impl Process {
    /// Works until there is no vectorizer any more.
    fn work(&mut self) {
        let mut look = Instant::now();
        let mut reviews_seen = None;
        loop {
            interrupts::check_between_transactions();
            interrupts::reload_configuration();
            if self.slot.database.load(Acquire) != self.database.to_u32() {
                return;
            }
            let reviews = self.slot.reviews.load(Acquire);
            if reviews_seen.replace(reviews) != Some(reviews) {
                catalog_cache::forget();
            }
            let (is_paused, interval) = match protocol::presence() {
                Ok(Presence::Present(now, config))
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
            let notes = self.slot.vectorizer_notes.load(SeqCst);
            let looks = Instant::now() >= look;
            if looks {
                look = Instant::now() + interval;
            }
            if is_paused {
                interrupts::wait(look.saturating_duration_since(Instant::now()), None);
                continue;
            }
            // In this order, and the other way round where requests end: then no end is missed.
            self.slot.vectorizer_waits.store(true, SeqCst);
            let outlook = match self.round(looks) {
                Ok(Some(outlook)) => outlook,
                Ok(None) => return,
                Err(error) => {
                    self.complain(error);
                    Outlook { progressed: false, waits: true, due_in_s: None }
                }
            };
            if outlook.progressed || self.slot.vectorizer_notes.load(SeqCst) != notes {
                continue;
            }
            self.slot.vectorizer_waits.store(outlook.waits, SeqCst);
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

    /// One step for each vectorizer for which something can be done. `None`: there are none at all.
    fn round(&mut self, looks: bool) -> Result<Option<Outlook>, PgError> {
        let due = in_queue("look for work of vectorizers", || {
            spi::query(
                "select id from steadytext.vectorizers_due($1)",
                vec![looks.into()],
                Mode::ReadWrite,
                |row| row.get::<pgrx::Uuid>(1),
            )
        })?;
        let mut progressed = false;
        for id in due.into_iter().flatten() {
            interrupts::check_between_transactions();
            let step = in_queue("work for a vectorizer", || {
                let step = || {
                    spi::query_one(
                        "select steadytext.vectorizer_step($1, $2)",
                        vec![id.into(), looks.into()],
                        Mode::ReadWrite,
                        |row| row.get::<bool>(1),
                    )
                };
                interrupts::with_time_limit(STEP_LIMIT, step)
            });
            match step {
                Ok(step) => progressed |= step.flatten() == Some(true),
                Err(error) => {
                    let (message, code) = (error.message.clone(), error.sqlstate());
                    in_queue("note trouble of a vectorizer", || {
                        spi::query(
                            "select steadytext.note_vectorizer_trouble($1, $2, $3)",
                            vec![id.into(), message.into(), code.into()],
                            Mode::ReadWrite,
                            |_| (),
                        )
                    })?;
                    self.complain(error);
                }
            }
        }
        let outlook = in_queue("look for work of vectorizers", || {
            spi::query_one(
                "select any_left, waits, due_in from steadytext.vectorizers_outlook()",
                vec![],
                Mode::ReadWrite,
                |row| {
                    let outlook =
                        Outlook { progressed, waits: row.get(2).unwrap_or(false), due_in_s: row.get(3) };
                    row.get::<bool>(1).unwrap_or(false).then_some(outlook)
                },
            )
        })?;
        Ok(outlook.flatten())
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

/// What there is to be done next.
struct Outlook {
    /// Something was done: there may be more.
    progressed: bool,
    /// Requests are under way.
    waits: bool,
    /// When something comes due.
    due_in_s: Option<f64>,
}

fn has_definitions() -> Result<bool, PgError> {
    let outlook = in_queue("look for vectorizers", || {
        spi::query_one(
            "select any_left from steadytext.vectorizers_outlook()",
            vec![],
            Mode::ReadWrite,
            |row| row.get::<bool>(1),
        )
    })?;
    Ok(outlook.flatten() == Some(true))
}

/// Tells the process that requests have ended, if it waits for some.
pub(super) fn tell(slot: &Slot) {
    if slot.vectorizer_waits.load(Relaxed) {
        slot.wake_vectorizer();
    }
}
