//! Requests of many subtasks: one row of the queue, or one synchronous call, that is work for the engine many
//! times over.
//!
//! The subtasks are made one by one when there is room for them in the engine, and their outputs become one
//! answer when the last has come.
//!
//! Invariant: the answer depends on the subtasks' outputs and on nothing else, such as the order in which
//! they came.

use sha2::{Digest, Sha256};
use steadytext_engine::{Embed, Finish, Output, Purpose, Work, hex};

use super::answer::{Answer, unexpected};
use super::ranking::Reranking;
use crate::pg::error::PgError;

/// The work of a request.
#[derive(Debug)]
pub(crate) enum Subtasks {
    /// One piece of work, whose output is the answer.
    One(Work),
    /// A vector for each text.
    Embed {
        /// The texts.
        texts: Vec<String>,
        /// What their vectors are for.
        purpose: Purpose,
        /// Whether texts that are too long are cut.
        truncate: bool,
    },
    /// An order of documents.
    Rerank(Reranking),
}

impl Subtasks {
    /// How many subtasks there are, at least one.
    pub(crate) fn len(&self) -> usize {
        match self {
            Subtasks::One(_) => 1,
            Subtasks::Embed { texts, .. } => texts.len(),
            Subtasks::Rerank(reranking) => reranking.len(),
        }
    }

    /// Whether a text is generated, of which there are tokens to be shown while it grows.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Subtasks::One(Work::Generate(_)))
    }

    /// What the engine is to do for subtask `index`.
    pub(crate) fn work(&self, index: usize) -> Work {
        match self {
            Subtasks::One(work) => work.clone(),
            Subtasks::Embed { texts, purpose, truncate } => Work::Embed(Embed {
                text: texts[index].clone(),
                purpose: purpose.clone(),
                truncate: *truncate,
            }),
            Subtasks::Rerank(reranking) => reranking.work(index),
        }
    }

    /// What an error says in which subtask it happened; nothing where there is only one.
    fn name(&self, index: usize) -> Option<String> {
        match self {
            Subtasks::One(_) => None,
            Subtasks::Embed { .. } => Some(format!("text {}", index + 1)),
            Subtasks::Rerank(reranking) => Some(reranking.name(index)),
        }
    }

    /// Which texts subtask `index` is about, without a word of them: their lengths and digests, by which the
    /// caller finds them.
    pub(crate) fn describe(&self, index: usize) -> String {
        match self.work(index) {
            Work::Generate(how) => format!("The {}.", description("prompt", &how.prompt)),
            Work::Embed(how) => format!("The {}.", description("text", &how.text)),
            Work::Verify(how) => format!("The verification of {} positions.", how.positions),
            Work::Rerank(how) => {
                format!(
                    "The {}; the {}.",
                    description("query", &how.query),
                    description("document", &how.document)
                )
            }
        }
    }

    /// Whether the answer that these outputs make is the whole one: a text that ends where the context did
    /// would be longer under another setting.
    pub(crate) fn is_whole(&self, outputs: &[Output]) -> bool {
        match (self, outputs) {
            (
                Subtasks::One(Work::Generate(how)),
                [Output::Text { finish: Finish::Length, generated_tokens, .. }],
            ) => *generated_tokens >= how.max_tokens,
            _ => true,
        }
    }

    /// Puts the element that an error is about in front of its message.
    pub(crate) fn blame(&self, index: usize, mut error: PgError) -> PgError {
        if let Some(name) = self.name(index) {
            error.message = format!("{name}: {}", error.message);
        }
        error
    }

    /// The answer that the subtasks' outputs make, which are as many and in their order.
    ///
    /// # Errors
    ///
    /// XX000 for an output of another kind than its work: a bug.
    pub(crate) fn answer(&self, outputs: Vec<Output>) -> Result<Answer, PgError> {
        match self {
            Subtasks::One(_) => match outputs.into_iter().next() {
                Some(Output::Text { text, .. }) => Ok(Answer::Text(text)),
                Some(Output::Embedding(vector)) => Ok(Answer::Embedding(vector)),
                Some(Output::Verification(verified)) => Ok(Answer::Verification(verified)),
                Some(Output::Score(_)) | None => Err(unexpected()),
            },
            Subtasks::Embed { .. } => {
                let vectors = outputs.into_iter().map(|output| match output {
                    Output::Embedding(vector) => Ok(vector),
                    Output::Text { .. } | Output::Score(_) | Output::Verification(_) => Err(unexpected()),
                });
                Ok(Answer::Embeddings(vectors.collect::<Result<_, _>>()?))
            }
            Subtasks::Rerank(reranking) => {
                let scores = outputs.into_iter().map(|output| match output {
                    Output::Score(score) => Ok(score),
                    Output::Text { .. } | Output::Embedding(_) | Output::Verification(_) => Err(unexpected()),
                });
                let scores = scores.collect::<Result<Vec<f32>, _>>()?;
                Ok(Answer::Ranking(reranking.ranking(&scores)))
            }
        }
    }
}

/// A text by its length and the beginning of its SHA-256.
pub(crate) fn description(what: &str, text: &str) -> String {
    let digest = hex(&Sha256::digest(text));
    format!("{what} has {} bytes, and its SHA-256 begins with {}", text.len(), &digest[..8])
}

/// Which subtasks of a request were handed over, and what has come back.
#[derive(Debug)]
pub(crate) struct Progress {
    outputs: Vec<Option<Output>>,
    count: usize,
    /// The first subtask that was not handed over.
    next: usize,
    /// Subtasks whose output has come.
    done: usize,
}

impl Progress {
    /// Nothing was handed over.
    pub(crate) fn new(subtasks: &Subtasks) -> Progress {
        Progress { outputs: vec![None; subtasks.len()], count: subtasks.len(), next: 0, done: 0 }
    }

    /// The next subtask to be handed over, which counts as handed over from now on.
    pub(crate) fn take_next(&mut self) -> Option<usize> {
        let index = self.next;
        (index < self.count).then(|| {
            self.next += 1;
            index
        })
    }

    /// Whether all subtasks were handed over.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.next == self.count
    }

    /// Takes what came of a subtask. All outputs, once the last has come.
    pub(crate) fn store(&mut self, index: usize, output: Output) -> Option<Vec<Output>> {
        if self.outputs[index].replace(output).is_none() {
            self.done += 1;
        }
        (self.done == self.count).then(|| std::mem::take(&mut self.outputs).into_iter().flatten().collect())
    }
}
