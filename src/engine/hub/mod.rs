//! Downloads of models from a hub, the only part of this crate that opens a connection. Nothing of the engine
//! uses it: it runs in a process or thread beside it. The Cargo feature `hub`.
//!
//! A model appears as a whole, under its name, with a [card](crate::card) beside it, or not at all. What has
//! arrived of one is kept in `.pull` below the directory of the models.
//!
//! Invariant: nothing that a hub says leads out of that directory, and what lies there afterwards has the
//! size and the SHA-256 that the hub has announced, where it has announced them.

mod address;
mod choice;
mod client;
mod error;
mod listing;
mod pace;
mod partial;
mod place;
mod progress;
mod reference;
mod settings;
mod staged_file;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use self::choice::Choice;
use self::client::Client;
pub use self::error::HubError;
use self::listing::{Listing, Remote};
use self::partial::Partial;
use self::place::Staging;
pub use self::progress::{Moment, Progress};
use self::reference::is_safe_path;
pub use self::reference::{MAX_REFERENCE, Reference};
pub use self::settings::{DEFAULT_ENDPOINT, Hub, Token};
use self::staged_file::{Arrived, Paths};
use crate::cache_key::hex;
use crate::card::{Card, CardError, CardFile};
use crate::gguf::parts;

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
}

/// Downloads a model into a directory, which is made where there is none.
///
/// # Errors
/// [`HubError`]; what has arrived is kept, and the next call goes on from there.
pub fn pull(hub: &Hub, order: &Order, directory: &Path, progress: &Progress) -> Result<Pulled, HubError> {
    let wanted = Wanted::new(order)?;
    if hub.offline {
        return there_already(order, directory)
            .ok_or_else(|| HubError::Offline { what: order.reference.to_string() });
    }
    let client = Client::new(hub, progress)?;
    let listing = Listing::parse(&order.reference, &client.host(), &client.listing(&order.reference)?)?;
    let choice = choice::choose(&listing, &client.host(), order.reference.file.as_deref(), wanted.is_folder)?;
    progress.chosen(choice.said.as_deref());
    let name = order.name.clone().unwrap_or_else(|| choice.name.clone());
    refuse_reserved(order, &name)?;
    let places = HubFiles::new(order, &choice, &name, &listing)?;
    check_registered(order, &choice)?;

    place::make_folder(directory)?;
    let target = place::target(directory, &name)?;
    let staging = Staging::enter(directory, &name, progress)?;
    progress.expect(choice.size());
    let pulled = |size, was_there| Pulled {
        path: target.clone(),
        name: name.clone(),
        size,
        was_there,
        said: choice.said.clone(),
    };
    if let Some(size) = places.are_there(directory, &target, progress)? {
        if Card::read(&target).ok().flatten().is_none() {
            write_card(&card(order, &listing, &choice, &[], &target), &target)?;
        }
        staging.leave();
        return Ok(pulled(size, true));
    }
    places.refuse_others(order, directory, &target)?;
    let at_commit = Reference { revision: listing.commit.clone(), ..order.reference.clone() };
    let paths = || choice.files.iter().map(|file| Paths::new(&staging.path, file, &listing.commit));
    staging.keep_only(&paths().collect::<Vec<_>>());
    let missing = |(file, paths): (&Remote, Paths)| file.size.unwrap_or(0).saturating_sub(paths.length());
    let needed = choice.files.iter().zip(paths()).map(missing).fold(0, u64::saturating_add);
    place::check_room(directory, &name, needed)?;

    progress.set_done(0);
    let mut whole = None;
    let mut arrived: Vec<Arrived> = Vec::new();
    for (file, paths) in choice.files.iter().zip(paths()) {
        let partial = Partial::open(file, paths, whole.as_ref(), progress, directory)?;
        let (file, hash) = partial.complete(&client, hub, &at_commit)?;
        arrived.push(file);
        // The files of a folder have a checksum each, and none together.
        whole = Some(hash).filter(|_| !choice.is_folder);
    }
    let size = arrived.iter().map(|file| file.size).sum();
    let mut card = card(order, &listing, &choice, &arrived, &target);
    card.size = Some(size);
    if choice.is_folder {
        let files: Vec<_> =
            arrived.into_iter().zip(choice.files.iter().map(|file| file.path.clone())).collect();
        prompts_of(&files, &mut card);
        write_card(&card, &target)?;
        staging.place_folder(&files, &target)?;
    } else {
        check_head(&arrived)?;
        let sha256 = hex(&whole.unwrap_or_default().finalize());
        check_sha256(order, &choice.name, &sha256)?;
        card.sha256 = Some(sha256);
        write_card(&card, &target)?;
        let targets = places.names.iter().map(|name| directory.join(name));
        staging.place_files(&arrived.into_iter().zip(targets).collect::<Vec<_>>())?;
    }
    staging.leave();
    Ok(pulled(size, false))
}

