//! Prompt lookup: guesses at the next tokens, copied from an earlier place where the last tokens stand.
//!
//! Answers quote their prompts and repeat themselves. The guesses are computed as further rows of the pass
//! that computes the last token; each row's logits say which token follows, so as many guesses as agree are
//! taken, and the result is the same without them.

/// Most guesses of a request in one pass.
pub(super) const MAX_DRAFT: usize = 8;
/// Guesses of a request none of whose guesses were right so far.
const FIRST_DRAFT: usize = 3;
/// Tokens that must agree, the longest first.
const AGREEING: [usize; 2] = [4, 2];
/// A pass without a right guess is followed by 2 passes without guesses, then 4, and so on up to 2 to this
/// power.
const MAX_PAUSE_LOG2: u32 = 7;

/// The drafter of a request: how many tokens to guess next, and when, by how its earlier guesses turned out.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Number of tokens to guess.
    length: usize,
    /// Passes to wait before the next guess.
    pause: u32,
    /// Guesses in a row of which nothing was right.
    failures: u32,
}

impl Drafter {
    pub(super) fn new() -> Drafter {
        Drafter { length: FIRST_DRAFT, pause: 0, failures: 0 }
    }

    /// Guesses at most `most` tokens that follow `tokens`: as many as have turned out right lately, or, where
    /// `always` is set, as many as possible.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, always: bool) -> Vec<u32> {
        let length = if always { MAX_DRAFT } else { self.length }.min(most);
        if !always && self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        if length == 0 {
            return Vec::new();
        }
        let Some(start) = AGREEING.iter().find_map(|count| following(tokens, *count)) else {
            return Vec::new();
        };
        // A repetition that has only just begun continues in the guessed tokens.
        let mut draft: Vec<u32> = Vec::with_capacity(length);
        for i in start..start + length {
            draft.push(if i < tokens.len() { tokens[i] } else { draft[i - tokens.len()] });
        }
        draft
    }

    /// Learns that `right` of `guessed` guesses were right.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == 0 {
            self.failures = (self.failures + 1).min(MAX_PAUSE_LOG2);
            self.pause = 1 << self.failures;
            self.length = FIRST_DRAFT;
        } else {
            self.failures = 0;
            self.length = if right == guessed { guessed * 2 } else { right + 1 }.min(MAX_DRAFT);
        }
    }
}

/// The place behind the most recent earlier occurrence of the last `count` tokens.
fn following(tokens: &[u32], count: usize) -> Option<usize> {
    let last = tokens.len().checked_sub(count).filter(|start| *start > 0)?;
    let before = tokens[..tokens.len() - 1].windows(count).rposition(|window| *window == tokens[last..])?;
    Some(before + count)
}

#[cfg(test)]
mod tests {
    use super::{Drafter, MAX_DRAFT};

    #[test]
    fn it_copies_what_followed_the_longest_and_latest_match() {
        let tokens = [1, 2, 3, 4, 10, 11, 7, 3, 4, 20, 21, 9, 3, 4];
        assert_eq!(Drafter::new().draft(&tokens, 2, false), [20, 21]);
        let tokens = [1, 2, 3, 4, 10, 11, 7, 3, 4, 20, 21, 9, 1, 2, 3, 4];
        assert_eq!(Drafter::new().draft(&tokens, 2, false), [10, 11]);
        assert!(Drafter::new().draft(&[1, 2, 3, 4, 5], 2, true).is_empty());
        assert!(Drafter::new().draft(&tokens, 0, true).is_empty());
        for short in [&[][..], &[1], &[1, 1]] {
            assert!(Drafter::new().draft(short, 8, true).is_empty());
        }
    }

    #[test]
    fn a_repetition_goes_on_in_the_guess() {
        let tokens = [9, 1, 2, 3, 1, 2, 3, 1, 2];
        assert_eq!(Drafter::new().draft(&tokens, MAX_DRAFT, true), [3, 1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(Drafter::new().draft(&[5, 5, 5], 4, true), [5, 5, 5, 5]);
    }

    #[test]
    fn luck_makes_guesses_longer_and_failure_rarer() {
        let tokens = [5; 20];
        let mut drafter = Drafter::new();
        let length = |drafter: &mut Drafter| drafter.draft(&tokens, 100, false).len();
        assert_eq!(length(&mut drafter), 3);
        drafter.learn(3, 3);
        assert_eq!(length(&mut drafter), 6);
        drafter.learn(6, 6);
        assert_eq!(length(&mut drafter), MAX_DRAFT);
        drafter.learn(8, 1);
        assert_eq!(length(&mut drafter), 2);
        for pause in [2, 4, 8, 16, 32, 64, 128, 128] {
            drafter.learn(2, 0);
            assert!((0..pause).all(|_| length(&mut drafter) == 0));
            assert_eq!(length(&mut drafter), 3, "after {pause}");
        }
    }
}
