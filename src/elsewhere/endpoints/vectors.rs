//! Vectors and scores: `/embeddings` and `/rerank`, which take many texts in a call.
//!
//! Invariant: an answer has one vector or score for each text, each of them finite, or it is none.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use steadytext_engine::{Embed, Error, Output, Purpose, Rerank};

use super::client::CallFailure;
use super::endpoint_answers::{EndpointAnswer, EndpointUsage, Refused, unreadable};
use super::settings::{EndpointSettings, RerankForm, Scores};

/// The longest vector that the type vector has.
const MAX_DIMENSIONS: usize = 16_000;

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<Embedded>,
    #[serde(default)]
    usage: EndpointUsage,
}

#[derive(Deserialize)]
struct Embedded {
    index: Option<usize>,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct RankingJson {
    results: Vec<RankedJson>,
    #[serde(default)]
    usage: EndpointUsage,
}

#[derive(Deserialize)]
struct RankedJson {
    index: usize,
    #[serde(alias = "relevance_score")]
    score: f64,
}

/// The text that is embedded: what the model's row says stands before it.
///
/// # Errors
///
/// [`Refused`] for a task that no prompt has a place for.
pub(super) fn text(how: &Embed) -> Result<String, Refused> {
    match (&how.prompt, &how.purpose) {
        (Some(prompt), _) => Ok(format!("{prompt}{}", how.text)),
        (None, Purpose::Query { task: Some(_) }) => {
            Err(Refused::unsupported("tasks of queries without a query_prompt in the model's row"))
        }
        (
            None,
            Purpose::Query { task: None }
            | Purpose::Passage
            | Purpose::Document
            | Purpose::Similarity
            | Purpose::Classification,
        ) => Ok(how.text.clone()),
    }
}

/// Asks for the vectors of texts.
pub(super) fn embeddings(settings: &EndpointSettings, texts: Vec<String>) -> Map<String, Value> {
    let body = json!({ "model": settings.model, "input": texts, "encoding_format": "float" });
    object(body)
}

/// The vectors of texts, in their order, each of length 1 and as many elements as are wanted.
///
/// # Errors
///
/// [`CallFailure`].
pub(super) fn embedded(hows: &[&Embed], bytes: &[u8]) -> Result<Vec<EndpointAnswer>, CallFailure> {
    let broken = |what: &str| CallFailure::Broken(format!("the endpoint's answer {what}"));
    let Embeddings { data, usage } = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
    if data.len() != hows.len() {
        return Err(broken("has another number of vectors than there are texts"));
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; hows.len()];
    for (place, Embedded { index, embedding }) in data.into_iter().enumerate() {
        let slot = vectors.get_mut(index.unwrap_or(place)).filter(|slot| slot.is_none());
        *slot.ok_or_else(|| broken("has two vectors of a text"))? = Some(embedding);
    }
    let vectors: Vec<Vec<f32>> = vectors.into_iter().flatten().collect();
    let length = vectors.first().map_or(0, Vec::len);
    if length == 0 || length > MAX_DIMENSIONS || vectors.iter().any(|vector| vector.len() != length) {
        return Err(broken("has vectors of no length, or of several"));
    }
    if !vectors.iter().flatten().all(|number| number.is_finite()) {
        return Err(broken("has a number that is not finite"));
    }
    let lengths: Vec<usize> = hows.iter().map(|how| how.text.len()).collect();
    let answers = hows.iter().zip(vectors).zip(usage.shares(&lengths)).map(|((how, mut vector), usage)| {
        let outcome = match how.dimensions {
            Some(wanted) if !(1..=vector.len()).contains(&wanted) => Err(Error::InvalidRequest(format!(
                "{wanted} dimensions are wanted of vectors that have {}",
                vector.len()
            ))),
            wanted => {
                vector.truncate(wanted.unwrap_or(vector.len()));
                normalised(vector).map(Output::Embedding)
            }
        };
        EndpointAnswer { outcome, usage }
    });
    Ok(answers.collect())
}

/// A vector of length 1.
fn normalised(vector: Vec<f32>) -> Result<Vec<f32>, Error> {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    // A text that has no direction is like no other.
    if length <= f64::MIN_POSITIVE {
        return Err(Error::NonFinite { position: 0 });
    }
    Ok(vector.into_iter().map(|number| (f64::from(number) / length) as f32).collect())
}

/// The path of rankings.
pub(super) fn rerank_path() -> &'static str {
    "/rerank"
}

/// Asks for the scores of documents for a query.
pub(super) fn rerank(settings: &EndpointSettings, hows: &[&Rerank]) -> Map<String, Value> {
    let documents: Vec<&str> = hows.iter().map(|how| how.document.as_str()).collect();
    let query = hows.first().map_or("", |how| how.query.as_str());
    let truncate = hows.first().is_some_and(|how| how.truncate);
    object(match settings.rerank {
        RerankForm::Jina => json!({
            "model": settings.model, "query": query, "documents": documents,
            "top_n": documents.len(), "return_documents": false,
        }),
        RerankForm::Tei => json!({ "query": query, "texts": documents, "truncate": truncate }),
    })
}

/// The scores of documents, in their order.
///
/// # Errors
///
/// [`CallFailure`].
pub(super) fn ranked(
    settings: &EndpointSettings,
    hows: &[&Rerank],
    bytes: &[u8],
) -> Result<Vec<EndpointAnswer>, CallFailure> {
    let count = hows.len();
    let broken = |what: &str| CallFailure::Broken(format!("the endpoint's answer {what}"));
    let RankingJson { results, usage } = match settings.rerank {
        RerankForm::Jina => serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?,
        RerankForm::Tei => {
            let results = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
            RankingJson { results, usage: EndpointUsage::default() }
        }
    };
    if results.len() != count {
        return Err(broken("has another number of scores than there are documents"));
    }
    let mut scores: Vec<Option<f64>> = vec![None; count];
    for RankedJson { index, score } in results {
        let slot = scores.get_mut(index).filter(|slot| slot.is_none());
        *slot.ok_or_else(|| broken("has two scores of a document"))? = Some(score);
    }
    let lengths: Vec<usize> = hows.iter().map(|how| how.query.len() + how.document.len()).collect();
    scores
        .into_iter()
        .flatten()
        .zip(usage.shares(&lengths))
        .map(|(score, usage)| {
            let score = match settings.scores {
                Scores::Probability => score,
                Scores::Logit => 1.0 / (1.0 + (-score).exp()),
            };
            if !(0.0..=1.0).contains(&score) {
                return Err(CallFailure::Request(
                    "the endpoint's scores are not from 0 to 1: scores = \"logit\" in the worker's file says what they are"
                        .to_owned(),
                ));
            }
            Ok(EndpointAnswer { outcome: Ok(Output::Score(score as f32)), usage })
        })
        .collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
