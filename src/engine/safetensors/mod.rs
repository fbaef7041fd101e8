//! Folders in which transformers and sentence-transformers store encoders: `config.json`, `model.safetensors`
//! or its shards, the vocabulary, and the configuration of pooling.
//!
//! A folder is translated to GGUF once ([`open`]); all other code sees no difference.
//!
//! Invariant: no function here panics or allocates without bound, whatever the bytes are.

mod config;
mod header;
mod json;
mod licence;
mod names;
mod normalizers;
mod shards;
#[cfg(test)]
mod tests;
mod tokenizer_json;
mod vocabulary;

use std::path::{Path, PathBuf};

use crate::Error;
use crate::gguf::{Gguf, Translation};
use config::FolderFamily;
pub(crate) use config::{LENGTHS_IN, Lengths};
pub(crate) use licence::licence;

/// Other files that are read, as far as they exist.
pub(crate) const FILES: [&str; 8] = [
    "config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "1_Pooling/config.json",
    "vocab.txt",
    "tokenizer_config.json",
    "tokenizer.json",
];

/// The files with the weights of a folder, as far as that is known; they may not exist.
///
/// # Errors
/// As [`open`].
pub(crate) fn weights(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    shards::weights(folder).map(|weights| weights.files)
}

/// The tasks of a folder's adapters.
///
/// # Errors
/// As [`open`].
pub(crate) fn tasks(folder: &Path) -> Result<Vec<String>, Error> {
    config::tasks(folder)
}

/// The lengths of a folder's vectors.
///
/// # Errors
/// As [`open`].
pub(crate) fn lengths(folder: &Path) -> Result<Lengths, Error> {
    config::lengths(folder)
}

/// Reads a folder. Errors name the file in it.
///
/// # Errors
/// [`Error::ModelFile`] where a file cannot be read, [`Error::CorruptModel`] and [`Error::UnsupportedModel`]
/// where it cannot be used.
pub(crate) fn open(folder: &Path) -> Result<Gguf, Error> {
    let weights = shards::weights(folder)?;
    Translation::open(&weights.files, |files| {
        let mut translation = Translation::default();
        let shape = config::read(folder, &mut translation)?;
        match shape.family {
            FolderFamily::Bert | FolderFamily::NomicBert => vocabulary::read(folder, &mut translation)?,
            FolderFamily::XlmRoberta | FolderFamily::JinaBertV3 => {
                tokenizer_json::unigram(folder, &mut translation)?
            }
            FolderFamily::ModernBert => tokenizer_json::byte_pairs(folder, &mut translation)?,
        }
        names::add(&weights, files, &shape, &mut translation)?;
        Ok(translation)
    })
}
