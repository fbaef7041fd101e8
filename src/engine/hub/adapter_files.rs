//! The adapters that a repository publishes beside a model: which of its files they are, and how they come
//! into the folder beside the model's.
//!
//! They are told by their names, which are those of llama.cpp's converter, and fetched for models that take
//! adapters only. All of them are complete before any file has its place, as all files of a model are.

use std::path::Path;

use super::choice::{FileChoice, quantization};
use super::client::HubClient;
use super::error::HubError;
use super::listing::{Remote, RepositoryListing};
use super::partial::Partial;
use super::place::{self, Staging};
use super::progress::Progress;
use super::reference::Reference;
use super::settings::Hub;
use super::staged_file::{Arrived, Paths, check_head, sha256_of};
use crate::card::{Card, CardFile};
use crate::gguf::Gguf;
use crate::{adapters, model};

/// An adapter in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdapterFile {
    pub(super) task: String,
    pub(super) remote: Remote,
}

/// The adapters of a model.
pub(super) struct AdapterFiles {
    /// Fetched adapters that have yet to be put into place, each with its file name below the directory.
    pub(super) arrived: Vec<(Arrived, String)>,
    /// All of them, for the card.
    pub(super) listed: Vec<CardFile>,
    /// Their tasks.
    pub(super) tasks: Vec<String>,
    /// Bytes of all of them.
    pub(super) size: u64,
}

/// Whether the model in a file takes adapters.
pub(super) fn takes_adapters(path: &Path) -> bool {
    Gguf::open(path).is_ok_and(|gguf| model::takes_adapters(&gguf))
}

/// The files beside a model in its repository that have the names of adapters, for whichever model they are.
pub(super) fn candidates(listing: &RepositoryListing, choice: &FileChoice) -> Vec<AdapterFile> {
    let [model] = &choice.files[..] else { return Vec::new() };
    if choice.is_folder {
        return Vec::new();
    }
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let beside = listing.files.iter().filter(|file| folder(&file.path) == folder(&model.path));
    let adapter = |file: &Remote| {
        let task = adapters::published_task_of(file.name().strip_suffix(".gguf")?)?;
        Some(AdapterFile { task: task.to_owned(), remote: file.clone() })
    };
    beside.filter_map(adapter).collect()
}

/// The adapter of each task: the one that is called like the model, or like its quantization, or the one with
/// the most precise weights.
///
/// # Errors
/// [`HubError::NoModel`] where there are several of a task and nothing tells which.
pub(super) fn choose(listing: &RepositoryListing, choice: &FileChoice) -> Result<Vec<AdapterFile>, HubError> {
    let candidates = candidates(listing, choice);
    let mut chosen = Vec::new();
    for task in adapters::PUBLISHED {
        let of_task: Vec<&AdapterFile> = candidates.iter().filter(|adapter| adapter.task == task).collect();
        let [first, rest @ ..] = &of_task[..] else { continue };
        if rest.is_empty() {
            chosen.push((*first).clone());
            continue;
        }
        let whole_name = format!("lora-{task}-{}", choice.name);
        let is_named = |adapter: &&&AdapterFile| adapter.remote.name().eq_ignore_ascii_case(&whole_name);
        let of = |word: Option<&str>| {
            let of_word = |adapter: &&&AdapterFile| quantization(adapter.remote.name()) == word;
            let mut found = of_task.iter().filter(of_word);
            found.next().filter(|_| word.is_some() && found.next().is_none())
        };
        let words = [quantization(&choice.name), Some("F32"), Some("F16"), Some("BF16")];
        let found = of_task.iter().find(is_named).or_else(|| words.into_iter().find_map(of));
        let Some(found) = found else {
            let names: Vec<&str> = of_task.iter().map(|adapter| adapter.remote.name()).collect();
            return Err(HubError::NoModel {
                repository: listing.repository.clone(),
                reason: format!(
                    "has several adapters for the task \"{task}\" beside \"{}\": {}",
                    choice.name,
                    some_of(&names)
                ),
                hint: "Nothing says which one is the model's: name a file of another quantization, or fetch the files by hand."
                    .to_owned(),
            });
        };
        chosen.push((*found).clone());
    }
    chosen.sort_by(|one, other| one.task.cmp(&other.task));
    Ok(chosen)
}

