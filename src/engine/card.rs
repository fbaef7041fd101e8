//! Model cards: the tasks and the origin of a model's file, in a small file beside it.
//!
//! The card of `qwen3-0.6b-q8_0.gguf` is `qwen3-0.6b-q8_0.gguf.card.json`, that of a folder `NAME.card.json`
//! beside the folder, that of a split model beside its first part. Downloads write cards, people may: it is a
//! JSON object all of whose fields are optional. Fields that this version does not know are kept when a card
//! is written again.
//!
//! Invariant: a card decides which model is taken and which prompts it gets, and never which file is opened.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::sidecar;

/// The suffix that a card's name adds to its model's.
pub const SUFFIX: &str = ".card.json";
/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;
/// Bytes of a card at most.
pub const MAX_BYTES: u64 = 64 << 10;

/// Characters of a name, a licence and the like.
const MAX_WORD: usize = 512;
/// Characters of a prompt.
const MAX_PROMPT: usize = 4096;
/// Files of a model.
const MAX_FILES: usize = 256;
/// Lengths that vectors may be cut to.
const MAX_DIMENSIONS: usize = 64;

/// The task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Text generation.
    Generate,
    /// Embeddings.
    Embed,
    /// Scores of documents.
    Rerank,
}

impl Task {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Generate => "generate",
            Task::Embed => "embed",
            Task::Rerank => "rerank",
        }
    }
}

/// One file of a model that has several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardFile {
    /// Its path below the model's folder; of a part of a split model, its name.
    pub name: String,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// SHA-256, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A model card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Card {
    /// The card's format: [`FORMAT`], which it is where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<u32>,
    /// The tasks that the model can be used for; empty where the file itself must tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Task>,
    /// The tasks that it is taken for where no model is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferred: Vec<Task>,
    /// Its repository: `owner/name` at the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The commit of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The path of the file in the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The files of a model that has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<CardFile>,
    /// The files of its adapters, by their names in the folder beside it; `None` where nobody has looked for
    /// any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<CardFile>>,
    /// SHA-256 of the file, in hexadecimal digits; of a split model that of its parts, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes of it, or of all its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Its licence, as the repository names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The prefix of a text that is embedded as a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_prompt: Option<String>,
    /// The prefix of a text that is embedded to be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passage_prompt: Option<String>,
    /// Lengths that its vectors may be cut to, because it was trained for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<u32>,
    /// The time of its download: date and time of RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downloaded_at: Option<String>,
    /// The other fields of the file.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// An error with a card.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CardError {
    /// The card cannot be read or written.
    #[error("could not access model card \"{}\"", path.display())]
    File {
        /// The card.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file is no card.
    #[error("model card \"{}\" is not valid: {reason}", path.display())]
    Invalid {
        /// The card.
        path: PathBuf,
        /// The reason, naming the field.
        reason: String,
    },
}

impl Card {
    /// The path of the card of a model's file or folder.
    pub fn path(model: &Path) -> PathBuf {
        sidecar::with_suffix(model, SUFFIX)
    }

