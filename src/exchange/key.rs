//! Keys in the forms of SteadyText's cache files.
//!
//! | | generation | embedding |
//! |---|---|---|
//! | the key itself | `prompt` or `prompt::EOS::text` | the tuple of the texts |
//! | SteadyText 1.0, 1.1 | as it is | Python's repr of the tuple: `('text',)` |
//! | later | Base64 of it | Base64 of each text, joined by `::` |
//!
//! steadytext_cache has the generation's key as it is, and the hexadecimal SHA-256 of `embed:text` for an
//! embedding, which a file may hold as well. Which way of writing a file uses is found out by looking at all
//! of its keys, as a prompt may look like Base64; a file that an old version began and a new one went on with
//! holds both ([`Coding::is_base64`]).
//!
//! Keys of requests that steadytext_cache's default keys do not stand for are refused: temperatures,
//! embeddings of several texts at once, and those of later models (SteadyText 2025) with a model and a mode
//! (query, passage) before the text.

use sha2::{Digest, Sha256};

use crate::base64;

const EOS: &str = "::EOS::";
const TEMPERATURE: &str = "::TEMP::";
const SEPARATOR: &str = "::";
/// Beginning of keys that stand for requests with other parameters.
const LONG_PREFIX: &str = "steadytext/1:";

/// The form of the keys of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Keys as they are.
    Plain,
    /// Keys in Base64.
    Base64,
}

/// The request that an entry answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A generation with default parameters.
    Generation {
        /// Its prompt.
        prompt: String,
        /// The string at which it stops, other than at the model's own end.
        eos_string: Option<String>,
    },
    /// An embedding with default parameters.
    Embedding {
        /// Hexadecimal SHA-256 of `embed:text`.
        digest: String,
        /// The text, where the file tells it.
        text: Option<String>,
    },
}

/// The reason why a key was refused. It is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Empty, with a zero character, or not as the file writes its keys.
    #[error("the key is empty or cannot be read")]
    Unreadable,
    /// `::TEMP::`.
    #[error("the key is of a generation with a temperature")]
    Temperature,
    /// More than one `::EOS::`.
    #[error("the key does not tell where the prompt ends")]
    Ambiguous,
    /// The key looks like one of another kind.
    #[error("the key is a checksum, but the value is a text")]
    Checksum,
    /// Neither a SHA-256 nor the tuple of one text.
    #[error("the key is not of the embedding of one text")]
    NotOneText,
    /// A query or a passage.
    #[error("the key is of an embedding with a mode, which is of another model")]
    Mode,
}

impl Coding {
    /// Whether a key can be written in Base64. Where most keys of a file can, those are.
    pub fn is_base64(key: &str) -> bool {
        !key.is_empty() && key.split(SEPARATOR).all(|part| decode(part).is_some())
    }

    /// The key of a generated text.
    ///
    /// # Errors
    ///
    /// It stands for no request with default parameters.
    pub fn generation(self, key: &str) -> Result<Key, Error> {
        let key = match self {
            Coding::Plain => key.to_owned(),
            Coding::Base64 => decode(key).ok_or(Error::Unreadable)?,
        };
        if key.trim().is_empty() || key.contains('\0') {
            return Err(Error::Unreadable);
        }
        if is_digest(&key) || key.starts_with(LONG_PREFIX) {
            return Err(Error::Checksum);
        }
        if let Some((_, temperature)) = key.rsplit_once(TEMPERATURE)
            && temperature.parse::<f64>().is_ok()
        {
            return Err(Error::Temperature);
        }
        match key.split_once(EOS) {
            None => Ok(Key::Generation { prompt: key, eos_string: None }),
            Some((_, eos_string)) if eos_string.contains(EOS) => Err(Error::Ambiguous),
            Some((prompt, eos_string)) if prompt.trim().is_empty() || eos_string.is_empty() => {
                Err(Error::Unreadable)
            }
            Some((prompt, eos_string)) => {
                Ok(Key::Generation { prompt: prompt.to_owned(), eos_string: Some(eos_string.to_owned()) })
            }
        }
    }

    /// The key of a vector.
    ///
    /// # Errors
    ///
    /// It stands for no request with default parameters.
    pub fn embedding(self, key: &str) -> Result<Key, Error> {
        if is_digest(key) {
            return Ok(Key::Embedding { digest: key.to_owned(), text: None });
        }
        let texts = match self {
            Coding::Plain => tuple(key).ok_or(Error::NotOneText)?,
            Coding::Base64 => {
                key.split(SEPARATOR).map(decode).collect::<Option<_>>().ok_or(Error::Unreadable)?
            }
        };
        match <[String; 1]>::try_from(texts) {
            Ok([digest]) if is_digest(&digest) => Ok(Key::Embedding { digest, text: None }),
            Ok([text]) if text.trim().is_empty() || text.contains('\0') => Err(Error::Unreadable),
            Ok([text]) => Ok(Key::Embedding { digest: digest(&text), text: Some(text) }),
            Err(texts) if texts.iter().take(2).any(|text| text == "query" || text == "passage") => {
                Err(Error::Mode)
            }
            Err(_) => Err(Error::NotOneText),
        }
    }

