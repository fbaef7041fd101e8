//! The list of models, and their properties and needs.

use std::path::{Path, PathBuf};

use pgrx::prelude::*;
use steadytext_engine::card::{self, Card};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::memory::Machine;
use steadytext_engine::summary::{self, Load, ModelSummary};
use steadytext_engine::{Error, FileId, LoadedModel, ModelIdentity, ModelSource, hex, model_files};

use super::connection;
use super::refuse::require_name;
use crate::pg::catalog_cache::{self, ModelRegistry, RegisteredModel};
use crate::pg::error::{OrRaise, PgError, RequestFailure};
use crate::pg::memory::shared_buffers;
use crate::pg::privilege::{current_user, is_administrator};
use crate::pg::{guc, interrupts, privilege};
use crate::registry::{self, ModelTask, RequestedModel, directory};

/// Longest text that a prompt is shown with, in characters.
const MAX_SHOWN: usize = 10_000;
/// The hint about a file that cannot be used, where there is no other.
const UNUSABLE_HINT: &str = "Fetch another file of the model, or take another model: docs/models.md says which models run, and steadytext-engine inspect FILE what the file needs.";
/// The placement of models that nobody has registered.
const ANYWHERE: &str = "any";

/// All models by their names: the rows of the registry, what else is in the directory, and the builtin one.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn model_list() -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(source, &'static str),
        name!(file, Option<String>),
        name!(size_bytes, Option<i64>),
        name!(tasks, Vec<String>),
        name!(preferred, Vec<String>),
        name!(loaded, bool),
        name!(memory_mb, Option<i64>),
        name!(last_used, Option<TimestampWithTimeZone>),
        name!(placement, String),
    ),
> {
    let models = catalog_cache::models().or_raise();
    let loaded = connection::loaded_models().or_raise();
    let sees_paths = is_administrator(current_user());
    let words = |tasks: &[card::Task]| tasks.iter().map(|task| task.name().to_owned()).collect::<Vec<_>>();
    let mut rows = Vec::new();
    let mut push =
        |name: &str, source, file: Option<&str>, path: Option<&Path>, tasks, preferred, placement: &str| {
            let there = path.filter(|path| registry::is_there(path));
            let at = path.map_or_else(|| registry::BUILTIN.to_owned(), |path| path.display().to_string());
            let of = loaded.iter().find(|loaded| loaded.name == at);
            let file = file.map(|file| {
                let is_shown = sees_paths || !file.starts_with('/');
                (if is_shown { file } else { file.rsplit('/').next().unwrap_or_default() }).to_owned()
            });
            let size = there.and_then(bytes_of);
            let memory = of.and_then(|of| i64::try_from(of.memory_mb).ok());
            rows.push((
                name.to_owned(),
                source,
                file,
                size,
                tasks,
                preferred,
                of.is_some(),
                memory,
                of.and_then(used_at),
                placement.to_owned(),
            ));
        };
    for model in models.iter().filter(|model| !registry::gives_way(model)) {
        let path = registry::registered_path(&model.file).ok();
        let tasks = vec![model.task.clone()];
        let preferred = if model.is_preferred { tasks.clone() } else { Vec::new() };
        push(&model.name, "registry", Some(&model.file), path.as_deref(), tasks, preferred, &model.placement);
    }
    for entry in directory::entries().iter() {
        let Some(path) = registry::path_of(entry).filter(|path| registry::is_there(path)) else {
            continue;
        };
        // A row of the same name comes first.
        if models.iter().any(|model| model.name == entry.name && !registry::gives_way(model)) {
            continue;
        }
        let preferred = Card::read(&path).ok().flatten().map(|card| words(&card.preferred));
        let tasks = words(&directory::tasks(&path).unwrap_or_default());
        push(
            &entry.name,
            "directory",
            Some(&entry.file),
            Some(&path),
            tasks,
            preferred.unwrap_or_default(),
            ANYWHERE,
        );
    }
    let all = ModelTask::ALL.map(|task| task.name().to_owned()).to_vec();
    push(registry::BUILTIN, "builtin", None, None, all, Vec::new(), ANYWHERE);
    TableIterator::new(rows)
}

