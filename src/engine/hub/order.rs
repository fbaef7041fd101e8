//! What is asked of a download, and what comes of it.

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
    /// What the SHA-256 of its file must be.
    pub sha256: Option<[u8; 32]>,
    /// What is known of it and the hub need not say.
    pub card: Card,
}

/// A model that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its file, the first of its files, or its folder.
    pub path: PathBuf,
    /// The same below the directory of the models.
    pub name: String,
    /// Bytes of all its files.
    pub size: u64,
    /// Whether the model was there before, so that nothing was fetched.
    pub was_there: bool,
    /// What was chosen and why, if there was a choice.
    pub said: Option<String>,
    /// The tasks of its adapters, where there are files of them beside it.
    pub adapters: Vec<String>,
}
