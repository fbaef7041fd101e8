//! Verbs: the engine's work for each, and the answer from its outputs. Judgements (yes or no, a grade, a
//! category, a similarity) are here; texts that a model generates are in [`super::text_verbs`], and lists of
//! facts in [`super::facts`].
//!
//! A model that generates is not asked to write its answer: it gives the likelihood of each possible one, and
//! from these come an answer and a probability ([`Likelihoods`]). A category's probability is measured
//! against its probability for an empty text: how much more likely the text makes it. That takes out the
//! length of its name, how common that is, and its place in the list, which small models follow more than the
//! text.
//!
//! Invariant: of equal scores the category that was given first comes first.

use serde::Serialize;
use serde_json::{Map, json};
use steadytext_engine::{Embed, Likelihoods, Output, Purpose, Work, cosine, softmax};

use super::answer::{Answer, unexpected};
use super::categories::Categories;
use super::facts::Facts;
use super::prompt_source::PromptSource;
use super::text_verbs::TextVerb;
use crate::pg::error::PgError;

/// The words by which the model may say yes and no.
const YES: [&str; 2] = ["Yes", "yes"];
const NO: [&str; 2] = ["No", "no"];
/// The grades of a score.
const GRADES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
/// Differences of cosines are small: by how much they are made larger before they become probabilities.
const COSINE_SCALE: f64 = 20.0;

/// A category, as prompts name it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Category {
    /// The name, which is the answer.
    pub(crate) name: String,
    /// A description of the texts that belong to it.
    pub(crate) description: Option<String>,
}

/// A text whose category is known.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Example {
    /// The text.
    pub(crate) input: String,
    /// One of the categories.
    pub(crate) category: String,
}

/// A classification of a text by some categories.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Classification {
    /// The text.
    pub(crate) input: String,
    /// At least one.
    pub(crate) categories: Vec<Category>,
    /// The caller's instruction; `None` for the usual one.
    pub(crate) task_description: Option<String>,
    /// Texts whose category is known.
    pub(crate) examples: Vec<Example>,
    /// Whether vectors are compared.
    pub(crate) by_vectors: bool,
    /// The form of the answer.
    pub(crate) wanted: ClassificationForm,
    /// The prompt that asks for it.
    pub(crate) prompt: PromptSource,
}

/// The forms of a classification's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum ClassificationForm {
    /// The best category.
    Best,
    /// All of them with their probabilities.
    Scores,
    /// The categories whose own score is at least this one.
    AtLeast(f64),
}

/// A judgement, or what else is asked in particular.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Verb {
    /// Yes or no, or the probability of yes.
    If {
        /// The whole prompt.
        prompt: String,
        /// Whether the probability is wanted.
        score: bool,
    },
    /// A grade from 0 to 1.
    Score {
        /// The whole prompt.
        prompt: String,
    },
    /// A category or some.
    Classify(Classification),
    /// The cosine of two texts.
    Similarity {
        /// The texts.
        texts: [String; 2],
    },
    /// A text that a model writes.
    Write(TextVerb),
    /// Facts without those that say the same.
    Deduplicate(Facts),
}

impl Verb {
    /// The number of subtasks.
    pub(crate) fn len(&self) -> usize {
        match self {
            Verb::If { .. } | Verb::Score { .. } => 1,
            Verb::Similarity { .. } => 2,
            Verb::Classify(classification) => classification.len(),
            Verb::Write(writing) => writing.len(),
            Verb::Deduplicate(facts) => facts.texts().len(),
        }
    }

    /// The engine's work for subtask `index`.
    pub(crate) fn work(&self, index: usize) -> Work {
        match self {
            Verb::If { prompt, .. } => likelihoods(prompt.clone(), YES.iter().chain(&NO)),
            Verb::Score { prompt } => likelihoods(prompt.clone(), GRADES.iter()),
            Verb::Similarity { texts } => embed(&texts[index], Purpose::Similarity),
            Verb::Classify(classification) => classification.work(index),
            Verb::Write(writing) => writing.work(index),
            Verb::Deduplicate(facts) => embed(&facts.texts()[index], Purpose::Similarity),
        }
    }

