//! The directory of the models: which ones it has by name, and what their cards say.
//!
//! A GGUF file or folder directly below pg_steadytext.model_dir is a model by its stem, whatever the case:
//! `qwen3-0.6b-q8_0` is `Qwen3-0.6B-Q8_0.gguf`. Of a split model the stem is what its parts have in common.
//! The names are read anew only when the directory has changed.
//!
//! Invariant: names are compared with those that the directory has, and never made into paths, so that no
//! name leads anywhere else. What cannot be read is not remembered: its permissions may change, or an error
//! pass, without a trace in what tells one state of a file from another.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgrx::prelude::*;
use steadytext_engine::card::{self, Card, CardError};
use steadytext_engine::task_guess::{self, Vectors};
use steadytext_engine::{Error, FileId, ModelSource, adapter_tasks, adapters, summary};

use super::task::{AUTO, BUILTIN};
use crate::pg::error::PgError;
use crate::pg::guc;

/// Entries of the directory that are looked at.
const MAX_ENTRIES: usize = 16_384;
/// Models whose cards, and what they are for, a process remembers.
const MAX_KNOWN: usize = 1024;
/// A directory that changed so shortly before it was read may change again without a trace in its time.
const SETTLED: Duration = Duration::from_secs(2);
/// Suffix of GGUF files.
const ENDING: &str = ".gguf";

/// A model in the directory, by its name: whether it is whole is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectoryEntry {
    /// The stem.
    pub(crate) name: String,
    /// The name of the file, or of the first part, or of the folder.
    pub(crate) file: String,
    /// It is one file, and no link.
    pub(super) is_plain: bool,
}

/// The content of the directory.
#[derive(Default)]
pub(super) struct DirectoryListing {
    /// The models, in the order of their names.
    entries: Rc<Vec<DirectoryEntry>>,
    /// Files or folders that have a card and are not there.
    missing: Vec<String>,
    /// Every name in it, in lower case; `None` where they could not be read, or not all of them.
    names: Option<HashSet<String>>,
    /// The reason why it could not be read: any model may be in it.
    unreadable: Option<PgError>,
}

/// The tasks that a model has adapters for.
#[derive(Debug)]
pub(super) enum Tasks {
    /// As its file says; none where it has no adapters.
    Known(Arc<Vec<String>>),
    /// It is on another machine, or what says so cannot be read: who computes it knows.
    Unknown,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks::Known(Arc::default())
    }
}

/// A listing, with the state of the directory when it was read.
struct CachedListing {
    directory: PathBuf,
    state: DirectoryState,
    is_settled: bool,
    listing: Rc<DirectoryListing>,
}

/// State of the directory, by which a change is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirectoryState([i64; 6]);

/// Values that were read from models, each with the state of the file it was read from.
type ReadFromFiles<T> = HashMap<PathBuf, (FileId, T)>;

thread_local! {
    static LISTING: RefCell<Option<CachedListing>> = const { RefCell::new(None) };
    static CARDS: RefCell<ReadFromFiles<Result<Option<Rc<Card>>, PgError>>> = RefCell::default();
    static ADAPTED: RefCell<ReadFromFiles<Option<Arc<Vec<String>>>>> = RefCell::default();
    static TASKS: RefCell<ReadFromFiles<Rc<Vec<card::Task>>>> = RefCell::default();
    static VECTORS: RefCell<ReadFromFiles<Option<Rc<Vectors>>>> = RefCell::default();
    static BUILTIN_VECTORS: Option<Rc<Vectors>> = vectors_of_builtin();
}

/// The models of the directory, in the order of their names.
pub(crate) fn entries() -> Rc<Vec<DirectoryEntry>> {
    Rc::clone(&listing().entries)
}

impl DirectoryListing {
    /// The models, in the order of their names.
    pub(super) fn entries(&self) -> &[DirectoryEntry] {
        &self.entries
    }

    /// The cards of models that are not there any more, by the names of their models' files.
    pub(super) fn stray_cards(&self) -> impl Iterator<Item = (&str, Result<Option<Rc<Card>>, PgError>)> {
        let directory = PathBuf::from(guc::model_dir());
        self.missing.iter().map(move |file| (file.as_str(), card(&directory.join(file))))
    }

    /// The error with which the directory could not be read.
    pub(super) fn unreadable(&self) -> Option<&PgError> {
        self.unreadable.as_ref()
    }

    /// False where the file of a row is certainly not there, which costs no look at the file system: rows
    /// that came with the extension name many files that nobody has. File systems may take other letters for
    /// the same, in upper and lower case and beyond ASCII.
    pub(super) fn may_have(&self, file: &str) -> bool {
        let Some(names) = self.names.as_ref().filter(|_| file.is_ascii()) else { return true };
        match Path::new(file).components().find(|component| *component != Component::CurDir) {
            Some(Component::Normal(first)) => {
                first.to_str().is_none_or(|first| names.contains(&first.to_ascii_lowercase()))
            }
            _ => true,
        }
    }
}

