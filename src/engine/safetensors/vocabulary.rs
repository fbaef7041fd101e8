//! The vocabulary of a folder: `vocab.txt`, or else `tokenizer.json`.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::json::{bytes, corrupt, optional, parse, unsupported};
use crate::Error;
use crate::gguf::Translation;

/// Most bytes of a vocabulary; those of many languages have a few millions.
pub(super) const MAX_BYTES: u64 = 64 << 20;
pub(super) const MAX_TOKENS: usize = 1 << 20;
/// What the tokens for the model itself are called.
const CONTROL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// What `tokenizer_config.json` says of cleaning.
#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
}

/// `tokenizer.json`, as far as it is of use.
#[derive(Deserialize)]
struct Tokenizer {
    normalizer: Option<Normalizer>,
    model: Model,
}

/// How text is cleaned.
#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: String,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    handle_chinese_chars: Option<bool>,
}

/// Tokens with their ids.
#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
}

/// Tokens by id.
pub(super) struct Vocabulary(pub(super) Vec<(u32, String)>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;

        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens with their numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = Vec::new();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if tokens.len() == MAX_TOKENS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TOKENS} tokens")));
                    }
                    tokens.push((id, token));
                }
                tokens.sort_unstable();
                Ok(Vocabulary(tokens))
            }
        }

        deserializer.deserialize_map(Tokens)
    }
}

/// How a text is cleaned; None where it follows from the rest.
struct Cleaning {
    lower_case: Option<bool>,
    strip_accents: Option<bool>,
    split_chinese: Option<bool>,
}

/// Tells the tokens and how text is cleaned.
///
/// # Errors
/// Those of reading the files; [`Error::CorruptModel`] where tokens are missing.
pub(super) fn read(folder: &Path, translation: &mut Translation) -> Result<(), Error> {
    let path = folder.join("vocab.txt");
    let (tokens, cleaning) = if path.exists() {
        let config: TokenizerConfig = optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let cleaning = Cleaning {
            lower_case: config.do_lower_case,
            strip_accents: config.strip_accents,
            split_chinese: config.tokenize_chinese_chars,
        };
        (lines(&path)?, cleaning)
    } else {
        of_tokenizer(&folder.join("tokenizer.json"))?
    };
    translation.string("tokenizer.ggml.model", "bert");
    translation.i32s(
        "tokenizer.ggml.token_type",
        tokens.iter().map(|token| if CONTROL.contains(&&**token) { 3 } else { 1 }),
    );
    let words: Vec<String> = tokens.iter().map(|token| told(token)).collect();
    translation.strings("tokenizer.ggml.tokens", words.iter().map(|word| &**word));
    for (name, value) in [
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

/// A token as GGUF has it: marked where it begins a word, and not where it continues one.
fn told(token: &str) -> String {
    match token.strip_prefix("##") {
        _ if CONTROL.contains(&token) => token.to_owned(),
        Some(continuation) => continuation.to_owned(),
        None => format!("▁{token}"),
    }
}

/// A token a line.
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

fn of_tokenizer(path: &Path) -> Result<(Vec<String>, Cleaning), Error> {
    let tokenizer: Tokenizer = parse(path, &bytes(path, MAX_BYTES)?)?;
    let shown = |text: &str| text.chars().take(64).collect::<String>().escape_debug().to_string();
    if let Some(kind) = tokenizer.model.kind.as_deref().filter(|kind| *kind != "WordPiece") {
        return Err(unsupported(path, format!("its model is \"{}\", only WordPiece is read", shown(kind))));
    }
    let cleaning = match tokenizer.normalizer {
        Some(normalizer) if normalizer.kind == "BertNormalizer" => Cleaning {
            lower_case: normalizer.lowercase,
            strip_accents: normalizer.strip_accents,
            split_chinese: normalizer.handle_chinese_chars,
        },
        Some(other) => {
            let kind = shown(&other.kind);
            return Err(unsupported(path, format!("its normalizer is \"{kind}\", not \"BertNormalizer\"")));
        }
        None => Cleaning { lower_case: Some(false), strip_accents: Some(false), split_chinese: Some(false) },
    };
    let Vocabulary(tokens) = tokenizer.model.vocab;
    for (index, (id, _)) in tokens.iter().enumerate() {
        if *id as usize != index {
            return Err(corrupt(path, format!("its vocabulary has no token {index}, or two of them")));
        }
    }
    Ok((tokens.into_iter().map(|(_, token)| token).collect(), cleaning))
}