    /// The purpose of the vectors that are compared, where the verb is computed by vectors.
    pub(crate) fn purpose(&self) -> Option<Purpose> {
        match self {
            Verb::Similarity { .. } | Verb::Deduplicate(_) => Some(Purpose::Similarity),
            Verb::Classify(classification) => classification.by_vectors.then_some(Purpose::Classification),
            Verb::If { .. } | Verb::Score { .. } | Verb::Write(_) => None,
        }
    }

    /// The text that it is about, for messages and the cache.
    pub(crate) fn text(&self) -> &str {
        match self {
            Verb::If { prompt, .. } | Verb::Score { prompt } => prompt,
            Verb::Similarity { texts } => &texts[0],
            Verb::Classify(classification) => &classification.input,
            Verb::Write(writing) => writing.text(),
            Verb::Deduplicate(facts) => facts.texts().first().map_or("", String::as_str),
        }
    }

    /// The answer that the outputs make.
    ///
    /// # Errors
    ///
    /// Errors in what is written; XX000 for an output of another kind than its work: a bug.
    pub(crate) fn answer(&self, outputs: Vec<Output>) -> Result<Answer, PgError> {
        Ok(match self {
            Verb::If { score, .. } => {
                let yes = share_of_yes(outputs.first())?;
                Answer::Text(if *score { yes.to_string() } else { (yes > 0.5).to_string() })
            }
            Verb::Score { .. } => {
                let shares = softmax(log_probabilities(outputs.first())?);
                let most = (GRADES.len() - 1) as f64;
                let grade: f64 = shares.iter().enumerate().map(|(grade, share)| grade as f64 * share).sum();
                Answer::Text((grade / most).clamp(0.0, 1.0).to_string())
            }
            Verb::Similarity { .. } => match &outputs[..] {
                [Output::Embedding(first), Output::Embedding(second)] => {
                    Answer::Text(cosine(first, second).to_string())
                }
                _ => return Err(unexpected()),
            },
            Verb::Classify(classification) => classification.answer(&outputs)?,
            Verb::Write(writing) => Answer::Text(writing.answer(&outputs)?),
            Verb::Deduplicate(facts) => Answer::Text(facts.distinct(&outputs)?),
        })
    }
}

impl Classification {
    /// Yes or no of each category; otherwise all of them together.
    fn asks_one_by_one(&self) -> bool {
        matches!(self.wanted, ClassificationForm::AtLeast(_)) && !self.by_vectors
    }

    fn len(&self) -> usize {
        match (self.by_vectors, self.asks_one_by_one()) {
            (true, _) => 1 + self.categories.len(),
            (false, true) => self.categories.len(),
            (false, false) => 2,
        }
    }

    fn work(&self, index: usize) -> Work {
        if self.by_vectors {
            // The text, then the categories.
            let text = match index.checked_sub(1) {
                None => &self.input,
                Some(index) => {
                    let Category { name, description } = &self.categories[index];
                    description.as_ref().unwrap_or(name)
                }
            };
            return embed(text, Purpose::Classification);
        }
        if self.asks_one_by_one() {
            return match self.rendered(&self.input, Some(index)) {
                Ok(prompt) => likelihoods(prompt, YES.iter().chain(&NO)),
                // The engine refuses what has no answers. Nothing but a database's own template that looks at
                // categories fails behind the first of them.
                Err(_) => Work::Likelihoods(Likelihoods::default()),
            };
        }
        // Against an empty text, which is the same for all rows.
        let (prompt, repeated) = if index == 0 { (self.input.clone(), false) } else { (String::new(), true) };
        let answers = self.categories.iter().map(|category| category.name.clone()).collect();
        // The system message was rendered when the request was checked, and it is the same now.
        let system = self.rendered("", None).ok();
        Work::Likelihoods(Likelihoods { prompt, system, answers, repeated, ..Likelihoods::default() })
    }

