//! Downloads of models from a hub, the only part of this crate that opens a connection. Nothing of the engine
//! uses it: it runs in a process or thread beside it. The Cargo feature `hub`.
//!
//! A model appears as a whole, under its name, with a [card](crate::card) beside it, or not at all; so do the
//! adapters that its repository has for it. What has arrived of one is kept in `.pull` below the directory of
//! the models.
//!
//! Invariant: nothing that a hub says leads out of that directory, and what lies there afterwards has the
//! size and the SHA-256 that the hub has announced, where it has announced them.

mod adapter_files;
mod address;
mod choice;
mod client;
mod error;
mod in_place;
mod kept;
mod listing;
mod order;
mod pace;
mod partial;
mod place;
mod progress;
mod prompts;
mod reference;
mod settings;
mod staged_file;
mod steady;

use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use self::adapter_files::{Fetching, takes_adapters};
use self::choice::FileChoice;
use self::client::HubClient;
pub use self::error::HubError;
use self::in_place::{in_place, is_believed, there_already};
use self::listing::{Remote, RepositoryListing};
pub use self::order::{Order, Pulled};
use self::partial::Partial;
use self::place::{Staging, write_card};
pub use self::progress::{Moment, Progress};
use self::prompts::{MAX_PROMPT, PROMPTS, Prompts};
use self::reference::is_safe_path;
pub use self::reference::{MAX_REFERENCE, Reference};
pub use self::settings::{DEFAULT_ENDPOINT, Hub, Token};
use self::staged_file::{Arrived, Paths, add_to, check_head, sha256_of};
use crate::cache_key::hex;
use crate::card::{self, Card, CardFile};
use crate::gguf::parts;
use crate::{adapters, sidecar};

/// Bytes of the name of a file in a folder.
const MAX_FILE_NAME: usize = 255;

/// Downloads a model into a directory, which is made where there is none.
///
/// # Errors
/// [`HubError`]; what has arrived is kept, and the next call goes on from there.
pub fn pull(hub: &Hub, order: &Order, directory: &Path, progress: &Progress) -> Result<Pulled, HubError> {
    let wanted = ModelForm::new(order)?;
    progress.set_gives_way(hub.gives_way);
    if let Some(there) = in_place(order, directory, progress)? {
        return Ok(there);
    }
    if hub.offline {
        return there_already(order, directory, progress)?
            .ok_or_else(|| HubError::Offline { what: order.reference.to_string() });
    }
    let client = HubClient::new(hub, progress)?;
    let listing =
        RepositoryListing::parse(&order.reference, &client.host(), &client.listing(&order.reference)?)?;
    let choice = choice::choose(&listing, &client.host(), order.reference.file.as_deref(), wanted.is_folder)?;
    progress.chosen(choice.said.as_deref());
    let name = order.name.clone().unwrap_or_else(|| choice.name.clone());
    refuse_reserved(order, &name)?;
    let places = HubFiles::new(order, &choice, &name, &listing)?;
    check_registered(order, &choice)?;

    place::make_folder(directory)?;
    let target = place::target(directory, &name)?;
    let staging = Staging::enter(directory, &name, progress)?;
    let reference = &Reference { revision: listing.commit.clone(), ..order.reference.clone() };
    let download = Download {
        hub,
        client: &client,
        order,
        directory,
        progress,
        listing: &listing,
        choice: &choice,
        places: &places,
        staging: &staging,
        reference,
        name: &name,
        target: &target,
    };
    progress.expect(choice.size());
    let own = download.own_files()?;
    let pulled = if choice.is_folder { download.place_folder(own) } else { download.place_files(own) }?;
    staging.leave();
    Ok(pulled)
}

/// A download that has its place.
struct Download<'a> {
    hub: &'a Hub,
    client: &'a HubClient<'a>,
    order: &'a Order,
    directory: &'a Path,
    progress: &'a Progress,
    listing: &'a RepositoryListing,
    choice: &'a FileChoice,
    places: &'a HubFiles<'a>,
    staging: &'a Staging,
    /// At the commit of the listing.
    reference: &'a Reference,
    /// The name of the model below the directory, and its path.
    name: &'a str,
    target: &'a Path,
}

