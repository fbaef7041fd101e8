//! New entries of the cache, their form as messages to the worker, and the model that has computed them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use steadytext_engine::{
    BackendKind, Embed, Generate, Likelihoods, ModelIdentity, ModelSource, Rerank, Work, builtin, hex,
};

use super::keys::key_by;
use super::question::CacheQuestion;
use crate::pg::{guc, model_checksums};
use crate::request::{Answer, Subtasks, defaults};

/// The model that computes an answer.
#[derive(Debug, Default)]
pub(crate) struct Author {
    model: Option<ModelIdentity>,
    /// Subtasks of it were computed by another one, whose file was replaced.
    mixed: bool,
    /// The other one has other numbers.
    differs: bool,
}

impl Author {
    /// This one computes it, or a subtask of it.
    pub(crate) fn note(&mut self, model: &ModelIdentity) {
        if self.model.as_ref() != Some(model) {
            model_checksums::learn(model);
            let before = self.model.replace(*model);
            self.mixed = before.is_some();
            self.differs |=
                before.is_some_and(|before| (before.hash, before.backend) != (model.hash, model.backend));
        }
    }

    /// Whether one model has computed a subtask and another one computes the next: together they are nobody's
    /// answer, and their vectors cannot be compared.
    pub(crate) fn is_two(&self) -> bool {
        self.differs
    }

    /// The one that has computed all of it.
    pub(crate) fn get(&self) -> Option<&ModelIdentity> {
        self.model.as_ref().filter(|_| !self.mixed)
    }
}

/// A row of steadytext_cache in the making.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NewEntry {
    /// cache_key.
    pub(crate) key: String,
    /// prompt.
    pub(crate) prompt: String,
    /// response, unless it is a vector.
    pub(crate) response: Option<String>,
    /// embedding; empty where it is none.
    pub(crate) embedding: Vec<f32>,
    /// The other columns, as a JSON object.
    pub(crate) about: String,
}

impl NewEntry {
    /// Encodes the entry as a message.
    pub(crate) fn to_message(&self) -> Option<Vec<u8>> {
        postcard::to_allocvec(self).ok()
    }

    /// Decodes an entry from a message.
    pub(crate) fn from_message(message: &[u8]) -> Option<NewEntry> {
        postcard::from_bytes(message).ok()
    }
}

impl CacheQuestion {
    /// The entry for an answer that a model gave. `None` where that is too long, or computed by another
    /// backend than the key says.
    pub(crate) fn entry(
        &self,
        subtasks: &Subtasks,
        by: &ModelIdentity,
        answer: &Answer,
        took: Duration,
    ) -> Option<NewEntry> {
        // Answers of candle are never looked up where the settings expect the kernels, so those that candle
        // computed because the kernels could not are not kept.
        if by.backend == BackendKind::Candle && guc::backend() != BackendKind::Candle {
            return None;
        }
        let embedding = &self.embedding;
        let key = key_by(&self.request_type, &self.params, subtasks, Some(&by.hash), embedding, by.backend)?;
        make(self, subtasks, key.text, by, answer, took)
    }
}

fn make(
    question: &CacheQuestion,
    subtasks: &Subtasks,
    key: String,
    by: &ModelIdentity,
    answer: &Answer,
    took: Duration,
) -> Option<NewEntry> {
    let (response, embedding) = match answer {
        Answer::Text(text) => (Some(text.clone()), Vec::new()),
        Answer::Ranking(ranking) => (Some(ranking.json()), Vec::new()),
        Answer::Categories(categories) => (Some(categories.json()), Vec::new()),
        Answer::Embedding(vector) => (None, vector.clone()),
        Answer::Embeddings(_)
        | Answer::Tokens(_)
        | Answer::Chunks(_)
        | Answer::Many(_)
        | Answer::Verification(_) => return None,
    };
    let (prompt, seed) = match subtasks {
        Subtasks::One(Work::Generate(Generate { prompt, sampling, .. })) => {
            (prompt.clone(), (!sampling.is_greedy()).then_some(sampling.seed))
        }
        Subtasks::One(Work::Embed(Embed { text, .. })) => (text.clone(), None),
        Subtasks::One(Work::Rerank(Rerank { query, .. })) => (query.clone(), None),
        Subtasks::Rerank(reranking) => (reranking.queries.join("\n"), None),
        Subtasks::One(Work::Likelihoods(Likelihoods { prompt, .. })) => (prompt.clone(), None),
        Subtasks::Verb(verb) => (verb.text().to_owned(), None),
        Subtasks::Summary(level) => (level.summary().beginning().to_owned(), None),
        Subtasks::One(Work::Tokenize { .. } | Work::Chunk(_) | Work::Verify(_))
        | Subtasks::Embed { .. }
        | Subtasks::Many(..)
        | Subtasks::Settled(_) => {
            return None;
        }
    };
    let response_bytes = response.as_ref().map_or(embedding.len() * size_of::<f32>(), String::len);
    if prompt.len() + response_bytes > question.max_entry_bytes {
        return None;
    }
    let about = serde_json::json!({
        "request_type": question.request_type,
        "model_name": model_name(&question.params, &question.model),
        "model_size": question.params.get("size"),
        "seed": seed.map(|seed| seed as i64),
        "eos_string": question.params.get("eos_string").filter(|stop| *stop != defaults::EOS_STRING),
        "generation_params": question.params,
        "response_size": response_bytes,
        "generation_time_ms": i32::try_from(took.as_millis()).unwrap_or(i32::MAX),
        "model_hash": hex(&by.hash),
        "kernel_version": by.backend.kernel_version(),
    });
    Some(NewEntry { key, prompt, response, embedding, about: about.to_string() })
}

/// The name of a model: as the request gives it, or else of its file.
pub(crate) fn model_name(params: &Value, model: &ModelSource) -> String {
    if let Some(name) = params.get("model").and_then(Value::as_str) {
        return name.to_owned();
    }
    match model {
        ModelSource::Builtin => builtin::NAME.to_owned(),
        ModelSource::File(path) => {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
    }
}