    /// The prompt about a text, and about one category where it is about that.
    fn rendered(&self, input: &str, category: Option<usize>) -> Result<String, PgError> {
        let variables = json!({
            "input": input,
            "categories": self.categories,
            "category": category.map(|index| &self.categories[index]),
            "task_description": self.task_description,
            "examples": self.examples,
        });
        self.prompt.render(variables.as_object().unwrap_or(&Map::new()))
    }

    /// Looks whether its prompt can be rendered.
    ///
    /// # Errors
    ///
    /// As [`PromptSource::render`].
    pub(crate) fn check_prompt(&self) -> Result<(), PgError> {
        if self.by_vectors { Ok(()) } else { self.rendered("", Some(0)).map(|_| ()) }
    }

    fn answer(&self, outputs: &[Output]) -> Result<Answer, PgError> {
        let scores = self.scores(outputs)?;
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let name = |index: &usize| self.categories[*index].name.clone();
        Ok(match self.wanted {
            ClassificationForm::Best => Answer::Text(order.first().map(name).ok_or_else(unexpected)?),
            ClassificationForm::Scores => {
                let lines = order.iter().map(|index| (name(index), Some(scores[*index])));
                Answer::Categories(Categories { lines: lines.collect() })
            }
            ClassificationForm::AtLeast(least) => {
                let enough = order.iter().filter(|index| scores[**index] >= least);
                Answer::Categories(Categories { lines: enough.map(|index| (name(index), None)).collect() })
            }
        })
    }

    /// The score of each category.
    fn scores(&self, outputs: &[Output]) -> Result<Vec<f64>, PgError> {
        if self.by_vectors {
            let vectors = outputs.iter().map(|output| match output {
                Output::Embedding(vector) => Ok(vector.as_slice()),
                _ => Err(unexpected()),
            });
            let vectors = vectors.collect::<Result<Vec<_>, _>>()?;
            let (input, categories) = vectors.split_first().ok_or_else(unexpected)?;
            let cosines: Vec<f64> = categories.iter().map(|category| cosine(input, category)).collect();
            return Ok(match self.wanted {
                ClassificationForm::AtLeast(_) => cosines,
                ClassificationForm::Best | ClassificationForm::Scores => {
                    softmax(&cosines.iter().map(|cosine| cosine * COSINE_SCALE).collect::<Vec<_>>())
                }
            });
        }
        if self.asks_one_by_one() {
            return outputs.iter().map(|output| share_of_yes(Some(output))).collect();
        }
        let (of_text, of_nothing) = (log_probabilities(outputs.first())?, log_probabilities(outputs.get(1))?);
        // Outputs may come from other machines.
        if of_text.len() != self.categories.len() || of_nothing.len() != of_text.len() {
            return Err(unexpected());
        }
        let gains: Vec<f64> = of_text.iter().zip(of_nothing).map(|(text, nothing)| text - nothing).collect();
        Ok(softmax(&gains))
    }
}

fn embed(text: &str, purpose: Purpose) -> Work {
    Work::Embed(Embed { purpose, ..Embed::passage(text) })
}

fn likelihoods(prompt: String, answers: impl Iterator<Item = impl ToString>) -> Work {
    let answers = answers.map(|answer| answer.to_string()).collect();
    Work::Likelihoods(Likelihoods { prompt, answers, ..Likelihoods::default() })
}

fn log_probabilities(output: Option<&Output>) -> Result<&[f64], PgError> {
    match output {
        Some(Output::LogProbabilities(values)) => Ok(values),
        _ => Err(unexpected()),
    }
}

/// The probability of yes among yes and no.
fn share_of_yes(output: Option<&Output>) -> Result<f64, PgError> {
    let shares = softmax(log_probabilities(output)?);
    Ok(shares.iter().take(YES.len()).sum::<f64>().clamp(0.0, 1.0))
}
