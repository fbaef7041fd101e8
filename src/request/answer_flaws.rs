//! Checks of answers from workers outside the server against their requests.
//!
//! Invariant: only cheap checks are made. An answer that passes may be a lie all the same, but it has the
//! form of an answer, and nobody who relies on a schema, a choice or a length is misled.

use serde_json::Value;
use steadytext_engine::{Embed, Generate, Work};

use super::categories::Categories;
use super::json_text::elements;
use super::ranking::{Ranking, Reranking};
use super::subtasks::Subtasks;
use super::text_verbs::What;
use super::verbs::{Classification, ClassificationForm, Verb};

/// Largest difference between the length of a vector and 1: larger than by any rounding.
const TOLERANCE: f64 = 1e-3;
/// Largest excess of a cosine over 1.
const ROUNDING: f64 = 1e-6;
/// Bytes of a line of a ranking, besides the document and its id, each byte of which may be escaped by six.
const LINE_BYTES: usize = 256;
const ESCAPED_BYTES: usize = 6;

const OF_TEXTS: &str = "is not among what was asked for";
const OF_LISTS: &str = "has a list, and none was asked for";

/// An answer as somebody else reports it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ForeignAnswer<'a> {
    /// The text.
    pub(crate) text: &'a str,
    /// The list that comes with it.
    pub(crate) list: Option<&'a [String]>,
    /// The numbers of all vectors, one vector after the other.
    pub(crate) numbers: &'a [f32],
    /// Number of elements of the model's vectors, where that is known.
    pub(crate) width: Option<usize>,
}

impl Subtasks {
    /// The reason why an answer cannot be one to this; `None` where the cheap checks find none.
    pub(crate) fn flaw(&self, answer: &ForeignAnswer<'_>) -> Option<&'static str> {
        if answer.list.is_some() && !self.has_list() {
            return Some(OF_LISTS);
        }
        let is_flawed = match self {
            Subtasks::One(Work::Embed(_)) => {
                return flaw_of_vectors(answer.numbers, 1, self.dimensions().or(answer.width));
            }
            Subtasks::Embed { texts, .. } => {
                return flaw_of_vectors(answer.numbers, texts.len(), self.dimensions().or(answer.width));
            }
            Subtasks::One(work) => breaks_constraint(work, answer.text),
            Subtasks::Rerank(reranking) => !reranking.allows(answer),
            Subtasks::Verb(verb) => !verb.allows(answer),
            Subtasks::Summary(_) | Subtasks::Many(..) | Subtasks::Settled(_) => false,
        };
        is_flawed.then_some(OF_TEXTS)
    }

    /// The number of elements of vectors that are wanted; `None`: all, or no vectors.
    pub(crate) fn dimensions(&self) -> Option<usize> {
        match self {
            Subtasks::One(Work::Embed(Embed { dimensions, .. })) | Subtasks::Embed { dimensions, .. } => {
                *dimensions
            }
            _ => None,
        }
    }

    fn has_list(&self) -> bool {
        match self {
            Subtasks::Rerank(_) => true,
            Subtasks::Verb(Verb::Classify(classification)) => {
                classification.wanted != ClassificationForm::Best
            }
            _ => false,
        }
    }
}

/// The reason why numbers cannot be the vectors of texts.
pub(crate) fn flaw_of_vectors(numbers: &[f32], count: usize, width: Option<usize>) -> Option<&'static str> {
    if count == 0 || numbers.is_empty() || !numbers.len().is_multiple_of(count) {
        return Some("must have a vector for each text");
    }
    let length = numbers.len() / count;
    if width.is_some_and(|width| width != length) {
        return Some("has vectors of another length than the model's, or than was asked for");
    }
    if !numbers.iter().all(|number| number.is_finite()) {
        return Some("has a number that is not finite");
    }
    let is_normal = |vector: &[f32]| {
        let squares: f64 = vector.iter().map(|number| f64::from(*number).powi(2)).sum();
        (squares.sqrt() - 1.0).abs() <= TOLERANCE
    };
    (!numbers.chunks(length).all(is_normal)).then_some("has a vector that is not of length 1")
}

fn breaks_constraint(work: &Work, text: &str) -> bool {
    let Work::Generate(Generate { constraint: Some(constraint), .. }) = work else { return false };
    constraint.refutes(text)
}

fn is_between(text: &str, least: f64, most: f64) -> bool {
    text.parse().is_ok_and(|number: f64| (least..=most).contains(&number))
}

