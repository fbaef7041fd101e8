//! Finding tokens that stand for themselves in text: control tokens in templates, user-defined tokens
//! everywhere. The longest wins where several begin at the same place.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::{TokenRole, Vocabulary};
use crate::Error;
use crate::gguf::Gguf;

/// The special tokens of a vocabulary, ready to be searched for.
#[derive(Debug)]
pub(super) struct Marks {
    /// Control and user-defined tokens.
    all: MarkSet,
    /// User-defined tokens only.
    user_defined: MarkSet,
}

#[derive(Debug)]
struct MarkSet {
    automaton: AhoCorasick,
    /// Token of each pattern.
    ids: Vec<u32>,
}

/// A special token at a place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: u32,
}

impl Marks {
    /// The error is the automaton's, for vocabularies that it cannot hold.
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Marks, aho_corasick::BuildError> {
        let all =
            MarkSet::new(vocabulary, |role| matches!(role, TokenRole::Control | TokenRole::UserDefined))?;
        let user_defined = MarkSet::new(vocabulary, |role| role == TokenRole::UserDefined)?;
        Ok(Marks { all, user_defined })
    }

    /// Special tokens in `text`, in order, without overlaps; control tokens only if `control` is set.
    pub(super) fn find<'a>(&'a self, text: &'a str, control: bool) -> impl Iterator<Item = Mark> + 'a {
        let set = if control { &self.all } else { &self.user_defined };
        set.automaton.find_iter(text).filter_map(|found| {
            let id = *set.ids.get(found.pattern().as_usize())?;
            Some(Mark { start: found.start(), end: found.end(), id })
        })
    }
}

impl MarkSet {
    fn new(
        vocabulary: &Vocabulary,
        wanted: impl Fn(TokenRole) -> bool,
    ) -> Result<MarkSet, aho_corasick::BuildError> {
        let mut ids: Vec<u32> = vocabulary
            .special
            .keys()
            .copied()
            .filter(|id| vocabulary.role(*id).is_some_and(&wanted))
            .collect();
        ids.sort_unstable();
        let patterns = ids.iter().filter_map(|id| vocabulary.special.get(id)).map(|text| text.as_bytes());
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns)?;
        Ok(MarkSet { automaton, ids })
    }
}

/// Special tokens next to which white space is removed. Files do not say which tokens these are; they are
/// known by the names of models, as in llama.cpp.
#[derive(Debug, Default)]
pub(super) struct Strips {
    /// Tokens before which it is removed.
    left: HashSet<u32>,
    /// Tokens behind which it is removed.
    right: HashSet<u32>,
}

impl Strips {
    pub(super) fn of(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Strips, Error> {
        let of = |key: &str| gguf.opt_str(key).map(|value| value.unwrap_or_default().to_ascii_lowercase());
        let name = of("general.name")?;
        let architecture = of("general.architecture")?;
        let pre = of("tokenizer.ggml.pre")?;
        let with = |wanted: &dyn Fn(&str) -> bool| -> HashSet<u32> {
            let special = vocabulary.special.iter();
            special.filter(|(_, text)| wanted(text)).map(|(id, _)| *id).collect()
        };
        let mut strips = Strips::default();
        if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|known| pre.contains(known))
            || ["nomic-bert-moe", "jina-bert-v3"].iter().any(|known| architecture.contains(known))
        {
            strips.left = with(&|text| text == "<mask>");
        } else if name.contains("phi-3") || name.contains("phi3") {
            strips.right = with(&|text| !matches!(text, "<unk>" | "<s>" | "<|endoftext|>"));
        } else if name.contains("modern-bert") {
            strips.left = with(&|text| text == "[MASK]");
        }
        Ok(strips)
    }

    /// The text between two special tokens, without the white space that these remove.
    pub(super) fn strip<'a>(&self, before: Option<u32>, text: &'a str, after: Option<u32>) -> &'a str {
        let space = |c: char| matches!(c, ' ' | '\t'..='\r');
        let text = match before {
            Some(id) if self.right.contains(&id) => text.trim_start_matches(space),
            _ => text,
        };
        match after {
            Some(id) if self.left.contains(&id) => text.trim_end_matches(space),
            _ => text,
        }
    }
}
