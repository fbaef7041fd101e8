//! The vocabulary of a folder: `vocab.txt`, or else `tokenizer.json`.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::json::{bytes, corrupt, is_there, optional, parse, unsupported};
use super::normalizers::{self, BertNormalizer};
use crate::Error;
use crate::gguf::Translation;

/// Most bytes of a vocabulary; those of many languages have a few millions.
pub(super) const MAX_BYTES: u64 = 64 << 20;
pub(super) const MAX_TOKENS: usize = 1 << 20;
/// Names of control tokens.
const CONTROL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// The settings for cleaning in `tokenizer_config.json`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
}

/// The part of `tokenizer.json` that is used.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    normalizer: Value,
    model: ModelJson,
}

/// The part of it with the normalizer.
#[derive(Deserialize)]
struct Normalized {
    #[serde(default)]
    normalizer: Value,
}

/// Tokens with their ids.
#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: VocabularyJson,
}

/// Tokens by id.
pub(super) struct VocabularyJson(pub(super) Vec<(u32, String)>);

impl<'de> Deserialize<'de> for VocabularyJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokensVisitor;

        impl<'de> Visitor<'de> for TokensVisitor {
            type Value = VocabularyJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with their numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabularyJson, A::Error> {
                let mut tokens = Vec::new();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if tokens.len() == MAX_TOKENS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TOKENS} tokens")));
                    }
                    tokens.push((id, token));
                }
                tokens.sort_unstable();
                Ok(VocabularyJson(tokens))
            }
        }

        deserializer.deserialize_map(TokensVisitor)
    }
}

/// The cleaning of texts; None where a setting follows from the others.
#[derive(Default)]
struct CleaningJson {
    clean_text: Option<bool>,
    lower_case: Option<bool>,
    strip_accents: Option<bool>,
    split_chinese: Option<bool>,
}

/// Translates the tokens and the cleaning of texts.
///
/// # Errors
/// Errors of reading the files; [`Error::CorruptModel`] where tokens are missing.
pub(super) fn read(folder: &Path, translation: &mut Translation) -> Result<(), Error> {
    let path = folder.join("vocab.txt");
    let (tokens, cleaning) = if is_there(&path)? && !has_other_normalizer(folder)? {
        let config: TokenizerConfig = optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let cleaning = CleaningJson {
            lower_case: config.do_lower_case,
            strip_accents: config.strip_accents,
            split_chinese: config.tokenize_chinese_chars,
            ..CleaningJson::default()
        };
        (lines(&path)?, cleaning)
    } else {
        of_tokenizer(&folder.join("tokenizer.json"), translation)?
    };
    translation.string("tokenizer.ggml.model", "bert");
    translation.i32s(
        "tokenizer.ggml.token_type",
        tokens.iter().map(|token| if CONTROL.contains(&&**token) { 3 } else { 1 }),
    );
    let words: Vec<String> = tokens.iter().map(|token| as_in_gguf(token)).collect();
    translation.strings("tokenizer.ggml.tokens", words.iter().map(|word| &**word));
    for (name, value) in [
        ("clean_text", cleaning.clean_text),
        ("lower_case", cleaning.lower_case),
        ("strip_accents", cleaning.strip_accents),
        ("split_chinese", cleaning.split_chinese),
    ] {
        if let Some(value) = value {
            translation.bool(&format!("steadytext.tokenizer.{name}"), value);
        }
    }
    Ok(())
}

/// Whether `tokenizer.json`, where there is one, cleans texts in a way that the other files do not mention.
fn has_other_normalizer(folder: &Path) -> Result<bool, Error> {
    let path = folder.join("tokenizer.json");
    if !is_there(&path)? {
        return Ok(false);
    }
    let Normalized { normalizer } = parse(&path, &bytes(&path, MAX_BYTES)?)?;
    let kind = normalizer.get("type").and_then(Value::as_str);
    Ok(kind.is_some_and(|kind| kind != "BertNormalizer"))
}

/// A token in GGUF's form: marked where it begins a word, not where it continues one.
fn as_in_gguf(token: &str) -> String {
    match token.strip_prefix("##") {
        _ if CONTROL.contains(&token) => token.to_owned(),
        Some(continuation) => continuation.to_owned(),
        None => format!("▁{token}"),
    }
}

/// The lines of a file, each of which is a token.
fn lines(path: &Path) -> Result<Vec<String>, Error> {
    let bytes = bytes(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| corrupt(path, "it is not valid UTF-8"))?;
    let tokens: Vec<String> =
        text.split_terminator('\n').map(|line| line.trim_end_matches('\r').to_owned()).collect();
    if tokens.len() > MAX_TOKENS {
        return Err(corrupt(path, format!("it has {} tokens, at most {MAX_TOKENS} are read", tokens.len())));
    }
    Ok(tokens)
}

fn of_tokenizer(path: &Path, translation: &mut Translation) -> Result<(Vec<String>, CleaningJson), Error> {
    let tokenizer: TokenizerJson = parse(path, &bytes(path, MAX_BYTES)?)?;
    let shown = |text: &str| text.chars().take(64).collect::<String>().escape_debug().to_string();
    if let Some(kind) = tokenizer.model.kind.as_deref().filter(|kind| *kind != "WordPiece") {
        return Err(unsupported(path, format!("its model is \"{}\", only WordPiece is read", shown(kind))));
    }
    let normalizers = normalizers::read(path, &tokenizer.normalizer)?;
    normalizers.refuse_charsmap(path)?;
    normalizers.write(translation);
    let bert = normalizers.bert.unwrap_or(BertNormalizer::NOTHING);
    let cleaning = CleaningJson {
        clean_text: Some(bert.clean_text),
        lower_case: Some(bert.lowercase),
        strip_accents: bert.strip_accents,
        split_chinese: Some(bert.handle_chinese_chars),
    };
    let VocabularyJson(tokens) = tokenizer.model.vocab;
    for (index, (id, _)) in tokens.iter().enumerate() {
        if *id as usize != index {
            return Err(corrupt(path, format!("its vocabulary has no token {index}, or two of them")));
        }
    }
    Ok((tokens.into_iter().map(|(_, token)| token).collect(), cleaning))
}
