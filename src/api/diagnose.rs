//! Checks of the server, its models and its environment: the part of steadytext_diagnose() that is not SQL.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pgrx::prelude::*;
use steadytext_engine::ModelSource;
use steadytext_engine::summary::{Load, ModelSummary};

use super::connection;
use super::models::{may_diagnose, memory_limit_mb, of_engine};
use super::pull;
use crate::pg::catalog_cache::{self, ModelRegistry};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::pulls::FailedDownload;
use crate::pg::shmem::{DatabaseProcess, VectorizerPace};
use crate::pg::slots::WorkerState;
use crate::pg::{engine_leader, engine_page, files, guc, predecessor_variables, shmem, slots};
use crate::registry::{self, ModelTask, RequestedModel, directory, is_obeyed};

/// A line: what was checked, how it is, what was found, what to do.
type Check = (String, &'static str, String, Option<String>);

const OK: &str = "ok";
const WARNING: &str = "warning";
const ERROR: &str = "error";
/// Files in the directory that are looked at because nothing can be done with them.
const MAX_LOOKED_AT: usize = 20;

/// The checks that are made by the server.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn server_checks() -> TableIterator<
    'static,
    (name!(check, String), name!(status, &'static str), name!(detail, String), name!(hint, Option<String>)),
> {
    if !may_diagnose() {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "this is for members of steadytext_admin and pg_monitor",
        )
        .hint("A superuser can GRANT steadytext_admin, or pg_monitor to who only looks; steadytext_daemon_status() is for all users.")
        .raise();
    }
    let mut checks = vec![preloaded(), listening()];
    checks.extend(processes());
    let models = catalog_cache::models().or_raise();
    let mut needed_mb = 0;
    checks.extend(ModelTask::ALL.map(|task| model(task, &models, &mut needed_mb)));
    checks.extend(unusable(&models));
    checks.extend(failed_downloads());
    checks.extend(adapters());
    checks.push(memory(needed_mb));
    checks.push(model_directory());
    checks.extend(variables());
    TableIterator::new(checks)
}

fn line(check: &str, status: &'static str, detail: impl Into<String>, hint: Option<&str>) -> Check {
    (check.to_owned(), status, detail.into(), hint.map(str::to_owned))
}

fn preloaded() -> Check {
    match shmem::get() {
        Some(_) => line("preloaded", OK, "pg_steadytext is in shared_preload_libraries", None),
        None => line(
            "preloaded",
            ERROR,
            "pg_steadytext is not in shared_preload_libraries: nothing answers",
            Some("Add it there in postgresql.conf and restart the server."),
        ),
    }
}

fn listening() -> Check {
    if engine_leader::is_open() {
        let pid = engine_leader::engine_pid().unwrap_or_default();
        let loaded = connection::loaded_models().map_or_else(
            |error| error.message,
            |models| {
                let names: Vec<String> =
                    models.iter().map(|model| format!("{} ({} MB)", model.name, model.memory_mb)).collect();
                if names.is_empty() {
                    "no model is loaded".to_owned()
                } else {
                    format!("loaded: {}", names.join(", "))
                }
            },
        );
        let silence = engine_page::silence();
        if !silence.is_zero() {
            let detail = format!(
                "the engine in process {pid} has something to do and has not got on with it for {} s",
                silence.as_secs()
            );
            return line(
                "listening",
                WARNING,
                detail,
                Some("pg_steadytext.engine_hang_timeout says what becomes of one that hangs."),
            );
        }
        return line("listening", OK, format!("the engine runs in process {pid}; {loaded}"), None);
    }
    // One that has crashed may do so again, and then it is not just about to begin.
    if engine_leader::pid().is_some() && engine_leader::crashes() == 0 {
        return line("listening", OK, "the engine is starting", None);
    }
    if slots::my_state() == WorkerState::Starting {
        return line("listening", OK, "no engine runs yet: the worker of this database starts one", None);
    }
    line(
        "listening",
        WARNING,
        "no engine runs: the first call starts one where a worker or a place for one is left",
        Some("The server log says why, if calls find none; max_worker_processes may be used up."),
    )
}

/// Processes of this database for which there is no place.
fn processes() -> Option<Check> {
    let slot = slots::mine()?;
    let wanted = [
        (DatabaseProcess::Worker, "the worker"),
        (DatabaseProcess::Vectorizer(VectorizerPace::Fast), "the process that works for vectorizers"),
        (DatabaseProcess::Vectorizer(VectorizerPace::Slow), "the process that makes indexes of vectorizers"),
    ];
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|(process, _)| slot.is_without_place(*process))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let detail =
        format!("all of max_worker_processes are in use: there is no place for {}", missing.join(" and "));
    Some(line(
        "processes",
        ERROR,
        detail,
        Some("Raise max_worker_processes in postgresql.conf and restart the server."),
    ))
}

/// The check of the default model of a task.
fn model(task: ModelTask, models: &ModelRegistry, needed_mb: &mut u64) -> Check {
    let check = format!("model for {}", task.name());
    let failed = |error: PgError| (check.clone(), ERROR, error.message, error.hint);
    let resolved = match registry::resolve(task, RequestedModel::Default, models) {
        Ok(resolved) => resolved,
        Err(error) => return failed(error),
    };
    if resolved.is_fallback {
        return (
            check,
            WARNING,
            "no model is here: the builtin one answers, which is for demonstrations and tests only"
                .to_owned(),
            Some("Put a GGUF file into pg_steadytext.model_dir.".to_owned()),
        );
    }
    let summary = match ModelSummary::of(&resolved.source, of_settings()) {
        Ok((summary, _)) => summary,
        Err(error) => return failed(of_engine(error)),
    };
    let family = summary.architecture.as_deref().unwrap_or("of an unknown family");
    let detail = format!("{} ({family}, {} MB)", resolved.name(), summary.bytes.div_ceil(1 << 20));
    if let Some(refusal) = summary.refusals.into_iter().next() {
        return (check, ERROR, format!("{detail}: {}", refusal.reason), refusal.hint);
    }
    if let Some(memory) = summary.memory
        && matches!(resolved.source, ModelSource::File(_))
    {
        *needed_mb = (*needed_mb).max(memory.model.div_ceil(1 << 20));
    }
    (check, OK, detail, None)
}

/// The load of as many requests as may run together, each with its model's context.
fn of_settings() -> Load {
    let settings = guc::engine();
    Load {
        requests: settings.max_running,
        tokens: 0,
        threads: settings.threads.max(1),
        kv_cache_type: settings.kv_cache_type,
    }
}

/// Models that somebody has registered or put into the directory, and that cannot be used.
fn unusable(models: &ModelRegistry) -> Vec<Check> {
    const HINT: &str = "Requests that name no model pass it over. Put the right file there, correct the row in steadytext_models, or remove it.";
    let mut checks = Vec::new();
    let mut doubtful = Vec::new();
    for (model, status) in models.iter().zip(registry::status(models)) {
        let file = &model.file;
        let wrong = match status.state {
            "ready" => {
                doubtful.extend(registry::registered_path(file).map(|path| (model.name.clone(), path)));
                continue;
            }
            // Rows that came with the extension are what may be downloaded, and files of models elsewhere are
            // elsewhere.
            "missing" if model.is_default || model.is_elsewhere() => continue,
            "missing" => format!("its file \"{file}\" is not there"),
            _ => status.reason.unwrap_or_else(|| format!("its file \"{file}\" cannot be used")),
        };
        checks.push((format!("model {}", model.name), WARNING, wrong, Some(HINT.to_owned())));
    }
    for entry in directory::entries().iter().filter(|entry| !models.iter().any(|row| row.file == entry.file))
    {
        let path = registry::path_of(entry).filter(|path| registry::is_there(path));
        doubtful.extend(path.map(|path| (entry.name.clone(), path)));
    }
    // A file whose header names what it is for is read in full when it is used, and its errors are reported
    // then.
    doubtful.retain(|(_, path)| directory::tasks(path).unwrap_or_default().is_empty());
    for (name, path) in doubtful.into_iter().take(MAX_LOOKED_AT) {
        let (detail, hint) = match ModelSummary::of(&ModelSource::File(path), of_settings()) {
            Ok((summary, _)) => match summary.refusals.into_iter().next() {
                Some(refusal) => (refusal.reason, refusal.hint),
                None => continue,
            },
            Err(error) => {
                let error = of_engine(error);
                (error.message, error.hint)
            }
        };
        checks.push((
            format!("model {name}"),
            WARNING,
            detail,
            Some(hint.unwrap_or_else(|| HINT.to_owned())),
        ));
    }
    checks
}

/// Downloads that nobody may have been told of: what is asked for without waiting has no other way to say it.
fn failed_downloads() -> Vec<Check> {
    const HINT: &str = "The server log has more of it. What has arrived is kept: steadytext_model_pull() goes on from there.";
    let check = |failure: FailedDownload| {
        let detail = format!("it failed {} s ago: {}", failure.age_us / 1_000_000, failure.error.message);
        let hint = failure.error.hint.unwrap_or_else(|| HINT.to_owned());
        (format!("download {}", failure.label), WARNING, detail, Some(hint))
    };
    pull::failures().into_iter().map(check).collect()
}

/// Folders of adapters that no model uses.
fn adapters() -> impl Iterator<Item = Check> {
    registry::stray_adapters().into_iter().map(|stray| {
        (
            format!("adapters {}", stray.folder),
            WARNING,
            "the folder is beside no model's file of this name, and what lies in it is not used".to_owned(),
            Some(stray.hint()),
        )
    })
}

fn memory(needed_mb: u64) -> Check {
    match memory_limit_mb() {
        None => line(
            "memory",
            WARNING,
            "what the machine has cannot be told, and no limit is set",
            Some("Set pg_steadytext.memory_limit_mb."),
        ),
        Some(limit_mb) if needed_mb > limit_mb => line(
            "memory",
            ERROR,
            format!("the largest model in use needs {needed_mb} MB, {limit_mb} MB are allowed"),
            Some("Raise pg_steadytext.memory_limit_mb, or take a smaller model."),
        ),
        Some(limit_mb) => line(
            "memory",
            OK,
            format!("{limit_mb} MB are allowed; the largest model in use needs {needed_mb} MB"),
            None,
        ),
    }
}

/// The directory of the models, and whether the server can keep its own files there.
fn model_directory() -> Check {
    const CHECK: &str = "model directory";
    let name = guc::model_dir();
    let path = Path::new(&name);
    let metadata = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            let detail = format!("\"{name}\" is no directory");
            return line(CHECK, ERROR, detail, Some("Change pg_steadytext.model_dir."));
        }
        Err(error) => {
            return line(
                CHECK,
                WARNING,
                format!("\"{name}\" cannot be read: {error}"),
                Some(
                    "Make it, owned by the operating system user of the server, or change pg_steadytext.model_dir.",
                ),
            );
        }
    };
    let others = metadata.mode() & 0o022;
    if others != 0 {
        return line(
            CHECK,
            WARNING,
            format!("others may write to \"{name}\", and decide what the models of all databases say"),
            Some("Take that right away: chmod go-w."),
        );
    }
    if !files::may_write(path) {
        return line(
            CHECK,
            WARNING,
            format!(
                "the server may not write to \"{name}\", and keeps no packed weights and checksums there: each load computes them anew, in memory of its own"
            ),
            Some("Give it to the operating system user of the server: chown -R."),
        );
    }
    // Folders keep these files inside.
    let is_closed =
        |entry: &fs::DirEntry| entry.path().join("config.json").is_file() && !files::may_write(&entry.path());
    let closed = path.read_dir().into_iter().flatten().flatten().take(1024).find(is_closed);
    match closed {
        Some(folder) => line(
            CHECK,
            WARNING,
            format!(
                "the server may not write to folder \"{}\", and keeps no packed weights there: each load lays them out anew",
                folder.file_name().to_string_lossy()
            ),
            Some("Give it to the operating system user of the server: chown -R."),
        ),
        // Relative names are below the data directory.
        None => line(
            CHECK,
            OK,
            format!("\"{}\"", path.canonicalize().unwrap_or_else(|_| path.to_owned()).display()),
            None,
        ),
    }
}

/// The predecessor's variables of the server's environment.
fn variables() -> Vec<Check> {
    let shown =
        |value: String| value.chars().filter(|letter| !letter.is_control()).take(200).collect::<String>();
    let check = |name: String| {
        let value = shown(predecessor_variables::value(&name).unwrap_or_default());
        if is_obeyed(&name) {
            let detail = format!("\"{value}\", where no setting says otherwise");
            return (format!("environment {name}"), OK, detail, None);
        }
        let hint = if name.contains("CACHE") {
            "Set cache_max_entries and cache_max_size_mb with steadytext_config_set()."
        } else {
            "Remove it; docs/operations.md says which variables have an effect."
        };
        line(&format!("environment {name}"), WARNING, "it has no effect", Some(hint))
    };
    predecessor_variables::all()
        .into_iter()
        .filter(|name| !name.starts_with("STEADYTEXT_TEST_"))
        .map(check)
        .collect()
}
