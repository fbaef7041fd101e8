//! PostgreSQL's programs, run as somebody it accepts: it refuses to run as root.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// Whom server programs run as when we are root.
const SERVER_USER: &str = "postgres";

/// Variables that would lead a client elsewhere than to the throwaway server.
const MISLEADING: [&str; 10] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PGDATABASE",
    "PGDATA",
    "PGOPTIONS",
    "PGSERVICE",
    "PGTZ",
];

struct Ids {
    user: u32,
    group: u32,
}

/// `None` where we are not root: then we are the server's user ourselves.
static SERVER_IDS: LazyLock<Option<Ids>> = LazyLock::new(|| {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    root.then(|| Ids { user: id("-u"), group: id("-g") })
});

static BIN_DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| PathBuf::from(pg_config("--bindir")));

/// The directory of the server's programs.
pub(crate) fn bin_directory() -> &'static Path {
    &BIN_DIRECTORY
}

fn id(flag: &str) -> u32 {
    let output = text_of(Command::new("id").args([flag, SERVER_USER]));
    output.parse().unwrap_or_else(|_| panic!("id {flag} {SERVER_USER} printed {output:?}"))
}

fn text_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The output of `pg_config FLAG`; `PG_CONFIG` in the environment names another one than the PATH's.
pub(crate) fn pg_config(flag: &str) -> String {
    let program = std::env::var_os("PG_CONFIG").unwrap_or_else(|| "pg_config".into());
    text_of(Command::new(program).arg(flag))
}

/// A command for one of PostgreSQL's programs as the server's user, without any of our connection settings.
pub(crate) fn server_program(name: impl AsRef<OsStr>) -> Command {
    let mut command = as_server_user(BIN_DIRECTORY.join(name.as_ref()));
    for variable in MISLEADING {
        command.env_remove(variable);
    }
    // Somebody may start a server so; errors must not change their words for it.
    command.env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "full");
    command
}

/// A command for one of PostgreSQL's programs that may open so many files, and can raise that no further.
pub(crate) fn limited_program(name: &str, open_files: u64) -> Command {
    let plain = server_program(name);
    // Like setpriv, it replaces itself by the program.
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={open_files}:{open_files}")).arg("--").arg(plain.get_program());
    command.args(plain.get_args()).current_dir("/");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// A command as the server's user.
pub(crate) fn as_server_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = match &*SERVER_IDS {
        None => Command::new(program.as_ref()),
        Some(ids) => {
            // setpriv replaces itself by the program, so that the child's id is the program's.
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", ids.user))
                .arg(format!("--regid={}", ids.group))
                .args(["--init-groups", "--"])
                .arg(program.as_ref());
            command
        }
    };
    command.current_dir("/").env("LC_ALL", "C").env("HOME", "/nonexistent");
    command
}

/// Makes the server's user the owner of a file or directory.
pub(crate) fn give_to_server_user(path: &Path) {
    if let Some(ids) = &*SERVER_IDS {
        chown(path, Some(ids.user), Some(ids.group))
            .unwrap_or_else(|error| panic!("chown of {}: {error}", path.display()));
    }
}

/// Runs to the end and panics with the output unless it succeeded.
#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        panic!("{command:?}: {}\n{stdout}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    stdout
}

#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
