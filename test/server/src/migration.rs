//! Versions of the extension beside the installed one, for a test: install and update scripts, gone when it
//! ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::program::{pg_config, succeed};

/// The objects of the extension in a database: object, property and value, as text that is the same in
/// another database.
pub const MEMBERS: &str = include_str!("members.sql");

/// The directory of the extension's control file and scripts.
fn directory() -> PathBuf {
    Path::new(&pg_config("--sharedir")).join("extension")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The version that CREATE EXTENSION installs.
pub fn default_version() -> String {
    let control = read(&directory().join("pg_steadytext.control"));
    let line = control.lines().find_map(|line| line.strip_prefix("default_version"));
    let version =
        line.and_then(|rest| rest.split('\'').nth(1)).expect("the control file has a default_version");
    version.to_owned()
}

/// The text of the install script.
pub fn install_script() -> String {
    read(&directory().join(format!("pg_steadytext--{}.sql", default_version())))
}

/// The first statement of the install script, which keeps others' objects out: every migration begins with it
/// too.
pub fn opening_statement() -> String {
    let script = install_script();
    let line = script
        .lines()
        .map(str::trim)
        .find(|line| !(line.is_empty() || line.starts_with("--") || line.starts_with('\\')));
    line.expect("the script has statements").to_owned()
}

/// Versions that were released, with their install scripts as they were then.
pub fn released_versions() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/released");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut released: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let version = name.strip_prefix("pg_steadytext--")?.strip_suffix(".sql")?;
            Some((version.to_owned(), read(&path)))
        })
        .collect();
    released.sort();
    released
}

/// A version name that nobody else uses.
fn new_version() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("test{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A script beside the installed ones.
#[derive(Debug)]
struct Script {
    path: PathBuf,
}

impl Script {
    /// Writes `pg_steadytext--STEP.sql`.
    fn write(step: &str, statements: &str) -> Script {
        let path = directory().join(format!("pg_steadytext--{step}.sql"));
        if std::fs::write(&path, statements).is_err() {
            let mut draft = tempfile::NamedTempFile::new().expect("a temporary file can be made");
            std::io::Write::write_all(&mut draft, statements.as_bytes()).expect("it can be written");
            succeed(Command::new("sudo").args(["install", "-m", "644"]).arg(draft.path()).arg(&path));
        }
        Script { path }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if std::fs::remove_file(&self.path).is_err() {
            let _ = Command::new("sudo").args(["rm", "-f"]).arg(&self.path).status();
        }
    }
}

/// An update script from the installed version to one of its own.
#[derive(Debug)]
pub struct Migration {
    _script: Script,
    version: String,
}

impl Migration {
    /// Writes the script.
    pub fn write(statements: &str) -> Migration {
        let version = new_version();
        let step = format!("{}--{version}", default_version());
        Migration { _script: Script::write(&step, statements), version }
    }

    /// The version that it leads to.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// A version that can be installed, with or without a way from it to the installed one.
#[derive(Debug)]
pub struct OtherVersion {
    _script: Script,
    version: String,
}

impl OtherVersion {
    /// A version whose install script is this one.
    pub fn write(install_script: &str) -> OtherVersion {
        let version = new_version();
        OtherVersion { _script: Script::write(&version, install_script), version }
    }

    /// The install script of a released version, under its own name. There must be none in its place.
    pub fn released(version: &str, install_script: &str) -> OtherVersion {
        OtherVersion { _script: Script::write(version, install_script), version: version.to_owned() }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }
}
