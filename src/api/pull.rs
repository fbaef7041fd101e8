//! Downloading models: steadytext_model_pull(), and requests that wait for a model that is on its way.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::audit::note_act_of_files;
use super::refuse::require_name;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::privilege::{current_user, is_administrator, is_monitor, may_manage};
use crate::pg::pulls::{
    self, CompletedDownload, DownloadState, DownloadTicket, FailedDownload, RunningDownload, WantedDownload,
};
use crate::pg::{catalog, catalog_cache, interrupts};
use crate::registry::{self, DownloadRequest};

/// Interval at which a waiting call checks whether the download has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Interval of the NOTICEs about its progress.
const NOTICE: Duration = Duration::from_secs(5);

/// Downloads a model; the name of its file or folder below pg_steadytext.model_dir, or, without waiting, what
/// was asked for.
#[pg_extern(volatile, parallel_unsafe)]
fn model_pull(name: Option<&str>, wait: Option<bool>) -> Option<String> {
    let name = require_name(name).or_raise();
    note_act_of_files("model_pull", name).or_raise();
    Some(pull(name, wait.unwrap_or(true)).or_raise())
}

/// Stops the download of a model, whoever waits for it. Whether there was one.
#[pg_extern(volatile, parallel_unsafe)]
fn model_pull_cancel(name: Option<&str>) -> Option<bool> {
    let name = require_name(name).or_raise();
    note_act_of_files("model_pull_cancel", name).or_raise();
    Some(pulls::stop(name))
}

fn pull(name: &str, wait: bool) -> Result<String, PgError> {
    let models = catalog_cache::models()?;
    if let Some(there) = registry::there_without_pull(name, &models)? {
        notice(if there == registry::BUILTIN {
            format!("{name}: it is part of the library, and there already; nothing is downloaded")
        } else {
            format!("{name}: \"{there}\" is there already; nothing is downloaded")
        });
        return Ok(there);
    }
    let request = DownloadRequest::of(name, &models)?;
    if !wait {
        begin(&request, false, false)?;
        return Ok(name.to_owned());
    }
    finish(&request, true)
}

fn begin(request: &DownloadRequest, wait: bool, for_request: bool) -> Result<DownloadTicket, PgError> {
    let text = serde_json::to_string(request)
        .map_err(|error| PgError::internal(format!("a download cannot be written: {error}")))?;
    let key = request.key();
    let (label, owner) = (&*request.label, current_user());
    let wanted = WantedDownload { key: &key, label, request: &text, owner, wait, for_request };
    pulls::begin(&wanted).map(|(ticket, _)| ticket)
}

/// This process waits for a download until it is dropped.
struct WaitingForDownload(DownloadTicket);

impl Drop for WaitingForDownload {
    fn drop(&mut self) {
        pulls::leave(self.0);
    }
}

/// Waits for the download of a model; `tells`: and tells the client, who has called for it, how far it is. A
/// request is told nothing.
fn finish(request: &DownloadRequest, tells: bool) -> Result<String, PgError> {
    let waiting = WaitingForDownload(begin(request, true, !tells)?);
    let mut told = None::<Instant>;
    loop {
        // Whatever ends this statement drops `waiting`.
        interrupts::check();
        match pulls::look(waiting.0) {
            DownloadState::Done(done) => {
                if tells {
                    notice(arrived(&request.label, &done));
                }
                return Ok(done.name);
            }
            DownloadState::Failed(error) => return Err(error),
            DownloadState::Running(running) => {
                if tells && running.total > 0 && told.is_none_or(|told| told.elapsed() >= NOTICE) {
                    told = Some(Instant::now());
                    notice(described(&running));
                }
            }
        }
        interrupts::wait(LOOK, None);
    }
}

fn notice(message: String) {
    PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message).report(PgLogLevel::NOTICE);
}

/// The notice that a download has ended.
fn arrived(label: &str, done: &CompletedDownload) -> String {
    let name = &done.name;
    let adapters = match done.adapters.as_str() {
        "" => String::new(),
        tasks => format!(", with its adapters for {tasks}"),
    };
    if done.was_there {
        return format!("{label}: \"{name}\" is in place already{adapters}");
    }
    let chosen = if done.choice.is_empty() { String::new() } else { format!("; chosen: {}", done.choice) };
    let replaced = if done.replaced {
        "; it takes the place of another version: vectors that the other one has made cannot be compared with new ones, and are to be made anew"
    } else {
        ""
    };
    format!(
        "{label}: \"{name}\" has arrived{adapters}, {} MB{chosen}{replaced}",
        done.size.div_ceil(1_000_000)
    )
}

/// The progress of a download, in words.
fn described(running: &RunningDownload) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let mut text =
        format!("{}: {} of {} MB", running.label, megabytes(running.done), megabytes(running.total));
    if let Some(rate) = running.rate {
        text += &format!(", {:.1} MB/s", rate / 1e6);
    }
    if let Some(seconds) = running.seconds_left() {
        text += &format!(", {} s left", seconds.ceil() as u64);
    }
    if !running.note.is_empty() {
        text += &format!(" ({})", running.note);
    }
    text
}

/// Waits until the file of a registered model is there, where pg_steadytext.auto_pull lets requests do so.
pub(super) fn fetch(name: &str) -> Result<(), PgError> {
    finish(&DownloadRequest::for_request(name)?, false).map(|_| ())
}

/// Returns a test of whether the caller may see the downloads of a role.
fn sees() -> impl Fn(pg_sys::Oid) -> bool {
    let caller = current_user();
    let sees_all = is_monitor(caller) || is_administrator(caller);
    move |owner| sees_all || may_manage(caller, owner)
}

/// The downloads that have failed last and were not asked for again, for those who may know of them.
pub(super) fn failures() -> Vec<FailedDownload> {
    let sees = sees();
    pulls::failures().into_iter().filter(|failure| sees(failure.owner)).collect()
}

/// The downloads that are going on, for those who may know of them.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a view")]
fn pulls() -> TableIterator<
    'static,
    (
        name!(owner_role, String),
        name!(download, String),
        name!(phase, String),
        name!(started_at, TimestampWithTimeZone),
        name!(worker_pid, Option<i32>),
        name!(bytes_done, i64),
        name!(bytes_total, Option<i64>),
        name!(bytes_per_second, Option<f64>),
        name!(seconds_left, Option<f64>),
    ),
> {
    let sees = sees();
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let rows: Vec<_> = pulls::list()
        .into_iter()
        .filter(|running| sees(running.owner))
        .filter_map(|running| {
            Some((
                catalog::role_name(running.owner),
                running.label.clone(),
                if running.note.is_empty() { "downloading".to_owned() } else { running.note.clone() },
                TimestampWithTimeZone::try_from(running.started_at).ok()?,
                Some(running.pid).filter(|pid| *pid != 0),
                bytes(running.done),
                Some(bytes(running.total)).filter(|total| *total > 0),
                running.rate,
                running.seconds_left(),
            ))
        })
        .collect();
    TableIterator::new(rows)
}
