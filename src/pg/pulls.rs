//! Downloads of models, in shared memory: which models are wanted, by which processes, and the progress and
//! outcome of each download. A download runs in a process of its own, one for each model however many ask for
//! it, from whichever database.
//!
//! It goes on as long as somebody waits for it, or for good where somebody has asked for it without waiting.
//! The table knows the processes of those who wait, so that one that was killed does not wait for ever.
//!
//! Invariant: entries are read and written under the part's lock only. An entry is taken again only after its
//! download has ended, with another number, so that a process that comes late finds out.

use std::cell::UnsafeCell;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

use super::activity::now;
use super::bgworker;
use super::error::PgError;
use super::shmem::{self, SharedContent, SharedPart};

/// Downloads at the same time, or lately ended.
const ENTRIES: usize = 16;
/// Downloads at the same time that requests of a role may have begun. Each takes a place for a process from
/// the workers of all databases.
const ENTRIES_OF_ROLE: usize = 2;
/// Processes that are known to wait for a download; more of them make it go on for good.
const WAITERS: usize = 32;
/// Bytes of what a process must know to begin.
pub(crate) const DOWNLOAD_REQUEST_BYTES: usize = 16 << 10;
/// After so long without a process, a download that was to begin never will.
const START_US: i64 = 60_000_000;

/// Text of a limited length.
#[derive(Clone, Copy)]
#[repr(C)]
struct FixedText<const N: usize> {
    length: u32,
    bytes: [u8; N],
}

impl<const N: usize> FixedText<N> {
    fn set(&mut self, text: &str) {
        let end = (0..=text.len().min(N)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        self.length = end as u32;
    }

    fn get(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..(self.length as usize).min(N)]).into_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum EntryState {
    /// No download; the state of zeroed memory.
    Free,
    Starting,
    Running,
    Done,
    Failed,
}

#[repr(C)]
struct PullEntry {
    state: EntryState,
    /// Whether it goes on although nobody waits.
    for_good: bool,
    /// Whether somebody has stopped it.
    stopped: bool,
    /// Whether the model was there, so that nothing had to be fetched.
    was_there: bool,
    /// Whether another version of it was there.
    replaced: bool,
    /// Whether a request has begun it, and nobody who may download what he likes.
    for_request: bool,
    number: u64,
    pid: i32,
    owner: pg_sys::Oid,
    started_at: i64,
    ended_at: i64,
    done: u64,
    total: u64,
    /// Bytes in a second; below 0: not known.
    rate: f64,
    /// An SQLSTATE, packed.
    code: i32,
    waiters: [i32; WAITERS],
    /// The text that tells whether two downloads are the same one.
    key: FixedText<1024>,
    /// The name by which people know it.
    label: FixedText<256>,
    note: FixedText<256>,
    choice: FixedText<256>,
    adapters: FixedText<256>,
    /// The error's message, or the name of the model that is there now; the hint is the error's.
    message: FixedText<1024>,
    hint: FixedText<512>,
    request: FixedText<DOWNLOAD_REQUEST_BYTES>,
}

/// The table.
#[repr(C)]
pub(crate) struct PullTable {
    entries: UnsafeCell<[PullEntry; ENTRIES]>,
    /// Counts downloads.
    last: UnsafeCell<u64>,
}

// SAFETY: both are only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for PullTable {}
// SAFETY: zeros are entries that are free.
unsafe impl SharedContent for PullTable {}

pub(super) static TABLE: SharedPart<PullTable> = SharedPart::new();

/// A download that somebody wants.
pub(crate) struct WantedDownload<'a> {
    /// The text that tells whether two downloads are the same one.
    pub(crate) key: &'a str,
    /// The name by which people know it.
    pub(crate) label: &'a str,
    /// The request that is handed to its process.
    pub(crate) request: &'a str,
    /// The role that wants it.
    pub(crate) owner: pg_sys::Oid,
    /// Whether this process waits for it; otherwise it goes on for good.
    pub(crate) wait: bool,
    /// Whether a request wants it, of whichever user; otherwise somebody who may download what he likes.
    pub(crate) for_request: bool,
}

/// A download, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DownloadTicket {
    index: usize,
    number: u64,
}