/// The model's own files, without adapters.
struct Own {
    was_there: bool,
    /// Fetched files that have yet to be put into place: all of them, or none.
    arrived: Vec<Arrived>,
    /// Bytes of all of them.
    size: u64,
    /// The checksum of all of them one after the other, where they have arrived and are no folder.
    whole: Option<Sha256>,
}

impl Download<'_> {
    /// Fetches the model's own files, unless they are in place.
    fn own_files(&self) -> Result<Own, HubError> {
        let Download { directory, target, progress, choice, .. } = *self;
        let mut own = Own { was_there: true, arrived: Vec::new(), size: 0, whole: None };
        if let Some(size) = self.places.are_there(directory, target, progress)? {
            return Ok(Own { size, ..own });
        }
        own.was_there = false;
        self.places.refuse_others(self.order, directory, target)?;
        self.check_card()?;
        let beside = adapter_files::candidates(self.listing, choice);
        let paths = |file: &Remote| Paths::new(&self.staging.path, file, &self.listing.commit);
        let adapters = beside.iter().map(|adapter| &adapter.remote);
        self.staging.keep_only(&choice.files.iter().chain(adapters).map(paths).collect::<Vec<_>>());
        let kept = self.kept(paths)?;
        let missing = |file: &Remote| file.size.unwrap_or(0).saturating_sub(paths(file).length());
        let own_files = choice.files.iter().zip(&kept).filter(|(_, kept)| kept.is_none());
        // Whoever has no room for the adapters need not fetch the model.
        let chosen = adapter_files::choose(self.listing, choice).unwrap_or_default();
        let needed = own_files.map(|(file, _)| file).chain(chosen.iter().map(|adapter| &adapter.remote));
        place::check_room(directory, self.name, needed.map(missing).fold(0, u64::saturating_add))?;
        progress.set_done(0);
        for (file, kept) in choice.files.iter().zip(kept) {
            let arrived = if let Some(kept) = kept {
                if !choice.is_folder {
                    add_to(own.whole.get_or_insert_default(), &kept.path, progress)?;
                }
                progress.set_done(progress.done().saturating_add(kept.size));
                kept
            } else {
                let partial = Partial::open(file, paths(file), own.whole.as_ref(), progress, directory)?;
                let (arrived, hash) = partial.complete(self.client, self.hub, self.reference)?;
                own.whole = Some(hash).filter(|_| !choice.is_folder);
                arrived
            };
            own.size += arrived.size;
            own.arrived.push(arrived);
        }
        Ok(own)
    }

    /// For each file of a model that has several: the one in place, where it is the same.
    fn kept(&self, paths: impl Fn(&Remote) -> Paths) -> Result<Vec<Option<Arrived>>, HubError> {
        let Download { directory, target, progress, choice, .. } = *self;
        if choice.files.len() == 1 {
            return Ok(vec![None]);
        }
        let card = Card::read(target).ok().flatten().unwrap_or_default();
        progress.note("looking at the files that are there");
        let files = choice.files.iter().zip(&self.places.names).map(|(file, name)| {
            kept::keep(file, &directory.join(name), listed(&card, file), &paths(file), progress)
        });
        let kept = files.collect();
        progress.note("");
        kept
    }

    /// Refuses a model whose card could not be written once all of it has come, with all that it may hold by
    /// then.
    fn check_card(&self) -> Result<(), HubError> {
        let Download { order, listing, choice, target, .. } = *self;
        let mut card = card(order, listing, choice, &[], target);
        let with_checksum =
            |name: String| CardFile { name, size: Some(u64::MAX), sha256: Some("0".repeat(64)) };
        card.files = card.files.into_iter().map(|file| with_checksum(file.name)).collect();
        (card.size, card.sha256) = (Some(u64::MAX), Some("0".repeat(64)));
        let beside = adapter_files::candidates(listing, choice);
        card.adapters = Some(
            beside
                .into_iter()
                .take(adapters::PUBLISHED.len())
                .map(|_| with_checksum("x".repeat(MAX_FILE_NAME)))
                .collect(),
        );
        if choice.is_folder && listing.file(PROMPTS).is_some() {
            let longest = || "\n".repeat(MAX_PROMPT);
            card.query_prompt.get_or_insert_with(longest);
            card.passage_prompt.get_or_insert_with(longest);
        }
        let Err(reason) = card.to_bytes() else { return Ok(()) };
        Err(HubError::NoModel {
            repository: listing.repository.clone(),
            reason: format!("has \"{}\", whose card could not be written: {reason}", choice.name),
            hint: "Correct the licence and the other values of the model's row. What the repository itself says may be too much: fetch its files by hand then.".to_owned(),
        })
    }

    fn pulled(&self, own: &Own) -> Pulled {
        Pulled {
            path: self.target.to_owned(),
            name: self.name.to_owned(),
            size: own.size,
            was_there: own.was_there,
            replaced: false,
            said: self.choice.said.clone(),
            adapters: Vec::new(),
        }
    }

    /// Puts a folder into its place, and its card beside it.
    fn place_folder(&self, own: Own) -> Result<Pulled, HubError> {
        let mut pulled = self.pulled(&own);
        let known = Card::read(self.target).ok().flatten();
        let mut card = card(self.order, self.listing, self.choice, &own.arrived, self.target);
        if !own.was_there {
            card.size = Some(own.size);
            let paths = self.choice.files.iter().map(|file| file.path.clone());
            let files: Vec<_> = own.arrived.into_iter().zip(paths).collect();
            if let Some((config, _)) = files.iter().find(|(_, path)| path == PROMPTS) {
                Prompts::read(&config.path).onto(&mut card);
            }
            let is_same = known.as_ref().is_some_and(|known| known.files == card.files);
            pulled.replaced = self.target.symlink_metadata().is_ok() && !is_same;
            write_card(&unverified(&card), self.target)?;
            self.staging.place_folder(&files, self.target)?;
            write_card(&card, self.target)?;
        } else if !known.as_ref().is_some_and(|known| describes(known, self.choice)) {
            Prompts::read(&self.target.join(PROMPTS)).onto(&mut card);
            // The hub announces no checksum of small files.
            for file in card.files.iter_mut().filter(|file| file.sha256.is_none()) {
                let known = known.iter().flat_map(|known| &known.files).find(|known| known.name == file.name);
                file.sha256 = known.and_then(|known| known.sha256.clone());
            }
            write_card(&card, self.target)?;
        }
        Ok(pulled)
    }

    /// Puts a file, or the parts of one, into their places, with the adapters that belong to it.
    fn place_files(&self, own: Own) -> Result<Pulled, HubError> {
        let Download { order, directory, choice, target, .. } = *self;
        let mut pulled = self.pulled(&own);
        let known = Card::read(target).ok().flatten();
        let mut card = match &known {
            // The card describes the files that are there; only its adapters may have changed.
            Some(known) if own.was_there && describes(known, choice) => known.clone(),
            _ => card(order, self.listing, choice, &own.arrived, target),
        };
        if own.was_there && choice.files.len() == 1 {
            // The hub need not announce a checksum.
            card.size = Some(own.size);
            if card.sha256.is_none() {
                card.sha256 = Some(sha256_of(target, self.progress)?);
            }
        }
        if !own.was_there {
            check_head(&own.arrived)?;
            let sha256 = hex(&own.whole.unwrap_or_default().finalize());
            check_sha256(order, &choice.name, &sha256)?;
            (card.size, card.sha256) = (Some(own.size), Some(sha256));
        }
        let mut adapters = Vec::new();
        let model = own.arrived.first().map_or(target, |file| &*file.path);
        if choice.files.len() == 1 && takes_adapters(model) {
            let Download { hub, client, reference, staging, progress, name, .. } = *self;
            let chosen = adapter_files::choose(self.listing, choice)?;
            let fetching = Fetching { client, hub, reference, staging, progress, directory };
            let fetched = fetching.fetch(&chosen, name, target)?;
            pulled.size = pulled.size.saturating_add(fetched.size);
            pulled.was_there &= fetched.arrived.is_empty();
            pulled.adapters = fetched.tasks;
            card.adapters = Some(fetched.listed);
            for (file, name) in fetched.arrived {
                adapters.push((file, place::target(directory, &name)?));
            }
        }
        let left = adapter_files::left_over(known.as_ref(), &card, target, self.progress)?;
        pulled.was_there &= left.is_empty();
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        let is_same = known.as_ref().is_some_and(|known| known.sha256 == card.sha256);
        pulled.replaced = (!own.was_there && !is_same && (known.is_some() || is_there(target)))
            || !left.is_empty()
            || adapters.iter().any(|(_, place)| is_there(place));
        if !adapters.is_empty() || !own.arrived.is_empty() {
            // No model is without its prompts meanwhile, and after a crash no file is taken for what it
            // should have become.
            let mut card = unverified(&card);
            // What is to go is as it was, and is found again by its checksum.
            if !left.is_empty() {
                card.adapters.get_or_insert_default().extend(left.iter().cloned());
            }
            write_card(&card, target)?;
        }
        let is_written = known.as_ref() == Some(&card) && adapters.is_empty() && own.arrived.is_empty();
        let are_many = choice.files.len() > 1 || !adapters.is_empty() || !left.is_empty();
        if are_many && !own.arrived.is_empty() {
            // The old one, or its first part, would make a model together with those files of the new one
            // that have their places when this ends too early.
            place::remove(target)?;
        }
        // A model without its adapters would be another one.
        self.staging.place_files(&adapters)?;
        adapter_files::remove(&left, target)?;
        let targets = self.places.names.iter().map(|name| directory.join(name));
        self.staging.place_files(&own.arrived.into_iter().zip(targets).collect::<Vec<_>>())?;
        if !is_written {
            write_card(&card, target)?;
        }
        Ok(pulled)
    }
}

