//! The result cache: the key of a request, whether an entry answers it, and what is kept of an answer.
//!
//! A look-up writes nothing, so that it works in read-only transactions. A process that gets an answer from
//! the engine hands it to the worker of its database, which alone writes (`worker::cache_writer`).
//!
//! Invariant: an entry answers a request only if it is what the engine would compute now: of the same type
//! and key, the same content of the model's file and the same kernel version, which says how keys and values are kept. An entry that an administrator
//! imported answers default requests whatever the model, as that is what it was imported for.

mod new_entry;

use std::time::Duration;

use serde_json::Value;
use steadytext_engine::{
    BackendKind, CacheKey, ModelIdentity, ModelSource, Work, cache_key, cache_key_of_many, dedup_key, hex,
};

pub(crate) use new_entry::{NewEntry, model_name};

use crate::pg::cache_table::{self, Found, Provenance};
use crate::pg::catalog_cache::{self, Config};
use crate::pg::error::PgError;
use crate::pg::{access_counters, catalog, guc, model_checksums};
use crate::request::{self, Answer, Asked, Categories, Ranking, Subtasks};

/// A request that the cache may answer.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    request_type: String,
    params: Value,
    model: ModelSource,
    /// `None` where it needs the checksum of a model that nobody has loaded yet.
    key: Option<CacheKey>,
    max_entry_bytes: usize,
}

impl Question {
    /// `None` for a request that must not use the cache, or is of a kind that is not kept.
    pub(crate) fn of(
        request_type: &str,
        params: &Value,
        subtasks: &Subtasks,
        model: &ModelSource,
        config: &Config,
    ) -> Option<Question> {
        is_wanted(params, subtasks, config).then(|| Question {
            request_type: request_type.to_owned(),
            params: params.clone(),
            model: model.clone(),
            key: key_of(request_type, params, subtasks, model),
            max_entry_bytes: usize::try_from(config.cache_max_entry_bytes).unwrap_or(0),
        })
    }

    /// The same question to another model.
    pub(crate) fn with_model(&self, subtasks: &Subtasks, model: &ModelSource) -> Question {
        let key = key_of(&self.request_type, &self.params, subtasks, model);
        Question { model: model.clone(), key, ..self.clone() }
    }

    /// The answer, if the cache has it; counts the hit. Inside a transaction.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let key = self.key.as_ref()?;
        look(&self.request_type, key, || Some(self.model.clone())).map(|(_, answer)| answer)
    }

    /// What is kept of the answer that a model gave. `None` where that is too long, or computed by another backend than the key
    /// says.
    pub(crate) fn entry(
        &self,
        subtasks: &Subtasks,
        by: &ModelIdentity,
        answer: &Answer,
        took: Duration,
    ) -> Option<NewEntry> {
        // What candle has computed because the kernels do not is never looked for: settings say what is expected.
        if by.backend == BackendKind::Candle && guc::backend() != BackendKind::Candle {
            return None;
        }
        let key = key_by(&self.request_type, &self.params, subtasks, Some(&by.hash), by.backend)?;
        new_entry::make(self, subtasks, key.text, by, answer, took)
    }
}

/// Whether a request may be answered from the cache, and its answer kept.
fn is_wanted(params: &Value, subtasks: &Subtasks, config: &Config) -> bool {
    config.cache_enabled
        && params.get("use_cache") != Some(&Value::Bool(false))
        && !matches!(subtasks, Subtasks::Embed { .. } | Subtasks::Many(..) | Subtasks::Settled(_))
}

/// The answer to a request whose parameters were checked, if the cache has it; counts the hit. Inside a
/// transaction.
///
/// # Errors
///
/// Those of [`request::work`], and of [`request::model`] where the model matters.
pub(crate) fn find(asked: Asked<'_>, config: &Config) -> Result<Option<(Found, Answer)>, PgError> {
    let (task, subtasks) = request::work(asked, config)?;
    let mut failure = None;
    let found = find_with(asked, &subtasks, config, || {
        let resolved = catalog_cache::models().and_then(|models| request::model(task, asked.params, &models));
        resolved.map_err(|error| failure = Some(error)).ok().map(|model| model.source)
    });
    failure.map_or(Ok(found), Err)
}