/// The progress of a download.
#[derive(Debug, Clone)]
pub(crate) struct RunningDownload {
    /// The name by which people know it.
    pub(crate) label: String,
    /// The role that asked first.
    pub(crate) owner: pg_sys::Oid,
    /// The id of its process; 0 before there is one.
    pub(crate) pid: i32,
    /// The beginning, as TimestampTz.
    pub(crate) started_at: i64,
    /// Bytes that are there.
    pub(crate) done: u64,
    /// Bytes in all; 0 while not known.
    pub(crate) total: u64,
    /// Bytes in a second.
    pub(crate) rate: Option<f64>,
    /// A message that tells what the download waits for.
    pub(crate) note: String,
}

impl RunningDownload {
    /// Seconds until the end at the present rate.
    pub(crate) fn seconds_left(&self) -> Option<f64> {
        let rate = self.rate.filter(|rate| *rate > 0.0)?;
        self.total.checked_sub(self.done).filter(|_| self.total > 0).map(|left| left as f64 / rate)
    }
}

/// A download that has ended well.
#[derive(Debug, Clone)]
pub(crate) struct CompletedDownload {
    /// The name of the model below the directory of the models.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) size: u64,
    /// Whether the model was there before.
    pub(crate) was_there: bool,
    /// Whether another version of it was there before.
    pub(crate) replaced: bool,
    /// The file that was chosen, and the reason; empty where there was no choice.
    pub(crate) choice: String,
    /// The tasks of its adapters, as a text; empty where it has none.
    pub(crate) adapters: String,
}

/// A download that has failed, and that nobody has asked for again.
#[derive(Debug, Clone)]
pub(crate) struct FailedDownload {
    /// The text that tells whether two downloads are the same one.
    pub(crate) key: String,
    /// The name by which people know it, in the database from which it was asked for.
    pub(crate) label: String,
    /// The role that asked first.
    pub(crate) owner: pg_sys::Oid,
    /// Microseconds since then.
    pub(crate) age_us: i64,
    /// The error that it has failed with.
    pub(crate) error: PgError,
}

/// The state of a download, for those who wait for it.
pub(crate) enum DownloadState {
    /// The download is going on.
    Running(RunningDownload),
    /// The model is there.
    Done(CompletedDownload),
    /// The download has failed, so the model is not there.
    Failed(PgError),
}

fn locked<R>(exclusive: bool, work: impl FnOnce(&mut [PullEntry; ENTRIES], &mut u64) -> R) -> Option<R> {
    TABLE.with_lock(exclusive, |table| {
        // SAFETY: the lock guards the table; readers do not write.
        let (entries, last) = unsafe { (&mut *table.entries.get(), &mut *table.last.get()) };
        work(entries, last)
    })
}

fn me() -> i32 {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyProcPid }
}

fn lives(pid: i32) -> bool {
    // SAFETY: looks for a process of the server by its id; the pointer is not followed.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

impl PullEntry {
    fn is_on(&self) -> bool {
        matches!(self.state, EntryState::Starting | EntryState::Running)
    }

    /// A process that was to begin with it and never will, or has gone without a word.
    fn is_lost(&self) -> bool {
        match self.state {
            EntryState::Starting => now() - self.started_at > START_US,
            EntryState::Running => !lives(self.pid),
            _ => false,
        }
    }

    fn wait(&mut self, waits: bool) {
        let place = self.waiters.iter_mut().find(|pid| **pid == 0 || **pid == me());
        match place.filter(|_| waits) {
            Some(place) => *place = me(),
            None => self.for_good = true,
        }
    }

    fn running(&self) -> RunningDownload {
        RunningDownload {
            label: self.label.get(),
            owner: self.owner,
            pid: self.pid,
            started_at: self.started_at,
            done: self.done,
            total: self.total,
            rate: Some(self.rate).filter(|rate| *rate >= 0.0),
            note: self.note.get(),
        }
    }

    /// The error that it has failed with.
    fn error(&self) -> PgError {
        let mut error = PgError::new(PgSqlErrorCode::from(self.code), self.message.get());
        error.hint = Some(self.hint.get()).filter(|hint| !hint.is_empty());
        error
    }

    /// Whether it has failed and not because somebody wanted it to end.
    fn is_failure(&self) -> bool {
        let was_left = PgSqlErrorCode::from(self.code) == PgSqlErrorCode::ERRCODE_QUERY_CANCELED
            && (self.stopped || !self.for_good);
        self.state == EntryState::Failed && !was_left
    }

    fn fail(&mut self, error: &PgError) {
        self.state = EntryState::Failed;
        self.ended_at = now();
        self.code = error.code as i32;
        self.message.set(&error.message);
        self.hint.set(error.hint.as_deref().unwrap_or_default());
    }
}

fn stopped() -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "the download was stopped")
        .hint("What has arrived is kept: the next download goes on from there.")
}

