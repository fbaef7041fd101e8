//! Requests of many subtasks: one row of the queue, or one synchronous call, that is work for the engine many
//! times over.
//!
//! The subtasks are made one by one when there is room for them in the engine, and their outputs become one
//! answer, or the next stage of the work, when the last has come ([`super::stages`]).
//!
//! Invariant: the answer depends on the subtasks' outputs and on nothing else, such as the order in which
//! they came.

use sha2::{Digest, Sha256};
use steadytext_engine::{Chunking, Embed, Finish, Output, Purpose, Work, hex};

use super::answer::{Answer, OnError, unexpected};
use super::ranking::Reranking;
use super::summary::{After, SummaryLevel};
use super::verbs::Verb;
use crate::pg::error::PgError;
use crate::registry::Resolved;

/// The work of a request.
#[derive(Debug)]
pub(crate) enum Subtasks {
    /// One piece of work, whose output is the answer.
    One(Work),
    /// A vector for each text.
    Embed {
        /// The texts.
        texts: Vec<String>,
        /// The purpose of their vectors.
        purpose: Purpose,
        /// Whether texts that are too long are cut.
        truncate: bool,
        /// Number of elements of the vectors that are wanted; `None`: all.
        dimensions: Option<usize>,
    },
    /// An order of documents.
    Rerank(Reranking),
    /// A judgement.
    Verb(Verb),
    /// A summary, level by level.
    Summary(SummaryLevel),
    /// Elements of an array, each by itself, their places in it, and the treatment of one that cannot be
    /// answered. Only in calls.
    Many(Vec<Subtasks>, Vec<usize>, OnError),
    /// An element that has its answer, or can have none, while others go on. Only among many.
    Settled(Option<Answer>),
}

/// The outcome of a stage.
pub(super) enum Then {
    /// The end.
    Answer(Answer),
    /// More to do.
    More(Subtasks),
}

impl Subtasks {
    /// The number of subtasks; none of what is settled, otherwise at least one.
    pub(crate) fn len(&self) -> usize {
        match self {
            Subtasks::One(_) => 1,
            Subtasks::Embed { texts, .. } => texts.len(),
            Subtasks::Rerank(reranking) => reranking.len(),
            Subtasks::Verb(verb) => verb.len(),
            Subtasks::Summary(level) => level.len(),
            Subtasks::Many(parts, ..) => parts.iter().map(Subtasks::len).sum(),
            Subtasks::Settled(_) => 0,
        }
    }

    /// The number of requests that they count as where roles are limited: each text of an array is one, and
    /// what asks no model is none.
    pub(crate) fn requests(&self) -> u64 {
        match self {
            Subtasks::One(Work::Tokenize { .. } | Work::Chunk(_) | Work::Verify(_))
            | Subtasks::Settled(_) => 0,
            Subtasks::One(_) | Subtasks::Verb(_) | Subtasks::Summary(_) => 1,
            Subtasks::Embed { texts, .. } => texts.len() as u64,
            Subtasks::Rerank(reranking) => reranking.queries.len() as u64,
            Subtasks::Many(parts, ..) => parts.iter().map(Subtasks::requests).sum(),
        }
    }

