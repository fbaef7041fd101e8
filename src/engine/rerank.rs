//! Rating how well a document answers a query.
//!
//! Three forms, in this order ([`Reranker::of`]):
//!
//! 1. A head of its own, `cls.output.weight`, over the last token of Qwen3-Reranker's prompt, as llama.cpp's
//!    converter writes for `pooling_type` 4 (rank). Two labels: softmax, the first label or the one named
//!    "yes"; one label: sigmoid.
//! 2. Qwen3-Reranker's published form: the prompt asks whether the document meets the requirements, and the
//!    score is the softmax over the logits of the tokens "yes" and "no". Only these two rows of the head are
//!    computed. Any decoder of architecture qwen3 that has the two tokens and those of the prompt is taken
//!    for one, unless its `pooling_type` says that it embeds: a plain Qwen3 judges documents too, if less
//!    well.
//! 3. Nothing of that: (1 + cosine of the embeddings of query and document) / 2.
//!
//! Invariant: nothing in a query, document or task becomes a control token.

use crate::Rerank;
use crate::gguf::Gguf;
use crate::kernels::exp::exp;
use crate::kernels::instructions::Instructions;
use crate::kernels::norm::dot;
use crate::tokenizer::{TextPart, Tokenizer, truncate};
use crate::{Error, model};

const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
    Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: ";
const QUERY: &str = "\n<Query>: ";
const DOCUMENT: &str = "\n<Document>: ";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// The form of a model. Shared between threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reranker {
    /// The logits of these two tokens.
    YesNo {
        /// "yes".
        yes: u32,
        /// "no".
        no: u32,
    },
    /// The outputs of the model's own head; the score is that of this label.
    Head {
        /// Its number.
        label: usize,
    },
    /// The cosine of two embeddings.
    Cosine,
}

impl Reranker {
    /// The form of the model in a file.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] for a head for ranking on another model than a Qwen3, and
    /// [`Error::CorruptModel`].
    pub(crate) fn of(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Reranker, Error> {
        let architecture = gguf.str("general.architecture")?;
        let pooling = gguf.opt_u32(&format!("{architecture}.pooling_type"))?;
        let tokens = (architecture == "qwen3").then(|| answers(tokenizer)).flatten();
        let head = gguf.opt_tensor(model::RANK_HEAD)?.is_some();
        match (tokens, head) {
            (Some(_), true) => {
                let labels = gguf.opt_strings(&format!("{architecture}.classifier.output_labels"))?;
                let label =
                    labels.and_then(|mut labels| labels.position(|label| label == "yes")).unwrap_or(0);
                Ok(Reranker::Head { label })
            }
            (None, true) => Err(gguf.unsupported(format!(
                "tensor \"{}\" ranks documents for a prompt that is known for Qwen3-Reranker only",
                model::RANK_HEAD
            ))),
            (Some((yes, no)), false) if matches!(pooling, None | Some(0 | model::POOLING_RANK)) => {
                Ok(Reranker::YesNo { yes, no })
            }
            _ => Ok(Reranker::Cosine),
        }
    }

    /// The tokens that the model is to read, of a document that is to be cut as many as there is room for in
    /// the context; None where query and document are embedded one by one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn tokens(
        self,
        how: &Rerank,
        tokenizer: &Tokenizer,
        context_length: usize,
    ) -> Result<Option<Vec<u32>>, Error> {
        if self == Reranker::Cosine {
            return Ok(None);
        }
        let Rerank { query, document, task, .. } = how;
        let parts = [
            TextPart::Template(BEFORE),
            TextPart::User(task),
            TextPart::Template(QUERY),
            TextPart::User(query),
            TextPart::Template(DOCUMENT),
            TextPart::User(document),
            TextPart::Template(AFTER),
        ];
        let mut tokens = tokenizer.encode_parts(&parts)?;
        if how.truncate && tokens.len() > context_length {
            // The part behind the document begins with a control token, so its tokens do not depend on the
            // document.
            let before = tokenizer.encode_parts(&parts[..5])?.len();
            let after = tokenizer.encode_parts(&parts[6..])?.len();
            truncate(&mut tokens, before, after, context_length);
        }
        Ok(Some(tokens))
    }
}

/// The tokens of the two answers, if the model has them and those that the prompt is made of.
fn answers(tokenizer: &Tokenizer) -> Option<(u32, u32)> {
    let one = |text: &str| match *tokenizer.encode_marked(text).ok()? {
        [id] => Some(id),
        _ => None,
    };
    for mark in ["<|im_start|>", "<|im_end|>", "<think>", "</think>"] {
        tokenizer.special_text(one(mark)?)?;
    }
    Some((one("yes")?, one("no")?))
}

/// The share of the first of two logits in their softmax.
pub(crate) fn softmax_of_two(first: f32, second: f32) -> f32 {
    let difference = first - second;
    if difference >= 0.0 {
        return 1.0 / (1.0 + exp(-difference));
    }
    let share = exp(difference);
    share / (1.0 + share)
}

/// The score of a head's outputs: the softmax over two labels, or the sigmoid of one.
pub(crate) fn score_of_labels(outputs: &[f32], label: usize) -> f32 {
    match *outputs {
        [first, second] if label == 0 => softmax_of_two(first, second),
        [first, second] => softmax_of_two(second, first),
        _ => softmax_of_two(outputs.first().copied().unwrap_or(f32::NAN), 0.0),
    }
}

/// The score of two vectors of length 1: their cosine, from 0 to 1.
pub(crate) fn score_of_vectors(instructions: Instructions, first: &[f32], second: &[f32]) -> f32 {
    ((1.0 + dot(instructions, first, second)) / 2.0).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_softmax_of_two_is_graded_and_sums_to_one() {
        assert_eq!(softmax_of_two(3.0, 3.0), 0.5);
        assert_eq!((softmax_of_two(500.0, -500.0), softmax_of_two(-500.0, 500.0)), (1.0, 0.0));
        assert!(softmax_of_two(f32::NAN, 0.0).is_nan());
        let mut before = 0.0;
        for step in -40..=40 {
            let logit = step as f32 / 4.0;
            let (yes, no) = (softmax_of_two(logit, 0.5), softmax_of_two(0.5, logit));
            let exact = 1.0 / (1.0 + libm::exp(f64::from(0.5 - logit)));
            assert!((f64::from(yes) - exact).abs() < 1e-6, "{yes} for {logit}");
            assert!((yes + no - 1.0).abs() < 1e-6 && yes > before);
            before = yes;
        }
    }

    #[test]
    fn labels_are_weighed_by_their_place_and_one_alone_by_the_sigmoid() {
        assert_eq!(score_of_labels(&[2.0, 1.0], 0), softmax_of_two(2.0, 1.0));
        assert_eq!(score_of_labels(&[2.0, 1.0], 1), softmax_of_two(1.0, 2.0));
        assert_eq!(score_of_labels(&[0.7], 0), softmax_of_two(0.7, 0.0));
    }

    #[test]
    fn the_cosine_is_mapped_to_scores() {
        let (one, other) = ([0.6, 0.8], [-0.6, -0.8]);
        assert!((score_of_vectors(Instructions::best(), &one, &one) - 1.0).abs() < 1e-6);
        assert!(score_of_vectors(Instructions::best(), &one, &other) < 1e-6);
        assert_eq!(score_of_vectors(Instructions::best(), &[1.0, 0.0], &[0.0, 1.0]), 0.5);
    }
}