/// The first of some names, for a message.
fn some_of(names: &[&str]) -> String {
    const MAX_LISTED: usize = 8;
    let listed = names[..names.len().min(MAX_LISTED)].join(", ");
    if names.len() > MAX_LISTED { format!("{listed} …") } else { listed }
}

/// The adapters on the card of an older version that the new one does not have, where they lie beside the
/// model as they were fetched: whoever reads the model would read them, too.
///
/// # Errors
/// [`HubError::File`] and [`HubError::Cancelled`].
pub(super) fn left_over(
    known: Option<&Card>,
    card: &Card,
    target: &Path,
    progress: &Progress,
) -> Result<Vec<CardFile>, HubError> {
    let list = |card: Option<&Card>| card.and_then(|card| card.adapters.clone()).unwrap_or_default();
    let (known, now) = (list(known), list(Some(card)));
    let folder = adapters::described_in(target);
    let mut left = Vec::new();
    for file in known {
        if now.iter().any(|listed| listed.name == file.name) {
            continue;
        }
        let path = folder.join(&file.name);
        let is_alike = path
            .symlink_metadata()
            .is_ok_and(|there| there.is_file() && file.size.is_none_or(|size| size == there.len()));
        let Some(sha256) = file.sha256.as_ref().filter(|_| is_alike) else { continue };
        // One that somebody else has put there is nobody's to remove.
        if sha256_of(&path, progress)? == *sha256 {
            left.push(file);
        }
    }
    Ok(left)
}

/// Removes adapters from beside a model, and their folder where there are no others.
///
/// # Errors
/// [`HubError::File`].
pub(super) fn remove(left: &[CardFile], target: &Path) -> Result<(), HubError> {
    let folder = adapters::described_in(target);
    left.iter().try_for_each(|file| place::remove(&folder.join(&file.name)))?;
    if !left.is_empty() {
        // It fails where there are others.
        let _ = std::fs::remove_dir(&folder);
    }
    Ok(())
}

/// The context for fetching adapters.
pub(super) struct Fetching<'a> {
    pub(super) client: &'a HubClient<'a>,
    pub(super) hub: &'a Hub,
    pub(super) reference: &'a Reference,
    pub(super) staging: &'a Staging,
    pub(super) progress: &'a Progress,
    pub(super) directory: &'a Path,
}

impl Fetching<'_> {
    /// Fetches those that are not in their places below the directory. `name` is that of the model there, and
    /// `target` its path.
    ///
    /// # Errors
    /// [`HubError`]; what has arrived is kept.
    pub(super) fn fetch(
        &self,
        chosen: &[AdapterFile],
        name: &str,
        target: &Path,
    ) -> Result<AdapterFiles, HubError> {
        let known = Card::read(target).ok().flatten().and_then(|card| card.adapters).unwrap_or_default();
        let mut adapters =
            AdapterFiles { arrived: Vec::new(), listed: Vec::new(), tasks: Vec::new(), size: 0 };
        let mut missing = Vec::new();
        for AdapterFile { task, remote } in chosen {
            adapters.tasks.push(task.clone());
            let path = adapters::path_for(target, task);
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let listed = known.iter().find(|listed| listed.name == file);
            match self.there(&path, remote, listed)? {
                There::Same(listed) => {
                    adapters.size += listed.size.unwrap_or(0);
                    adapters.listed.push(CardFile { name: file, ..listed });
                }
                There::Other if listed.is_none() => {
                    let from = "nothing says that it came from there".to_owned();
                    let file = format!("{name}{}/{file}", adapters::SUFFIX);
                    return Err(HubError::Taken { file, from });
                }
                There::Other | There::Nothing => missing.push((task, remote, file)),
            }
        }
        let paths = |remote: &Remote| Paths::new(&self.staging.path, remote, &self.reference.revision);
        let needed = missing
            .iter()
            .map(|(_, remote, _)| remote.size.unwrap_or(0).saturating_sub(paths(remote).length()));
        place::check_room(self.directory, name, needed.fold(0, u64::saturating_add))?;
        let done = self.progress.done().saturating_add(adapters.size);
        self.progress.set_done(done);
        let announced = missing.iter().filter_map(|(_, remote, _)| remote.size);
        self.progress.expect(announced.fold(done, u64::saturating_add));
        for (task, remote, file) in missing {
            self.progress.note(&format!("its adapter for {task}"));
            let partial = Partial::open(remote, paths(remote), None, self.progress, self.directory)?;
            let (arrived, _) = partial.complete(self.client, self.hub, self.reference)?;
            check_head(std::slice::from_ref(&arrived))?;
            adapters.size += arrived.size;
            adapters.listed.push(CardFile {
                name: file.clone(),
                size: Some(arrived.size),
                sha256: Some(arrived.sha256.clone()),
            });
            adapters.arrived.push((arrived, format!("{name}{}/{file}", adapters::SUFFIX)));
        }
        self.progress.note("");
        adapters.listed.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(adapters)
    }

    /// Compares the file in the place of an adapter, if there is one, with the adapter that the hub lists.
    fn there(&self, path: &Path, remote: &Remote, listed: Option<&CardFile>) -> Result<There, HubError> {
        let Ok(metadata) = path.symlink_metadata() else { return Ok(There::Nothing) };
        let size = metadata.len();
        if !metadata.is_file() || remote.size.is_some_and(|announced| announced != size) {
            return Ok(There::Other);
        }
        let sha256 = match listed.and_then(|listed| listed.sha256.clone()) {
            Some(sha256) if listed.and_then(|listed| listed.size) == Some(size) => sha256,
            _ => sha256_of(path, self.progress)?,
        };
        if remote.sha256.as_ref().is_some_and(|announced| *announced != sha256) {
            return Ok(There::Other);
        }
        Ok(There::Same(CardFile { name: String::new(), size: Some(size), sha256: Some(sha256) }))
    }
}

