//! The table of requests that are running now, in shared memory, for the view steadytext_activity.
//!
//! A few hundred entries serve all databases; requests beyond them run all the same, they are only not shown.
//! Invariant: entries are read and written under the activity lock only.

use std::cell::UnsafeCell;

use pgrx::pg_sys;
use uuid::Uuid;

use super::shmem::{SharedContent, SharedPart};

/// Requests shown at once, over all databases.
pub(crate) const ENTRIES: usize = 256;
/// Bytes of partial text kept per request: the last ones.
pub(crate) const PARTIAL_TEXT_BYTES: usize = 1024;

/// The types of requests; entries have their place in this list.
const REQUEST_TYPES: [&str; 22] = [
    "generate",
    "embed",
    "generate_json",
    "generate_regex",
    "generate_choice",
    "rerank",
    "batch_embed",
    "batch_rerank",
    "if",
    "if_score",
    "classify",
    "classify_scores",
    "classify_multi",
    "score",
    "similarity",
    "analyze_sentiment",
    "extract",
    "translate",
    "mask",
    "extract_facts",
    "deduplicate_facts",
    "summarize",
];

/// The phase of a running request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Claimed, its turn has not come.
    Waiting,
    /// The model is being loaded.
    Loading,
    /// The prompt is computed.
    Prefill,
    /// Tokens are generated.
    Decoding,
}

impl Phase {
    /// The word that the view shows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Loading => "loading",
            Phase::Prefill => "prefill",
            Phase::Decoding => "decoding",
        }
    }
}

/// One running request.
#[derive(Clone, Copy)]
#[repr(C)]
struct ActivityEntry {
    database: pg_sys::Oid,
    owner: pg_sys::Oid,
    pid: i32,
    prompt_tokens: i32,
    generated_tokens: i32,
    /// Turns of the engine until the first token; -1 before it.
    first_token_turns: i32,
    text_len: u32,
    started_at: i64,
    first_token_at: i64,
    request_id: [u8; 16],
    phase: Phase,
    request_type: u8,
    text: [u8; PARTIAL_TEXT_BYTES],
}

/// The table; an entry with pid 0 is free.
#[repr(C)]
pub(crate) struct ActivityTable {
    entries: UnsafeCell<[ActivityEntry; ENTRIES]>,
}

// SAFETY: `entries` is only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for ActivityTable {}
// SAFETY: zeros are entries that are free.
unsafe impl SharedContent for ActivityTable {}

pub(super) static TABLE: SharedPart<ActivityTable> = SharedPart::new();

/// A running request, as the view shows it.
pub(crate) struct Activity {
    /// The request.
    pub(crate) request_id: Uuid,
    /// The role that the request belongs to.
    pub(crate) owner: pg_sys::Oid,
    /// `generate`, `embed`, …
    pub(crate) request_type: &'static str,
    /// The phase that it is in.
    pub(crate) phase: Phase,
    /// Length of its prompt, 0 while not known.
    pub(crate) prompt_tokens: i32,
    /// Tokens generated up to now.
    pub(crate) generated_tokens: i32,
    /// Turns of the engine from taking the request in to its first token; `None` before it.
    pub(crate) first_token_turns: Option<i32>,
    /// Tokens in a second since the first token; `None` before it.
    pub(crate) tokens_per_second: Option<f64>,
    /// The end of the text up to now.
    pub(crate) partial_text: String,
    /// TimestampTz of the claim.
    pub(crate) started_at: i64,
    /// The worker.
    pub(crate) worker_pid: i32,
}

/// The handle on an entry, of the process that has made it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivityLine(usize);