/// The time when a request last used a model.
fn used_at(model: &LoadedModel) -> Option<TimestampWithTimeZone> {
    /// From 1970 to 2000, in seconds.
    const EPOCH: i64 = 946_684_800;
    let micros = i64::try_from(model.used_at_ms).ok()?.checked_mul(1000)?;
    TimestampWithTimeZone::try_from(micros.checked_sub(EPOCH * 1_000_000)?).ok()
}

/// Bytes of a model's files.
fn bytes_of(path: &Path) -> Option<i64> {
    let lengths = model_files(path).iter().map(|file| Some(file.metadata().ok()?.len())).sum::<Option<u64>>();
    i64::try_from(lengths?).ok()
}

/// The properties and needs of a model, and whether it would load. The model is not loaded.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn model_inspect(
    name: Option<&str>,
    sample: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(model, String),
        name!(file, Option<String>),
        name!(tasks, Vec<String>),
        name!(family, Option<String>),
        name!(kind, Option<String>),
        name!(parameters, Option<i64>),
        name!(quantization, Option<String>),
        name!(context_length, Option<i64>),
        name!(dimensions, Option<i64>),
        name!(adapters, Vec<String>),
        name!(size_bytes, Option<i64>),
        name!(memory_mb, Option<i64>),
        name!(memory_limit_mb, Option<i64>),
        name!(licence, Option<String>),
        name!(repository, Option<String>),
        name!(sha256, Option<String>),
        name!(tokenizer, Option<String>),
        name!(vocabulary, Option<i64>),
        name!(template, Option<String>),
        name!(prompt, Option<String>),
        name!(loads, bool),
        name!(reason, Option<String>),
        name!(hint, Option<String>),
    ),
