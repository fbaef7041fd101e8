//! The one directory of this test process, and the guardian that removes it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use crate::program::give_to_server_user;

/// Waits for the end of its standard input, which comes when the test process is gone in whatever way;
/// then stops the servers that are left and removes the directory.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
alive() {
    for file in "$0"/*/data/postmaster.pid; do
        [ -f "$file" ] && kill "$1" "$(head -n 1 "$file")" 2>/dev/null && return 0
    done
    return 1
}
for file in "$0"/*/data/postmaster.pid; do
    [ -f "$file" ] && kill -QUIT "$(head -n 1 "$file")" 2>/dev/null
done
tries=0
while alive -0 && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
alive -KILL
rm -rf "$0"
"#;

/// A socket's path must fit into 107 bytes: `DIRECTORY/c123/.s.PGSQL.5432`.
const LONGEST: usize = 70;

static RUN_DIRECTORY: LazyLock<PathBuf> = LazyLock::new(create);

/// The directory that holds every cluster of this process. Removed when the process ends.
pub fn run_directory() -> &'static Path {
    &RUN_DIRECTORY
}

fn create() -> PathBuf {
    let mut parent = std::env::temp_dir();
    if parent.as_os_str().len() > LONGEST {
        parent = PathBuf::from("/tmp");
    }
    let directory = tempfile::Builder::new()
        .prefix("steadytext-")
        .tempdir_in(&parent)
        .unwrap_or_else(|error| panic!("no temporary directory in {}: {error}", parent.display()))
        .keep();
    give_to_server_user(&directory);
    let guardian = Command::new("sh")
        .args(["-c", GUARDIAN])
        .arg(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .expect("the guardian starts");
    // The write end of the guardian's standard input stays open for as long as this process lives.
    std::mem::forget(guardian);
    directory
}
