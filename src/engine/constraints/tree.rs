//! The words of a vocabulary as a tree of bytes, in one array, for the masks of [`super::regular`], whose
//! header has the figures. A walk enters a node only where some of its words are allowed and others are not;
//! [`Groups`] of characters decide that for most nodes.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use regex_syntax::utf8::{Utf8Sequence, Utf8Sequences};

/// Longest words in the tree, in bytes.
const MAX_DEPTH: usize = u16::MAX as usize;

/// Groups of characters that patterns tend to treat alike, one bit for each: see [`group`].
pub(super) type Groups = u32;

/// The group of bytes that are no character, or only the rest of one.
const NONE: Groups = 1 << 31;

/// Groups beyond ASCII, the first of which is [`FIRST_BEYOND_ASCII`], by their ranges of characters: some
/// whose characters are all letters, marks or digits, and punctuation. All other characters are one more
/// group.
const BEYOND_ASCII: [&[RangeInclusive<char>]; 9] = [
    // Latin, Greek, Cyrillic.
    &['\u{c0}'..='\u{d6}', '\u{d8}'..='\u{f6}', '\u{f8}'..='\u{2c1}', '\u{1e00}'..='\u{1eff}'],
    &['\u{391}'..='\u{3a1}', '\u{3a3}'..='\u{3f5}'],
    &['\u{400}'..='\u{481}', '\u{48a}'..='\u{52f}'],
    // Hebrew and Arabic.
    &['\u{5d0}'..='\u{5ea}', '\u{620}'..='\u{669}', '\u{671}'..='\u{6d3}'],
    // Devanagari and Thai.
    &['\u{900}'..='\u{963}', '\u{e01}'..='\u{e3a}', '\u{e40}'..='\u{e4e}'],
    // Japanese syllables, ideographs, Korean syllables.
    &['\u{3041}'..='\u{3096}', '\u{30a1}'..='\u{30fa}', '\u{30fc}'..='\u{30fe}'],
    &['\u{3400}'..='\u{4dbf}', '\u{4e00}'..='\u{9fff}'],
    &['\u{ac00}'..='\u{d7a3}'],
    // Punctuation.
    &[
        '\u{2010}'..='\u{2027}',
        '\u{3001}'..='\u{3003}',
        '\u{3008}'..='\u{3011}',
        '\u{ff01}'..='\u{ff0f}',
        '\u{ff1a}'..='\u{ff20}',
    ],
];
const FIRST_BEYOND_ASCII: u32 = 14;
const OTHERS: Groups = 1 << (FIRST_BEYOND_ASCII + BEYOND_ASCII.len() as u32);

/// A place in the words: the bytes before it are those of its ancestors.
#[derive(Clone, Copy)]
pub(super) struct WordNode {
    /// The first node behind its descendants.
    pub(super) end: u32,
    /// Index in [`Tree::ids`] of the first id of the words that end here or below.
    pub(super) first_id: u32,
    /// Groups of the characters in the words below this node.
    pub(super) below: Groups,
    /// Number of bytes up to here.
    pub(super) depth: u16,
    /// Most bytes that follow; 255 for more.
    pub(super) height: u8,
    pub(super) byte: u8,
}

/// Words in the order of their bytes, one kind after the other: words of letters alone stay together. Each
/// node is followed by its descendants.
pub(super) struct Tree {
    /// The root first, and one more node behind the end.
    nodes: Vec<WordNode>,
    ids: Vec<u32>,
    /// Length of the longest word.
    depth: usize,
}

/// The group of a character.
pub(super) fn group(character: char) -> Groups {
    let number = match character {
        'a'..='z' => 0,
        'A'..='Z' => 1,
        '0'..='9' => 2,
        '_' => 3,
        ' ' => 4,
        '-' => 5,
        '.' => 6,
        ',' => 7,
        '\'' => 8,
        '"' => 9,
        '\\' => 10,
        '/' => 11,
        '!'..='~' => 12,
        '\0'..='\x7f' => 13,
        _ => {
            let has =
                |ranges: &&[RangeInclusive<char>]| ranges.iter().any(|range| range.contains(&character));
            FIRST_BEYOND_ASCII + BEYOND_ASCII.iter().position(has).unwrap_or(BEYOND_ASCII.len()) as u32
        }
    };
    1 << number
}