> {
    require_administrator().or_raise();
    let name = require_name(name).or_raise();
    let models = catalog_cache::models().or_raise();
    let found = find(name, &models).or_raise();
    let settings = guc::engine();
    let load = Load {
        requests: settings.max_running,
        tokens: 0,
        threads: settings.threads.max(1),
        kv_cache_type: settings.kv_cache_type,
    };
    let opened = found.source.as_ref().and_then(|source| match source {
        ModelSource::File(path) => ModelIdentity::file_of(path).ok(),
        ModelSource::Builtin => None,
    });
    let summed_up = found.source.as_ref().map(|source| ModelSummary::of(source, load).map_err(of_engine));
    let (summary, gguf, unreadable) = match summed_up {
        Some(Ok((summary, gguf))) => (Some(summary), Some(gguf), None),
        Some(Err(error)) => (None, None, Some(error)),
        None => (None, None, None),
    };
    let path = match &found.source {
        Some(ModelSource::Builtin) => None,
        Some(ModelSource::File(path)) => Some(path.as_path()),
        None => found.path.as_deref(),
    };
    let row = registered(name, &models);
    let card = path.map(Card::read).transpose().ok().flatten().flatten().unwrap_or_default();
    let tasks = match (path, found.task) {
        (_, Some(task)) => vec![task.name().to_owned()],
        (None, None) => ModelTask::ALL.map(|task| task.name().to_owned()).to_vec(),
        (Some(path), None) => {
            directory::tasks(path).unwrap_or_default().iter().map(|task| task.name().to_owned()).collect()
        }
    };
    let for_prompt = match tasks.first().map(String::as_str) {
        Some("embed") => card::Task::Embed,
        Some("rerank") => card::Task::Rerank,
        _ => card::Task::Generate,
    };
    let text: String = sample.unwrap_or("PROMPT").chars().take(MAX_SHOWN).collect();
    let shown = gguf.as_ref().and_then(|gguf| summary::prompt_of(gguf, for_prompt, &text));
    let limit_mb = memory_limit_mb();
    let memory = summary.as_ref().and_then(|summary| summary.memory);
    let memory_mb = memory.map(|memory| memory.model.saturating_add(memory.state).div_ceil(1 << 20));
    let least_mb = memory.map(|memory| memory.model.div_ceil(1 << 20));
    let too_large = least_mb.zip(limit_mb).is_some_and(|(least, limit)| least > limit);
    let refusal = summary.as_ref().and_then(|summary| summary.refusals.first());
    let mut wrong = unreadable.or(found.refused);
    if let (None, None, Some(source @ ModelSource::File(path)), Some(gguf)) =
        (refusal, &wrong, &found.source, &gguf)
    {
        let compute = || checksum(source, gguf, opened);
        wrong = registry::check_content(name, path, &models, compute).err();
    }
    // A fault of the file is told first, because workers elsewhere would find it as well.
    let (reason, hint) = match (refusal, wrong) {
        (Some(refusal), _) => (Some(refusal.reason.clone()), refusal.hint.clone()),
        (None, Some(error)) => (Some(error.message), error.hint),
        (None, None) if too_large => (
            Some(format!(
                "it needs {} MB of memory, {} MB are allowed",
                least_mb.unwrap_or_default(),
                limit_mb.unwrap_or_default()
            )),
            Some("Raise pg_steadytext.memory_limit_mb, or take a smaller model.".to_owned()),
        ),
        (None, None) => (None, None),
    };
    let hint = hint.or_else(|| reason.as_ref().map(|_| UNUSABLE_HINT.to_owned())).or_else(|| stray(path));
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let size = match path {
        Some(path) => Some(path).filter(|path| registry::is_there(path)).and_then(bytes_of),
        None => summary.as_ref().map(|summary| number(summary.bytes)),
    };
    let summary = summary.as_ref();
    TableIterator::once((
        name.to_owned(),
        path.map(|path| path.display().to_string()),
        tasks,
        storable(summary.and_then(|summary| summary.architecture.clone())),
        summary.and_then(|summary| summary.kind).map(str::to_owned),
        summary.map(|summary| number(summary.parameters)),
        summary.and_then(|summary| summary.quantization).map(str::to_owned),
        summary.and_then(|summary| summary.context_length).map(|length| number(length as u64)),
        summary.and_then(|summary| summary.dimensions).map(i64::from),
        summary.map(|summary| summary.adapters.clone()).unwrap_or_default(),
        size,
        memory_mb.map(number),
        limit_mb.map(number),
        storable(summary.and_then(|summary| summary.license.clone()).or(card.licence)),
        card.repository.or_else(|| row.and_then(|row| row.repository.clone())),
        row.and_then(|row| row.sha256).map(|sha256| hex(&sha256)).or(card.sha256),
        storable(summary.and_then(|summary| summary.tokenizer.clone())),
        summary.and_then(|summary| summary.vocabulary).map(|tokens| number(tokens as u64)),
        storable(summary.and_then(|summary| summary.chat_template.clone())),
        storable(shown),
        reason.is_none(),
        storable(reason),
        storable(hint),
    ))
}

/// SHA-256 of a model's own file that is open, which was `opened` before; `None` where it was not to be read.
fn checksum(source: &ModelSource, gguf: &Gguf, opened: Option<FileId>) -> Option<[u8; 32]> {
    let identity = ModelIdentity::of(source, gguf, opened, &interrupts::is_stop_pending);
    interrupts::check();
    identity.ok().filter(|_| gguf.check_lost().is_ok()).map(|identity| identity.own_hash)
}

/// A text that PostgreSQL can hold.
fn storable(text: Option<String>) -> Option<String> {
    text.map(|text| text.replace('\0', "\u{fffd}"))
}

pub(super) fn of_engine(error: Error) -> PgError {
    RequestFailure::from(error).error
}

