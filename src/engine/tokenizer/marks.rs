//! Finding tokens that stand for themselves in text: control tokens in templates, user-defined tokens
//! everywhere. The longest wins where several begin at the same place.

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::{Role, Vocabulary};

/// The special tokens of a vocabulary, ready to be searched for.
#[derive(Debug)]
pub(super) struct Marks {
    /// Control and user-defined tokens.
    all: Set,
    /// User-defined tokens only.
    user_defined: Set,
}

#[derive(Debug)]
struct Set {
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
        let all = Set::new(vocabulary, |role| matches!(role, Role::Control | Role::UserDefined))?;
        let user_defined = Set::new(vocabulary, |role| role == Role::UserDefined)?;
        Ok(Marks { all, user_defined })
    }

    /// Special tokens in `text`, in order, none overlapping; control tokens only where `control` says so.
    pub(super) fn find<'a>(&'a self, text: &'a str, control: bool) -> impl Iterator<Item = Mark> + 'a {
        let set = if control { &self.all } else { &self.user_defined };
        set.automaton.find_iter(text).filter_map(|found| {
            let id = *set.ids.get(found.pattern().as_usize())?;
            Some(Mark { start: found.start(), end: found.end(), id })
        })
    }
}

impl Set {
    fn new(vocabulary: &Vocabulary, wanted: impl Fn(Role) -> bool) -> Result<Set, aho_corasick::BuildError> {
        let mut ids: Vec<u32> = vocabulary
            .special
            .keys()
            .copied()
            .filter(|id| vocabulary.role(*id).is_some_and(&wanted))
            .collect();
        ids.sort_unstable();
        let patterns = ids.iter().filter_map(|id| vocabulary.special.get(id)).map(|text| text.as_bytes());
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns)?;
        Ok(Set { automaton, ids })
    }
}
