//! Recently computed likelihoods, for requests that are marked as repeated: every classification of one kind
//! compares its likelihoods with those of the same answers to one prompt without content.
//!
//! Invariant: an entry has the values that the model would compute now, bit for bit, so that a hit changes no
//! result. Only requests of the same salt share one.

use sha2::{Digest, Sha256};

use crate::{Request, Work};

/// Most entries. Each has a number for each answer.
const MOST: usize = 64;

/// A hash of the texts and the salt of a request.
pub(super) type MemoKey = [u8; 32];

/// The last likelihoods of one model.
#[derive(Debug, Default)]
pub(super) struct LikelihoodMemo {
    /// Most recently used first.
    entries: Vec<(MemoKey, Vec<f64>)>,
}

/// The key of a request: a hash of its salt and texts. None unless the request asks for likelihoods and is
/// marked as repeated.
pub(super) fn key_of(request: &Request) -> Option<MemoKey> {
    let Work::Likelihoods(how) = &request.work else { return None };
    if !how.repeated {
        return None;
    }
    let mut hasher = Sha256::new_with_prefix(request.salt.to_le_bytes());
    hasher.update(how.system.as_ref().map_or(u64::MAX, |system| system.len() as u64).to_le_bytes());
    let texts = [how.system.as_deref().unwrap_or_default(), &how.prompt, &how.begin];
    for text in texts.into_iter().chain(how.answers.iter().map(String::as_str)) {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    Some(hasher.finalize().into())
}

impl LikelihoodMemo {
    /// The likelihoods kept for this key, which become the most recently used.
    pub(super) fn find(&mut self, key: &MemoKey) -> Option<Vec<f64>> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        self.entries[..=at].rotate_right(1);
        self.entries.first().map(|(_, values)| values.clone())
    }

    /// Keeps the likelihoods of a key, in the place of the least recently used ones.
    pub(super) fn keep(&mut self, key: MemoKey, values: &[f64]) {
        if self.find(&key).is_none() {
            self.entries.truncate(MOST - 1);
            self.entries.insert(0, (key, values.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Likelihoods, ModelSource};

    fn key(salt: u64, system: Option<&str>, prompt: &str, begin: &str, answers: &[&str]) -> MemoKey {
        let work = Work::Likelihoods(Likelihoods {
            prompt: prompt.to_owned(),
            system: system.map(str::to_owned),
            begin: begin.to_owned(),
            answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
            repeated: true,
        });
        key_of(&Request { key: 0, model: ModelSource::Builtin, salt, dedup_key: None, work }).unwrap()
    }

    #[test]
    fn whatever_a_request_has_is_part_of_its_key() {
        let mut keys = vec![
            key(0, None, "a", "", &["b"]),
            key(1, None, "a", "", &["b"]),
            key(0, Some(""), "a", "", &["b"]),
            key(0, Some("a"), "", "", &["b"]),
            key(0, None, "", "a", &["b"]),
            key(0, None, "a", "b", &[]),
            key(0, None, "a", "", &["b", ""]),
            key(0, None, "a", "", &["", "b"]),
        ];
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 8);
    }

    #[test]
    fn the_one_that_was_not_used_for_the_longest_time_goes_first() {
        let mut memo = LikelihoodMemo::default();
        for number in 0..MOST as u8 {
            memo.keep([number; 32], &[f64::from(number)]);
        }
        assert_eq!(memo.find(&[0; 32]), Some(vec![0.0]));
        memo.keep([255; 32], &[1.0]);
        assert_eq!(memo.find(&[1; 32]), None);
        assert_eq!((memo.find(&[0; 32]), memo.find(&[255; 32])), (Some(vec![0.0]), Some(vec![1.0])));
        assert_eq!(memo.entries.len(), MOST);
    }
}