/// The present content of the directory.
pub(super) fn listing() -> Rc<DirectoryListing> {
    let directory = PathBuf::from(guc::model_dir());
    let failed = |error: io::Error| {
        Rc::new(DirectoryListing {
            unreadable: Some(unseen(&directory, &error)),
            ..DirectoryListing::default()
        })
    };
    let metadata = match directory.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Rc::new(DirectoryListing { names: Some(HashSet::new()), ..DirectoryListing::default() });
        }
        Err(error) => return failed(error),
    };
    let state = DirectoryState([
        metadata.dev() as i64,
        metadata.ino() as i64,
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ]);
    LISTING.with_borrow_mut(|known| {
        if let Some(known) = known
            && (known.is_settled && known.state == state && known.directory == directory)
        {
            return Rc::clone(&known.listing);
        }
        let listing = match read(&directory) {
            Ok(listing) => Rc::new(listing),
            Err(error) => return failed(error),
        };
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        let is_settled = age.is_some_and(|age| age > SETTLED);
        *known = Some(CachedListing {
            directory: directory.clone(),
            state,
            is_settled,
            listing: Rc::clone(&listing),
        });
        listing
    })
}

/// The error about a file or a directory that cannot be looked at.
pub(super) fn unseen(path: &Path, error: &io::Error) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_IO_ERROR, format!("could not read \"{}\": {error}", path.display()))
        .hint(
            "Let the operating system user of the server read pg_steadytext.model_dir and all that is in it.",
        )
}

fn read(directory: &Path) -> io::Result<DirectoryListing> {
    let found = directory.read_dir()?.take(MAX_ENTRIES).collect::<io::Result<Vec<_>>>()?;
    let entry = |found: &std::fs::DirEntry| {
        let file = found.file_name().into_string().ok()?;
        let is_shown = !file.starts_with('.') && !file.chars().any(char::is_control);
        let is_file = found.file_type().is_ok_and(|kind| kind.is_file());
        let name = is_shown.then(|| name_of(&file, is_file))??;
        // Taken, as in the registry.
        if [BUILTIN, AUTO].contains(&name.to_lowercase().as_str()) {
            return None;
        }
        let is_plain = is_file && without_ending(&file) == Some(&name);
        Some(DirectoryEntry { name, file, is_plain })
    };
    let mut entries: Vec<DirectoryEntry> = found.iter().filter_map(entry).collect();
    entries.sort_unstable_by(|a, b| (&a.name, &a.file).cmp(&(&b.name, &b.file)));
    let names: HashSet<_> = found.iter().map(std::fs::DirEntry::file_name).collect();
    let of_card = |name: &OsString| name.to_str()?.strip_suffix(card::SUFFIX).map(str::to_owned);
    let missing =
        names.iter().filter_map(of_card).filter(|model| !names.contains(OsStr::new(model))).collect();
    let is_whole = found.len() < MAX_ENTRIES;
    let lower = |name: &OsString| name.to_string_lossy().to_ascii_lowercase();
    let names = is_whole.then(|| names.iter().map(lower).collect());
    Ok(DirectoryListing { entries: Rc::new(entries), missing, names, unreadable: None })
}

/// The name of the model in an entry of the directory. Whether a folder, or what a link leads to, is a model
/// is seen when it is wanted.
fn name_of(file: &str, is_file: bool) -> Option<String> {
    let Some(stem) = without_ending(file) else { return (!is_file).then(|| file.to_owned()) };
    match split(stem) {
        Some((name, 1)) => Some(name.to_owned()),
        Some(_) => None,
        None => Some(stem.to_owned()).filter(|stem| !stem.is_empty()),
    }
}

fn without_ending(file: &str) -> Option<&str> {
    let (stem, ending) = file.split_at_checked(file.len().checked_sub(ENDING.len())?)?;
    ending.eq_ignore_ascii_case(ENDING).then_some(stem)
}

/// The name of a split model and the number of its part, of `NAME-00001-of-00003`.
fn split(stem: &str) -> Option<(&str, u32)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    (!name.is_empty() && is_number(count) && is_number(number)).then_some(())?;
    Some((name, number.parse().ok()?))
}

