//! The figures of requests over a restart of the server: in a file, from the postmaster's orderly end to its
//! next start.
//!
//! As pg_stat_statements does with its own, the postmaster writes the file when everything else has ended,
//! and removes it when it has read it. After a crash there is none, and the figures are lost. A file that is
//! malformed is removed and mentioned in the log, with no other effect.
//!
//! Invariant: nothing here can keep the server from starting or ending: errors are logged, and panics end
//! here.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ENTRIES, NUMBERS, StatisticsLine, all_at_end};
use crate::pg::error::PgError;

/// Relative to the data directory, which is the postmaster's working directory.
const FILE: &str = "pg_stat/pg_steadytext.stat";
const NEW_FILE: &str = "pg_stat/pg_steadytext.stat.tmp";
/// The magic number of the file. It changes with the number of buckets and the order of the counters.
const MAGIC: &[u8; 16] = b"pg_steadytext 2\n";
const DIGEST_BYTES: usize = 32;
/// Most bytes of a file. One with all entries is far shorter.
const MOST_BYTES: u64 = 4 << 20;

/// A [`StatisticsLine`] as it stands in the file.
#[derive(Serialize, Deserialize)]
struct StoredLine {
    database: u32,
    model: String,
    request_type: String,
    since: i64,
    numbers: Vec<u64>,
}

/// Reads the file and removes it, and has it written when the server ends. In the postmaster, at its start
/// and after each crash.
pub(super) fn at_start(mut take: impl FnMut(&StatisticsLine)) {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let path = Path::new(FILE);
        if path.symlink_metadata().is_err() {
            return None;
        }
        let read = read(path);
        let removed = std::fs::remove_file(path).map_err(|error| format!("could not remove it: {error}"));
        match read.and_then(|lines| removed.map(|()| lines)) {
            Ok(lines) => lines.iter().for_each(&mut take),
            Err(reason) => return Some(reason),
        }
        None
    }));
    match read {
        Ok(None) => {}
        Ok(Some(reason)) => complain("was not read", &reason),
        Err(_) => complain("was not read", "a bug in pg_steadytext"),
    }
    // SAFETY: the callback lives as long as the library. Processes that are forked forget those of the
    // postmaster.
    unsafe { pg_sys::on_shmem_exit(Some(at_end), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(code: i32, _arg: pg_sys::Datum) {
    // After a crash nobody knows what is in shared memory.
    if code != 0 {
        return;
    }
    let written = catch_unwind(|| write(&all_at_end()));
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => complain("was not written", &error.to_string()),
        Err(_) => complain("was not written", "a bug in pg_steadytext"),
    }
}

fn read(path: &Path) -> Result<Vec<StatisticsLine>, String> {
    let said = |error: std::io::Error| error.to_string();
    // Opening what is no file, such as a pipe, does not block.
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(said)?;
    let metadata = file.metadata().map_err(said)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err("it is no file that pg_steadytext has written".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(said)?;
    parse(&bytes).ok_or_else(|| "it is damaged, or of another version".to_owned())
}

fn parse(bytes: &[u8]) -> Option<Vec<StatisticsLine>> {
    let (digest, body) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGEST_BYTES)?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let stored: Vec<StoredLine> = postcard::from_bytes(body).ok()?;
    if stored.len() > ENTRIES + 1 {
        return None;
    }
    let line = |stored: StoredLine| {
        let StoredLine { database, model, request_type, since, numbers } = stored;
        let numbers: [u64; NUMBERS] = numbers.try_into().ok()?;
        Some(StatisticsLine { database, model, request_type, since, numbers })
    };
    stored.into_iter().map(line).collect()
}

fn write(lines: &[StatisticsLine]) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let stored = lines.iter().map(|line| StoredLine {
        database: line.database,
        model: line.model.clone(),
        request_type: line.request_type.clone(),
        since: line.since,
        numbers: line.numbers.to_vec(),
    });
    let body = postcard::to_allocvec(&stored.collect::<Vec<_>>()).map_err(std::io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(Sha256::digest(&body).as_slice());
    bytes.extend(body);
    // A file that was left there by a server that was killed is in nobody's way.
    let _ = std::fs::remove_file(NEW_FILE);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(NEW_FILE)?;
    std::io::Write::write_all(&mut file, &bytes)?;
    std::fs::rename(NEW_FILE, FILE)
}

fn complain(what: &str, reason: &str) {
    PgError::new(
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!("the file \"{FILE}\" with figures of pg_steadytext {what}: {reason}"),
    )
    .report(PgLogLevel::LOG);
}