    /// Reads the card of a model's file or folder; `None` where there is none. Links are not followed.
    ///
    /// # Errors
    /// [`CardError`] for a file that cannot be read, is too long, or is no card.
    pub fn read(model: &Path) -> Result<Option<Card>, CardError> {
        let path = Card::path(model);
        let failed = |source| CardError::File { path: path.clone(), source: Arc::new(source) };
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let invalid = |reason: String| CardError::Invalid { path: path.clone(), reason };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(invalid("it is no regular file".to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        Card::parse(&bytes).map(Some).map_err(invalid)
    }

    /// Writes the card of a model's file or folder, or nothing of it: readers see the old one or the new one.
    ///
    /// # Errors
    /// [`CardError`]; `WouldBlock` where another process writes the same card.
    pub fn write(&self, model: &Path) -> Result<(), CardError> {
        let path = Card::path(model);
        let bytes = self.to_bytes().map_err(|reason| CardError::Invalid { path: path.clone(), reason })?;
        write_whole(&path, &bytes).map_err(|source| CardError::File { path, source: Arc::new(source) })
    }

    /// The content of the card's file.
    ///
    /// # Errors
    /// The reason why it could not be read back, naming the field.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut card = self.clone();
        card.format = Some(FORMAT);
        let mut bytes = serde_json::to_vec_pretty(&card).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        Card::parse(&bytes)?;
        Ok(bytes)
    }

    /// Parses a card.
    ///
    /// # Errors
    /// The reason, naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Card, String> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("it is longer than {MAX_BYTES} bytes"));
        }
        // Arrays would do for serde, field by field.
        let fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut card: Card =
            serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
        card.check()?;
        card.sort();
        Ok(card)
    }

    fn check(&self) -> Result<(), String> {
        if self.format.is_some_and(|format| format != FORMAT) {
            return Err(format!(
                "its format is {}, and this version reads {FORMAT}",
                self.format.unwrap_or_default()
            ));
        }
        let words = [
            ("repository", &self.repository),
            ("revision", &self.revision),
            ("file", &self.file),
            ("licence", &self.licence),
            ("downloaded_at", &self.downloaded_at),
        ];
        for (field, word) in words {
            check_word(field, word.as_deref())?;
        }
        for (field, prompt) in
            [("query_prompt", &self.query_prompt), ("passage_prompt", &self.passage_prompt)]
        {
            let Some(prompt) = prompt else { continue };
            if prompt.contains('\0') || prompt.chars().count() > MAX_PROMPT {
                return Err(format!("{field} has a zero character, or more than {MAX_PROMPT} characters"));
            }
        }
        check_sha256("sha256", self.sha256.as_deref())?;
        for (field, files) in
            [("files", &self.files[..]), ("adapters", self.adapters.as_deref().unwrap_or(&[]))]
        {
            check_files(field, files)?;
        }
        if self.dimensions.len() > MAX_DIMENSIONS || self.dimensions.contains(&0) {
            return Err(format!("dimensions has a zero, or more than {MAX_DIMENSIONS} elements"));
        }
        Ok(())
    }

    /// In the forms and orders that everybody else may rely on.
    fn sort(&mut self) {
        for tasks in [&mut self.tasks, &mut self.preferred] {
            tasks.sort_unstable();
            tasks.dedup();
        }
        self.dimensions.sort_unstable();
        self.dimensions.dedup();
        let files = self.files.iter_mut().chain(self.adapters.iter_mut().flatten());
        let checksums = files.map(|file| &mut file.sha256).chain([&mut self.sha256]);
        for digits in checksums.flatten() {
            digits.make_ascii_lowercase();
        }
    }

    /// The SHA-256 of the file, if the card says it.
    pub fn checksum(&self) -> Option<[u8; 32]> {
        let digits = self.sha256.as_deref()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(bytes)
    }
}

fn check_files(field: &str, files: &[CardFile]) -> Result<(), String> {
    if files.len() > MAX_FILES {
        return Err(format!("{field} has more than {MAX_FILES} elements"));
    }
    for file in files {
        check_word(field, Some(&file.name))?;
        check_sha256(field, file.sha256.as_deref())?;
        let path = Path::new(&file.name);
        if file.name.is_empty()
            || !path.components().all(|component| matches!(component, Component::Normal(_)))
        {
            return Err(format!("{field} has a name that leads out of the model's folder"));
        }
    }
    Ok(())
}

fn check_word(field: &str, word: Option<&str>) -> Result<(), String> {
    match word {
        Some(word) if word.chars().any(char::is_control) || word.chars().count() > MAX_WORD => {
            Err(format!("{field} has control characters, or more than {MAX_WORD} characters"))
        }
        _ => Ok(()),
    }
}