/// The model where it has a name and is there, whichever version of it.
fn there_already(order: &Order, directory: &Path) -> Option<Pulled> {
    let name = order.name.clone()?;
    let path = directory.join(&name);
    let folder = path.join("config.json");
    let files = if path.is_dir() { vec![folder] } else { parts(&path) };
    let sizes: Option<Vec<u64>> =
        files.iter().map(|file| Some(std::fs::metadata(file).ok()?.len())).collect();
    Some(Pulled { path, name, size: sizes?.iter().sum(), was_there: true, said: None })
}

/// What is known of the form of a model before the hub is asked.
struct Wanted {
    is_folder: Option<bool>,
}

impl Wanted {
    fn new(order: &Order) -> Result<Wanted, HubError> {
        let Some(name) = &order.name else { return Ok(Wanted { is_folder: None }) };
        if !is_safe_path(name) {
            let reason = "its name is not one below the directory of the models";
            return Err(HubError::Reference { reference: reference::shown(name), reason });
        }
        Ok(Wanted { is_folder: Some(!name.ends_with(".gguf")) })
    }
}

/// Where the files of a model belong, below the directory.
struct HubFiles<'a> {
    choice: &'a Choice,
    /// What the SHA-256 of a model in one file must be, where the hub does not say.
    registered: Option<String>,
    /// One for each file.
    names: Vec<String>,
}

impl HubFiles<'_> {
    fn new<'a>(
        order: &Order,
        choice: &'a Choice,
        name: &str,
        listing: &Listing,
    ) -> Result<HubFiles<'a>, HubError> {
        let names: Vec<String> = if choice.is_folder {
            choice.files.iter().map(|file| format!("{name}/{}", file.path)).collect()
        } else {
            parts(Path::new(name)).iter().map(|part| part.to_string_lossy().into_owned()).collect()
        };
        if names.len() != choice.files.len() {
            let repository = listing.repository.clone();
            let reason = format!("has it in {} files, which \"{name}\" is no name for", choice.files.len());
            let hint =
                "Correct the file of the model: that of a split one ends in -00001-of-0000N.gguf.".to_owned();
            return Err(HubError::NoModel { repository, reason, hint });
        }
        let is_one = names.len() == 1 && !choice.is_folder;
        let registered = order.sha256.filter(|_| is_one).map(|sha256| hex(&sha256));
        Ok(HubFiles { choice, registered, names })
    }

    /// Refuses to replace a model that came from elsewhere, unless somebody has registered the file as this
    /// one's.
    fn refuse_others(&self, order: &Order, directory: &Path, target: &Path) -> Result<(), HubError> {
        let is_there =
            target.symlink_metadata().is_ok() || self.names.iter().any(|name| directory.join(name).exists());
        if order.name.is_some() || !is_there {
            return Ok(());
        }
        let repository = Card::read(target).ok().flatten().and_then(|card| card.repository);
        if repository.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(&order.reference.repository)) {
            return Ok(());
        }
        let file = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let from = match repository {
            Some(repository) => format!("it came from repository \"{repository}\""),
            None => "nothing says that it came from there".to_owned(),
        };
        Err(HubError::Taken { file, from })
    }

    /// The size of the model, if its files are there already and are those of the hub.
    fn are_there(
        &self,
        directory: &Path,
        target: &Path,
        progress: &Progress,
    ) -> Result<Option<u64>, HubError> {
        let mut size = 0u64;
        for (file, name) in self.choice.files.iter().zip(&self.names) {
            match std::fs::metadata(directory.join(name)) {
                Ok(there) if there.is_file() && file.size.is_none_or(|size| size == there.len()) => {
                    size += there.len()
                }
                _ => return Ok(None),
            }
        }
        let card = Card::read(target).ok().flatten().unwrap_or_default();
        progress.note("looking at the files that are there");
        for (file, name) in self.choice.files.iter().zip(&self.names) {
            let Some(expected) = file.sha256.as_deref().or(self.registered.as_deref()) else { continue };
            let path = directory.join(name);
            let listed = card.files.iter().find(|known| known.name == file.path || known.name == file.name());
            let of_card = match &self.choice.files[..] {
                [_] if !self.choice.is_folder => card.sha256.as_deref(),
                _ => listed.and_then(|known| known.sha256.as_deref()),
            };
            if of_card != Some(expected) && sha256_of(&path, progress)? != expected {
                progress.note("");
                return Ok(None);
            }
        }
        progress.note("");
        progress.set_done(size);
        Ok(Some(size))
    }
}

