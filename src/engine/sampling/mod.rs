//! The choice of the next token from its logits.
//!
//! Everything applies in llama.cpp's order: bias, then the penalties for tokens that the answer has already
//! ([`adjusted`]), then the filters top-k, top-p and min-p on the probabilities at temperature 1, then the
//! temperature on the tokens that are left. Candidates are ordered by (logit descending, id ascending), sums
//! go through them in that order in f64, and one uniform number is drawn per (seed, position): so the choice
//! depends on nothing else. If the chosen token cannot be used, a second number is drawn for a choice among
//! fewer tokens: together the two draw from the distribution over those.

mod adjusted;
mod parameters;
mod uniform;

use llguidance::toktrie::SimpleVob;

use crate::Error;
use crate::kernels::highest;
use crate::kernels::instructions::Instructions;
pub(crate) use adjusted::TokenCounts;
pub use parameters::{DEFAULT_SEED, Penalties, Sampling};
use uniform::uniform;

/// Turns a position into the number of its second draw: no context is so long.
const AGAIN: u64 = 1 << 63;

/// Chooses tokens; keeps memory between choices.
#[derive(Debug)]
pub(crate) struct Sampler {
    instructions: Instructions,
    /// Candidates, packed so that ascending order is (logit descending, id ascending).
    candidates: Vec<u64>,
    /// Their weights, in the same order.
    weights: Vec<f64>,
    /// Logits after bias and penalties.
    adjusted: Vec<f32>,
}

impl Sampler {
    /// A sampler that uses these instructions.
    pub(crate) fn new(instructions: Instructions) -> Sampler {
        Sampler { instructions, candidates: Vec::new(), weights: Vec::new(), adjusted: Vec::new() }
    }

    /// The token at `position` of the context, one of those that are `allowed` where only some are; `seen`
    /// are the tokens that the answer has already.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where a logit is infinite or NaN.
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        how: &Sampling,
        position: usize,
        allowed: Option<&SimpleVob>,
        seen: &TokenCounts,
    ) -> Result<u32, Error> {
        let best = highest(self.instructions, logits).ok_or(Error::NonFinite { position })?;
        if how.takes_logits_as_they_are() {
            return Ok(self.choose_from(logits, best, how, position, allowed));
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        seen.adjust(logits, how, &mut adjusted);
        let chosen = match highest(self.instructions, &adjusted) {
            Some(best) => Ok(self.choose_from(&adjusted, best, how, position, allowed)),
            None => Err(Error::NonFinite { position }),
        };
        self.adjusted = adjusted;
        chosen
    }

    /// [`Sampler::choose`] from logits that are finite, of which `highest` is the first of the highest.
    fn choose_from(
        &mut self,
        logits: &[f32],
        highest: usize,
        how: &Sampling,
        position: usize,
        allowed: Option<&SimpleVob>,
    ) -> u32 {
        if how.is_greedy() {
            return match allowed {
                None => highest as u32,
                Some(allowed) if highest < allowed.len() && allowed.is_allowed(highest as u32) => {
                    highest as u32
                }
                Some(allowed) => most_likely(only(logits, allowed)),
            };
        }
        self.candidates.clear();
        match allowed {
            None => self.candidates.extend(logits.iter().zip(0..).map(|(logit, id)| pack(*logit, id))),
            Some(allowed) => {
                self.candidates.extend(only(logits, allowed).map(|(id, logit)| pack(logit, id)));
            }
        }
        self.draw(how, position as u64)
    }

    /// Another token at `position`, where the first choice cannot be used: one of those that are `allowed`,
    /// of which there is at least one. All logits are finite.
    pub(crate) fn choose_again(
        &mut self,
        logits: &[f32],
        how: &Sampling,
        position: usize,
        allowed: &SimpleVob,
        seen: &TokenCounts,
    ) -> u32 {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = if how.takes_logits_as_they_are() {
            logits
        } else {
            seen.adjust(logits, how, &mut adjusted);
            &adjusted
        };
        let chosen = if how.is_greedy() {
            most_likely(only(logits, allowed))
        } else {
            self.candidates.clear();
            self.candidates.extend(only(logits, allowed).map(|(id, logit)| pack(logit, id)));
            self.draw(how, position as u64 | AGAIN)
        };
        self.adjusted = adjusted;
        chosen
    }

    /// One of the candidates, of which there is at least one.
    fn draw(&mut self, how: &Sampling, position: u64) -> u32 {
        if how.top_k > 0 && how.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable(how.top_k - 1);
            self.candidates.truncate(how.top_k);
        }
        self.candidates.sort_unstable();
        let (highest, _) = unpack(self.candidates[0]);
        let weight = |candidate: u64, temperature: f32| {
            libm::exp(f64::from(unpack(candidate).0 - highest) / f64::from(temperature))
        };
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|candidate| weight(*candidate, 1.0)));
        let mut keep = self.candidates.len();
        if how.top_p < 1.0 {
            let wanted = f64::from(how.top_p) * self.weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let enough = self.weights.iter().position(|weight| {
                sum += weight;
                sum >= wanted
            });
            keep = enough.map_or(keep, |last| last + 1);
        }
        if how.min_p > 0.0 {
            // The most likely one has weight 1, so it always stays.
            let min_p = f64::from(how.min_p.min(1.0));
            keep = keep.min(self.weights.partition_point(|weight| *weight >= min_p).max(1));
        }
        self.candidates.truncate(keep);
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|candidate| weight(*candidate, how.temperature)));
        let mut left = uniform(how.seed, position) * self.weights.iter().sum::<f64>();
        for (candidate, weight) in self.candidates.iter().zip(&self.weights) {
            left -= weight;
            if left < 0.0 {
                return unpack(*candidate).1;
            }
        }
        // Rounding has kept `left` from falling below 0.
        unpack(self.candidates[self.candidates.len() - 1]).1
    }
}