impl Verb {
    fn allows(&self, answer: &ForeignAnswer<'_>) -> bool {
        let text = answer.text;
        match self {
            Verb::If { score: false, .. } => ["true", "false"].contains(&text),
            Verb::If { score: true, .. } | Verb::Score { .. } => is_between(text, 0.0, 1.0),
            Verb::Similarity { .. } => is_between(text, -1.0 - ROUNDING, 1.0 + ROUNDING),
            Verb::Classify(classification) => classification.allows(answer),
            Verb::Write(writing) => match writing.what {
                What::Document { .. } | What::Facts { .. } => !breaks_constraint(&writing.work(0), text),
                What::Translation { .. } | What::Masked(_) => true,
            },
            Verb::Deduplicate(facts) => {
                let is_list = serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_array());
                let mut left = facts.given().iter();
                // The facts must be in their order, and each of them at most as often as it was given.
                is_list && elements(text).into_iter().all(|fact| left.any(|given| given == fact))
            }
        }
    }
}

impl Classification {
    fn allows(&self, answer: &ForeignAnswer<'_>) -> bool {
        let is_known = |name: &str| self.categories.iter().any(|category| category.name == name);
        if self.wanted == ClassificationForm::Best {
            return is_known(answer.text);
        }
        let Some(Categories { lines }) = Categories::from_json(answer.text) else { return false };
        let fits = |score: &Option<f64>| match self.wanted {
            ClassificationForm::Scores => score.is_some_and(|score| (0.0..=1.0).contains(&score)),
            ClassificationForm::AtLeast(_) | ClassificationForm::Best => score.is_none(),
        };
        let is_whole = self.wanted != ClassificationForm::Scores || lines.len() == self.categories.len();
        let is_once = |(place, (name, _)): (usize, &(String, Option<f64>))| {
            !lines[..place].iter().any(|(before, _)| before == name)
        };
        is_whole
            && lines.len() <= self.categories.len()
            && lines.iter().all(|(name, score)| is_known(name) && fits(score))
            && lines.iter().enumerate().all(is_once)
            && is_same(answer.list, lines.iter().map(|(name, _)| name.as_str()))
    }
}

impl Reranking {
    fn allows(&self, answer: &ForeignAnswer<'_>) -> bool {
        let bytes = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
        let of_texts = bytes(&self.documents) + self.ids.as_deref().map_or(0, bytes);
        let most = self.queries.len() * (ESCAPED_BYTES * of_texts + LINE_BYTES * self.documents.len());
        if answer.text.len() > most {
            return false;
        }
        let Some(ranking) = Ranking::from_json(answer.text) else { return false };
        let mut seen = vec![false; self.len()];
        let is_given = ranking.lines.iter().all(|line| {
            let place =
                line.query.checked_mul(self.documents.len()).and_then(|first| first.checked_add(line.index));
            let slot =
                place.filter(|_| line.index < self.documents.len()).and_then(|place| seen.get_mut(place));
            slot.is_some_and(|seen| !std::mem::replace(seen, true))
                && self.documents[line.index] == line.document
                && line.id.as_ref() == self.ids.as_ref().and_then(|ids| ids.get(line.index))
                && line.score.is_some() == self.scores
                && line.score.is_none_or(f32::is_finite)
        });
        is_given && ranking.lines.len() == self.len() && is_same(answer.list, ranking.documents())
    }
}

fn is_same<'a>(list: Option<&[String]>, names: impl Iterator<Item = &'a str>) -> bool {
    list.is_some_and(|list| list.iter().map(String::as_str).eq(names))
}

#[cfg(test)]
mod tests {
    use super::flaw_of_vectors;

    #[test]
    fn vectors_are_finite_and_of_one_length_which_is_1() {
        assert_eq!(flaw_of_vectors(&[0.6, 0.8, 1.0, 0.0], 2, Some(2)), None);
        assert_eq!(flaw_of_vectors(&[0.6, 0.8], 1, None), None);
        for (numbers, count, width) in [
            (&[][..], 1, None),
            (&[0.6, 0.8, 1.0], 2, None),
            (&[0.6, 0.8], 1, Some(3)),
            (&[0.6, 0.8, 0.0, 0.0], 2, None),
            (&[0.6, 0.9], 1, None),
            (&[f32::NAN, 1.0], 1, None),
            (&[f32::INFINITY, 1.0], 1, None),
            (&[f32::MAX, f32::MAX], 1, None),
        ] {
            assert!(flaw_of_vectors(numbers, count, width).is_some(), "{numbers:?} {count} {width:?}");
        }
    }
}
