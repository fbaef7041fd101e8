//! The vocabulary of a GGUF file: the meaning of each token, and the special tokens.

use std::collections::{HashMap, HashSet};

use super::alphabet::{CharacterBytes, characters};
use super::bpe::Merges;
use crate::Error;
use crate::gguf::Gguf;

const TOKENS: &str = "tokenizer.ggml.tokens";
/// The character for a space where tokens are written as text.
pub(super) const SPACE: char = '▁';

/// Bounds far above any real vocabulary, which limit the tables that are built here.
const MAX_TOKENS: usize = 1 << 22;
const MAX_MERGES: usize = 1 << 22;
const MAX_TEXT_BYTES: usize = 1 << 28;
/// Most tokens that are searched for in text; they go into an automaton of many times their size.
const MAX_SPECIAL_TOKENS: usize = 1 << 14;
const MAX_SPECIAL_BYTES: usize = 1 << 20;

/// Names of tokens that end an answer whatever the metadata says, as in llama.cpp. Some files name only one
/// of several, or mark them as ordinary.
const END_NAMES: [&str; 33] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "</s>",
    "<eos>",
];
/// Keys that name tokens which end an answer.
const END_KEYS: [&str; 6] = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"];

/// Names of [`END_NAMES`] that end nothing in a vocabulary, because of other tokens in it.
fn ordinary_names(ids: &Ids<'_>) -> Vec<&'static str> {
    let has = |name: &str| ids.contains_key(name);
    let mut names = Vec::new();
    // The model continues in another channel behind this token.
    if has("<|call|>") && has("<|return|>") || (has("<|call|>") || has("<|calls|>")) && has("<|flush|>") {
        names.push("<|end|>");
    }
    if has("<|tool_response>") || has("<|plamo:eos|>") {
        names.push("</s>");
    }
    names
}

/// The control tokens of BERT.
const BERT_NAMES: [&str; 5] = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"];

/// The purpose of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenRole {
    /// Part of text.
    Text,
    /// A single byte of text for which there is no other token (`<0xFF>`).
    Byte,
    /// Text that is always one token, also in a user's text (`<think>`).
    UserDefined,
    /// Steers the model; never part of a user's text, never shown.
    Control,
    /// Without a use.
    Unused,
}

/// All tokens of a file.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// The bytes of all tokens, one after the other.
    arena: Vec<u8>,
    /// The end of each token in these bytes.
    ends: Vec<u32>,
    roles: Vec<TokenRole>,
    /// Texts of control and user-defined tokens.
    pub(super) special: HashMap<u32, Box<str>>,
    /// Tokens that end an answer, ascending.
    pub(super) end_tokens: Vec<u32>,
}

/// The form in which a file writes the tokens of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte as a character of GPT-2's alphabet.
    Alphabet,
    /// As text with `▁` for spaces; single bytes as `<0xFF>`.
    Plain,
    /// As [`Spelling::Plain`], with the control tokens of BERT, which files of old converters mark as
    /// ordinary.
    WordPiece,
}

/// The tokens of a file by their text.
pub(super) type Ids<'a> = HashMap<&'a str, u32>;

/// Reads the tokens; those that `built` names are made by merges, so they are text even if they look like
/// control tokens.
pub(super) fn read<'a>(
    gguf: &Gguf,
    ids: &Ids<'a>,
    spelling: Spelling,
    built: &HashSet<u32>,
) -> Result<Vocabulary, Error> {
    let tokens = gguf.strings(TOKENS)?;
    let count = tokens.len();
    let types: Vec<i32> = match gguf.opt_i32s("tokenizer.ggml.token_type")? {
        Some(types) if types.len() == count => types.collect(),
        Some(types) => {
            return Err(gguf.corrupt(format!(
                "key \"tokenizer.ggml.token_type\" has {} elements for {count} tokens",
                types.len()
            )));
        }
        None => vec![1; count],
    };
    let mut vocabulary = Vocabulary {
        arena: Vec::new(),
        ends: Vec::with_capacity(count),
        roles: Vec::with_capacity(count),
        special: HashMap::new(),
        end_tokens: Vec::new(),
    };
    let alphabet = CharacterBytes::new();
    let ordinary = ordinary_names(ids);
    for (id, (token, token_type)) in tokens.zip(types).enumerate() {
        // Neither kind is a control token, even if it looks like one.
        let is_text = built.contains(&(id as u32)) || ordinary.contains(&token);
        let role = role(gguf, id, token, token_type, spelling, is_text)?;
        vocabulary.push(id as u32, token, role, spelling, &alphabet);
    }
    let special_bytes: usize = vocabulary.special.values().map(|text| text.len()).sum();
    if vocabulary.special.len() > MAX_SPECIAL_TOKENS || special_bytes > MAX_SPECIAL_BYTES {
        return Err(gguf.unsupported(format!(
            "{} control and user-defined tokens of {special_bytes} bytes, at most {MAX_SPECIAL_TOKENS} of \
             {MAX_SPECIAL_BYTES} bytes are read",
            vocabulary.special.len()
        )));
    }
    vocabulary.end_tokens = end_tokens(gguf, ids, &ordinary, &vocabulary)?;
    Ok(vocabulary)
}

