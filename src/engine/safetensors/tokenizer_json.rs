//! Vocabularies that only `tokenizer.json` has: the unigram model of XLM-RoBERTa, and the byte pairs of
//! ModernBERT.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::{bytes, corrupt, parse, unsupported};
use super::normalizers;
use super::vocabulary::{MAX_BYTES, MAX_TOKENS, VocabularyJson};
use crate::Error;
use crate::gguf::Translation;

/// Kinds of tokens, as GGUF has them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The part of `tokenizer.json` that is used.
#[derive(Deserialize)]
struct TokenizerFile<M> {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: M,
}

/// A token that is searched for in texts.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Tokens with the logarithms of their probabilities.
#[derive(Deserialize)]
struct UnigramJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    unk_id: Option<u32>,
    vocab: Vec<(String, f32)>,
}

/// Tokens by id, and the pairs that are merged, the first one first.
#[derive(Deserialize)]
struct BytePairs {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: VocabularyJson,
    merges: Vec<Merge>,
}

/// A merge, in one of the two forms that files have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

/// Translates the vocabulary of a unigram model ([Kudo 2018](https://arxiv.org/abs/1804.10959)).
///
/// # Errors
/// Errors of reading the file; [`Error::CorruptModel`] where its parts contradict each other,
/// [`Error::UnsupportedModel`] for another kind of tokenizer.
pub(super) fn unigram(folder: &Path, translation: &mut Translation) -> Result<(), Error> {
    let path = folder.join("tokenizer.json");
    let file: TokenizerFile<UnigramJson> = read(&path)?;
    is_of_kind(&path, file.model.kind.as_deref(), "Unigram")?;
    let count = file.model.vocab.len();
    bounded(&path, count)?;
    let unknown = file.model.unk_id.filter(|id| (*id as usize) < count);
    let unknown = unknown.ok_or_else(|| corrupt(&path, "it names no token for what is unknown"))?;
    let mut kinds = vec![NORMAL; count];
    added(&path, &file.added_tokens, &mut kinds)?;
    kinds[unknown as usize] = UNKNOWN;
    let id = |content: &str| {
        let at = file.model.vocab.iter().position(|(token, _)| token == content);
        at.map(|at| at as u32).ok_or_else(|| corrupt(&path, format!("it has no token \"{content}\"")))
    };
    translation.string("tokenizer.ggml.model", "t5");
    translation.strings("tokenizer.ggml.tokens", file.model.vocab.iter().map(|(token, _)| &**token));
    translation.f32s("tokenizer.ggml.scores", file.model.vocab.iter().map(|(_, score)| *score));
    translation.i32s("tokenizer.ggml.token_type", kinds.into_iter());
    translation.integer("tokenizer.ggml.unknown_token_id", unknown);
    ends(translation, id("<s>")?, id("</s>")?);
    translation.bool("tokenizer.ggml.add_space_prefix", true);
    translation.bool("tokenizer.ggml.remove_extra_whitespaces", true);
    let normalizers = normalizers::read(&path, &file.normalizer)?;
    normalizers.refuse_bert(&path)?;
    normalizers.write(translation);
    if let Some(map) = &normalizers.charsmap {
        translation.bytes("tokenizer.ggml.precompiled_charsmap", map);
    }
    Ok(())
}

/// Translates a vocabulary of byte pairs, pre-tokenized as in ModernBERT.
///
/// # Errors
/// As [`unigram`].
pub(super) fn byte_pairs(folder: &Path, translation: &mut Translation) -> Result<(), Error> {
    let path = folder.join("tokenizer.json");
    let file: TokenizerFile<BytePairs> = read(&path)?;
    is_of_kind(&path, file.model.kind.as_deref(), "BPE")?;
    let cut = file.pre_tokenizer.get("type").and_then(Value::as_str);
    if cut != Some("ByteLevel") {
        return Err(unsupported(&path, "its texts are not cut into bytes"));
    }
    let normalizers = normalizers::read(&path, &file.normalizer)?;
    normalizers.refuse_bert(&path)?;
    normalizers.refuse_charsmap(&path)?;
    normalizers.write(translation);
    let VocabularyJson(known) = file.model.vocab;
    let last = known.iter().map(|(id, _)| *id).chain(file.added_tokens.iter().map(|token| token.id)).max();
    let count = last.map_or(0, |last| last as usize + 1);
    bounded(&path, count)?;
    let mut tokens: Vec<Option<String>> = vec![None; count];
    let mut kinds = vec![UNUSED; count];
    for (id, token) in known {
        if tokens[id as usize].replace(token).is_some() {
            return Err(corrupt(&path, format!("two tokens have the number {id}")));
        }
        kinds[id as usize] = NORMAL;
    }
    for token in &file.added_tokens {
        tokens[token.id as usize] = Some(token.content.clone());
    }
    added(&path, &file.added_tokens, &mut kinds)?;
    let id = |content: &str| {
        let token = file.added_tokens.iter().find(|token| token.content == content);
        token.map(|token| token.id).ok_or_else(|| corrupt(&path, format!("it has no token \"{content}\"")))
    };
    let tokens: Vec<String> = tokens
        .into_iter()
        .zip(0..)
        .map(|(token, id)| token.unwrap_or_else(|| format!("[PAD{id}]")))
        .collect();
    let merges: Vec<String> = file
        .model
        .merges
        .into_iter()
        .map(|merge| match merge {
            Merge::Line(line) => line,
            Merge::Pair(left, right) => format!("{left} {right}"),
        })
        .collect();
    translation.string("tokenizer.ggml.model", "gpt2");
    translation.string("tokenizer.ggml.pre", "modern-bert");
    translation.strings("tokenizer.ggml.tokens", tokens.iter().map(|token| &**token));
    translation.i32s("tokenizer.ggml.token_type", kinds.into_iter());
    translation.strings("tokenizer.ggml.merges", merges.iter().map(|merge| &**merge));
    ends(translation, id("[CLS]")?, id("[SEP]")?);
    Ok(())
}

fn read<M: DeserializeOwned>(path: &Path) -> Result<TokenizerFile<M>, Error> {
    parse(path, &bytes(path, MAX_BYTES)?)
}

fn is_of_kind(path: &Path, kind: Option<&str>, wanted: &str) -> Result<(), Error> {
    match kind.filter(|kind| *kind != wanted) {
        None => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            let other = other.escape_debug();
            Err(unsupported(path, format!("its model is \"{other}\", only {wanted} is read for this family")))
        }
    }
}

fn bounded(path: &Path, count: usize) -> Result<(), Error> {
    match count {
        1..=MAX_TOKENS => Ok(()),
        _ => Err(corrupt(path, format!("it has {count} tokens, 1 to {MAX_TOKENS} are read"))),
    }
}

/// Sets the types of the tokens that are searched for; special ones are never part of a user's text.
fn added(path: &Path, tokens: &[Added], kinds: &mut [i32]) -> Result<(), Error> {
    for token in tokens {
        match kinds.get_mut(token.id as usize) {
            Some(kind) => *kind = if token.special { CONTROL } else { USER_DEFINED },
            None => return Err(corrupt(path, format!("token {} is beyond the vocabulary", token.id))),
        }
    }
    Ok(())
}

/// Adds the special tokens before and behind each text.
fn ends(translation: &mut Translation, first: u32, last: u32) {
    translation.integer("tokenizer.ggml.bos_token_id", first);
    translation.integer("tokenizer.ggml.eos_token_id", last);
    translation.bool("tokenizer.ggml.add_bos_token", true);
    translation.bool("tokenizer.ggml.add_eos_token", true);
}