/// The model of this name. `None` where there is none.
///
/// # Errors
///
/// 42710 where several have it.
pub(super) fn find(
    name: &str,
    is_there: impl Fn(&DirectoryEntry) -> bool,
) -> Result<Option<DirectoryEntry>, PgError> {
    let wanted = name.to_lowercase();
    let is_meant =
        |entry: &&DirectoryEntry| entry.name.to_lowercase() == wanted || entry.file.to_lowercase() == wanted;
    let all = entries();
    let mut found: Vec<&DirectoryEntry> =
        all.iter().filter(is_meant).filter(|entry| is_there(entry)).collect();
    // The whole name of a file or folder says which one it is.
    if let Some(exact) = found.iter().position(|entry| entry.file == name) {
        found = vec![found[exact]];
    }
    match found.as_slice() {
        [] => Ok(None),
        [entry] => Ok(Some((*entry).clone())),
        several => {
            let files: Vec<String> =
                several.iter().take(8).map(|entry| format!("\"{}\"", entry.file)).collect();
            let shown: String = name.chars().take(64).collect();
            Err(PgError::new(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("model name \"{shown}\" stands for several files: {}", files.join(", ")),
            )
            .hint("Rename all but one of them, or name a file with its ending."))
        }
    }
}

/// The card of a model, read anew when it has changed.
///
/// # Errors
///
/// XX001 for a card that cannot be read.
pub(super) fn card(model: &Path) -> Result<Option<Rc<Card>>, PgError> {
    let read = || {
        let error = match Card::read(model) {
            Ok(card) => return Ok(Ok(card.map(Rc::new))),
            Err(error) => error,
        };
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let reported = PgError::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message)
            .hint("Correct the card, or remove it: without one the file by itself is the model.");
        // What is no card is none until it changes.
        if matches!(error, CardError::Invalid { .. }) { Ok(Err(reported)) } else { Err(reported) }
    };
    remembered(&CARDS, model, FileId::of_path(&Card::path(model)).ok(), read)?
}

/// The tasks of the model in its card, or else those guessed from its file.
///
/// # Errors
///
/// The system's, for a file that is there and cannot be read: it may be for any task.
pub(crate) fn tasks(model: &Path) -> io::Result<Rc<Vec<card::Task>>> {
    if let Ok(Some(card)) = card(model)
        && !card.tasks.is_empty()
    {
        return Ok(Rc::new(card.tasks.clone()));
    }
    let head = if model.is_dir() { model.join("config.json") } else { model.to_owned() };
    remembered(&TASKS, model, FileId::of_path(&head).ok(), || task_guess::tasks(model).map(Rc::new))
}

/// Properties of the vectors of a model that can be told from its file quickly, read anew when the file has
/// changed. `None` where there are none, or they cannot be read.
pub(super) fn vectors(model: &ModelSource) -> Option<Rc<Vectors>> {
    let path = match model {
        ModelSource::File(path) => path,
        ModelSource::Builtin => return BUILTIN_VECTORS.with(Clone::clone),
    };
    let read = || task_guess::vectors(path).map(|found| found.map(Rc::new));
    remembered(&VECTORS, path, task_guess::state_of_vectors(path), read).ok().flatten()
}

fn vectors_of_builtin() -> Option<Rc<Vectors>> {
    let gguf = ModelSource::Builtin.open().ok()?;
    let dimensions = summary::dimensions(&gguf);
    Some(Rc::new(Vectors { dimensions, lengths: Vec::new(), takes_tasks: true }))
}

/// The tasks that a model has adapters for, read anew when what says so has changed.
pub(super) fn adapted_tasks(model: &Path) -> Tasks {
    let state = adapters::described_state(model);
    let read = || match adapter_tasks(model) {
        Ok(tasks) => Ok(Some(Arc::new(tasks))),
        Err(error @ Error::ModelFile { .. }) => Err(error),
        Err(_) => Ok(None),
    };
    let changed_at =
        |state: FileId| SystemTime::UNIX_EPOCH + Duration::from_secs(state.modified_s.max(0) as u64);
    let age = state.map(|state| SystemTime::now().duration_since(changed_at(state)).unwrap_or_default());
    let tasks =
        if age.is_some_and(|age| age <= SETTLED) { read() } else { remembered(&ADAPTED, model, state, read) };
    tasks.ok().flatten().map_or(Tasks::Unknown, Tasks::Known)
}

/// What was read of a model, or is read now. Errors are not kept, nor is anything of a file without a state.
fn remembered<T: Clone, E>(
    kept: &'static std::thread::LocalKey<RefCell<ReadFromFiles<T>>>,
    model: &Path,
    state: Option<FileId>,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let Some(state) = state else { return read() };
    kept.with_borrow_mut(|kept| {
        if let Some((known, value)) = kept.get(model)
            && *known == state
        {
            return Ok(value.clone());
        }
        let value = read()?;
        if kept.len() >= MAX_KNOWN {
            kept.clear();
        }
        kept.insert(model.to_owned(), (state, value.clone()));
        Ok(value)
    })
}