/// The tokens by their text, which are bounded and differ.
///
/// # Errors
/// [`Error::CorruptModel`] where they are not.
pub(super) fn ids(gguf: &Gguf) -> Result<Ids<'_>, Error> {
    let tokens = gguf.strings(TOKENS)?;
    let count = tokens.len();
    if count == 0 || count > MAX_TOKENS {
        return Err(
            gguf.corrupt(format!("key \"{TOKENS}\" has {count} elements, 1 to {MAX_TOKENS} are allowed"))
        );
    }
    let text_bytes: usize = tokens.clone().map(str::len).sum();
    if text_bytes > MAX_TEXT_BYTES {
        return Err(gguf.corrupt(format!(
            "key \"{TOKENS}\" has {text_bytes} bytes of text, at most {MAX_TEXT_BYTES} are allowed"
        )));
    }
    let mut ids: Ids<'_> = HashMap::with_capacity(count);
    for (id, token) in tokens.enumerate() {
        if let Some(first) = ids.insert(token, id as u32)
            && !token.is_empty()
        {
            return Err(gguf.corrupt(format!("tokens {first} and {id} are the same")));
        }
    }
    ids.remove("");
    Ok(ids)
}

/// The token that writes each byte in GPT-2's alphabet.
pub(super) fn alphabet(ids: &Ids<'_>) -> [Option<u32>; 256] {
    let mut buffer = [0; 4];
    characters().map(|character| ids.get(&*character.encode_utf8(&mut buffer)).copied())
}

/// The token of each byte where bytes are written as `<0xFF>`.
pub(super) fn byte_tokens(ids: &Ids<'_>) -> [Option<u32>; 256] {
    std::array::from_fn(|byte| ids.get(format!("<0x{byte:02X}>").as_str()).copied())
}

/// The byte that is written as `<0xFF>`.
fn written_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2 && !digits.starts_with('+'))
}

/// The role of a token by its type in the file, and by its name: some files mark control tokens as ordinary
/// or user-defined, and a user's text must not be able to contain them. The name does not count for a token
/// that `is_text`, because it is built by merges, as `</s>` is in vocabularies made from HTML, or ends
/// nothing in this vocabulary.
fn role(
    gguf: &Gguf,
    id: usize,
    token: &str,
    token_type: i32,
    spelling: Spelling,
    is_text: bool,
) -> Result<TokenRole, Error> {
    let named = (token.starts_with("<|") && token.ends_with("|>") && token.len() > 4)
        || (token.starts_with("<｜") && token.ends_with("｜>"))
        || END_NAMES.contains(&token)
        || (spelling == Spelling::WordPiece && BERT_NAMES.contains(&token));
    // Gemma 4 writes the beginning and the end of something as `<|x>` and `<x|>`.
    let half = (token.starts_with("<|") && token.ends_with('>'))
        || (token.starts_with('<') && token.ends_with("|>"));
    Ok(match token_type {
        1 if named && !is_text => TokenRole::Control,
        4 if (named || half) && !is_text => TokenRole::Control,
        6 if spelling != Spelling::Alphabet && written_byte(token).is_some() => TokenRole::Byte,
        1 | 6 => TokenRole::Text,
        2 | 3 => TokenRole::Control,
        4 => TokenRole::UserDefined,
        5 => TokenRole::Unused,
        other => {
            return Err(gguf.corrupt(format!(
                "element {id} of key \"tokenizer.ggml.token_type\" is {other}, not a token type"
            )));
        }
    })
}

/// The score of each token, the logarithm of its probability.
///
/// # Errors
/// [`Error::CorruptModel`] where there are too few or one is no finite number.
pub(super) fn scores(gguf: &Gguf, count: usize) -> Result<Vec<f32>, Error> {
    const KEY: &str = "tokenizer.ggml.scores";
    let Some(scores) = gguf.opt_f32s(KEY)? else { return Ok(vec![0.0; count]) };
    if scores.len() != count {
        return Err(gguf.corrupt(format!("key \"{KEY}\" has {} elements for {count} tokens", scores.len())));
    }
    // Negative zero is less than zero in a total order, but not in llama.cpp.
    let scores: Vec<f32> = scores.map(|score| score + 0.0).collect();
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(gguf.corrupt(format!("element {id} of key \"{KEY}\" is not a finite number"))),
        None => Ok(scores),
    }
}

