//! Where the files of registered models may be: below pg_steadytext.model_dir, or where a superuser has said.
//!
//! Invariant: nothing outside of that directory is looked at for a relative name, not even whether it is
//! there. Links are followed by reading them, one after the other, and only as long as they stay inside.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use steadytext_engine::gguf::parts;

use crate::pg::guc;

/// Links on the way to a file at most, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Levels of folders below a model's that are looked at for links.
const FOLDER_DEPTH: usize = 3;

/// A name that leads out of the directory of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeadsOut;

/// Whether there is a model: a GGUF file, or a folder of an encoder.
pub(crate) fn is_there(path: &Path) -> bool {
    // Of a split model, all parts.
    parts(path).iter().all(|part| part.is_file()) || path.join("config.json").is_file()
}

/// As [`is_there`], where it matters that it can be seen.
///
/// # Errors
///
/// The system's: there may be a model.
pub(super) fn see_whether_there(path: &Path) -> io::Result<bool> {
    Ok(path.try_exists()? && is_there(path))
}

/// Whether there is a model at a path of the registry.
pub(crate) fn is_file_there(file: &str) -> bool {
    registered_path(file).is_ok_and(|path| is_there(&path))
}

/// A file of the registry, which administrators fill who are no superusers.
pub(crate) fn registered_path(file: &str) -> Result<PathBuf, LeadsOut> {
    locate(Path::new(&guc::model_dir()), file)
}

/// A file that a setting names: relative names are under pg_steadytext.model_dir.
pub(super) fn set_path(file: &str) -> PathBuf {
    Path::new(&guc::model_dir()).join(file)
}

/// The path of a file or folder of the registry; whether there is something is another question.
///
/// # Errors
///
/// [`LeadsOut`] for `..` and links out of the directory, also those in the folder of a model. Absolute names
/// were a superuser's to give.
pub(super) fn locate(directory: &Path, file: &str) -> Result<PathBuf, LeadsOut> {
    let file = Path::new(file);
    if file.is_absolute() {
        return Ok(file.to_owned());
    }
    if file.components().any(|component| component == Component::ParentDir) {
        return Err(LeadsOut);
    }
    let path = directory.join(file);
    // Without a directory there is nothing in it.
    if let Ok(root) = directory.canonicalize() {
        let walk = FolderWalk { directory, root: &root };
        // The parts of a split model are read under their names beside the first one.
        for part in parts(file).iter().skip(1) {
            walk.follow(part)?;
        }
        let found = walk.follow(file)?;
        walk.check_folder(&found, FOLDER_DEPTH)?;
    }
    Ok(path)
}

struct FolderWalk<'a> {
    /// As the setting names it.
    directory: &'a Path,
    /// The directory with its links resolved.
    root: &'a Path,
}

impl FolderWalk<'_> {
    /// Resolves the links of a path below the directory; components that are missing are kept as they are.
    fn follow(&self, path: &Path) -> Result<PathBuf, LeadsOut> {
        let mut found = PathBuf::new();
        let mut ahead: VecDeque<OsString> = steps(path).collect();
        let mut links = 0;
        while let Some(step) = ahead.pop_front() {
            if step == ".." {
                if !found.pop() {
                    return Err(LeadsOut);
                }
                continue;
            }
            found.push(&step);
            let here = self.root.join(&found);
            if !here.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
                continue;
            }
            links += 1;
            let target = here.read_link().map_err(|_| LeadsOut)?;
            if links > MAX_LINKS {
                return Err(LeadsOut);
            }
            let target = if target.is_absolute() {
                found = PathBuf::new();
                let below = target.strip_prefix(self.root).or_else(|_| target.strip_prefix(self.directory));
                below.map_err(|_| LeadsOut)?.to_owned()
            } else {
                found.pop();
                target
            };
            for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(step);
            }
        }
        Ok(found)
    }

    /// The files of a folder are read under their names in it.
    fn check_folder(&self, folder: &Path, depth: usize) -> Result<(), LeadsOut> {
        let Ok(entries) = self.root.join(folder).read_dir() else { return Ok(()) };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_symlink() => {
                    self.follow(&path)?;
                }
                Ok(kind) if kind.is_dir() && depth > 0 => self.check_folder(&path, depth - 1)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The names of a path, `..` among them.
fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}
