//! The normalizer of `tokenizer.json`, which changes a text before it is cut into words.

use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

use super::json::{corrupt, unsupported};
use crate::Error;
use crate::gguf::Translation;
use crate::tokenizer::normalizer::{KEY, NormalizerStep};

/// The normalizers of a tokenizer, in the order in which they apply: steps, then one of the others.
#[derive(Debug, Default)]
pub(super) struct Normalizers {
    steps: Vec<NormalizerStep>,
    /// The normalizer of BERT.
    pub(super) bert: Option<BertNormalizer>,
    /// SentencePiece's map of characters.
    pub(super) charsmap: Option<Vec<u8>>,
    /// Whether runs of spaces become one.
    merges_spaces: bool,
}

/// The cleaning of texts for BERT.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default)]
pub(super) struct BertNormalizer {
    pub(super) clean_text: bool,
    pub(super) lowercase: bool,
    /// Where it is missing, accents are stripped if capitals are folded.
    pub(super) strip_accents: Option<bool>,
    pub(super) handle_chinese_chars: bool,
}

impl Default for BertNormalizer {
    fn default() -> Self {
        BertNormalizer { clean_text: true, lowercase: true, strip_accents: None, handle_chinese_chars: true }
    }
}

impl BertNormalizer {
    /// The settings where there is no normalizer.
    pub(super) const NOTHING: BertNormalizer = BertNormalizer {
        clean_text: false,
        lowercase: false,
        strip_accents: Some(false),
        handle_chinese_chars: false,
    };
}

/// Reads a normalizer, or one of a sequence.
///
/// # Errors
/// [`Error::UnsupportedModel`] for one that is not known, or that comes too late; [`Error::CorruptModel`].
pub(super) fn read(path: &Path, normalizer: &Value) -> Result<Normalizers, Error> {
    let mut all = Normalizers::default();
    all.add(path, normalizer)?;
    Ok(all)
}

impl Normalizers {
    fn add(&mut self, path: &Path, normalizer: &Value) -> Result<(), Error> {
        if normalizer.is_null() {
            return Ok(());
        }
        let field = |name: &str| normalizer.get(name);
        let is_set = |name: &str| field(name).and_then(Value::as_bool).unwrap_or(false);
        let kind = field("type").and_then(Value::as_str).unwrap_or_default();
        let steps = match kind {
            "Sequence" => {
                let parts = field("normalizers").and_then(Value::as_array);
                let parts = parts.ok_or_else(|| corrupt(path, "its sequence of normalizers is none"))?;
                return parts.iter().try_for_each(|part| self.add(path, part));
            }
            "NFC" => vec![NormalizerStep::Nfc],
            "NFD" => vec![NormalizerStep::Nfd],
            "NFKC" => vec![NormalizerStep::Nfkc],
            "NFKD" => vec![NormalizerStep::Nfkd],
            "Lowercase" => vec![NormalizerStep::Lowercase],
            "StripAccents" => vec![NormalizerStep::StripAccents],
            "Strip" => {
                let sides =
                    [("strip_left", NormalizerStep::StripLeft), ("strip_right", NormalizerStep::StripRight)];
                sides.into_iter().filter(|(name, _)| is_set(name)).map(|(_, step)| step).collect()
            }
            "Replace" if is_of_spaces(normalizer) => {
                self.merges_spaces = true;
                return Ok(());
            }
            "BertNormalizer" if self.bert.is_none() && self.charsmap.is_none() => {
                let cleaning = BertNormalizer::deserialize(normalizer);
                self.bert = Some(cleaning.map_err(|error| corrupt(path, error.to_string()))?);
                return Ok(());
            }
            "Precompiled" if self.bert.is_none() && self.charsmap.is_none() => {
                let map = field("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default();
                let map = base64::engine::general_purpose::STANDARD.decode(map);
                let map = map.map_err(|error| corrupt(path, format!("its map of characters: {error}")))?;
                self.charsmap = Some(map);
                return Ok(());
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                let shown = shown.escape_debug();
                return Err(unsupported(path, format!("its normalizer \"{shown}\" is not known there")));
            }
        };
        // Stripping alone has no effect, as words contain no spaces at the ends of a text in any case.
        let only_strips =
            steps.iter().all(|step| matches!(step, NormalizerStep::StripLeft | NormalizerStep::StripRight));
        if (self.bert.is_some() || self.charsmap.is_some()) && !only_strips {
            return Err(unsupported(
                path,
                format!("its normalizer \"{kind}\" comes after a map of characters"),
            ));
        }
        if self.bert.is_none() && self.charsmap.is_none() {
            self.steps.extend(steps);
        }
        Ok(())
    }

    /// Writes the steps to the translation.
    pub(super) fn write(&self, translation: &mut Translation) {
        if !self.steps.is_empty() {
            translation.strings(KEY, self.steps.iter().map(|step| step.name()));
        }
    }

    /// Refuses settings that only SentencePiece's models have.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`].
    pub(super) fn refuse_charsmap(&self, path: &Path) -> Result<(), Error> {
        match self.charsmap.is_some() || self.merges_spaces {
            true => Err(unsupported(path, "its normalizer belongs to another kind of tokenizer")),
            false => Ok(()),
        }
    }

    /// Refuses settings that only BERT's models have.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`].
    pub(super) fn refuse_bert(&self, path: &Path) -> Result<(), Error> {
        match self.bert {
            Some(_) => Err(unsupported(path, "its normalizer \"BertNormalizer\" is not known there")),
            None => Ok(()),
        }
    }
}

/// Whether it replaces runs of spaces by one, as SentencePiece does.
fn is_of_spaces(normalizer: &Value) -> bool {
    let pattern = normalizer.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
    let content = normalizer.get("content").and_then(Value::as_str);
    pattern == Some(" {2,}") && matches!(content, Some(" " | "▁"))
}
