//! Normalization of a text before it is cut into tokens, where a folder's `tokenizer.json` asks for it: forms
//! of Unicode, lower case, accents, spaces at the ends. GGUF has no keys for these steps, so they come under
//! a key of ours.
//!
//! Each step is that of the `tokenizers` crate. A text grows to at most eleven times its bytes: no step
//! lengthens the result of another one again.

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

use crate::Error;
use crate::gguf::Gguf;

/// The names of the steps, in their order.
pub(crate) const KEY: &str = "steadytext.tokenizer.normalizer";

/// A step of normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormalizerStep {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    /// Strips white space at the beginning.
    StripLeft,
    /// Strips white space at the end.
    StripRight,
}

impl NormalizerStep {
    const ALL: [NormalizerStep; 8] = [
        NormalizerStep::Nfc,
        NormalizerStep::Nfd,
        NormalizerStep::Nfkc,
        NormalizerStep::Nfkd,
        NormalizerStep::Lowercase,
        NormalizerStep::StripAccents,
        NormalizerStep::StripLeft,
        NormalizerStep::StripRight,
    ];

    /// Its name under [`KEY`].
    pub(crate) fn name(self) -> &'static str {
        match self {
            NormalizerStep::Nfc => "NFC",
            NormalizerStep::Nfd => "NFD",
            NormalizerStep::Nfkc => "NFKC",
            NormalizerStep::Nfkd => "NFKD",
            NormalizerStep::Lowercase => "Lowercase",
            NormalizerStep::StripAccents => "StripAccents",
            NormalizerStep::StripLeft => "StripLeft",
            NormalizerStep::StripRight => "StripRight",
        }
    }

    fn apply(self, text: Cow<'_, str>) -> Cow<'_, str> {
        let changed = match self {
            NormalizerStep::Nfc
            | NormalizerStep::Nfd
            | NormalizerStep::Nfkc
            | NormalizerStep::Nfkd
            | NormalizerStep::StripAccents
                if text.is_ascii() =>
            {
                return text;
            }
            NormalizerStep::Nfc => text.nfc().collect(),
            NormalizerStep::Nfd => text.nfd().collect(),
            NormalizerStep::Nfkc => text.nfkc().collect(),
            NormalizerStep::Nfkd => text.nfkd().collect(),
            // Character by character: the lower case of a capital sigma does not depend on the next
            // character.
            NormalizerStep::Lowercase => text.chars().flat_map(char::to_lowercase).collect(),
            NormalizerStep::StripAccents => text.chars().filter(|c| !is_combining_mark(*c)).collect(),
            NormalizerStep::StripLeft => text.trim_start().to_owned(),
            NormalizerStep::StripRight => text.trim_end().to_owned(),
        };
        Cow::Owned(changed)
    }
}

/// All steps of a model.
#[derive(Debug, Default)]
pub(super) struct Normalizer(Vec<NormalizerStep>);

impl Normalizer {
    /// The normalizer of the file, which does nothing where it names no steps.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the key is no list of strings, [`Error::UnsupportedModel`] for a step
    /// that is not known.
    pub(super) fn of(gguf: &Gguf) -> Result<Normalizer, Error> {
        let mut steps: Vec<NormalizerStep> = Vec::new();
        for name in gguf.opt_strings(KEY)?.into_iter().flatten() {
            let Some(step) = NormalizerStep::ALL.into_iter().find(|step| step.name() == name) else {
                return Err(gguf.unsupported(format!("key \"{KEY}\" has a step that is not known")));
            };
            // The number of steps is bounded, so that no file can make a normalizer of any length.
            if steps.len() == NormalizerStep::ALL.len() * 2 {
                return Err(gguf.unsupported(format!("key \"{KEY}\" has too many steps")));
            }
            steps.push(step);
        }
        Ok(Normalizer(steps))
    }

    /// The text after all steps.
    pub(super) fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.0.iter().fold(Cow::Borrowed(text), |text, step| step.apply(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other() {
        let apply =
            |steps: &[NormalizerStep], text: &str| Normalizer(steps.to_vec()).apply(text).into_owned();
        assert_eq!(apply(&[], "É "), "É ");
        assert_eq!(
            apply(&[NormalizerStep::Nfd, NormalizerStep::StripAccents, NormalizerStep::Lowercase], "ÉÀ"),
            "ea"
        );
        assert_eq!(
            apply(&[NormalizerStep::StripAccents, NormalizerStep::Nfd], "É"),
            "E\u{301}",
            "composed marks are none"
        );
        assert_eq!(apply(&[NormalizerStep::Nfkc], "ﬁ Ⅳ ①"), "fi IV 1");
        assert_eq!(apply(&[NormalizerStep::StripLeft], "\u{a0} a "), "a ");
        assert_eq!(apply(&[NormalizerStep::StripRight], "\u{a0}a\t "), "\u{a0}a");
        assert_eq!(apply(&[NormalizerStep::Lowercase], "ΣΑΣ İ"), "σασ i\u{307}");
        let growing = "\u{fdfa}".repeat(1000);
        assert_eq!(
            apply(&[NormalizerStep::Nfkd, NormalizerStep::Nfkc, NormalizerStep::Lowercase], &growing).len(),
            33_000
        );
    }
}