/// The card while files are put into their places. It has all names and no checksum: whoever finds it after a
/// crash looks at the files themselves.
fn unverified(card: &Card) -> Card {
    let name = |file: &CardFile| CardFile { name: file.name.clone(), size: None, sha256: None };
    let names = |files: &Vec<CardFile>| files.iter().map(name).collect();
    Card {
        size: None,
        sha256: None,
        files: names(&card.files),
        adapters: card.adapters.as_ref().map(names),
        ..card.clone()
    }
}

/// Whether a card has checksums of all files of a model, and those that the hub announces.
fn describes(card: &Card, choice: &FileChoice) -> bool {
    let is_same = |known: Option<&String>, file: &Remote| {
        known.is_some() && file.sha256.as_ref().is_none_or(|announced| known == Some(announced))
    };
    match &choice.files[..] {
        [file] if !choice.is_folder => card.size.is_some() && is_same(card.sha256.as_ref(), file),
        files => files.iter().all(|file| {
            listed(card, file)
                .is_some_and(|known| known.size.is_some() && is_same(known.sha256.as_ref(), file))
        }),
    }
}

/// What a card says of one of the files of a model.
fn listed<'a>(card: &'a Card, file: &Remote) -> Option<&'a CardFile> {
    card.files.iter().find(|known| known.name == file.path || known.name == file.name())
}