    /// Whether a text is generated, of which there are tokens to be shown while it grows.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Subtasks::One(Work::Generate(_)))
    }

    /// Refuses what a model's embeddings cannot be.
    ///
    /// # Errors
    ///
    /// 22023, see [`Embedding::check`](crate::registry::Embedding::check).
    pub(crate) fn check_model(&self, model: &Resolved) -> Result<(), PgError> {
        let (purpose, dimensions) = match self {
            Subtasks::One(Work::Embed(Embed { purpose, dimensions, .. }))
            | Subtasks::Embed { purpose, dimensions, .. } => (purpose, *dimensions),
            Subtasks::Many(parts, ..) => return parts.iter().try_for_each(|part| part.check_model(model)),
            Subtasks::One(_)
            | Subtasks::Rerank(_)
            | Subtasks::Verb(_)
            | Subtasks::Summary(_)
            | Subtasks::Settled(_) => return Ok(()),
        };
        check_embedding(model, purpose, dimensions)
    }

    /// The engine's work for subtask `index`, with a model.
    pub(crate) fn work_for(&self, index: usize, model: &Resolved) -> Work {
        model.embedding().applied_to(self.work(index))
    }

    /// The work for subtask `index`, whichever model does it.
    fn work(&self, index: usize) -> Work {
        match self {
            Subtasks::One(work) => work.clone(),
            Subtasks::Embed { texts, purpose, truncate, dimensions } => Work::Embed(Embed {
                purpose: purpose.clone(),
                truncate: *truncate,
                dimensions: *dimensions,
                ..Embed::passage(texts[index].as_str())
            }),
            Subtasks::Rerank(reranking) => reranking.work(index),
            Subtasks::Verb(verb) => verb.work(index),
            Subtasks::Summary(level) => level.work(index),
            // There is nothing to be done.
            Subtasks::Settled(_) => Work::Tokenize { text: String::new() },
            Subtasks::Many(parts, ..) => {
                let (part, index) = locate(parts, index);
                parts[part].work(index)
            }
        }
    }

    /// The name of a subtask in error messages; `None` where there is only one.
    fn name(&self, index: usize) -> Option<String> {
        match self {
            Subtasks::One(_) => None,
            Subtasks::Embed { .. } => Some(format!("text {}", index + 1)),
            Subtasks::Rerank(reranking) => Some(reranking.name(index)),
            // All of them are about the one text, or two.
            Subtasks::Verb(_) | Subtasks::Summary(_) | Subtasks::Settled(_) => None,
            Subtasks::Many(parts, places, _) => {
                Some(format!("element {}", places[locate(parts, index).0] + 1))
            }
        }
    }

    /// Describes the texts of subtask `index` without a word of them: by their lengths and digests, by which
    /// the caller finds them.
    pub(crate) fn describe(&self, index: usize) -> String {
        if let Subtasks::Many(parts, ..) = self {
            let (part, index) = locate(parts, index);
            return parts[part].describe(index);
        }
        if let Subtasks::Verb(verb) = self {
            return format!("The {}.", description("text", verb.text()));
        }
        if let Subtasks::Summary(level) = self {
            return format!("The {}.", description("text", level.summary().text()));
        }
        match self.work(index) {
            Work::Likelihoods(how) => format!("The {}.", description("prompt", &how.prompt)),
            Work::Generate(how) => format!("The {}.", description("prompt", &how.prompt)),
            Work::Embed(how) => format!("The {}.", description("text", &how.text)),
            Work::Verify(how) => format!("The verification of {} positions.", how.positions),
            Work::Tokenize { text } | Work::Chunk(Chunking { text, .. }) => {
                format!("The {}.", description("text", &text))
            }
            Work::Rerank(how) => {
                format!(
                    "The {}; the {}.",
                    description("query", &how.query),
                    description("document", &how.document)
                )
            }
        }
    }

    /// Whether the answer that these outputs make is the whole one, for each element of an array: a text that
    /// ends where the context did would be another one under another setting.
    pub(super) fn are_whole(&self, outputs: &[Output]) -> Vec<bool> {
        let Subtasks::Many(parts, ..) = self else { return vec![self.is_whole(outputs)] };
        let mut rest = outputs;
        let whole = parts.iter().map(|part| {
            let (own, others) = rest.split_at(part.len().min(rest.len()));
            rest = others;
            part.is_whole(own)
        });
        whole.collect()
    }

    fn is_whole(&self, outputs: &[Output]) -> bool {
        // The length of the context is part of the question: where the text is cut depends on it.
        let knows_context = matches!(self, Subtasks::Summary(_));
        outputs.iter().all(|output| match (output, self) {
            (Output::Text { out_of_context: true, .. }, _) => knows_context,
            // Engines of others do not tell.
            (
                Output::Text { finish: Finish::Length, generated_tokens, .. },
                Subtasks::One(Work::Generate(how)),
            ) => *generated_tokens >= how.max_tokens,
            _ => true,
        })
    }

    /// Puts the element that an error is about in front of its message.
    pub(crate) fn blame(&self, index: usize, mut error: PgError) -> PgError {
        if let Some(name) = self.name(index) {
            error.message = format!("{name}: {}", error.message);
        }
        error
    }

    /// Whether steadytext_activity shows how a call goes on.
    pub(crate) fn is_shown(&self) -> bool {
        self.is_text() || matches!(self, Subtasks::Summary(_))
    }

    /// Makes the answer or the next stage from the outputs, which are as many as the subtasks and in their
    /// order.
    ///
    /// # Errors
    ///
    /// As [`SummaryLevel::after`]; XX000 for an output of another kind than its work: a bug.
    pub(super) fn then(&self, outputs: Vec<Output>) -> Result<Then, PgError> {
        match self {
            Subtasks::Summary(level) => Ok(match level.after(outputs)? {
                After::Answer(answer) => Then::Answer(answer),
                After::Level(level) => Then::More(Subtasks::Summary(level)),
            }),
            Subtasks::Settled(answer) => answer.clone().map(Then::Answer).ok_or_else(unexpected),
            Subtasks::Many(parts, places, on_error) => {
                let mut outputs = outputs.into_iter();
                let mut next = Vec::with_capacity(parts.len());
                for (part, place) in parts.iter().zip(places) {
                    next.push(match part.then(outputs.by_ref().take(part.len()).collect()) {
                        Ok(Then::Answer(answer)) => Subtasks::Settled(Some(answer)),
                        Ok(Then::More(more)) => more,
                        Err(_) if *on_error == OnError::Null => Subtasks::Settled(None),
                        Err(mut error) => {
                            error.message = format!("element {}: {}", place + 1, error.message);
                            return Err(error);
                        }
                    });
                }
                if next.iter().any(|part| part.len() > 0) {
                    return Ok(Then::More(Subtasks::Many(next, places.clone(), *on_error)));
                }
                let answers = next.into_iter().map(|part| match part {
                    Subtasks::Settled(answer) => answer,
                    _ => None,
                });
                Ok(Then::Answer(Answer::Many(answers.collect())))
            }
            Subtasks::Verb(verb) => verb.answer(outputs).map(Then::Answer),
            Subtasks::One(_) | Subtasks::Embed { .. } | Subtasks::Rerank(_) => {
                self.answer(outputs).map(Then::Answer)
            }
        }
    }

    /// The answer that the subtasks' outputs make, which are as many and in their order.
    ///
    /// # Errors
    ///
    /// XX000 for an output of another kind than its work: a bug.
    fn answer(&self, outputs: Vec<Output>) -> Result<Answer, PgError> {
        match self {
            Subtasks::One(work) => match (work, outputs.into_iter().next()) {
                (Work::Generate(_), Some(Output::Text { text, .. })) => Ok(Answer::Text(text)),
                (Work::Embed(how), Some(Output::Embedding(vector))) => {
                    of_length(vector, how.dimensions).map(Answer::Embedding)
                }
                (Work::Tokenize { .. }, Some(Output::Tokens(tokens))) => Ok(Answer::Tokens(tokens)),
                (Work::Chunk(_), Some(Output::Chunks(chunks))) => Ok(Answer::Chunks(chunks)),
                (Work::Verify(_), Some(Output::Verification(verified))) => Ok(Answer::Verification(verified)),
                _ => Err(unexpected()),
            },
            Subtasks::Embed { dimensions, .. } => {
                let vectors = outputs.into_iter().map(|output| match output {
                    Output::Embedding(vector) => of_length(vector, *dimensions),
                    _ => Err(unexpected()),
                });
                Ok(Answer::Embeddings(vectors.collect::<Result<_, _>>()?))
            }
            Subtasks::Rerank(reranking) => {
                let scores = outputs.into_iter().map(|output| match output {
                    Output::Score(score) => Ok(score),
                    _ => Err(unexpected()),
                });
                let scores = scores.collect::<Result<Vec<f32>, _>>()?;
                Ok(Answer::Ranking(reranking.ranking(&scores)))
            }
            Subtasks::Verb(_) | Subtasks::Summary(_) | Subtasks::Many(..) | Subtasks::Settled(_) => {
                Err(unexpected())
            }
        }
    }
}

