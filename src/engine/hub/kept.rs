//! Files of the version in place that the next version has, too: they are linked into the download, so that
//! of a model of many files those are fetched that have changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::HubError;
use super::listing::Remote;
use super::progress::Progress;
use super::staged_file::{Arrived, Paths, sha256_of};
use crate::card::CardFile;

/// The file in place, if it has the checksum that the hub announces. `listed` is what the card says of it.
///
/// # Errors
/// [`HubError::File`] and [`HubError::Cancelled`].
pub(super) fn keep(
    file: &Remote,
    place: &Path,
    listed: Option<&CardFile>,
    paths: &Paths,
    progress: &Progress,
) -> Result<Option<Arrived>, HubError> {
    let (Some(announced), Some(size)) = (&file.sha256, file.size) else { return Ok(None) };
    let is_alike = place.symlink_metadata().is_ok_and(|there| {
        let is_ours = there.uid() == rustix::process::geteuid().as_raw();
        is_ours && there.is_file() && there.len() == size
    });
    // Most files of another version are not even read.
    let is_other = listed.and_then(|listed| listed.sha256.as_ref()).is_some_and(|known| known != announced);
    // Where the file system has no links, the file is fetched.
    if !is_alike || is_other || std::fs::hard_link(place, &paths.kept).is_err() {
        return Ok(None);
    }
    if sha256_of(&paths.kept, progress)? != *announced {
        std::fs::remove_file(&paths.kept).map_err(|error| HubError::file(&paths.kept, error))?;
        return Ok(None);
    }
    Ok(Some(Arrived { path: paths.kept.clone(), size, sha256: announced.clone() }))
}
