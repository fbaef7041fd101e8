//! The request for a download, and its result.

use std::path::PathBuf;

use super::reference::Reference;
use crate::card::Card;

/// A model that is wanted.
#[derive(Debug, Clone)]
pub struct Order {
    /// Where it is.
    pub reference: Reference,
    /// Its name below the directory of the models, if it has one already: of a file with `.gguf` at its end,
    /// or of a folder.
    pub name: Option<String>,
    /// The expected SHA-256 of its file, if it is known.
    pub sha256: Option<[u8; 32]>,
    /// Properties of the model that are known already and need not come from the hub.
    pub card: Card,
}

/// A model that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its file, the first of its files, or its folder.
    pub path: PathBuf,
    /// That path relative to the directory of the models.
    pub name: String,
    /// Bytes of all its files.
    pub size: u64,
    /// Whether the model was there before, so that nothing was fetched.
    pub was_there: bool,
    /// Whether another version of it was there before, or of its adapters, so that vectors of both cannot be
    /// compared.
    pub replaced: bool,
    /// The choice and the reason for it, in words, if there was a choice.
    pub said: Option<String>,
    /// The tasks of its adapters, where there are files of them beside it.
    pub adapters: Vec<String>,
}