/// Whether a card is none of another repository's model.
fn is_of_repository(card: &Card, repository: &str) -> bool {
    card.repository.as_ref().is_none_or(|known| known.eq_ignore_ascii_case(repository))
}

/// The form of a model, as far as it is known before the hub is asked.
struct ModelForm {
    is_folder: Option<bool>,
}

impl ModelForm {
    fn new(order: &Order) -> Result<ModelForm, HubError> {
        let Some(name) = &order.name else { return Ok(ModelForm { is_folder: None }) };
        if !is_safe_path(name) {
            let reason = "its name is not one below the directory of the models";
            return Err(HubError::Reference { reference: reference::shown(name), reason });
        }
        Ok(ModelForm { is_folder: Some(!name.ends_with(".gguf")) })
    }
}

/// The places of a model's files below the directory.
struct HubFiles<'a> {
    choice: &'a FileChoice,
    listing: &'a RepositoryListing,
    /// The registered SHA-256 of a model in one file, for use where the hub does not state one.
    registered: Option<String>,
    /// One for each file.
    names: Vec<String>,
}

impl HubFiles<'_> {
    fn new<'a>(
        order: &Order,
        choice: &'a FileChoice,
        name: &str,
        listing: &'a RepositoryListing,
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
        Ok(HubFiles { choice, listing, registered, names })
    }

    /// Refuses to replace a model that came from elsewhere, unless somebody has registered the file as this
    /// one's.
    fn refuse_others(&self, order: &Order, directory: &Path, target: &Path) -> Result<(), HubError> {
        let is_there =
            target.symlink_metadata().is_ok() || self.names.iter().any(|name| directory.join(name).exists());
        if order.name.is_some() || !is_there {
            return Ok(());
        }
        let card = Card::read(target).ok().flatten().unwrap_or_default();
        let is_of = is_of_repository(&card, &order.reference.repository);
        let first = self.choice.files.first().filter(|_| !self.choice.is_folder);
        // Another one of its folders has a file of the same name.
        let is_other = first.zip(card.file.as_ref()).is_some_and(|(first, known)| first.path != *known);
        let from = match card.repository {
            Some(_) if is_of && !is_other => return Ok(()),
            Some(_) if is_of => {
                format!("it is \"{}\" of that repository", card.file.unwrap_or_default())
            }
            Some(repository) => format!("it came from repository \"{repository}\""),
            None => "nothing says that it came from there".to_owned(),
        };
        let file = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Err(HubError::Taken { file, from })
    }

    /// Whether a card was written of these files at this commit.
    fn is_described_by(&self, card: &Card) -> bool {
        let first = self.choice.files.first().map(|file| &file.path);
        card.repository.is_some()
            && is_of_repository(card, &self.listing.repository)
            && card.revision.as_ref() == Some(&self.listing.commit)
            && (self.choice.is_folder || card.file.as_ref() == first)
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
            let path = directory.join(name);
            let of_card = match &self.choice.files[..] {
                [_] if !self.choice.is_folder => card.sha256.as_deref(),
                _ => listed(&card, file).and_then(|known| known.sha256.as_deref()),
            };
            // The hub announces no checksum of small files, and some mirrors none at all: a file of the same
            // name and length is no proof.
            let of_commit = of_card.filter(|_| self.is_described_by(&card));
            let announced = file.sha256.as_deref().or(self.registered.as_deref());
            let Some(expected) = announced.or(of_commit) else {
                progress.note("");
                return Ok(None);
            };
            let is_known = of_card == Some(expected)
                && (self.choice.is_folder || self.names.len() > 1 || is_believed(&path, expected));
            if !is_known && sha256_of(&path, progress)? != expected {
                progress.note("");
                return Ok(None);
            }
        }
        progress.note("");
        progress.set_done(size);
        Ok(Some(size))
    }
}

