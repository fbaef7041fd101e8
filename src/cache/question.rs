//! Questions to the cache: whether an entry answers a request.

use std::sync::Arc;

use serde_json::Value;
use steadytext_engine::{CacheKey, ModelSource, hex};

use super::keys::{key_of, key_with};
use crate::pg::cache_table::{self, CachedAnswer, Provenance};
use crate::pg::catalog_cache::{self, DatabaseConfig};
use crate::pg::error::PgError;
use crate::pg::{access_counters, guc, model_checksums};
use crate::registry::{Embedding, ModelTask, Resolved};
use crate::request::{self, Answer, Categories, Ranking, RawRequest, Subtasks};

/// A request that the cache may answer.
#[derive(Debug, Clone)]
pub(crate) struct CacheQuestion {
    pub(super) request_type: String,
    pub(super) params: Value,
    pub(super) model: ModelSource,
    pub(super) embedding: Arc<Embedding>,
    /// `None` where it needs the checksum of a model that nobody has loaded yet.
    key: Option<CacheKey>,
    pub(super) max_entry_bytes: usize,
}

impl CacheQuestion {
    /// `None` for a request that must not use the cache, or is of a kind that is not kept.
    pub(crate) fn of(
        request_type: &str,
        params: &Value,
        subtasks: &Subtasks,
        model: &Resolved,
        config: &DatabaseConfig,
    ) -> Option<CacheQuestion> {
        is_wanted(params, subtasks, config).then(|| CacheQuestion {
            request_type: request_type.to_owned(),
            params: params.clone(),
            model: model.source.clone(),
            embedding: Arc::clone(model.embedding()),
            key: key_of(request_type, params, subtasks, model),
            max_entry_bytes: usize::try_from(config.cache_max_entry_bytes).unwrap_or(0),
        })
    }

    /// The same question to another model.
    pub(crate) fn with_model(&self, subtasks: &Subtasks, model: &Resolved) -> CacheQuestion {
        let key = key_of(&self.request_type, &self.params, subtasks, model);
        let embedding = Arc::clone(model.embedding());
        CacheQuestion { model: model.source.clone(), embedding, key, ..self.clone() }
    }

    /// The answer, if the cache has it; counts the hit. Inside a transaction.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let key = self.key.as_ref()?;
        look(&self.request_type, key, || Some(self.model.clone())).map(|(_, answer)| answer)
    }
}

/// Whether a request may be answered from the cache, and its answer kept.
fn is_wanted(params: &Value, subtasks: &Subtasks, config: &DatabaseConfig) -> bool {
    config.cache_enabled
        && params.get("use_cache") != Some(&Value::Bool(false))
        && !matches!(subtasks, Subtasks::Embed { .. } | Subtasks::Many(..) | Subtasks::Settled(_))
}

/// The extent of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Most misses cost no look at a file: somebody else will look again. Vectors of models that want
    /// something before their texts, and that no request names, are not found.
    Little,
    /// Every entry that answers is found.
    Whole,
}

/// The cache's answer to a request.
pub(crate) struct CacheReply {
    /// The entry.
    pub(crate) found: CachedAnswer,
    /// The same entry, decoded.
    pub(crate) answer: Answer,
    /// Name of the model; `None` for an imported entry, which answers whatever the model is.
    pub(crate) model: Option<String>,
}

/// The answer to a request whose parameters were checked, if the cache has it; counts the hit. Inside a
/// transaction.
///
/// # Errors
///
/// As [`request::work`], and as [`request::model`] where the model matters.
pub(crate) fn find(
    asked: RawRequest<'_>,
    config: &DatabaseConfig,
    effort: Effort,
) -> Result<Option<CacheReply>, PgError> {
    let (task, subtasks) = request::work(asked, config)?;
    let RawRequest { request_type, params, .. } = asked;
    if !is_wanted(params, &subtasks, config) {
        return Ok(None);
    }
    let model = || request::model(task, params, &*catalog_cache::models()?);
    // A short key does not name the model.
    let Some(short) = key_with(request_type, params, &subtasks, None, &Embedding::default()) else {
        return Ok(find_of(request_type, params, &subtasks, model()?));
    };
    let (mut failure, mut name) = (None, None);
    let found = look(request_type, &short, || {
        let model = model().map_err(|error| failure = Some(error)).ok()?;
        name = Some(model.name().to_owned());
        Some(model.source)
    });
    let found = found.map(|(found, answer)| CacheReply { found, answer, model: name });
    if let Some(error) = failure {
        return Err(error);
    }
    if task != ModelTask::Embed || (found.is_none() && effort == Effort::Little) {
        return Ok(found);
    }
    // The key of a vector is not the short one if its model puts a prefix before the text. Imported entries
    // answer where there is no model.
    match model() {
        Ok(model) if key_of(request_type, params, &subtasks, &model).as_ref() != Some(&short) => {
            Ok(find_of(request_type, params, &subtasks, model))
        }
        _ => Ok(found),
    }
}

/// The entry of a request to a model.
fn find_of(request_type: &str, params: &Value, subtasks: &Subtasks, model: Resolved) -> Option<CacheReply> {
    let key = key_of(request_type, params, subtasks, &model)?;
    let name = Some(model.name().to_owned());
    let (found, answer) = look(request_type, &key, || Some(model.source))?;
    Some(CacheReply { found, answer, model: name })
}

/// The entry of a key, if it is what the model would answer now. While the extension is being dropped there
/// is none.
fn look(
    request_type: &str,
    key: &CacheKey,
    model: impl FnOnce() -> Option<ModelSource>,
) -> Option<(CachedAnswer, Answer)> {
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

/// Decodes an entry; `None` where that fails.
fn read(request_type: &str, found: &CachedAnswer) -> Option<Answer> {
    match request_type {
        "rerank" | "batch_rerank" => Ranking::from_json(&found.text()?).map(Answer::Ranking),
        "classify_scores" | "classify_multi" => Categories::from_json(&found.text()?).map(Answer::Categories),
        "embed" => found.vector().map(Answer::Embedding),
        _ => found.text().map(Answer::Text),
    }
}
