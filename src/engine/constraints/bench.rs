//! How long masks take, for the benchmark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Constraint, Grammars};
use crate::Error;
use crate::tokenizer::Tokenizer;

/// The time of each mask on `walks` random walks of at most `steps` choices along each constraint, and of compiling each.
///
/// # Errors
/// Those of the constraints.
pub fn mask_times(
    tokenizer: Tokenizer,
    constraints: &[Constraint],
    walks: u64,
    steps: usize,
) -> Result<(Vec<Duration>, Vec<Duration>), Error> {
    let rows = tokenizer.vocab_size();
    let tokenizer = Arc::new(tokenizer);
    let grammars = Grammars::new(Arc::clone(&tokenizer), rows);
    // What is made once for a model.
    grammars.guide(&Constraint::Regex("a".to_owned()))?;
    let (mut masks, mut compilations) = (Vec::new(), Vec::new());
    for constraint in constraints {
        let begun = Instant::now();
        grammars.guide(constraint)?;
        compilations.push(begun.elapsed());
        for walk in 0..walks {
            let mut guide = grammars.guide(constraint)?;
            let mut complete = guide.begin()?.complete;
            let mut state = walk + 1;
            for _ in 0..steps {
                if complete {
                    break;
                }
                let begun = Instant::now();
                let allowed = guide.allowed()?;
                masks.push(begun.elapsed());
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let pick = (state >> 33) as usize % allowed.num_set();
                let Some(token) = allowed.iter().nth(pick) else { break };
                if tokenizer.is_end(token) {
                    break;
                }
                complete = guide.take(token)?.complete;
            }
        }
    }
    Ok((masks, compilations))
}