/// The time, as TimestampTz.
pub(crate) fn now() -> i64 {
    // SAFETY: a clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

fn locked<R>(exclusive: bool, f: impl FnOnce(&mut [ActivityEntry; ENTRIES]) -> R) -> Option<R> {
    // SAFETY: the lock guards the table; readers do not write.
    TABLE.with_lock(exclusive, |table| f(unsafe { &mut *table.entries.get() }))
}

/// Takes an entry for a request that this process has claimed. `None`: all are taken.
pub(crate) fn begin(request_id: Uuid, owner: pg_sys::Oid, request_type: &str) -> Option<ActivityLine> {
    let request_type = REQUEST_TYPES.iter().position(|name| *name == request_type).unwrap_or(0) as u8;
    // SAFETY: plain globals of this process.
    let (pid, database) = unsafe { (pg_sys::MyProcPid, pg_sys::MyDatabaseId) };
    let now = now();
    locked(true, |entries| {
        let index = entries.iter().position(|entry| entry.pid == 0)?;
        entries[index] = ActivityEntry {
            database,
            owner,
            pid,
            prompt_tokens: 0,
            generated_tokens: 0,
            first_token_turns: -1,
            text_len: 0,
            started_at: now,
            first_token_at: 0,
            request_id: *request_id.as_bytes(),
            phase: Phase::Waiting,
            request_type,
            text: [0; PARTIAL_TEXT_BYTES],
        };
        Some(ActivityLine(index))
    })
    .flatten()
}

/// The request entered `phase`.
pub(crate) fn set_phase(line: ActivityLine, phase: Phase, prompt_tokens: Option<usize>) {
    locked(true, |entries| {
        let entry = &mut entries[line.0];
        entry.phase = phase;
        if let Some(tokens) = prompt_tokens {
            entry.prompt_tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        }
    });
}

/// The request has generated `generated_tokens` up to now, in so many turns of the engine; `text` is the end
/// of what it has written.
pub(crate) fn set_progress(line: ActivityLine, generated_tokens: usize, turns: u64, text: &str) {
    let now = now();
    let start = (text.len().saturating_sub(PARTIAL_TEXT_BYTES)..=text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(text.len());
    let tail = &text.as_bytes()[start..];
    locked(true, |entries| {
        let entry = &mut entries[line.0];
        entry.phase = Phase::Decoding;
        entry.generated_tokens = i32::try_from(generated_tokens).unwrap_or(i32::MAX);
        if entry.first_token_at == 0 {
            entry.first_token_at = now;
            entry.first_token_turns = i32::try_from(turns).unwrap_or(i32::MAX);
        }
        entry.text[..tail.len()].copy_from_slice(tail);
        entry.text_len = tail.len() as u32;
    });
}

/// The request has ended.
pub(crate) fn end(line: ActivityLine) {
    locked(true, |entries| entries[line.0].pid = 0);
}

/// Frees all entries of a worker that has ended without doing so.
pub(crate) fn end_all_of(pid: i32) {
    locked(true, |entries| {
        entries.iter_mut().filter(|entry| entry.pid == pid).for_each(|entry| entry.pid = 0);
    });
}

/// The running requests of this process's database.
pub(crate) fn list() -> Vec<Activity> {
    // SAFETY: a plain global of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    let now = now();
    let entries: Vec<ActivityEntry> = locked(false, |entries| {
        entries.iter().filter(|entry| entry.pid != 0 && entry.database == database).copied().collect()
    })
    .unwrap_or_default();
    entries.iter().map(|entry| describe(entry, now)).collect()
}

fn describe(entry: &ActivityEntry, now: i64) -> Activity {
    let seconds = (now - entry.first_token_at) as f64 / 1e6;
    let text = &entry.text[..(entry.text_len as usize).min(PARTIAL_TEXT_BYTES)];
    Activity {
        request_id: Uuid::from_bytes(entry.request_id),
        owner: entry.owner,
        request_type: REQUEST_TYPES.get(usize::from(entry.request_type)).copied().unwrap_or_default(),
        phase: entry.phase,
        prompt_tokens: entry.prompt_tokens,
        generated_tokens: entry.generated_tokens,
        first_token_turns: Some(entry.first_token_turns).filter(|turns| *turns >= 0),
        tokens_per_second: (entry.first_token_at != 0 && seconds > 0.0)
            .then(|| f64::from(entry.generated_tokens) / seconds),
        partial_text: String::from_utf8_lossy(text).into_owned(),
        started_at: entry.started_at,
        worker_pid: entry.pid,
    }
}
