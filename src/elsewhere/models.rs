//! The models of this machine: which of a server's are here, and where.
//!
//! Invariant: a server names files below the directory of the models, and none elsewhere.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use steadytext_engine::remote_job::{JobRefusal, WantedModel};
use steadytext_engine::{ModelSource, file_bytes};

use crate::endpoints::Endpoint;

/// The name of the model inside the library.
const BUILTIN: &str = "builtin";
/// Names that a claim takes along, at most.
const MAX_NAMES: usize = 1000;
/// Time for which a model is left alone whose file is no good and has not changed: it may have been
/// unreadable for a moment, and what the server expects of it may be corrected.
const SPOILED: Duration = Duration::from_secs(60);
/// Models that are remembered to be no good.
const MAX_SPOILED: usize = 10_000;

/// A model that a server has registered.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    pub(crate) name: String,
    pub(crate) file: String,
    /// Whether it is written down what the file must hold.
    pub(crate) has_sha256: bool,
    /// Whether the server's own worker leaves it alone.
    pub(crate) is_elsewhere: bool,
}

/// The directory, and what was found of it.
#[derive(Debug)]
pub(crate) struct ModelDirectory {
    directory: PathBuf,
    /// The models to be served; `None`: all.
    chosen: Option<Vec<String>>,
    /// The models whose files are unusable, by name.
    spoiled: HashMap<String, SpoiledFile>,
}

#[derive(Debug)]
struct SpoiledFile {
    since: Instant,
    path: PathBuf,
    /// The file's stamp at that time.
    stamp: Stamp,
}

/// The length and the modification time of a file, by which a change is seen.
type Stamp = Option<(u64, SystemTime)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

impl ModelDirectory {
    /// The models of a directory.
    pub(crate) fn new(directory: &Path, chosen: Option<&[String]>) -> ModelDirectory {
        let chosen = chosen.map(<[String]>::to_vec);
        ModelDirectory { directory: directory.to_owned(), chosen, spoiled: HashMap::new() }
    }

    /// The names that a claim may bring for the engine: of the registered models whose files are here, of
    /// other files here, and the builtin one, but for those that endpoints answer.
    pub(crate) fn names(&mut self, registered: &[Registered], endpoints: &[Arc<Endpoint>]) -> Vec<String> {
        self.spoiled
            .retain(|_, spoiled| spoiled.since.elapsed() < SPOILED && stamp(&spoiled.path) == spoiled.stamp);
        let here = registered.iter().filter(|model| self.find(&model.file).is_some());
        let mut names: Vec<String> = here.map(|model| model.name.clone()).collect();
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_folder = path.join("config.json").is_file();
            let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
            let name = if is_folder { path.file_name() } else { path.file_stem() };
            // A row of that name means the row's file.
            if (is_folder || is_file)
                && let Some(name) = name.and_then(|name| name.to_str())
                && !registered.iter().any(|model| model.name == name)
            {
                names.push(name.to_owned());
            }
        }
        names.push(BUILTIN.to_owned());
        names.retain(|name| {
            self.is_chosen(name)
                && !endpoints.iter().any(|endpoint| endpoint.name().eq_ignore_ascii_case(name))
        });
        names.retain(|name| !self.spoiled.contains_key(name));
        names.truncate(MAX_NAMES);
        names
    }

    /// Whether a model is to be served.
    pub(crate) fn is_chosen(&self, name: &str) -> bool {
        let Some(chosen) = &self.chosen else { return true };
        chosen.iter().any(|chosen| chosen.eq_ignore_ascii_case(name))
    }

    /// The models that are to be served and that nothing on this machine answers: neither a file nor an
    /// endpoint.
    pub(crate) fn missing(&self, names: &[String], endpoints: &[Arc<Endpoint>]) -> Vec<&str> {
        let is_there = |chosen: &&str| {
            names.iter().any(|name| name.eq_ignore_ascii_case(chosen))
                || endpoints.iter().any(|endpoint| endpoint.name().eq_ignore_ascii_case(chosen))
                || self.spoiled.keys().any(|name| name.eq_ignore_ascii_case(chosen))
        };
        let chosen = self.chosen.iter().flatten().map(String::as_str);
        chosen.filter(|chosen| !is_there(chosen)).collect()
    }

    /// The place of a model.
    ///
    /// # Errors
    ///
    /// The model's file is missing, or is another one, which is left alone from now on.
    pub(crate) fn source(&mut self, wanted: &WantedModel) -> Result<ModelSource, JobRefusal> {
        let refused = |message: String| JobRefusal { message, code: "58030".to_owned(), retry: true };
        let WantedModel { name, file, bytes, .. } = wanted;
        let Some(file) = file else { return Ok(ModelSource::Builtin) };
        let path = self
            .find(file)
            .ok_or_else(|| refused(format!("the file of model \"{name}\" is not on the worker's machine")))?;
        let has = file_bytes(&path);
        let source = ModelSource::File(path);
        if let (Some(has), Some(wants)) = (has, *bytes)
            && has != wants
        {
            self.spoil(name, &source);
            return Err(refused(format!(
                "the file of model \"{name}\" on the worker's machine is not the server's: with its adapters it has {has} bytes, not {wants}"
            )));
        }
        Ok(source)
    }

    /// Leaves a model alone for a while: its file is no good, or not the one that the server means.
    pub(crate) fn spoil(&mut self, name: &str, source: &ModelSource) {
        if let ModelSource::File(path) = source
            && self.spoiled.len() < MAX_SPOILED
        {
            let spoiled = SpoiledFile { since: Instant::now(), path: path.clone(), stamp: stamp(path) };
            self.spoiled.insert(name.to_owned(), spoiled);
        }
    }

    /// A file or folder below the directory.
    fn find(&self, file: &str) -> Option<PathBuf> {
        let relative = Path::new(file);
        // A superuser's absolute path is the server's; here its name counts.
        let relative = if relative.is_absolute() { Path::new(relative.file_name()?) } else { relative };
        let is_below =
            relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = self.directory.join(relative);
        (is_below && (path.is_file() || path.join("config.json").is_file())).then_some(path)
    }
}
