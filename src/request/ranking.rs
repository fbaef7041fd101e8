//! Reranking: pairs of a query and a document, and the order that their scores make.
//!
//! Invariant: documents of one score stay in the order in which they were given.

use serde::Serialize;
use serde_json::{Map, Value};
use steadytext_engine::{Rerank, Work};

/// A reranking request: every document is scored for every query.
#[derive(Debug, Serialize)]
pub(crate) struct Reranking {
    /// At least one.
    pub(crate) queries: Vec<String>,
    /// At least one.
    pub(crate) documents: Vec<String>,
    /// The instruction.
    pub(crate) task: String,
    /// Whether scores are part of the answer.
    pub(crate) scores: bool,
    /// Whether the answer says which query each line belongs to.
    pub(crate) batch: bool,
    /// Whether documents that are too long are cut.
    pub(crate) truncate: bool,
    /// The caller's ids of the documents, one for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ids: Option<Vec<String>>,
}

/// Documents, the best of the first query first.
#[derive(Debug, Clone)]
pub(crate) struct Ranking {
    /// Its lines.
    pub(crate) lines: Vec<Ranked>,
    batch: bool,
}

/// A document and its score.
#[derive(Debug, Clone)]
pub(crate) struct Ranked {
    /// Number of the query, from 0.
    pub(crate) query: usize,
    /// The document.
    pub(crate) document: String,
    /// Its place among the documents, from 0.
    pub(crate) index: usize,
    /// The caller's id of it.
    pub(crate) id: Option<String>,
    /// The score, from 0 to 1; `None` where it is not wanted.
    pub(crate) score: Option<f32>,
}

impl Reranking {
    /// Number of pairs: the documents of the first query, then those of the next.
    pub(crate) fn len(&self) -> usize {
        self.queries.len() * self.documents.len()
    }

    fn pair(&self, index: usize) -> (usize, usize) {
        (index / self.documents.len(), index % self.documents.len())
    }

    /// The scoring of a pair.
    pub(crate) fn work(&self, index: usize) -> Work {
        let (query, document) = self.pair(index);
        Work::Rerank(Rerank {
            query: self.queries[query].clone(),
            document: self.documents[document].clone(),
            task: self.task.clone(),
            truncate: self.truncate,
            ..Rerank::default()
        })
    }

    /// The name of a pair in error messages.
    pub(crate) fn name(&self, index: usize) -> String {
        let (query, document) = self.pair(index);
        if self.batch {
            return format!("query {}, document {}", query + 1, document + 1);
        }
        format!("document {}", document + 1)
    }

    /// The order that the scores of all pairs make.
    pub(crate) fn ranking(&self, scores: &[f32]) -> Ranking {
        let mut lines = Vec::with_capacity(scores.len());
        for (query, scores) in scores.chunks(self.documents.len()).enumerate() {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            lines.extend(order.into_iter().map(|index| Ranked {
                query,
                document: self.documents[index].clone(),
                index,
                id: self.ids.as_ref().and_then(|ids| ids.get(index)).cloned(),
                score: self.scores.then_some(scores[index]),
            }));
        }
        Ranking { lines, batch: self.batch }
    }
}

impl Ranking {
    /// The ranking in the form of steadytext_queue.result: an array of objects.
    pub(crate) fn json(&self) -> String {
        let objects = self.lines.iter().map(|line| {
            let mut object = Map::new();
            if self.batch {
                object.insert("query_index".into(), line.query.into());
            }
            object.insert("document".into(), line.document.as_str().into());
            if let Some(score) = line.score {
                object.insert("score".into(), f64::from(score).into());
            }
            object.insert("index".into(), (line.index + 1).into());
            if let Some(id) = &line.id {
                object.insert("document_id".into(), id.as_str().into());
            }
            Value::Object(object)
        });
        Value::Array(objects.collect()).to_string()
    }

    /// Reads the output of [`Ranking::json`]; `None` for anything else.
    pub(crate) fn from_json(json: &str) -> Option<Ranking> {
        let objects: Vec<Map<String, Value>> = serde_json::from_str(json).ok()?;
        let batch = objects.first()?.contains_key("query_index");
        let lines = objects.into_iter().map(|mut object| {
            let query = object.get("query_index").map_or(Some(0), Value::as_u64)?;
            let score = object.get("score").map(|score| score.as_f64().ok_or(())).transpose().ok()?;
            let Value::String(document) = object.remove("document")? else { return None };
            let index = object.get("index")?.as_u64()?.checked_sub(1)?;
            let id = object.get("document_id").map(|id| id.as_str().map(str::to_owned).ok_or(()));
            Some(Ranked {
                query: usize::try_from(query).ok()?,
                document,
                index: usize::try_from(index).ok()?,
                id: id.transpose().ok()?,
                score: score.map(|score| score as f32),
            })
        });
        Some(Ranking { lines: lines.collect::<Option<_>>()?, batch })
    }

    /// The documents, in the form of steadytext_queue.results.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|line| line.document.as_str())
    }
}