    /// The key in a file of this coding.
    pub fn write(self, key: &Key) -> String {
        match (self, key) {
            (Coding::Plain, Key::Embedding { digest, text: None }) => digest.clone(),
            (Coding::Base64, Key::Embedding { digest, text: None }) => base64::encode(digest.as_bytes()),
            (Coding::Plain, Key::Embedding { text: Some(text), .. }) => format!("({},)", quoted(text)),
            (Coding::Base64, Key::Embedding { text: Some(text), .. }) => base64::encode(text.as_bytes()),
            (Coding::Plain, Key::Generation { .. }) => key.cache_key(),
            (Coding::Base64, Key::Generation { .. }) => base64::encode(key.cache_key().as_bytes()),
        }
    }
}

impl Key {
    /// The key of an entry of steadytext_cache. `None` if it stands for a request with other than default
    /// parameters.
    pub fn of_entry(
        cache_key: &str,
        is_embedding: bool,
        text: &str,
        eos_string: Option<&str>,
    ) -> Option<Key> {
        let key = if !is_embedding {
            Key::Generation { prompt: text.to_owned(), eos_string: eos_string.map(str::to_owned) }
        } else if digest(text) == cache_key {
            Key::Embedding { digest: cache_key.to_owned(), text: Some(text.to_owned()) }
        } else if is_digest(cache_key) {
            Key::Embedding { digest: cache_key.to_owned(), text: None }
        } else {
            return None;
        };
        (key.cache_key() == cache_key).then_some(key)
    }

    /// The key in the form of steadytext_cache.cache_key.
    pub fn cache_key(&self) -> String {
        match self {
            Key::Generation { prompt, eos_string: None } => prompt.clone(),
            Key::Generation { prompt, eos_string: Some(eos_string) } => format!("{prompt}{EOS}{eos_string}"),
            Key::Embedding { digest, .. } => digest.clone(),
        }
    }
}

/// Hexadecimal SHA-256 of `embed:text`.
fn digest(text: &str) -> String {
    Sha256::new().chain_update(b"embed:").chain_update(text).finalize().iter().fold(
        String::with_capacity(64),
        |mut digits, byte| {
            for half in [byte >> 4, byte & 15] {
                digits.push(char::from_digit(half.into(), 16).unwrap_or('0'));
            }
            digits
        },
    )
}

pub(crate) fn is_digest(key: &str) -> bool {
    key.len() == 64 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn decode(part: &str) -> Option<String> {
    String::from_utf8(base64::decode(part)?).ok()
}

/// The strings of a tuple in Python's repr.
fn tuple(repr: &str) -> Option<Vec<String>> {
    let mut rest = repr.strip_prefix('(')?;
    let mut texts = Vec::new();
    loop {
        let (text, after) = string(rest)?;
        texts.push(text);
        match after {
            ",)" if texts.len() == 1 => return Some(texts),
            ")" if texts.len() > 1 => return Some(texts),
            _ => rest = after.strip_prefix(", ")?,
        }
    }
}

/// The string literal at the beginning of `rest`, and what comes after it.
fn string(rest: &str) -> Option<(String, &str)> {
    let quote = rest.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let mut text = String::new();
    let mut chars = rest[1..].char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => text.push(match chars.next()?.1 {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                plain @ ('\\' | '\'' | '"') => plain,
                letter @ ('x' | 'u' | 'U') => {
                    let length = match letter {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let code = (0..length).try_fold(0, |code: u32, _| {
                        Some(code.checked_mul(16)? + chars.next()?.1.to_digit(16)?)
                    });
                    char::from_u32(code?)?
                }
                _ => return None,
            }),
            _ if char == quote => return Some((text, &rest[1 + at + 1..])),
            _ => text.push(char),
        }
    }
    None
}

