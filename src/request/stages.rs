//! The work of a request in stages: the outputs of one may decide what is to be done next. Most requests have
//! one.
//!
//! Invariant: a stage begins when all outputs of the one before are there, so that nothing depends on the
//! order in which they come.

use steadytext_engine::{Finish, Output, Work};

use super::answer::Answer;
use super::subtasks::{Subtasks, Then};
use crate::pg::error::PgError;
use crate::registry::Resolved;

/// A request and its progress.
#[derive(Debug)]
pub(crate) struct Stages {
    whole: Subtasks,
    /// The present stage, unless it is the first.
    now: Option<Subtasks>,
    /// As [`EndedRequest::are_whole`], up to now.
    are_whole: Vec<bool>,
    progress: StageProgress,
    /// Tokens of the texts that are done.
    generated_tokens: usize,
}

/// The result of a request.
pub(crate) struct EndedRequest {
    /// The answer.
    pub(crate) answer: Answer,
    /// Whether another setting would not have made more of it; of an array, for each element.
    pub(crate) are_whole: Vec<bool>,
    /// All tokens that the answer took, and the reason why it ended, where it is a text.
    pub(crate) text: Option<(usize, Finish)>,
}

impl Stages {
    /// The request at its beginning.
    pub(crate) fn new(whole: Subtasks) -> Stages {
        let progress = StageProgress::new(whole.len());
        let are_whole = whole.are_whole(&[]);
        Stages { whole, now: None, are_whole, progress, generated_tokens: 0 }
    }

    /// Begins anew.
    pub(crate) fn restart(&mut self) {
        (self.now, self.progress, self.generated_tokens) = (None, StageProgress::new(self.whole.len()), 0);
        self.are_whole = self.whole.are_whole(&[]);
    }

    /// The whole request.
    pub(crate) fn whole(&self) -> &Subtasks {
        &self.whole
    }

    /// The present stage.
    pub(crate) fn now(&self) -> &Subtasks {
        self.now.as_ref().unwrap_or(&self.whole)
    }

    /// The engine's work for subtask `index` of the present stage, with a model.
    pub(crate) fn work(&self, index: usize, model: &Resolved) -> Work {
        self.now().work_for(index, model)
    }

    /// The next subtask to be handed over, which counts as handed over from now on.
    pub(crate) fn take_next(&mut self) -> Option<usize> {
        let index = self.progress.next;
        (index < self.progress.outputs.len()).then(|| {
            self.progress.next += 1;
            index
        })
    }

    /// Whether all subtasks of the present stage were handed over.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.progress.next == self.progress.outputs.len()
    }

    /// Takes the output of a subtask. Returns the result of the request, once the last output of the last
    /// stage is there.
    ///
    /// # Errors
    ///
    /// As [`Subtasks::then`].
    pub(crate) fn store(&mut self, index: usize, output: Output) -> Result<Option<EndedRequest>, PgError> {
        if let Output::Text { generated_tokens, .. } = &output {
            self.generated_tokens = self.generated_tokens.saturating_add(*generated_tokens);
        }
        if self.progress.outputs[index].replace(output).is_none() {
            self.progress.done += 1;
        }
        if self.progress.done < self.progress.outputs.len() {
            return Ok(None);
        }
        let outputs: Vec<Output> = std::mem::take(&mut self.progress.outputs).into_iter().flatten().collect();
        let of_stage = self.now().are_whole(&outputs);
        self.are_whole.iter_mut().zip(of_stage).for_each(|(whole, of_stage)| *whole &= of_stage);
        let text = match outputs[..] {
            [Output::Text { finish, .. }] => Some((self.generated_tokens, finish)),
            _ => None,
        };
        match self.now().then(outputs)? {
            Then::Answer(answer) => {
                let are_whole = std::mem::take(&mut self.are_whole);
                Ok(Some(EndedRequest { answer, are_whole, text }))
            }
            Then::More(next) => {
                self.progress = StageProgress::new(next.len());
                self.now = Some(next);
                Ok(None)
            }
        }
    }

    /// The progress in words and in tokens, where that can be told and is no text that grows.
    pub(crate) fn shown(&self) -> Option<(String, usize)> {
        let Subtasks::Summary(level) = self.now() else { return None };
        let (done, count) = (self.progress.done, self.progress.outputs.len());
        Some((format!("level {}: {done} of {count} parts", level.number()?), self.generated_tokens))
    }
}

/// The subtasks of a stage that were handed over, and what has come back.
#[derive(Debug)]
struct StageProgress {
    outputs: Vec<Option<Output>>,
    /// The first subtask that was not handed over.
    next: usize,
    /// Subtasks whose output has come.
    done: usize,
}

impl StageProgress {
    fn new(count: usize) -> StageProgress {
        StageProgress { outputs: vec![None; count], next: 0, done: 0 }
    }
}
