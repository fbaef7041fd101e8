//! Migrations made for a test: an update script beside the installed one, gone when the test ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::program::{pg_config, succeed};

/// The directory of the extension's control file and scripts.
fn directory() -> PathBuf {
    Path::new(&pg_config("--sharedir")).join("extension")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The version that CREATE EXTENSION installs.
fn default_version() -> String {
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

/// What the install script begins with, which keeps others' objects out: so does every migration.
pub fn opening_statement() -> String {
    let script = install_script();
    let line = script
        .lines()
        .map(str::trim)
        .find(|line| !(line.is_empty() || line.starts_with("--") || line.starts_with('\\')));
    line.expect("the script has statements").to_owned()
}

/// An update script from the installed version to one of its own.
#[derive(Debug)]
pub struct Migration {
    path: PathBuf,
    version: String,
}

impl Migration {
    /// Writes the script.
    pub fn write(statements: &str) -> Migration {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let from = default_version();
        let version = format!("test{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = directory().join(format!("pg_steadytext--{from}--{version}.sql"));
        if std::fs::write(&path, statements).is_err() {
            let mut draft = tempfile::NamedTempFile::new().expect("a temporary file can be made");
            std::io::Write::write_all(&mut draft, statements.as_bytes()).expect("it can be written");
            succeed(Command::new("sudo").args(["install", "-m", "644"]).arg(draft.path()).arg(&path));
        }
        Migration { path, version }
    }

    /// The version that it leads to.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        if std::fs::remove_file(&self.path).is_err() {
            let _ = Command::new("sudo").args(["rm", "-f"]).arg(&self.path).status();
        }
    }
}
