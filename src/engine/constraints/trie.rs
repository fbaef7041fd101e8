//! The tokens of a model as tries of their bytes: in llguidance's form, and our own.

use std::sync::Arc;

use toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::tree::Tree;
use crate::Error;
use crate::tokenizer::Tokenizer;

/// Longest token of the trie in bytes, which has ten bits for a length. Longer tokens are never part of an
/// answer.
const MAX_TOKEN_BYTES: usize = 1000;
/// Bits of a token's number in the trie.
const MAX_TOKENS: usize = 1 << 24;

/// A tokenizer with the trie of its tokens.
struct Environment {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

/// llguidance's trie has as many rows as the head, so that masks are as long as logits. Rows without a token
/// are empty: they are never allowed. The tree has the words that are text.
///
/// # Errors
/// [`Error::InvalidRequest`] where the vocabulary cannot be used for constraints.
pub(super) fn environment(tokenizer: &Arc<Tokenizer>, rows: usize) -> Result<(TokEnv, Tree), Error> {
    assert!(tokenizer.vocab_size() <= rows, "more tokens than rows of the head");
    if rows > MAX_TOKENS {
        return Err(Error::InvalidRequest(format!("the model has more than {MAX_TOKENS} tokens")));
    }
    let words: Vec<Vec<u8>> = (0..rows as u32).map(|id| word(tokenizer, id)).collect();
    let ends = tokenizer.end_tokens();
    let info = TokRxInfo::new(rows as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(ends);
    }
    assert!(trie.vocab_size() == rows, "the trie has other rows than the head");
    let texts = (0..).zip(&words).filter(|(_, word)| word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER));
    let tree = Tree::new(texts.map(|(id, word)| (id, &word[..])));
    Ok((Arc::new(Environment { tokenizer: Arc::clone(tokenizer), trie }), tree))
}

/// The word of a token in the trie: control tokens begin with a byte that no text has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let word = if tokenizer.is_control(id) {
        let name = tokenizer.special_text(id).unwrap_or_default();
        [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
    } else {
        tokenizer.token_bytes(id).to_vec()
    };
    if word.len() > MAX_TOKEN_BYTES { Vec::new() } else { word }
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.tokenizer.encode_bytes(bytes)
    }
}
