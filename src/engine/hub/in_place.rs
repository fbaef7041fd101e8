//! Models that are in place already, as far as that can be told without asking the hub.
//!
//! A card says what was fetched, and a row of a registry what is wanted. Where both agree with the files that
//! are there, nothing a hub could say would change them.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::adapter_files::takes_adapters;
use super::error::HubError;
use super::order::{Order, Pulled};
use super::place::write_card;
use super::progress::Progress;
use super::reference::{MAIN, is_safe_path};
use super::staged_file::{add_to, sha256_of};
use crate::adapters;
use crate::cache_key::hex;
use crate::card::{Card, CardFile};
use crate::gguf::parts;
use crate::identity::ModelIdentity;

/// The model, if it is there and is known to be the one that is wanted.
///
/// # Errors
/// [`HubError::File`] and [`HubError::Cancelled`].
pub(super) fn in_place(
    order: &Order,
    directory: &Path,
    progress: &Progress,
) -> Result<Option<Pulled>, HubError> {
    let Some(name) = name(order).filter(|name| is_safe_path(name)) else { return Ok(None) };
    let path = directory.join(&name);
    // Links may lead out of the directory, which is for others to find out.
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if path.ancestors().take_while(|path| *path != directory).any(is_link) {
        return Ok(None);
    }
    let card = Card::read(&path).ok().flatten();
    let size = match &card {
        Some(card) if is_of(card, order) => recorded_size(card, &path),
        _ => None,
    };
    let size = match (size, order.sha256.map(|sha256| hex(&sha256))) {
        (Some(size), None) => Some(size),
        (Some(size), Some(wanted))
            if card.as_ref().and_then(|card| card.sha256.as_ref()) == Some(&wanted) =>
        {
            Some(size)
        }
        // A file that somebody has put there, of which nothing is known but what it must be.
        (_, Some(wanted)) if path.is_file() && parts(&path).len() == 1 && !takes_adapters(&path) => {
            progress.note("looking at the file that is there");
            let found = sha256_of(&path, progress)?;
            progress.note("");
            let size = std::fs::metadata(&path).map_err(|error| HubError::file(&path, error))?.len();
            // A card without a checksum is that of a download that was cut off while the file was put there.
            if found == wanted && card.as_ref().is_none_or(|card| card.sha256.is_none()) {
                let known = Card {
                    repository: Some(order.reference.repository.clone()),
                    file: order.reference.file.clone(),
                    sha256: Some(found.clone()),
                    size: Some(size),
                    ..card.clone().unwrap_or_else(|| order.card.clone())
                };
                write_card(&known, &path)?;
            }
            (found == wanted).then_some(size)
        }
        (_, _) => None,
    };
    Ok(size.map(|size| {
        progress.expect(size);
        progress.set_done(size);
        let adapters = adapters::tasks_beside(&path).unwrap_or_default();
        Pulled { path, name, size, was_there: true, replaced: false, said: None, adapters }
    }))
}

/// The name below the directory, where that does not depend on what the repository has.
fn name(order: &Order) -> Option<String> {
    let of_file = || {
        let file = order.reference.file.as_deref().filter(|file| file.ends_with(".gguf"))?;
        Some(file.rsplit('/').next().unwrap_or(file).to_owned())
    };
    order.name.clone().or_else(of_file)
}

/// Whether the card is that of what is ordered, as far as the reference says it.
fn is_of(card: &Card, order: &Order) -> bool {
    let reference = &order.reference;
    let is_same = |known: &Option<String>, wanted: &str| known.as_deref() == Some(wanted);
    let repository = card.repository.as_deref().unwrap_or_default();
    let file = match (&reference.file, &order.name) {
        // A registered file is found by its name, wherever it is in the repository.
        (Some(wanted), Some(_)) => card
            .file
            .as_ref()
            .is_some_and(|file| file == wanted || file.rsplit('/').next() == Some(wanted.as_str())),
        (Some(wanted), None) => is_same(&card.file, wanted),
        (None, _) => true,
    };
    file && repository.eq_ignore_ascii_case(&reference.repository)
        && (reference.revision == MAIN || is_same(&card.revision, &reference.revision))
}

/// Whether a checksum of a model's file may be believed. It may not where the file was loaded since, and had
/// another one.
pub(super) fn is_believed(path: &Path, sha256: &str) -> bool {
    ModelIdentity::recorded(path).is_none_or(|known| hex(&known.own_hash) == sha256)
}

/// Bytes of the files that a card lists, if all of them are there as it says and have a checksum in it.
fn recorded_size(card: &Card, path: &Path) -> Option<u64> {
    let length = |path: &Path, listed: Option<u64>| {
        let metadata = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(metadata.len()).filter(|length| listed == Some(*length))
    };
    let all = |files: &[CardFile], folder: &Path| {
        files.iter().try_fold(0_u64, |sum, file| {
            Some(sum.saturating_add(length(&folder.join(&file.name), file.size)?))
        })
    };
    if path.is_dir() {
        // Small files of a folder have checksums only where they were fetched.
        let is_whole = !card.files.is_empty() && card.files.iter().all(|file| file.sha256.is_some());
        return all(&card.files, path).filter(|_| is_whole);
    }
    if !is_believed(path, card.sha256.as_ref()?) {
        return None;
    }
    let own = if card.files.is_empty() {
        length(path, card.size)?
    } else {
        if parts(path).len() != card.files.len() {
            return None;
        }
        all(&card.files, path.parent()?)?
    };
    let beside = match &card.adapters {
        Some(files) => all(files, &adapters::described_in(path))?,
        // It came before adapters were fetched.
        None if takes_adapters(path) => return None,
        None => 0,
    };
    Some(own.saturating_add(beside))
}

/// The model where it has a name and is there: whichever version of it, unless a checksum says which one it
/// must be.
///
/// # Errors
/// [`HubError::File`] and [`HubError::Cancelled`].
pub(super) fn there_already(
    order: &Order,
    directory: &Path,
    progress: &Progress,
) -> Result<Option<Pulled>, HubError> {
    let Some(name) = order.name.clone() else { return Ok(None) };
    let path = directory.join(&name);
    let is_folder = path.is_dir();
    let files = if is_folder { vec![path.join("config.json")] } else { parts(&path) };
    let length = |file: &PathBuf| Some(std::fs::metadata(file).ok()?.len());
    let Some(sizes) = files.iter().map(length).collect::<Option<Vec<u64>>>() else { return Ok(None) };
    // A folder has no checksum.
    if let Some(wanted) = order.sha256.filter(|_| !is_folder) {
        progress.note("looking at the files that are there");
        let mut hash = Sha256::new();
        files.iter().try_for_each(|file| add_to(&mut hash, file, progress))?;
        progress.note("");
        if hex(&hash.finalize()) != hex(&wanted) {
            return Ok(None);
        }
    }
    let (size, adapters) = (sizes.iter().sum(), Vec::new());
    Ok(Some(Pulled { path, name, size, was_there: true, replaced: false, said: None, adapters }))
}
