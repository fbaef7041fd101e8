//! Status of the server's parts: running requests, the worker, the version.

use pgrx::prelude::*;

use super::poison_rows::unpacked;
use super::pull;
use crate::pg::error::OrRaise;
use crate::pg::privilege::{current_user, is_monitor, may_manage};
use crate::pg::shmem::{DatabaseProcess, Slot, VectorizerPace};
use crate::pg::slots::WorkerState;
use crate::pg::{activity, catalog, catalog_cache, engine_leader, shmem, slots};
use crate::registry::{DownloadRequest, status};
use std::sync::atomic::Ordering::Relaxed;

/// The version of the library.
#[pg_extern(immutable, parallel_safe)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Requests that are running in this database and belong to a role whose rights the caller has; those who
/// monitor the server see all of them, without their texts.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a view")]
fn activity() -> TableIterator<
    'static,
    (
        name!(request_id, pgrx::Uuid),
        name!(owner_role, String),
        name!(request_type, &'static str),
        name!(phase, &'static str),
        name!(prompt_tokens, i32),
        name!(generated_tokens, i32),
        name!(tokens_per_second, Option<f64>),
        name!(partial_text, Option<String>),
        name!(started_at, TimestampWithTimeZone),
        name!(worker_pid, i32),
        name!(first_token_turns, Option<i32>),
    ),
> {
    let caller = current_user();
    let watches = is_monitor(caller);
    let rows: Vec<_> = activity::list()
        .into_iter()
        .filter_map(|running| {
            let may_read = may_manage(caller, running.owner);
            if !may_read && !watches {
                return None;
            }
            Some((
                pgrx::Uuid::from_bytes(*running.request_id.as_bytes()),
                catalog::role_name(running.owner),
                running.request_type,
                running.phase.name(),
                running.prompt_tokens,
                running.generated_tokens,
                running.tokens_per_second,
                may_read.then_some(running.partial_text),
                TimestampWithTimeZone::try_from(running.started_at).ok()?,
                running.worker_pid,
                running.first_token_turns,
            ))
        })
        .collect();
    TableIterator::new(rows)
}

/// The status of the registered models.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn model_status() -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(task, String),
        name!(file, String),
        name!(state, &'static str),
        name!(reason, Option<String>),
        name!(is_chosen, bool),
    ),
> {
    let models = catalog_cache::models().or_raise();
    let failures = pull::failures();
    let rows: Vec<_> = models
        .iter()
        .zip(status(&models))
        .map(|(model, status)| {
            let (name, task, file) = (model.name.clone(), model.task.clone(), model.file.clone());
            let failed = || {
                if failures.is_empty() {
                    return None;
                }
                // Another database may have another model of that name.
                let key = DownloadRequest::of(&model.name, &models).ok()?.key();
                let failure = failures.iter().find(|failure| failure.key == key)?;
                Some(format!("its download failed: {}", failure.error.message))
            };
            let reason = if status.state == "missing" { failed() } else { status.reason };
            (name, task, file, status.state, reason, status.is_chosen)
        })
        .collect();
    TableIterator::new(rows)
}

/// The state of this database's worker; always one row.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn worker_state() -> TableIterator<
    'static,
    (
        name!(state, &'static str),
        name!(pid, Option<i32>),
        name!(worker, Option<String>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(library_version, &'static str),
        name!(message, Option<String>),
        name!(running, i32),
        name!(memory_mb, i32),
    ),
> {
    let state = slots::my_state();
    let slot = slots::mine();
    let running = slot.map_or(0, |slot| slot.running.load(Relaxed));
    let (word, message) = match state {
        _ if shmem::get().is_none() => (
            "not_preloaded",
            Some("add shared_preload_libraries = 'pg_steadytext' to postgresql.conf and restart"),
        ),
        WorkerState::Stopped if catalog::in_recovery() => ("stopped", Some("the server is a standby")),
        WorkerState::Stopped if slot.is_some_and(|slot| slot.is_without_place(DatabaseProcess::Worker)) => {
            ("stopped", Some(NO_PLACE))
        }
        WorkerState::Stopped => {
            ("stopped", Some("the launcher has not started a worker; see the server log"))
        }
        WorkerState::Starting => ("starting", None),
        WorkerState::Working if running == 0 => ("idle", None),
        WorkerState::Working => ("running", None),
        WorkerState::Paused => ("paused", Some("steadytext_daemon_start() resumes it")),
        WorkerState::VersionMismatch => (
            "version_mismatch",
            Some(
                "restart the server and run ALTER EXTENSION pg_steadytext UPDATE, so that library and extension match",
            ),
        ),
    };
    let message = message.map(str::to_owned).or_else(|| {
        let said: Vec<String> =
            slot.and_then(row_error).into_iter().chain(slot.and_then(missing)).chain(panics()).collect();
        (!said.is_empty()).then(|| said.join("; "))
    });
    let pid = slot.map(|slot| slot.pid.load(Relaxed)).filter(|pid| *pid != 0);
    let started_at = slot.map(|slot| slot.started_at.load(Relaxed)).filter(|_| pid.is_some());
    TableIterator::once((
        word,
        pid,
        slot.and_then(|slot| slot.worker_id()).map(|id| format!("local:{id}")),
        started_at.and_then(|at| TimestampWithTimeZone::try_from(at).ok()),
        env!("CARGO_PKG_VERSION"),
        message,
        running,
        slot.map_or(0, |slot| slot.memory_mb.load(Relaxed)),
    ))
}

/// The reason why a process does not run for which there is no place.
pub(super) const NO_PLACE: &str =
    "all of max_worker_processes are in use: raise it in postgresql.conf and restart the server";

/// A problem message about processes that should work for vectorizers and have no place.
fn missing(slot: &Slot) -> Option<String> {
    let is_missing =
        VectorizerPace::ALL.into_iter().any(|pace| slot.is_without_place(DatabaseProcess::Vectorizer(pace)));
    is_missing.then(|| {
        format!("a process that works for vectorizers and enrichments cannot be started: {NO_PLACE}")
    })
}

/// The reason why the process does not run that one of them waits for: the fast one, without which there is
/// no other, or the slow one.
#[pg_extern(volatile, parallel_restricted)]
fn process_problem(slow: Option<bool>) -> Option<String> {
    let slot = slots::mine()?;
    let is_missing = |pace: VectorizerPace| slot.is_without_place(DatabaseProcess::Vectorizer(pace));
    let waits = is_missing(VectorizerPace::Fast) || (slow == Some(true) && is_missing(VectorizerPace::Slow));
    if waits { missing(slot) } else { None }
}

/// Time for which the state of a worker speaks of a request that could not be written.
const ROW_ERROR_MICROSECONDS: i64 = 3_600_000_000;

/// A problem message about requests that could not be written lately.
fn row_error(slot: &Slot) -> Option<String> {
    let at = slot.row_error_at.load(Relaxed);
    if at == 0 || activity::now() - at > ROW_ERROR_MICROSECONDS {
        return None;
    }
    Some(format!(
        "request {} could not be written (SQLSTATE {}), the last of {} such errors; look at the triggers, rules and constraints of steadytext_queue, and at the server log",
        slot.row_error_id.load(Relaxed),
        unpacked(slot.row_error_code.load(Relaxed)),
        slot.row_errors.load(Relaxed),
    ))
}

/// A problem message about panics that the engine has caught.
fn panics() -> Option<String> {
    match engine_leader::panics() {
        0 => None,
        panics => Some(format!(
            "the engine has caught {panics} panics since the server's start; please report them with the errors of the requests"
        )),
    }
}