enum There {
    Nothing,
    Same(CardFile),
    Other,
}

#[cfg(test)]
mod tests {
    use super::super::choice::choose as choose_model;
    use super::{Remote, RepositoryListing, choose};

    fn chosen(model: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let file = |path: &&str| Remote { path: (*path).to_owned(), size: Some(1), sha256: None, blob: None };
        let listing = RepositoryListing {
            repository: "acme/jina-GGUF".to_owned(),
            commit: "1".to_owned(),
            files: files.iter().chain(&[model]).map(file).collect(),
            parameters: None,
            licence: None,
            task: None,
        };
        let choice = choose_model(&listing, "hub", Some(model), None).unwrap();
        let adapters = choose(&listing, &choice).map_err(|error| error.to_string())?;
        Ok(adapters.into_iter().map(|adapter| adapter.remote.path).collect())
    }

    #[test]
    fn each_task_has_the_adapter_that_is_called_like_the_model() {
        let files = [
            "lora-retrieval.query-jina-Q8_0.gguf",
            "lora-retrieval.query-jina-F16.gguf",
            "lora-text-matching-jina-f16.gguf",
            "lora-separation.gguf",
            "lora-anything-jina-Q8_0.gguf",
            "old/lora-classification-jina-Q8_0.gguf",
            "retrieval.passage.gguf",
        ];
        let found = chosen("jina-Q8_0.gguf", &files).unwrap();
        assert_eq!(
            found,
            [
                "lora-retrieval.query-jina-Q8_0.gguf",
                "lora-separation.gguf",
                "lora-text-matching-jina-f16.gguf"
            ]
        );
        let found = chosen("other-Q4_K_M.gguf", &files).unwrap();
        assert_eq!(found[0], "lora-retrieval.query-jina-F16.gguf", "the most precise one");
        let ambiguous = ["lora-separation-one.gguf", "lora-separation-two.gguf"];
        let error = chosen("jina-Q8_0.gguf", &ambiguous).unwrap_err();
        assert!(error.contains("several adapters for the task \"separation\""), "{error}");
        assert!(error.contains("lora-separation-two.gguf") && !error.contains('…'), "{error}");
        let many: Vec<String> = (0..10_000).map(|number| format!("lora-separation-{number}.gguf")).collect();
        let error =
            chosen("jina-Q8_0.gguf", &many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
        assert!(error.contains('…') && error.len() < 500, "{} bytes", error.len());
        assert!(chosen("jina-Q8_0.gguf", &[]).unwrap().is_empty());
    }
}