fn end_tokens(
    gguf: &Gguf,
    ids: &Ids<'_>,
    ordinary: &[&str],
    vocabulary: &Vocabulary,
) -> Result<Vec<u32>, Error> {
    let named = END_NAMES.iter().filter_map(|name| ids.get(name).copied());
    let mut ends: Vec<u32> = named.filter(|id| vocabulary.role(*id) == Some(TokenRole::Control)).collect();
    for key in END_KEYS {
        ends.extend(token_id(gguf, &format!("tokenizer.ggml.{key}_token_id"), vocabulary.len())?);
    }
    // Whatever the metadata say, as in llama.cpp.
    ends.retain(|id| !ordinary.iter().any(|name| ids.get(name) == Some(id)));
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// The type of a token in the file.
///
/// # Errors
/// [`Error::CorruptModel`] where the types are no numbers.
pub(super) fn token_type(gguf: &Gguf, id: u32) -> Result<Option<i32>, Error> {
    Ok(gguf.opt_i32s("tokenizer.ggml.token_type")?.and_then(|mut types| types.nth(id as usize)))
}

/// The token that a key names. Some writers write a number with all bits set for none.
pub(super) fn token_id(gguf: &Gguf, key: &str, count: usize) -> Result<Option<u32>, Error> {
    match gguf.opt_u32(key)? {
        None | Some(u32::MAX) => Ok(None),
        Some(id) if (id as usize) < count => Ok(Some(id)),
        Some(id) => Err(gguf.corrupt(format!("key \"{key}\" is {id}, there are {count} tokens"))),
    }
}

/// Merges by the ids of their parts; their rank is their place in the list.
///
/// # Errors
/// [`Error::CorruptModel`] where they are no pairs, or name tokens that are missing.
pub(super) fn merges(gguf: &Gguf, ids: &Ids<'_>) -> Result<Merges, Error> {
    const KEY: &str = "tokenizer.ggml.merges";
    let lines = gguf.strings(KEY)?;
    if lines.len() > MAX_MERGES {
        return Err(gguf.corrupt(format!(
            "key \"{KEY}\" has {} elements, at most {MAX_MERGES} are allowed",
            lines.len()
        )));
    }
    let mut merges = HashMap::with_capacity(lines.len());
    let mut joined = String::new();
    for (rank, line) in lines.enumerate() {
        // The first character may be a space that belongs to the left part.
        let space = line.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let parts = space.and_then(|(at, _)| Some((line.get(..at)?, line.get(at + 1..)?)));
        let Some((left, right)) = parts else {
            return Err(gguf.corrupt(format!("element {rank} of key \"{KEY}\" is not a pair")));
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let (Some(left), Some(right), Some(merged)) =
            (ids.get(left), ids.get(right), ids.get(joined.as_str()))
        else {
            return Err(
                gguf.corrupt(format!("element {rank} of key \"{KEY}\" names a token that is missing"))
            );
        };
        // The first of equals wins, as in llama.cpp.
        merges.entry((*left, *right)).or_insert((rank as u32, *merged));
    }
    Ok(merges)
}

impl Vocabulary {
    fn push(&mut self, id: u32, token: &str, role: TokenRole, spelling: Spelling, alphabet: &CharacterBytes) {
        match (role, spelling) {
            (TokenRole::Text, Spelling::Alphabet) => {
                // A token with a character outside the alphabet must have been meant as plain text.
                let start = self.arena.len();
                for character in token.chars() {
                    match alphabet.byte(character) {
                        Some(byte) => self.arena.push(byte),
                        None => {
                            self.arena.truncate(start);
                            self.arena.extend_from_slice(token.as_bytes());
                            break;
                        }
                    }
                }
            }
            (TokenRole::Text, Spelling::Plain | Spelling::WordPiece) => {
                let mut parts = token.split(SPACE);
                self.arena.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
                for part in parts {
                    self.arena.push(b' ');
                    self.arena.extend_from_slice(part.as_bytes());
                }
            }
            (TokenRole::Byte, _) => self.arena.extend(written_byte(token)),
            (TokenRole::UserDefined, _) => self.arena.extend_from_slice(token.as_bytes()),
            (TokenRole::Control | TokenRole::Unused, _) => {}
        }
        if matches!(role, TokenRole::Control | TokenRole::UserDefined) && !token.is_empty() {
            self.special.insert(id, token.into());
        }
        self.ends.push(self.arena.len() as u32);
        self.roles.push(role);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn role(&self, id: u32) -> Option<TokenRole> {
        self.roles.get(id as usize).copied()
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        self.role(id) == Some(TokenRole::Control)
    }

    /// Whether text can become this token without a search for special tokens.
    pub(super) fn is_text(&self, id: u32) -> bool {
        matches!(self.role(id), Some(TokenRole::Text | TokenRole::UserDefined))
    }

    /// Whether it is an ordinary part of text.
    pub(super) fn is_ordinary(&self, id: u32) -> bool {
        self.role(id) == Some(TokenRole::Text)
    }

    /// The bytes that the token adds to the output.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = match id.checked_sub(1) {
            None => Some(0),
            Some(before) => self.ends.get(before).copied(),
        };
        let range = start.zip(self.ends.get(id)).map(|(start, end)| start as usize..*end as usize);
        range.and_then(|range| self.arena.get(range)).unwrap_or_default()
    }

    /// Ordinary tokens in the order of their bytes, to look up words that are tokens.
    pub(super) fn sorted(&self) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..self.len() as u32)
            .filter(|id| self.role(*id) == Some(TokenRole::Text) && !self.bytes(*id).is_empty())
            .collect();
        sorted.sort_unstable_by(|a, b| self.bytes(*a).cmp(self.bytes(*b)).then(a.cmp(b)));
        sorted
    }
}