/// The highest logit, the lowest id of equals.
fn most_likely(logits: impl Iterator<Item = (u32, f32)>) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, logit) in logits {
        if logit > best.0 {
            best = (logit, id);
        }
    }
    best.1
}

/// Ids and logits of the allowed tokens, ascending.
fn only<'a>(logits: &'a [f32], allowed: &'a SimpleVob) -> impl Iterator<Item = (u32, f32)> + 'a {
    allowed.iter().filter_map(|id| Some((id, *logits.get(id as usize)?)))
}

/// An integer whose ascending order is (logit descending, id ascending); the logit is finite.
fn pack(logit: f32, id: u32) -> u64 {
    // Adding 0 turns -0 into 0, which it equals.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | u64::from(id)
}

fn unpack(candidate: u64) -> (f32, u32) {
    let ascending = !((candidate >> 32) as u32);
    let bits = if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending };
    (f32::from_bits(bits), candidate as u32)
}

#[cfg(test)]
mod tests {
    use llguidance::toktrie::SimpleVob;

    use super::{Instructions, Sampler, TokenCounts, pack, unpack};
    use crate::{Error, Sampling};

    fn hot() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    /// An answer that has no tokens yet.
    fn none() -> TokenCounts {
        TokenCounts::default()
    }

    fn distribution(logits: &[f32], how: &Sampling) -> Vec<f64> {
        let mut sampler = Sampler::new(Instructions::best());
        let mut counts = vec![0.0; logits.len()];
        for position in 0..20_000 {
            counts[sampler.choose(logits, how, position, None, &none()).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_ties() {
        let mut sampler = Sampler::new(Instructions::best());
        let logits = [0.5, 2.0, -1.0, 2.0, 2.0];
        assert_eq!(sampler.choose(&logits, &Sampling::default(), 0, None, &none()).unwrap(), 1);
        assert_eq!(sampler.choose(&logits, &Sampling { top_k: 1, ..hot() }, 0, None, &none()).unwrap(), 1);
    }

    #[test]
    fn only_allowed_tokens_are_chosen() {
        let logits = [5.0, 2.0, -1.0, 2.0, 4.0];
        let mut allowed = SimpleVob::alloc(logits.len());
        for id in [1, 2, 3] {
            allowed.allow_token(id);
        }
        let mut sampler = Sampler::new(Instructions::best());
        let greedy = sampler.choose(&logits, &Sampling::default(), 0, Some(&allowed), &none()).unwrap();
        assert_eq!(greedy, 1, "the lowest id of ties");
        let mut seen = [0; 5];
        for position in 0..2000 {
            seen[sampler.choose(&logits, &hot(), position, Some(&allowed), &none()).unwrap() as usize] += 1;
        }
        assert!(seen[0] == 0 && seen[4] == 0 && seen[1] > 500 && seen[3] > 500 && seen[2] > 0, "{seen:?}");
        // Top-k counts allowed tokens.
        let two = Sampling { top_k: 2, ..hot() };
        assert!(
            (0..500)
                .all(
                    |position| sampler.choose(&logits, &two, position, Some(&allowed), &none()).unwrap() != 2
                )
        );
    }

    #[test]
    fn a_choice_that_is_made_again_follows_the_softmax_of_what_is_left() {
        let logits = [3.0, 0.0, 1.0, 2.0];
        let mut allowed = SimpleVob::alloc(logits.len());
        (1..4).for_each(|id| allowed.allow_token(id));
        let mut sampler = Sampler::new(Instructions::best());
        let mut counts = [0.0; 4];
        for position in 0..20_000 {
            let mut token = sampler.choose(&logits, &hot(), position, None, &none()).unwrap();
            if token == 0 {
                token = sampler.choose_again(&logits, &hot(), position, &allowed, &none());
            }
            counts[token as usize] += 1.0 / 20_000.0;
        }
        let sum: f64 = logits[1..].iter().map(|logit| libm::exp(f64::from(*logit))).sum();
        for (logit, share) in logits.iter().zip(counts).skip(1) {
            let expected = libm::exp(f64::from(*logit)) / sum;
            assert!((share - expected).abs() < 0.012, "{share} for {expected}");
        }
        assert_eq!(sampler.choose_again(&logits, &Sampling::default(), 0, &allowed, &none()), 3);
    }

    #[test]
    fn candidates_are_ordered_by_logit_then_id() {
        let logits = [-0.0, 1.5, -3.0e38, 0.0, 1.5, -2.0, 3.0e38];
        let mut packed: Vec<u64> = (0..).zip(logits).map(|(id, logit)| pack(logit, id)).collect();
        packed.sort_unstable();
        let ids: Vec<u32> = packed.iter().map(|candidate| unpack(*candidate).1).collect();
        assert_eq!(ids, [6, 1, 4, 0, 3, 5, 2]);
        assert_eq!(unpack(pack(-2.5, 7)), (-2.5, 7));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, 3.0];
        let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit))).sum();
        for (logit, share) in logits.iter().zip(distribution(&logits, &hot())) {
            let expected = libm::exp(f64::from(*logit)) / sum;
            assert!((share - expected).abs() < 0.012, "{share} for {expected}");
        }
    }

    #[test]
    fn filters_cut_the_tail() {
        let logits = [0.0, 1.0, 2.0, 3.0];
        // Probabilities 0.032, 0.087, 0.237, 0.644.
        let top_k = distribution(&logits, &Sampling { top_k: 2, ..hot() });
        assert!(top_k[0] == 0.0 && top_k[1] == 0.0 && top_k[2] > 0.2);
        let top_p = distribution(&logits, &Sampling { top_p: 0.9, ..hot() });
        assert!(top_p[0] == 0.0 && top_p[1] > 0.0);
        let min_p = distribution(&logits, &Sampling { min_p: 0.2, ..hot() });
        assert!(min_p[1] == 0.0 && min_p[2] > 0.0);
        let nothing_left = distribution(&logits, &Sampling { top_p: 0.0, min_p: 1.0, ..hot() });
        assert!(nothing_left[..3].iter().all(|share| *share == 0.0));
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_only() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let draw = |seed, position| {
            let how = Sampling { seed, ..hot() };
            Sampler::new(Instructions::best()).choose(&logits, &how, position, None, &none()).unwrap()
        };
        assert_eq!(draw(1, 5), draw(1, 5));
        assert!((0..50).any(|position| draw(1, position) != draw(2, position)));
        assert!((0..50).any(|position| draw(1, position) != draw(1, position + 1)));
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let result =
                Sampler::new(Instructions::best()).choose(&[0.0, bad, 1.0], &hot(), 9, None, &none());
            assert!(matches!(result, Err(Error::NonFinite { position: 9 })));
        }
    }
}
