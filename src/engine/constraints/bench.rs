//! The times of masks and of ways to the end, for the benchmark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::toktrie::SimpleVob;

use super::{Constraint, Grammars};
use crate::Error;
use crate::memory::Ledger;
use crate::tokenizer::Tokenizer;

/// Follows constraints without a model.
pub struct Walker {
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
}

impl Walker {
    /// Prepares the vocabulary, once for all constraints.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the vocabulary cannot be used for constraints.
    pub fn new(tokenizer: Tokenizer) -> Result<Walker, Error> {
        let rows = tokenizer.vocab_size();
        let tokenizer = Arc::new(tokenizer);
        let grammars = Grammars::new(Arc::clone(&tokenizer), rows, Ledger::new(0));
        grammars.matcher(&Constraint::Regex("a".to_owned()))?;
        Ok(Walker { tokenizer, grammars })
    }

    /// The time that it takes to compile a new constraint.
    ///
    /// # Errors
    /// Errors of the constraint.
    pub fn compile(&self, constraint: &Constraint) -> Result<Duration, Error> {
        let begun = Instant::now();
        self.grammars.matcher(constraint)?;
        Ok(begun.elapsed())
    }

    /// The time of each mask along `steps` tokens that are chosen at random among those allowed.
    ///
    /// # Errors
    /// Errors of the constraint.
    pub fn random(&self, constraint: &Constraint, seed: u64, steps: usize) -> Result<Vec<Duration>, Error> {
        let (mut state, mut left) = (seed, steps);
        let (times, _) = self.walk(constraint, |allowed, _| {
            left = left.checked_sub(1)?;
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            allowed.iter().nth((state >> 33) as usize % allowed.num_set())
        })?;
        Ok(times)
    }

    /// The time of each mask along a text, where each step takes the longest token that agrees with it.
    ///
    /// # Errors
    /// Errors of the constraint; [`Error::Constraint`] where the text does not match it.
    pub fn along(&self, constraint: &Constraint, text: &str) -> Result<Vec<Duration>, Error> {
        let (times, end) = self.walk(constraint, |allowed, done| {
            let rest = text.as_bytes().get(done..)?;
            let fits = |id: &u32| {
                let bytes = self.tokenizer.token_bytes(*id);
                !bytes.is_empty() && rest.starts_with(bytes)
            };
            allowed.iter().filter(fits).max_by_key(|id| self.tokenizer.token_bytes(*id).len())
        })?;
        if end != text.len() {
            let reason = format!("the text leaves it at byte {end}: {text}");
            return Err(Error::Constraint { generated_tokens: times.len(), reason });
        }
        Ok(times)
    }

    /// Follows a constraint to its end, or until `choose` has no token for a mask and the number of bytes so
    /// far. Returns the time of each mask and of the way to the end behind the token, and the number of
    /// bytes.
    fn walk(
        &self,
        constraint: &Constraint,
        mut choose: impl FnMut(&SimpleVob, usize) -> Option<u32>,
    ) -> Result<(Vec<Duration>, usize), Error> {
        let mut matcher = self.grammars.matcher(constraint)?;
        let mut taken = matcher.begin()?;
        let (mut times, mut bytes) = (Vec::new(), 0);
        loop {
            bytes += taken.forced.iter().map(|id| self.tokenizer.token_bytes(*id).len()).sum::<usize>();
            if taken.complete {
                return Ok((times, bytes));
            }
            let begun = Instant::now();
            let allowed = matcher.allowed()?;
            times.push(begun.elapsed());
            let Some(token) = choose(&allowed, bytes).filter(|token| !self.tokenizer.is_end(*token)) else {
                return Ok((times, bytes));
            };
            bytes += self.tokenizer.token_bytes(token).len();
            let begun = Instant::now();
            matcher.admits(token, usize::MAX);
            if let Some(time) = times.last_mut() {
                *time += begun.elapsed();
            }
            taken = matcher.take(token)?;
        }
    }
}