/// A vector that has as many elements as were asked for, if any were.
fn of_length(vector: Vec<f32>, wanted: Option<usize>) -> Result<Vec<f32>, PgError> {
    let is_fit = wanted.map_or(!vector.is_empty(), |wanted| vector.len() == wanted);
    if is_fit { Ok(vector) } else { Err(unexpected()) }
}

/// The part that a subtask of many belongs to, and its number there.
fn locate(parts: &[Subtasks], index: usize) -> (usize, usize) {
    let mut left = index;
    for (part, subtasks) in parts.iter().enumerate() {
        if left < subtasks.len() {
            return (part, left);
        }
        left -= subtasks.len();
    }
    (parts.len().saturating_sub(1), 0)
}

/// A text by its length and the beginning of its SHA-256.
pub(crate) fn description(what: &str, text: &str) -> String {
    let digest = hex(&Sha256::digest(text));
    let bytes = if text.len() == 1 { "byte" } else { "bytes" };
    format!("{what} has {} {bytes}, and its SHA-256 begins with {}", text.len(), &digest[..8])
}

/// Refuses what a model's embeddings cannot be.
///
/// # Errors
///
/// 22023, see [`Embedding::check`](crate::registry::Embedding::check).
pub(super) fn check_embedding(
    model: &Resolved,
    purpose: &Purpose,
    dimensions: Option<usize>,
) -> Result<(), PgError> {
    let task = match purpose {
        Purpose::Query { task } => task.as_deref(),
        Purpose::Passage | Purpose::Document | Purpose::Similarity | Purpose::Classification => None,
    };
    let checked = model.embedding().check(model.name(), task, dimensions);
    checked.map_err(|error| model.with_setting(error))
}
