//! The words of a vocabulary as a tree of bytes, in one array.

/// Longest words that it takes, in bytes.
const MAX_DEPTH: usize = u16::MAX as usize;

/// Groups of bytes that patterns tend to treat alike: one bit for each.
pub(super) type Groups = u16;

/// A place in the words: the bytes before it are those of its ancestors.
#[derive(Clone, Copy)]
pub(super) struct Node {
    /// The first node behind those below this one.
    pub(super) end: u32,
    /// Where the ids of words that end here or below begin in [`Tree::ids`].
    first_id: u32,
    /// Number of bytes up to here.
    pub(super) depth: u16,
    /// Groups of the bytes below this one.
    pub(super) below: Groups,
    pub(super) byte: u8,
}

/// Words in the order of their bytes. Each node is followed by those below it.
pub(super) struct Tree {
    /// The root first, and one behind the end.
    nodes: Vec<Node>,
    ids: Vec<u32>,
    /// Length of the longest word.
    depth: usize,
}

/// The group of a byte.
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
        0x80.. => 13,
        _ => 14,
    };
    1 << number
}

impl Tree {
    /// A tree of words and their ids. Empty words are left out.
    pub(super) fn new<'a>(words: impl Iterator<Item = (u32, &'a [u8])>) -> Tree {
        let mut words: Vec<(&[u8], u32)> = words
            .filter(|(_, word)| (1..=MAX_DEPTH).contains(&word.len()))
            .map(|(id, word)| (word, id))
            .collect();
        words.sort_unstable();
        let root = Node { end: 0, first_id: 0, depth: 0, below: 0, byte: 0 };
        let mut tree = Tree { nodes: vec![root], ids: Vec::with_capacity(words.len()), depth: 0 };
        // The nodes from the root to the word before.
        let mut path = vec![0];
        for (word, id) in words {
            let common = path[1..]
                .iter()
                .zip(word)
                .take_while(|(node, byte)| tree.nodes[**node].byte == **byte)
                .count();
            tree.close(&mut path, common);
            for byte in &word[common..] {
                path.push(tree.nodes.len());
                let (first_id, depth) = (tree.ids.len() as u32, path.len() as u16 - 1);
                tree.nodes.push(Node { end: 0, first_id, depth, below: 0, byte: *byte });
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
        while path.len() > depth + 1 {
            let Some(node) = path.pop() else { break };
            self.nodes[node].end = self.nodes.len() as u32;
            let Node { below, byte, .. } = self.nodes[node];
            if let Some(parent) = path.last() {
                self.nodes[*parent].below |= below | group(byte);
            }
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
    use super::{Tree, group};

    #[test]
    fn every_word_is_found_where_it_ends() {
        let words: [&[u8]; 9] = [b"b", b"abc", b"", b"a", b"ab", b"b1", b"xyz", b"abd", b"ab"];
        let tree = Tree::new((0..).zip(words));
        let mut found = Vec::new();
        let mut path = Vec::new();
        for (index, node) in tree.nodes().iter().enumerate().skip(1) {
            path.truncate(usize::from(node.depth) - 1);
            path.push(node.byte);
            let below: Vec<u32> = (0..9).filter(|id| words[*id as usize].starts_with(&path)).collect();
            let mut ids = tree.ids_below(index).to_vec();
            ids.sort_unstable();
            assert_eq!(ids, below, "{path:?}");
            found.extend(tree.ids(index).iter().map(|id| (*id, path.clone())));
            let groups = below
                .iter()
                .flat_map(|id| &words[*id as usize][path.len()..])
                .fold(0, |groups, byte| groups | group(*byte));
            assert_eq!(node.below, groups, "{path:?}");
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
    fn an_empty_vocabulary_is_a_root() {
        assert_eq!(Tree::new(std::iter::empty()).nodes().len(), 1);
    }
}
