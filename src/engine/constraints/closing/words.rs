//! The fewest tokens of a text.

use toktrie::TokTrie;

/// The cost of a text: tokens first, then bytes.
pub(super) type Cost = u64;

/// The cost of a symbol that has no text.
pub(super) const NEVER: Cost = Cost::MAX;

/// The cost of a text by itself.
pub(super) fn cost(trie: &TokTrie, text: &[u8]) -> Cost {
    match fewest(trie, text).first() {
        Some(Some((tokens, _))) => Cost::from(*tokens) << 32 | text.len() as Cost,
        Some(None) => NEVER,
        None => 0,
    }
}

/// For each byte of a text, the fewest tokens from there to its end, and the first of them, the longest where
/// several would do. None where no tokens make up the rest.
pub(in crate::constraints) fn fewest(trie: &TokTrie, text: &[u8]) -> Vec<Option<(u32, u32)>> {
    let mut best: Vec<Option<(u32, u32)>> = vec![None; text.len() + 1];
    best[text.len()] = Some((0, 0));
    for at in (0..text.len()).rev() {
        let mut node = trie.root();
        for (end, byte) in (at + 1..).zip(&text[at..]) {
            let Some(child) = trie.child_at_byte(node, *byte) else { break };
            node = child;
            if let (Some(token), Some((behind, _))) = (node.token_id(), best[end])
                && best[at].is_none_or(|(count, _)| behind < count)
            {
                best[at] = Some((behind + 1, token));
            }
        }
    }
    best.truncate(text.len());
    best
}
