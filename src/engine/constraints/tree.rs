//! The words of a vocabulary as a tree of bytes, in one array.

/// Longest words that it takes, in bytes.
const MAX_DEPTH: usize = u16::MAX as usize;

/// Groups of characters that patterns tend to treat alike, one bit for each: see [`group`].
pub(super) type Groups = u32;

/// Stands for what is no character, and for the rest of one.
const NONE: Groups = 1 << 31;

/// A place in the words: the bytes before it are those of its ancestors.
#[derive(Clone, Copy)]
pub(super) struct Node {
    /// The first node behind those below this one.
    pub(super) end: u32,
    /// Where the ids of words that end here or below begin in [`Tree::ids`].
    first_id: u32,
    /// Groups of what the words below this node go on with.
    pub(super) below: Groups,
    /// Number of bytes up to here.
    pub(super) depth: u16,
    /// Most bytes that follow, or 255.
    pub(super) height: u8,
    pub(super) byte: u8,
}

/// Words in the order of their bytes, those of one kind after those of another: words of letters alone stay together.
/// Each node is followed by those below it.
pub(super) struct Tree {
    /// The root first, and one behind the end.
    nodes: Vec<Node>,
    ids: Vec<u32>,
    /// Length of the longest word.
    depth: usize,
}

/// The group of the characters that begin with a byte of UTF-8.
pub(super) fn group(byte: u8) -> Groups {
    let number = match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        b'_' => 3,
        b' ' => 4,
        b'-' => 5,
        b'.' => 6,
        b',' => 7,
        b'\'' => 8,
        b'"' => 9,
        b'\\' => 10,
        b'/' => 11,
        b'!'..=b'~' => 12,
        ..=0x7f => 13,
        // Latin, Cyrillic and what is between and behind.
        0xc2..=0xc3 => 14,
        0xc4..=0xcf => 15,
        0xd0..=0xd1 => 16,
        0xd2..=0xdf => 17,
        0xe0..=0xe2 => 18,
        // Japanese syllables, ideographs (the second range has nothing else), Korean syllables.
        0xe3 => 19,
        0xe4 => 20,
        0xe5..=0xe8 => 21,
        0xe9 => 22,
        0xea..=0xed => 23,
        0xee..=0xef => 24,
        // Four bytes, or none that a character begins with.
        _ => return NONE,
    };
    1 << number
}

/// Number of bytes of the character at the beginning of a word, as far as they are there, and its group.
fn character(word: &[u8]) -> (usize, Groups) {
    let length = match word[0] {
        ..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => return (1, NONE),
    };
    let rest = &word[1..length.min(word.len())];
    if rest.iter().all(|byte| matches!(byte, 0x80..=0xbf)) {
        (1 + rest.len(), group(word[0]))
    } else {
        (1, NONE)
    }
}

/// For each number of bytes of a word up to its length: the groups of what comes behind them.
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

/// What kinds of words are kept apart: letters, a space and letters, beyond ASCII, and all others.
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
        let root = Node { end: 0, first_id: 0, below: 0, depth: 0, height: 0, byte: 0 };
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
                tree.nodes.push(Node { end: 0, first_id, below: 0, depth, height: 0, byte: *byte });
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
        tree.nodes.push(Node { end: end + 1, first_id, ..root });
        tree
    }

    /// Notes where the nodes of the path beyond some depth end.
    fn close(&mut self, path: &mut Vec<usize>, depth: usize) {
        for node in path.drain(depth + 1..) {
            self.nodes[node].end = self.nodes.len() as u32;
        }
    }

    /// The nodes below the root, by their numbers from 1 on.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes[..self.nodes.len() - 1]
    }

    /// Ids of the words that end at a node.
    pub(super) fn ids(&self, node: usize) -> &[u32] {
        &self.ids[self.nodes[node].first_id as usize..self.nodes[node + 1].first_id as usize]
    }

    /// Ids of the words that end at a node or below it.
    pub(super) fn ids_below(&self, node: usize) -> &[u32] {
        let end = self.nodes[self.nodes[node].end as usize].first_id;
        &self.ids[self.nodes[node].first_id as usize..end as usize]
    }

    /// Length of the longest word.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }
}

#[cfg(test)]
mod tests {
    use super::{NONE, Tree, group, groups_behind};

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
        for (index, node) in tree.nodes().iter().enumerate().skip(1) {
            path.truncate(usize::from(node.depth) - 1);
            path.push(node.byte);
            let below = tree.ids_below(index);
            assert!(below.iter().all(|id| words[*id as usize].starts_with(&path)), "{path:?}");
            assert!(below.starts_with(tree.ids(index)) && !below.is_empty());
            let groups =
                below.iter().fold(0, |groups, id| groups | groups_behind(words[*id as usize])[path.len()]);
            assert_eq!(node.below, groups, "{path:?}");
            let longest = below.iter().map(|id| words[*id as usize].len()).max().unwrap();
            assert_eq!(usize::from(node.height), longest - path.len(), "{path:?}");
            found.extend(tree.ids(index).iter().map(|id| (*id, path.clone())));
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
    fn words_go_on_with_characters_whole_or_begun() {
        let (a, e, ideograph) = (group(b'a'), group(0xc3), group(0xe4));
        assert_eq!(groups_behind("aéa".as_bytes()), [a | e, a | e, a | NONE, a, 0]);
        assert_eq!(groups_behind(&"一".as_bytes()[..2]), [ideograph, NONE, 0]);
        for broken in [&b"\xe4a"[..], b"\x80", b"\xc0\x80", b"\xff", "𝄞".as_bytes()] {
            assert!(groups_behind(broken)[0] & NONE != 0, "{broken:?}");
        }
    }

    #[test]
    fn an_empty_vocabulary_is_a_root() {
        assert_eq!(Tree::new(std::iter::empty()).nodes().len(), 1);
    }
}