/// A model that somebody looks at.
struct NamedSource {
    /// The task of its row; `None` for names of files, which may have any task.
    task: Option<ModelTask>,
    /// The model itself, unless its file is missing.
    source: Option<ModelSource>,
    /// The path where it would be.
    path: Option<PathBuf>,
    /// The reason why this server does not compute it.
    refused: Option<PgError>,
}

/// The model of a name. One that is known and cannot be used is found, with the reason.
///
/// # Errors
///
/// 42704 for a name that nothing has, 42710 for one that several have.
fn find(name: &str, models: &ModelRegistry) -> Result<NamedSource, PgError> {
    if name == registry::BUILTIN {
        let source = Some(ModelSource::Builtin);
        return Ok(NamedSource { task: None, source, path: None, refused: None });
    }
    if let Some((row, task)) = registered(name, models)
        .and_then(|row| Some((row, ModelTask::ALL.into_iter().find(|task| task.name() == row.task)?)))
    {
        // A file that is another one than registered is looked at all the same.
        let path = registry::registered_path(&row.file).ok();
        let is_whole = path.as_deref().is_some_and(registry::is_there);
        // The first part of several says what the model is, whether or not the others are there.
        let source = path.clone().filter(|path| is_whole || path.is_file()).map(ModelSource::File);
        let found = NamedSource { task: Some(task), source, path, refused: None };
        if is_whole && !row.is_elsewhere() {
            return Ok(found);
        }
        return Ok(match registry::resolve(task, RequestedModel::Named(name), models) {
            Ok(resolved) => NamedSource { source: Some(resolved.source), ..found },
            Err(error) => NamedSource { refused: Some(error), ..found },
        });
    }
    // A file is inspected whichever tasks its card names.
    if let Some(path) = registry::named_file(name, models)? {
        let source = Some(ModelSource::File(path));
        return Ok(NamedSource { task: None, source, path: None, refused: None });
    }
    let incomplete = registry::incomplete_file(name)?;
    match (registry::resolve(ModelTask::Generate, RequestedModel::Named(name), models), incomplete) {
        (Ok(resolved), _) => {
            Ok(NamedSource { task: None, source: Some(resolved.source), path: None, refused: None })
        }
        (Err(error), Some(path)) => {
            let source = Some(ModelSource::File(path));
            Ok(NamedSource { task: None, source, path: None, refused: Some(error) })
        }
        (Err(error), None) => Err(match registry::close(name, models) {
            Some(close) if error.code == PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT => error.hint(close),
            _ => error,
        }),
    }
}

/// The hint about a folder that looks like that of the model's adapters, and is not.
fn stray(path: Option<&Path>) -> Option<String> {
    let path = path?;
    registry::stray_adapters().into_iter().find(|stray| stray.is_meant_for(path)).map(|stray| stray.hint())
}

/// The row of a name, unless a file is meant by it.
fn registered<'a>(name: &str, models: &'a ModelRegistry) -> Option<&'a RegisteredModel> {
    models.iter().find(|model| model.name == name && !registry::gives_way(model))
}

/// The memory limit of the engine in MB; `None` where there is none.
pub(super) fn memory_limit_mb() -> Option<u64> {
    match guc::engine().memory_limit_mb {
        0 => Machine::read().engine_bytes(shared_buffers()).map(|bytes| bytes >> 20),
        set => Some(set),
    }
}

pub(super) fn require_administrator() -> Result<(), PgError> {
    if is_administrator(current_user()) {
        return Ok(());
    }
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "this is for members of steadytext_admin",
    )
    .hint("A superuser can GRANT steadytext_admin."))
}

/// Whether the caller may see everybody's: members of steadytext_admin, superusers, and who monitors the
/// server.
pub(super) fn may_diagnose() -> bool {
    let caller = current_user();
    is_administrator(caller) || privilege::is_monitor(caller)
}