/// The groups beyond ASCII, and their characters in UTF-8: each sequence is one range of bytes after the
/// other.
pub(super) static SEQUENCES: LazyLock<Vec<(Groups, Vec<Utf8Sequence>)>> = LazyLock::new(|| {
    let sequences = |ranges: &[RangeInclusive<char>]| {
        ranges.iter().flat_map(|range| Utf8Sequences::new(*range.start(), *range.end())).collect()
    };
    let mut groups: Vec<_> = (FIRST_BEYOND_ASCII..)
        .zip(BEYOND_ASCII)
        .map(|(number, ranges)| (1 << number, sequences(ranges)))
        .collect();
    let mut taken: Vec<_> = BEYOND_ASCII.into_iter().flatten().cloned().collect();
    taken.sort_unstable_by_key(|range| *range.start());
    let mut others = Vec::new();
    let mut left = '\u{80}'..=char::MAX;
    for range in taken {
        let (before, behind) = (*left.start()..*range.start(), *range.end()..=char::MAX);
        // There are no characters between neighbouring ranges.
        others.extend(before.clone().next_back().map(|last| before.start..=last));
        left = behind;
        left.next();
    }
    others.push(left);
    groups.push((OTHERS, sequences(&others)));
    groups
});

/// Number of bytes of the character at the beginning of a word, and its group.
fn character(word: &[u8]) -> (usize, Groups) {
    let length = match word[0] {
        ..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let text = word.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    match text.and_then(|text| text.chars().next()) {
        Some(character) => (length, group(character)),
        // The bytes are no character, or only part of one.
        None => (1, NONE),
    }
}

/// For each number of bytes of a word up to its length, the groups of the characters behind them.
fn groups_behind(word: &[u8]) -> Vec<Groups> {
    let mut behind = vec![0; word.len() + 1];
    let mut start = 0;
    while start < word.len() {
        let (length, group) = character(&word[start..]);
        behind[..=start].iter_mut().for_each(|groups| *groups |= group);
        behind[start + 1..start + length].iter_mut().for_each(|groups| *groups |= NONE);
        start += length;
    }
    behind
}

/// The kind of a word. These are separated: letters, a space and letters, words beyond ASCII, and all others.
fn kind(word: &[u8]) -> u8 {
    let letters = |word: &[u8]| word.iter().all(u8::is_ascii_alphabetic);
    match word {
        word if letters(word) => 0,
        [b' ', word @ ..] if letters(word) => 1,
        word if word.iter().all(|byte| !byte.is_ascii()) => 2,
        _ => 3,
    }
}

impl Tree {
    /// A tree of words and their ids. Empty words are left out.
    pub(super) fn new<'a>(words: impl Iterator<Item = (u32, &'a [u8])>) -> Tree {
        let mut words: Vec<(u8, &[u8], u32)> = words
            .filter(|(_, word)| (1..=MAX_DEPTH).contains(&word.len()))
            .map(|(id, word)| (kind(word), word, id))
            .collect();
        words.sort_unstable();
        let root = WordNode { end: 0, first_id: 0, below: 0, depth: 0, height: 0, byte: 0 };
        let mut tree = Tree { nodes: vec![root], ids: Vec::with_capacity(words.len()), depth: 0 };
        // The nodes from the root to the word before.
        let mut path = vec![0];
        let mut kind = 0;
        for (its_kind, word, id) in words {
            let same = |(node, byte): &(&usize, &u8)| tree.nodes[**node].byte == **byte;
            let common =
                if its_kind == kind { path[1..].iter().zip(word).take_while(same).count() } else { 0 };
            kind = its_kind;
            tree.close(&mut path, common);
            for byte in &word[common..] {
                path.push(tree.nodes.len());
                let (first_id, depth) = (tree.ids.len() as u32, path.len() as u16 - 1);
                tree.nodes.push(WordNode { end: 0, first_id, below: 0, depth, height: 0, byte: *byte });
            }
            for ((depth, node), groups) in path.iter().enumerate().zip(groups_behind(word)) {
                let node = &mut tree.nodes[*node];
                node.below |= groups;
                node.height = node.height.max(u8::try_from(word.len() - depth).unwrap_or(u8::MAX));
            }
            tree.ids.push(id);
            tree.depth = tree.depth.max(word.len());
        }
        tree.close(&mut path, 0);
        let (end, first_id) = (tree.nodes.len() as u32, tree.ids.len() as u32);
        tree.nodes[0].end = end;
        tree.nodes.push(WordNode { end: end + 1, first_id, ..root });
        tree
    }

    /// Sets the ends of the nodes of the path beyond some depth.
    fn close(&mut self, path: &mut Vec<usize>, depth: usize) {
        for node in path.drain(depth + 1..) {
            self.nodes[node].end = self.nodes.len() as u32;
        }
    }

    /// The root, the nodes below it, and one behind the end.
    pub(super) fn nodes(&self) -> &[WordNode] {
        &self.nodes
    }

    /// Ids of the words: of those that end at a node and then of those below it, from the node's first on.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Length of the longest word.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::{NONE, OTHERS, SEQUENCES, Tree, Utf8Sequence, group, groups_behind};

    #[test]
    fn every_word_is_found_where_it_ends() {
        let words: [&[u8]; 14] = [
            b"b",
            b"abc",
            b"",
            b"a",
            b"ab",
            b"b1",
            b"xyz",
            b"abd",
            b"ab",
            b" a",
            b" ab",
            b" ",
            "é".as_bytes(),
            "éa".as_bytes(),
        ];
        let tree = Tree::new((0..).zip(words));
        let mut found = Vec::new();
        let mut path = Vec::new();
        let ids = |from: usize, to: usize| {
            &tree.ids()[tree.nodes()[from].first_id as usize..tree.nodes()[to].first_id as usize]
        };
        let last = tree.nodes().len() - 1;
        for (index, node) in tree.nodes().iter().enumerate().take(last).skip(1) {
            path.truncate(usize::from(node.depth) - 1);
            path.push(node.byte);
            let (here, below) = (ids(index, index + 1), ids(index, node.end as usize));
            assert!(below.iter().all(|id| words[*id as usize].starts_with(&path)), "{path:?}");
            assert!(below.starts_with(here) && !below.is_empty());
            let groups =
                below.iter().fold(0, |groups, id| groups | groups_behind(words[*id as usize])[path.len()]);
            assert_eq!(node.below, groups, "{path:?}");
            let longest = below.iter().map(|id| words[*id as usize].len()).max().unwrap();
            assert_eq!(usize::from(node.height), longest - path.len(), "{path:?}");
            found.extend(here.iter().map(|id| (*id, path.clone())));
        }
        found.sort();
        let expected: Vec<(u32, Vec<u8>)> = (0..)
            .zip(words)
            .filter(|(_, word)| !word.is_empty())
            .map(|(id, word)| (id, word.to_vec()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(tree.depth(), 3);
    }

    #[test]
    fn words_go_on_with_whole_characters() {
        let (a, e, ideograph) = (group('a'), group('é'), group('一'));
        assert_eq!(groups_behind("aéa".as_bytes()), [a | e, a | e, a | NONE, a, 0]);
        assert_eq!(groups_behind("一a".as_bytes()), [a | ideograph, a | NONE, a | NONE, a, 0]);
        assert_eq!(groups_behind("𝄞".as_bytes()), [OTHERS, NONE, NONE, NONE, 0]);
        for broken in [&b"\xe4a"[..], b"\x80", b"\xc0\x80", b"\xff", b"\xed\xa0\x80", &"一".as_bytes()[..2]]
        {
            assert!(groups_behind(broken)[0] & NONE != 0, "{broken:?}");
        }
    }

    #[test]
    fn each_character_is_in_the_sequences_of_its_group_alone() {
        for character in ('\u{80}'..=char::MAX).filter(|character| (*character as u32) < 0x1_2000) {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            let has =
                |sequences: &Vec<Utf8Sequence>| sequences.iter().any(|sequence| sequence.matches(bytes));
            let groups: Vec<_> = SEQUENCES.iter().filter(|(_, sequences)| has(sequences)).collect();
            assert!(groups.len() == 1 && groups[0].0 == group(character), "{character:?}");
        }
    }

    #[test]
    fn an_empty_vocabulary_is_a_root() {
        assert_eq!(Tree::new(std::iter::empty()).nodes().len(), 2);
    }
}
