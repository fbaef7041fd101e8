//! Prompts that a folder made for sentence-transformers brings along.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::card::Card;

/// The file of a folder that has them.
pub(super) const PROMPTS: &str = "config_sentence_transformers.json";
/// Bytes of a prompt.
pub(super) const MAX_PROMPT: usize = 4096;
/// Bytes of that file.
const MAX_BYTES: u64 = 64 << 10;

/// The prompts of a folder; none where it says nothing about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompts {
    query: Option<String>,
    passage: Option<String>,
}

impl Prompts {
    /// Those in a file of that kind. What cannot be read has none.
    pub(super) fn read(path: &Path) -> Prompts {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        if read.is_err() || bytes.len() as u64 > MAX_BYTES {
            return Prompts::default();
        }
        let Ok(config) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            return Prompts::default();
        };
        let prompt = |names: &[&str]| {
            let found = names.iter().find_map(|name| config["prompts"][name].as_str())?;
            // Others would make more of the card than its limit allows.
            let is_strange = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
            let fits = !found.is_empty() && found.len() <= MAX_PROMPT && !found.chars().any(is_strange);
            fits.then(|| found.to_owned())
        };
        Prompts { query: prompt(&["query", "s2p_query"]), passage: prompt(&["passage", "document"]) }
    }

    /// Writes them onto a card that has none.
    pub(super) fn onto(self, card: &mut Card) {
        card.query_prompt = card.query_prompt.take().or(self.query);
        card.passage_prompt = card.passage_prompt.take().or(self.passage);
    }

    /// Takes them off a card, and leaves those that somebody else has written there.
    pub(super) fn off(&self, card: &mut Card) {
        card.query_prompt.take_if(|prompt| self.query.as_ref() == Some(prompt));
        card.passage_prompt.take_if(|prompt| self.passage.as_ref() == Some(prompt));
    }
}