/// The room that another download lacks.
enum NoRoom {
    OfServer,
    OfRole,
}

/// Joins a download, or starts it. The second value says whether it was started.
///
/// # Errors
///
/// 55000 where the library is not preloaded, 53400 where there is no room for another download or process, or
/// for another one of this role's requests.
pub(crate) fn begin(wanted: &WantedDownload<'_>) -> Result<(DownloadTicket, bool), PgError> {
    if wanted.request.len() > DOWNLOAD_REQUEST_BYTES {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "what the model's row says is too much for a download",
        ));
    }
    let begun = locked(true, |entries, last| {
        entries.iter_mut().filter(|entry| entry.is_lost()).for_each(|entry| entry.fail(&stopped()));
        let same = |entry: &PullEntry| entry.is_on() && !entry.stopped && entry.key.get() == wanted.key;
        if let Some(index) = entries.iter().position(same) {
            entries[index].wait(wanted.wait);
            return Ok((DownloadTicket { index, number: entries[index].number }, false));
        }
        let of_role = |entry: &&PullEntry| entry.is_on() && entry.for_request && entry.owner == wanted.owner;
        if wanted.for_request && entries.iter().filter(of_role).count() >= ENTRIES_OF_ROLE {
            return Err(NoRoom::OfRole);
        }
        // A new download replaces the failed one of its key. Waiters that are slow still find the error.
        let is_before =
            |entry: &&mut PullEntry| entry.state == EntryState::Failed && entry.key.get() == wanted.key;
        entries.iter_mut().filter(is_before).for_each(|entry| entry.state = EntryState::Free);
        // Errors are kept as long as there is other room.
        let index = (0..ENTRIES)
            .filter(|index| !entries[*index].is_on())
            .min_by_key(|index| (entries[*index].state == EntryState::Failed, entries[*index].ended_at))
            .ok_or(NoRoom::OfServer)?;
        *last += 1;
        let entry = &mut entries[index];
        (entry.state, entry.number, entry.pid) = (EntryState::Starting, *last, 0);
        (entry.for_good, entry.stopped, entry.waiters) = (false, false, [0; WAITERS]);
        (entry.replaced, entry.for_request) = (false, wanted.for_request);
        (entry.owner, entry.started_at, entry.ended_at) = (wanted.owner, now(), 0);
        (entry.done, entry.total, entry.rate) = (0, 0, -1.0);
        entry.key.set(wanted.key);
        entry.label.set(wanted.label);
        entry.request.set(wanted.request);
        for text in [&mut entry.note, &mut entry.choice, &mut entry.adapters] {
            text.set("");
        }
        entry.wait(wanted.wait);
        Ok((DownloadTicket { index, number: *last }, true))
    });
    let full = |what: &str, hint: &str| {
        let message = format!("pg_steadytext could not start the download: {what}");
        PgError::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message).hint(hint)
    };
    let Some(begun) = begun else {
        return Err(shmem::not_preloaded("models cannot be downloaded: pg_steadytext is not preloaded"));
    };
    let (ticket, is_new) = begun.map_err(|room| match room {
        NoRoom::OfServer => full(&format!("{ENTRIES} are going on already"), "Wait for one of them."),
        NoRoom::OfRole => full(
            &format!("requests of this role have begun {ENTRIES_OF_ROLE} that are going on"),
            "Wait for one of them, or have a member of steadytext_admin call steadytext_model_pull().",
        ),
    })?;
    if is_new && !bgworker::start_download(ticket.index) {
        let error = full(
            "all background worker slots are in use",
            "Raise max_worker_processes and restart the server.",
        );
        locked(true, |entries, _| entries[ticket.index].fail(&error));
        return Err(error);
    }
    Ok((ticket, is_new))
}