fn check_sha256(field: &str, digits: Option<&str>) -> Result<(), String> {
    match digits {
        Some(digits) if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            Err(format!("{field} has a SHA-256 that is not 64 hexadecimal digits"))
        }
        _ => Ok(()),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = sidecar::with_suffix(path, sidecar::NEW_SUFFIX);
    let Some(mut file) = sidecar::lock(&temporary)? else { return Err(io::ErrorKind::WouldBlock.into()) };
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o644)))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::{Card, CardError, CardFile, MAX_BYTES, Task};

    #[test]
    fn a_card_is_read_as_it_was_written_with_what_this_version_does_not_know() {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("qwen3-0.6b-q8_0.gguf");
        assert_eq!(Card::read(&model).unwrap(), None);
        let path = directory.path().join("qwen3-0.6b-q8_0.gguf.card.json");
        let text = r#"{"tasks": ["embed", "generate", "embed"], "preferred": ["generate"], "colour": {"hue": [1, 2]},
            "sha256": "ABababababababababababababababababababababababababababababababab",
            "dimensions": [512, 128], "query_prompt": "query: ", "licence": "apache-2.0"}"#;
        std::fs::write(&path, text).unwrap();
        let card = Card::read(&model).unwrap().unwrap();
        assert_eq!(card.tasks, [Task::Generate, Task::Embed]);
        assert_eq!(card.checksum(), Some([0xab; 32]));
        assert_eq!(card.dimensions, [128, 512]);
        for _ in 0..2 {
            card.write(&model).unwrap();
            let again = Card::read(&model).unwrap().unwrap();
            assert_eq!(again.format, Some(1));
            assert_eq!(again.others["colour"]["hue"][1], 2);
            assert_eq!(Card { format: None, ..again }, card);
        }
        assert!(!directory.path().join("qwen3-0.6b-q8_0.gguf.card.json.new").exists());
    }

    #[test]
    fn what_is_no_card_is_refused_with_its_reason() {
        let long = format!(r#"{{"licence": "{}"}}"#, "x".repeat(MAX_BYTES as usize));
        let deep = format!(r#"{{"x": {}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
        let prompt = format!(r#"{{"query_prompt": "{}"}}"#, "x".repeat(5000));
        let cases = [
            ("", "EOF"),
            ("[1]", "invalid type"),
            (r#"{"format": 2}"#, "format is 2"),
            (r#"{"tasks": ["translate"]}"#, "translate"),
            (r#"{"tasks": "embed"}"#, "invalid type"),
            (r#"{"size": -1}"#, "invalid value"),
            (r#"{"sha256": "abc"}"#, "sha256"),
            (r#"{"licence": "a\u0000b"}"#, "licence"),
            (r#"{"query_prompt": "a\u0000b"}"#, "query_prompt"),
            (r#"{"dimensions": [0]}"#, "dimensions"),
            (r#"{"files": [{"name": "../x"}]}"#, "leads out"),
            (r#"{"files": [{"name": "/x"}]}"#, "leads out"),
            (r#"{"files": [{"size": 3}]}"#, "missing field"),
            (r#"{"adapters": [{"name": "../x"}]}"#, "leads out"),
            (long.as_str(), "longer than"),
            (deep.as_str(), "recursion"),
            (prompt.as_str(), "query_prompt"),
        ];
        for (text, reason) in cases {
            let found = Card::parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(reason), "{found} for {}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn a_card_is_no_link_no_pipe_and_nothing_that_could_not_be_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("m");
        let path = Card::path(&model);
        let other = directory.path().join("other");
        std::fs::write(&other, "{}").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(matches!(Card::read(&model), Err(CardError::File { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Card::read(&model).is_err());

        let file = CardFile { name: "../x".to_owned(), size: None, sha256: None };
        let card = Card { files: vec![file], ..Card::default() };
        assert!(matches!(card.write(&other), Err(CardError::Invalid { .. })));
        assert!(!Card::path(&other).exists());
    }
}