/// Refuses what is known not to be the registered file before it is fetched.
fn check_registered(order: &Order, choice: &FileChoice) -> Result<(), HubError> {
    match &choice.files[..] {
        [Remote { sha256: Some(found), .. }] if !choice.is_folder => check_sha256(order, &choice.name, found),
        _ => Ok(()),
    }
}

/// Refuses names by which nobody would find the model, because they mean another one or none.
fn refuse_reserved(order: &Order, name: &str) -> Result<(), HubError> {
    let lower = name.to_ascii_lowercase();
    let stem = lower.split('.').next().unwrap_or(&lower);
    // The name of a file that is being written beside a model.
    let complete = lower.strip_suffix(sidecar::NEW_SUFFIX).unwrap_or(&lower);
    let is_beside = [card::SUFFIX, adapters::SUFFIX, sidecar::CHECKSUM_SUFFIX, sidecar::PANELS_SUFFIX]
        .iter()
        .any(|suffix| complete.ends_with(suffix));
    if !["builtin", "auto"].contains(&stem) && !is_beside {
        return Ok(());
    }
    Err(HubError::NoModel {
        repository: order.reference.repository.clone(),
        reason: format!("has a model that is called \"{name}\", a name with a meaning of its own"),
        hint: "Register it under another file name, and download it by the registered name.".to_owned(),
    })
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
fn card(
    order: &Order,
    listing: &RepositoryListing,
    choice: &FileChoice,
    arrived: &[Arrived],
    target: &Path,
) -> Card {
    let known = order.card.clone();
    let old = Card::read(target).ok().flatten();
    let mut old = old.filter(|old| is_of_repository(old, &listing.repository)).unwrap_or_default();
    if choice.is_folder {
        // Those that came with the folder go with it.
        Prompts::read(&target.join(PROMPTS)).off(&mut old);
    }
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