/// The state of a download, for those who wait for it.
pub(crate) fn look(ticket: DownloadTicket) -> DownloadState {
    let look = locked(true, |entries, _| {
        let entry = &mut entries[ticket.index];
        if entry.number == ticket.number && entry.is_lost() {
            entry.fail(&stopped());
        }
        match entry.state {
            _ if entry.number != ticket.number => DownloadState::Failed(stopped()),
            EntryState::Starting | EntryState::Running => DownloadState::Running(entry.running()),
            EntryState::Done => DownloadState::Done(CompletedDownload {
                name: entry.message.get(),
                size: entry.total,
                was_there: entry.was_there,
                replaced: entry.replaced,
                choice: entry.choice.get(),
                adapters: entry.adapters.get(),
            }),
            EntryState::Free | EntryState::Failed => DownloadState::Failed(entry.error()),
        }
    });
    look.unwrap_or_else(|| DownloadState::Failed(stopped()))
}

/// This process waits no more.
pub(crate) fn leave(ticket: DownloadTicket) {
    locked(true, |entries, _| {
        let entry = &mut entries[ticket.index];
        if entry.number == ticket.number {
            entry.waiters.iter_mut().filter(|pid| **pid == me()).for_each(|pid| *pid = 0);
        }
    });
}

/// Stops the downloads of that key or label, whichever processes wait for them. Returns whether there was
/// one.
pub(crate) fn stop(name: &str) -> bool {
    locked(true, |entries, _| {
        let mut meant = entries
            .iter_mut()
            .filter(|entry| entry.is_on() && (entry.key.get() == name || entry.label.get() == name))
            .peekable();
        let any = meant.peek().is_some();
        meant.for_each(|entry| entry.stopped = true);
        any
    })
    .unwrap_or(false)
}

/// The downloads that are going on.
pub(crate) fn list() -> Vec<RunningDownload> {
    locked(false, |entries, _| {
        entries.iter().filter(|entry| entry.is_on() && !entry.is_lost()).map(PullEntry::running).collect()
    })
    .unwrap_or_default()
}

/// The downloads that have failed last, as far as they are remembered: each until it is asked for again, and
/// as long as the server runs.
pub(crate) fn failures() -> Vec<FailedDownload> {
    let failure = |entry: &PullEntry| FailedDownload {
        key: entry.key.get(),
        label: entry.label.get(),
        owner: entry.owner,
        age_us: now().saturating_sub(entry.ended_at),
        error: entry.error(),
    };
    locked(false, |entries, _| entries.iter().filter(|entry| entry.is_failure()).map(failure).collect())
        .unwrap_or_default()
}

/// Begins, in the download's process: what it must know. `None` where nobody wants it any more.
pub(crate) fn take(index: usize) -> Option<String> {
    locked(true, |entries, _| {
        let entry = entries.get_mut(index).filter(|entry| entry.state == EntryState::Starting)?;
        (entry.state, entry.pid) = (EntryState::Running, me());
        Some(entry.request.get())
    })
    .flatten()
}

/// Says how far it is, in the download's process. Whether anybody wants it still.
pub(crate) fn report(
    index: usize,
    done: u64,
    total: u64,
    rate: Option<f64>,
    note: &str,
    choice: &str,
) -> bool {
    locked(true, |entries, _| {
        let entry = &mut entries[index];
        if entry.pid != me() || entry.state != EntryState::Running {
            return false;
        }
        (entry.done, entry.total, entry.rate) = (done, total, rate.unwrap_or(-1.0));
        entry.note.set(note);
        entry.choice.set(choice);
        !entry.stopped && (entry.for_good || entry.waiters.iter().any(|pid| lives(*pid)))
    })
    .unwrap_or(false)
}

/// Says how it ended, in the download's process.
pub(crate) fn finish(index: usize, outcome: Result<&CompletedDownload, &PgError>) {
    locked(true, |entries, _| {
        let entry = &mut entries[index];
        if entry.pid != me() || !entry.is_on() {
            return;
        }
        match outcome {
            Err(error) => entry.fail(error),
            Ok(done) => {
                (entry.state, entry.ended_at) = (EntryState::Done, now());
                (entry.total, entry.done) = (done.size, done.size);
                (entry.was_there, entry.replaced) = (done.was_there, done.replaced);
                entry.message.set(&done.name);
                entry.choice.set(&done.choice);
                entry.adapters.set(&done.adapters);
            }
        }
    });
}

/// This process ends: so does its download, if it has not yet.
pub(crate) fn abandon() {
    locked(true, |entries, _| {
        let mine = entries.iter_mut().filter(|entry| entry.pid == me() && entry.state == EntryState::Running);
        mine.for_each(|entry| entry.fail(&stopped()));
    });
}