fn sha256_of(path: &Path, progress: &Progress) -> Result<String, HubError> {
    let failed = |error| HubError::file(path, error);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        progress.check()?;
        match std::io::Read::read(&mut file, &mut buffer).map_err(failed)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Refuses what is known not to be the registered file before it is fetched.
fn check_registered(order: &Order, choice: &Choice) -> Result<(), HubError> {
    match &choice.files[..] {
        [Remote { sha256: Some(found), .. }] if !choice.is_folder => check_sha256(order, &choice.name, found),
        _ => Ok(()),
    }
}

/// Refuses names by which nobody would find the model, because they mean another one or none.
fn refuse_reserved(order: &Order, name: &str) -> Result<(), HubError> {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    if !["builtin", "auto"].contains(&stem.as_str()) {
        return Ok(());
    }
    Err(HubError::NoModel {
        repository: order.reference.repository.clone(),
        reason: format!("has a model that is called \"{name}\", a name with a meaning of its own"),
        hint: "Register it under another file name, and download it by the registered name.".to_owned(),
    })
}

/// Refuses to put into its place what every request would fail with.
fn check_head(arrived: &[Arrived]) -> Result<(), HubError> {
    for Arrived { path, .. } in arrived {
        let mut head = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        if read.is_err() || &head != b"GGUF" {
            // Nothing is gone on from.
            let _ = std::fs::remove_file(path);
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(HubError::Damaged { file, reason: "it is no GGUF file".to_owned() });
        }
    }
    Ok(())
}

fn check_sha256(order: &Order, file: &str, found: &str) -> Result<(), HubError> {
    match order.sha256.map(|sha256| hex(&sha256)) {
        Some(expected) if expected != found => {
            Err(HubError::NotRegistered { file: file.to_owned(), expected, found: found.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The card of a model: what is known of it first, what is written on the one that is there, then what the
/// hub says.
fn card(order: &Order, listing: &Listing, choice: &Choice, arrived: &[Arrived], target: &Path) -> Card {
    let known = order.card.clone();
    let old = Card::read(target).ok().flatten().unwrap_or_default();
    let list = |known: Vec<_>, old: Vec<_>| if known.is_empty() { old } else { known };
    let mut card = Card {
        tasks: list(known.tasks, old.tasks),
        preferred: list(known.preferred, old.preferred),
        licence: known.licence.or(old.licence).or_else(|| listing.licence.clone()),
        query_prompt: known.query_prompt.or(old.query_prompt),
        passage_prompt: known.passage_prompt.or(old.passage_prompt),
        dimensions: if known.dimensions.is_empty() { old.dimensions } else { known.dimensions },
        others: if known.others.is_empty() { old.others } else { known.others },
        ..Card::default()
    };
    if card.tasks.is_empty() {
        card.tasks = listing.task.into_iter().collect();
    }
    card.repository = Some(listing.repository.clone());
    card.revision = Some(listing.commit.clone());
    if !choice.is_folder {
        card.file = choice.files.first().map(|file| file.path.clone());
    }
    if choice.files.len() > 1 || choice.is_folder {
        let name = |file: &Remote| if choice.is_folder { file.path.clone() } else { file.name().to_owned() };
        let files = choice.files.iter().enumerate().map(|(index, file)| CardFile {
            name: name(file),
            size: arrived.get(index).map(|arrived| arrived.size).or(file.size),
            sha256: arrived.get(index).map(|arrived| arrived.sha256.clone()).or_else(|| file.sha256.clone()),
        });
        card.files = files.collect();
    } else {
        card.sha256 = choice.files.first().and_then(|file| file.sha256.clone());
    }
    card.size = Some(choice.size()).filter(|size| *size > 0);
    card.downloaded_at = Some(rfc3339(SystemTime::now()));
    card
}

fn write_card(card: &Card, target: &Path) -> Result<(), HubError> {
    card.write(target).map_err(|error| match error {
        CardError::File { path, source } => HubError::File { path, source },
        CardError::Invalid { path, reason } => {
            HubError::file(&path, std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
        }
    })
}

/// Prompts that a folder made for sentence-transformers brings along.
fn prompts_of(files: &[(Arrived, String)], card: &mut Card) {
    const MAX_BYTES: u64 = 64 << 10;
    let config = files
        .iter()
        .find(|(file, path)| path == "config_sentence_transformers.json" && file.size <= MAX_BYTES);
    let Some(bytes) = config.and_then(|(file, _)| std::fs::read(&file.path).ok()) else { return };
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return };
    let prompt = |names: &[&str]| {
        let found = names.iter().find_map(|name| config["prompts"][name].as_str())?;
        let fits = !found.is_empty() && found.len() <= 4096 && !found.contains('\0');
        fits.then(|| found.to_owned())
    };
    card.query_prompt = card.query_prompt.take().or_else(|| prompt(&["query", "s2p_query"]));
    card.passage_prompt = card.passage_prompt.take().or_else(|| prompt(&["passage", "document"]));
}

/// A time as date and time of day in UTC. The days are counted in years that begin in March, so that the leap
/// day is the last one.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    // Days since 0000-03-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::rfc3339;

    #[test]
    fn times_are_written_as_everybody_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