/// As [`find`]. The model is only asked for where it matters: a short key does not name it, so that most
/// misses cost no look at a file.
fn find_with(
    asked: Asked<'_>,
    subtasks: &Subtasks,
    config: &Config,
    model: impl FnOnce() -> Option<ModelSource>,
) -> Option<(Found, Answer)> {
    let Asked { request_type, params, .. } = asked;
    if !is_wanted(params, subtasks, config) {
        return None;
    }
    if let Some(key) = key_with(request_type, params, subtasks, None) {
        return look(request_type, &key, model);
    }
    let model = model()?;
    let key = key_with(request_type, params, subtasks, model_checksums::of(&model).as_ref())?;
    look(request_type, &key, || Some(model))
}

/// The entry of a key, if it is what the model would answer now. While the extension is being dropped there
/// is none.
fn look(
    request_type: &str,
    key: &CacheKey,
    model: impl FnOnce() -> Option<ModelSource>,
) -> Option<(Found, Answer)> {
    let table = catalog_cache::installation().ok()?.cache?;
    let found = cache_table::find(table, &key.hash(), |of| accepts(request_type, key, of, model))?;
    let answer = read(request_type, &found)?;
    access_counters::count_hit(found.entry);
    Some((found, answer))
}

fn accepts(
    request_type: &str,
    key: &CacheKey,
    of: &Provenance,
    model: impl FnOnce() -> Option<ModelSource>,
) -> bool {
    let is_current = || {
        of.kernel_version == Some(guc::backend().kernel_version()) && of.model_hash.is_some() && {
            let model = model().and_then(|model| model_checksums::of(&model));
            of.model_hash == model.map(|hash| hex(&hash))
        }
    };
    of.request_type == request_type && (of.imported && key.is_short || is_current())
}

/// What an entry holds; `None` where that cannot be read.
fn read(request_type: &str, found: &Found) -> Option<Answer> {
    match request_type {
        "rerank" | "batch_rerank" => Ranking::from_json(&found.text()?).map(Answer::Ranking),
        "classify_scores" | "classify_multi" => Categories::from_json(&found.text()?).map(Answer::Categories),
        "embed" => found.vector().map(Answer::Embedding),
        _ => found.text().map(Answer::Text),
    }
}

/// The key of a request. `None` where it needs the checksum of a model that nobody has loaded yet, and for
/// kinds that are not kept.
pub(crate) fn key_of(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: &ModelSource,
) -> Option<CacheKey> {
    // A short key does not need the checksum, which costs a look at the file.
    key_with(request_type, params, subtasks, None)
        .or_else(|| key_with(request_type, params, subtasks, model_checksums::of(model).as_ref()))
}

/// That of what would compute it now.
fn key_with(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: Option<&[u8; 32]>,
) -> Option<CacheKey> {
    key_by(request_type, params, subtasks, model, guc::backend())
}

fn key_by(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: Option<&[u8; 32]>,
    backend: BackendKind,
) -> Option<CacheKey> {
    match subtasks {
        Subtasks::One(work) => {
            let names_model = ["model", "size"].iter().any(|name| params.get(name).is_some());
            cache_key(request_type, work, names_model, model, backend)
        }
        Subtasks::Rerank(reranking) => cache_key_of_many(request_type, reranking, model?, backend),
        Subtasks::Verb(verb) => cache_key_of_many(request_type, verb, model?, backend),
        Subtasks::Summary(level) => cache_key_of_many(request_type, level.summary(), model?, backend),
        // Each of the texts by itself would be one more way to the same entries.
        Subtasks::Embed { .. } | Subtasks::Many(..) | Subtasks::Settled(_) => None,
    }
}

/// By which the engine knows equal work of this database, so that it is done once.
pub(crate) fn dedup_key_of(work: &Work) -> Option<[u8; 32]> {
    dedup_key(catalog::my_database().to_u32(), work, guc::backend())
}

/// The model that computes an answer.
#[derive(Debug, Default)]
pub(crate) struct Author {
    model: Option<ModelIdentity>,
    /// Subtasks of it were computed by another one, whose file was replaced.
    mixed: bool,
}

impl Author {
    /// This one computes it, or a subtask of it.
    pub(crate) fn note(&mut self, model: &ModelIdentity) {
        if self.model.as_ref() != Some(model) {
            model_checksums::learn(model);
            self.mixed = self.model.replace(*model).is_some();
        }
    }

    /// The one that has computed all of it.
    pub(crate) fn get(&self) -> Option<&ModelIdentity> {
        self.model.as_ref().filter(|_| !self.mixed)
    }
}
