//! Logits after biases and penalties, which a request may ask for: biases of some tokens, and penalties of
//! tokens that its answer has already.
//!
//! As in llama.cpp, the bias is added; a logit above 0 is divided by the penalty for repetition and another
//! one multiplied; then the frequency penalty is subtracted for each time that the token occurs, and the
//! presence penalty once. Unlike there, the whole answer counts and nothing but the answer: tokens of the
//! prompt may be repeated without penalty.
//!
//! Invariant: a logit depends on its own value, the request and how often the answer has the token; finite
//! logits stay finite.

use std::collections::HashMap;

use crate::{Penalties, Sampling};

/// The number of times that an answer has each of its tokens. Empty where no penalty needs it.
#[derive(Debug, Default)]
pub(crate) struct TokenCounts {
    counts: HashMap<u32, u32>,
}

impl TokenCounts {
    /// Counts another token of the answer.
    pub(crate) fn add(&mut self, token: u32, how: &Sampling) {
        if !how.penalties.are_off() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Writes the logits after biases and penalties to `adjusted`.
    pub(super) fn adjust(&self, logits: &[f32], how: &Sampling, adjusted: &mut Vec<f32>) {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for (token, bias) in &how.logit_bias {
            if let Some(logit) = adjusted.get_mut(*token as usize) {
                *logit = finite(*logit + bias);
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = adjusted.get_mut(*token as usize) {
                *logit = penalised(*logit, *count, how.penalties);
            }
        }
    }
}

fn penalised(logit: f32, count: u32, penalties: Penalties) -> f32 {
    let Penalties { repeat, presence, frequency } = penalties;
    let repeated = if logit <= 0.0 { logit * repeat } else { logit / repeat };
    finite(finite(repeated) - (count as f32 * frequency + presence))
}

/// Replaces infinities by the greatest finite numbers.
fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::TokenCounts;
    use crate::{Penalties, Sampling};

    fn adjusted(logits: &[f32], tokens: &[u32], how: &Sampling) -> Vec<f32> {
        let mut seen = TokenCounts::default();
        tokens.iter().for_each(|token| seen.add(*token, how));
        let mut adjusted = vec![9.0; 3];
        seen.adjust(logits, how, &mut adjusted);
        adjusted
    }

    #[test]
    fn bias_comes_before_the_penalties_and_other_tokens_stay() {
        let penalties = Penalties { repeat: 2.0, presence: 0.5, frequency: 0.25 };
        let how =
            Sampling { penalties, logit_bias: vec![(0, -3.0), (4, 1.0), (99, 5.0)], ..Sampling::default() };
        let logits = [2.0, 2.0, -2.0, 1.0, 1.0];
        // (2 - 3) * 2 - 0.25 - 0.5; 2 / 2 - 3 * 0.25 - 0.5; -2 * 2 - 0.75; untouched; 1 + 1.
        assert_eq!(adjusted(&logits, &[1, 0, 1, 2, 1, 77], &how), [-2.75, -0.25, -4.75, 1.0, 2.0]);
    }

    #[test]
    fn without_penalties_nothing_is_counted() {
        let how = Sampling { logit_bias: vec![(1, 1.5)], ..Sampling::default() };
        assert_eq!(adjusted(&[1.0, 1.0], &[0, 0, 1], &how), [1.0, 2.5]);
        let mut seen = TokenCounts::default();
        seen.add(1, &how);
        assert!(seen.counts.is_empty());
    }

    #[test]
    fn logits_stay_finite() {
        let penalties = Penalties { repeat: 1e-30, presence: -100.0, frequency: -100.0 };
        let how = Sampling { penalties, logit_bias: vec![(0, 100.0), (1, -100.0)], ..Sampling::default() };
        let most = [f32::MAX, f32::MIN, 1e30, 0.0];
        assert!(adjusted(&most, &[0, 1, 2, 3], &how).iter().all(|logit| logit.is_finite()));
    }
}
