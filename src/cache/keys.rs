//! The keys by which the cache and the engine recognize equal requests.

use serde::Serialize;
use serde_json::Value;
use steadytext_engine::{
    BackendKind, CacheKey, Embed, Prompts, Work, cache_key, cache_key_of_many, dedup_key,
};

use crate::pg::{catalog, guc, model_checksums};
use crate::registry::{Embedding, Resolved};
use crate::request::{Subtasks, named_model};

/// The key of a request. `None` where it needs the checksum of a model that nobody has loaded yet, and for
/// kinds that are not kept.
pub(crate) fn key_of(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: &Resolved,
) -> Option<CacheKey> {
    let embedding = model.embedding();
    // A short key does not need the checksum, which costs a look at the file.
    key_with(request_type, params, subtasks, None, embedding).or_else(|| {
        key_with(request_type, params, subtasks, model_checksums::of(&model.source).as_ref(), embedding)
    })
}

/// The key for the backend that would compute the request now.
pub(super) fn key_with(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: Option<&[u8; 32]>,
    embedding: &Embedding,
) -> Option<CacheKey> {
    key_by(request_type, params, subtasks, model, embedding, guc::backend())
}

/// The key for a backend.
pub(super) fn key_by(
    request_type: &str,
    params: &Value,
    subtasks: &Subtasks,
    model: Option<&[u8; 32]>,
    embedding: &Embedding,
    backend: BackendKind,
) -> Option<CacheKey> {
    let prompts = &embedding.of_pairs();
    match subtasks {
        Subtasks::One(Work::Embed(how @ Embed { truncate: true, .. })) => {
            let work = embedding.applied_to(Work::Embed(how.clone()));
            cache_key_of_many(request_type, &(work, guc::engine().context_length), model?, backend)
        }
        Subtasks::One(work) => {
            let names_model = named_model(params).is_some();
            let work = embedding.applied_to(work.clone());
            cache_key(request_type, &work, names_model, model, backend)
        }
        // Where a text is cut depends on the length of the context.
        Subtasks::Rerank(reranking) if reranking.truncate => {
            let content = (reranking, guc::engine().context_length);
            key_of_many(request_type, &content, model?, prompts, backend)
        }
        Subtasks::Rerank(reranking) => key_of_many(request_type, reranking, model?, prompts, backend),
        Subtasks::Verb(verb) => match verb.purpose().and_then(|purpose| embedding.adapted(purpose)) {
            Some(adapted) => cache_key_of_many(request_type, &(verb, adapted), model?, backend),
            None => key_of_many(request_type, verb, model?, prompts, backend),
        },
        Subtasks::Summary(level) => key_of_many(request_type, level.summary(), model?, prompts, backend),
        // Each of the texts by itself would be one more way to the same entries.
        Subtasks::Embed { .. } | Subtasks::Many(..) | Subtasks::Settled(_) => None,
    }
}

fn key_of_many<T: Serialize>(
    request_type: &str,
    content: &T,
    model: &[u8; 32],
    prompts: &Prompts,
    backend: BackendKind,
) -> Option<CacheKey> {
    if prompts.is_empty() {
        return cache_key_of_many(request_type, content, model, backend);
    }
    cache_key_of_many(request_type, &(content, prompts), model, backend)
}

/// The key by which the engine recognizes equal work of this database, so that it is done once.
pub(crate) fn dedup_key_of(work: &Work) -> Option<[u8; 32]> {
    dedup_key(catalog::my_database().to_u32(), work, guc::backend())
}