/// Quotes a string as Python's repr does.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut literal = String::from(quote);
    for char in text.chars() {
        match char {
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            '\\' => literal.push_str("\\\\"),
            _ if char == quote => literal.extend(['\\', quote]),
            _ if (char as u32) < 0x20 || (0x7f..0xa1).contains(&(char as u32)) || char == '\u{ad}' => {
                literal.push_str(&format!("\\x{:02x}", char as u32));
            }
            _ => literal.push(char),
        }
    }
    literal.push(quote);
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(prompt: &str, eos_string: Option<&str>) -> Key {
        Key::Generation { prompt: prompt.into(), eos_string: eos_string.map(Into::into) }
    }

    fn embedding(text: &str) -> Key {
        Key::Embedding { digest: digest(text), text: Some(text.into()) }
    }

    #[test]
    fn the_digest_is_that_of_the_predecessor() {
        // sha256sum of embed:hello
        assert_eq!(digest("hello"), "6a28dd5a2df008b607f4cc2f985e93c32e490c0666ae0a0e73a4b6784860ef32");
    }

    #[test]
    fn every_key_is_read_as_it_was_written() {
        for coding in [Coding::Plain, Coding::Base64] {
            for (prompt, eos_string) in
                [("What is a tuple?", None), ("a\nb", Some("\n\n")), ("ä::b", Some("END"))]
            {
                let key = generation(prompt, eos_string);
                assert_eq!(coding.generation(&coding.write(&key)), Ok(key));
            }
            for text in ["hello", "it's", "a \"b\"", "'\"", "back\\slash\tä\u{1}\u{a0}€😀", "a::b"] {
                let key = embedding(text);
                assert_eq!(coding.embedding(&coding.write(&key)), Ok(key.clone()));
                let hex = digest(text);
                assert_eq!(coding.embedding(&hex), Ok(Key::Embedding { digest: hex.clone(), text: None }));
                assert_eq!(key.cache_key(), hex);
                let untold = Key::Embedding { digest: hex, text: None };
                assert_eq!(coding.embedding(&coding.write(&untold)), Ok(untold));
            }
        }
    }

    #[test]
    fn keys_of_other_requests_are_refused() {
        let b64 = |text: &str| base64::encode(text.as_bytes());
        assert_eq!(Coding::Plain.generation("x::TEMP::0.7"), Err(Error::Temperature));
        assert_eq!(Coding::Plain.generation("x::EOS::y::TEMP::1e-05"), Err(Error::Temperature));
        assert_eq!(Coding::Base64.generation(&b64("x::TEMP::0.7")), Err(Error::Temperature));
        assert_eq!(Coding::Plain.generation("x::EOS::y::EOS::z"), Err(Error::Ambiguous));
        for key in ["", "  ", "::EOS::y", "x::EOS::", "x\0y"] {
            assert_eq!(Coding::Plain.generation(key), Err(Error::Unreadable), "{key:?}");
        }
        assert_eq!(Coding::Base64.generation("not base64"), Err(Error::Unreadable));
        assert_eq!(Coding::Plain.embedding("hello"), Err(Error::NotOneText));
        assert_eq!(Coding::Plain.embedding("('a', 'b')"), Err(Error::NotOneText));
        assert_eq!(Coding::Plain.embedding("('query', 'b')"), Err(Error::Mode));
        let keys = [b64("passage"), b64("b")].join("::");
        assert_eq!(Coding::Base64.embedding(&keys), Err(Error::Mode));
        let keys = [b64("model"), b64("query"), b64("b")].join("::");
        assert_eq!(Coding::Base64.embedding(&keys), Err(Error::Mode));
        assert_eq!(Coding::Plain.generation(&digest("x")), Err(Error::Checksum));
        assert_eq!(Coding::Plain.generation("steadytext/1:abc"), Err(Error::Checksum));
        for key in [
            "('a'",
            "('a')",
            "('a',",
            "(,)",
            "()",
            "('\\q',)",
            "('\\x4',)",
            "('\\ud800',)",
            "(1,)",
            "('a', )",
        ] {
            assert_eq!(Coding::Plain.embedding(key), Err(Error::NotOneText), "{key:?}");
        }
    }

    #[test]
    fn an_entry_of_the_cache_with_other_parameters_has_no_key() {
        let long = format!("{LONG_PREFIX}{}", digest("x"));
        assert_eq!(Key::of_entry(&long, false, "x", None), None);
        assert_eq!(Key::of_entry(&long, true, "x", None), None);
        assert_eq!(Key::of_entry("x", false, "x", None), Some(generation("x", None)));
        assert_eq!(Key::of_entry("x::EOS::y", false, "x", Some("y")), Some(generation("x", Some("y"))));
        assert_eq!(Key::of_entry("x", false, "x", Some("y")), None);
        assert_eq!(Key::of_entry(&digest("x"), true, "x", None), Some(embedding("x")));
        let untold = Key::Embedding { digest: digest("x"), text: None };
        assert_eq!(Key::of_entry(&digest("x"), true, "", None), Some(untold));
    }

    #[test]
    fn a_prompt_is_not_taken_for_base64() {
        for key in ["What is a tuple?", "hello", "Test", "", &digest("x"), "ä"] {
            assert!(!Coding::is_base64(key), "{key:?}");
        }
        assert!(Coding::is_base64(&base64::encode(b"What is a tuple?")));
        assert!(Coding::is_base64("cXVlcnk=::aGVsbG8="));
    }
}
