//! The beginning and the end of processes. A worker takes its slot, looks whether the extension is there in
//! the right version, and leaves the slot when everything else of it has gone; a process that only runs the
//! engine becomes the engine's leader, and ends when nobody needs it.

use std::sync::atomic::Ordering::{Release, SeqCst};
use std::time::Duration;

use pgrx::prelude::*;
use uuid::Uuid;

use super::database::Worker;
use super::engine_link;
use super::protocol::{self, Presence};
use crate::pg::catalog_cache::Installation;
use crate::pg::error::PgError;
use crate::pg::interrupts::Termination;
use crate::pg::shmem::{self, Slot};
use crate::pg::slots::{self, WorkerExit, WorkerState};
use crate::pg::{access_counters, activity, bgworker, cache_queue, engine_leader, guc, interrupts};

/// Interval at which a process that only runs the engine looks whether it is needed.
const ENGINE_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time that it stays after the last request, where pg_steadytext.model_idle_timeout says nothing else.
const ENGINE_PATIENCE: Duration = Duration::from_secs(600);

/// The worker's life. Returns, and the process ends in good order, when there is nothing to do in this
/// database.
pub(super) fn run(slot_index: usize) {
    interrupts::accept_signals(Termination::AfterStatement);
    let Some(slot) = shmem::get().and_then(|shared| shared.slots.get(slot_index)) else { return };
    let database = bgworker::my_assignment();
    if !enter_slot(slot, database) {
        return;
    }
    bgworker::connect(Some(database));
    bgworker::pin_settings();
    let extension = match protocol::presence() {
        Ok(Presence::Present(extension, _)) => extension,
        Ok(Presence::Absent) => return slot.set_ended(WorkerExit::NoExtension),
        Err(error) => return error.report(PgLogLevel::LOG),
    };
    if extension.version != env!("CARGO_PKG_VERSION") {
        idle_with_wrong_version(slot, &extension);
    }
    match Worker::start(slot, extension) {
        Ok(mut worker) => worker.work(),
        Err(error) => error.report(PgLogLevel::WARNING),
    }
}

/// Puts this process into its slot; false if the slot is another database's or another worker is in it, or a
/// statement keeps workers away.
fn enter_slot(slot: &'static Slot, database: pg_sys::Oid) -> bool {
    let Some(shared) = shmem::get() else { return false };
    let me = std::process::id() as i32;
    if slot.database.load(SeqCst) != database.to_u32()
        || slot.pid.compare_exchange(0, me, SeqCst, SeqCst).is_err()
    {
        return false;
    }
    // Before the process connects, so that it runs after the process has left the database: a session that
    // waits for the slot to become empty then finds no session of ours.
    interrupts::at_exit(leave_slot);
    slot.latch.store(interrupts::my_latch(), SeqCst);
    let (high, low) = Uuid::new_v4().as_u64_pair();
    slot.worker[0].store(high, Release);
    slot.worker[1].store(low, Release);
    slot.started_at.store(activity::now(), Release);
    if slots::is_evicted(shared, database) {
        slot.set_ended(WorkerExit::Again);
        return false;
    }
    true
}

fn leave_slot() {
    let Some(shared) = shmem::get() else { return };
    let me = std::process::id() as i32;
    if let Some(slot) = shared.slots.iter().find(|slot| slot.pid.load(SeqCst) == me) {
        activity::end_all_of(me);
        slot.leave();
        slots::wake_launcher(shared);
    }
}

/// Waits for the upgrade to be completed. Ends with the process.
fn idle_with_wrong_version(slot: &'static Slot, extension: &Installation) -> ! {
    slot.set_state(WorkerState::VersionMismatch);
    PgError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "pg_steadytext's library is version {}, but the extension in this database is {}",
            env!("CARGO_PKG_VERSION"),
            extension.version
        ),
    )
    .hint("Install the new files, restart the server, then run ALTER EXTENSION pg_steadytext UPDATE.")
    .report(PgLogLevel::WARNING);
    loop {
        interrupts::wait(Duration::from_secs(5), None);
        if interrupts::termination_requested() {
            slot.set_ended(WorkerExit::Again);
        }
        interrupts::check_between_transactions();
        // Nobody here writes it down, and what waits takes room from other databases.
        access_counters::take(slot);
        cache_queue::forget(slot);
        let same = match protocol::presence() {
            Ok(Presence::Present(now, _)) => {
                now.extension == extension.extension && now.version == extension.version
            }
            Ok(Presence::Absent) => false,
            Err(_) => true,
        };
        if !same {
            slot.set_ended(WorkerExit::Again);
            interrupts::exit(0);
        }
    }
}

/// The life of a process that only runs the engine, where no worker does: on a standby, or before a database
/// has the extension for all to see. It ends when nobody has needed it for a while.
pub(super) fn run_engine() {
    interrupts::accept_signals(Termination::AtOnce);
    bgworker::connect(None);
    loop {
        interrupts::check_between_transactions();
        interrupts::reload_configuration();
        if let Err(error) = engine_link::ensure_engine() {
            error.report(PgLogLevel::WARNING);
        }
        let patience = guc::engine().model_idle_timeout.unwrap_or(ENGINE_PATIENCE);
        // Another process was faster, or nobody needs it.
        if !engine_leader::leads() || engine_link::idle_for() > patience || engine_link::has_other_settings()
        {
            return engine_link::leave();
        }
        interrupts::wait(ENGINE_LOOK_INTERVAL.min(engine_link::pause()), engine_link::wait_fd());
    }
}
