//! The state of an aggregate: the values of a group, in the order in which they came, each with a note.
//!
//! It lies in the memory of the aggregation, so that PostgreSQL counts it (a hash aggregation that has too
//! much begins to spill), and that it goes with the aggregation however that ends. A value is a record: the
//! lengths of value and note, 32 bits each, and both texts; a note that is the one of the record before is
//! not written again. As the text that is made of a group writes each note unless all are the same, a state
//! also counts the bytes of that text, and is bounded by them.
//!
//! Invariant: a state is written only by the transition function of its aggregate, and read by the functions
//! that follow: final functions of moving windows see it more than once.

use std::ptr::NonNull;

use pgrx::datum::Internal;
use pgrx::{IntoDatum, pg_sys};

use super::error::PgError;

/// The length of a note that is the one of the record before.
const SAME_NOTE: u32 = u32::MAX;
const HEAD: usize = 8;
/// Bytes around a value and its note in the text of a group.
const LINE: usize = 8;
/// Bytes of a state that has just been made.
const FIRST_BYTES: usize = 256;
/// No state is longer, whatever is allowed.
const MOST_BYTES: usize = 512 << 20;

#[repr(C)]
struct GroupValues {
    data: *mut u8,
    length: usize,
    capacity: usize,
    /// Offset of the note of the last record, and its length.
    note: (usize, usize),
    told: Told,
}

/// The text that a group makes, counted.
#[derive(Clone, Copy)]
struct Told {
    /// Bytes of its values, with those of a line around each, and of its notes.
    values: usize,
    notes: usize,
    /// Offset of the note of the first record, and its length, as long as all notes are that one.
    common: Option<(usize, usize)>,
}

impl Told {
    /// Bytes of the text. A note that all values share is written once.
    fn bytes(&self) -> usize {
        let notes = if self.common.is_some() { 0 } else { self.notes };
        self.values.saturating_add(notes)
    }

    /// Counts a value with its note. `first` is the note of the first record, unless this is the first.
    fn add(&mut self, value: &str, note: &str, first: Option<&[u8]>) {
        self.values = self.values.saturating_add(value.len()).saturating_add(LINE);
        self.notes = self.notes.saturating_add(note.len());
        match first {
            None => self.common = Some((HEAD + value.len(), note.len())),
            Some(first) if first != note.as_bytes() => self.common = None,
            Some(_) => {}
        }
    }
}

/// The state of a group in a call of one of the aggregate's functions.
pub(crate) struct GroupState {
    state: Option<NonNull<GroupValues>>,
    context: pg_sys::MemoryContext,
}

impl GroupState {
    /// The state that is a function's first argument.
    ///
    /// # Errors
    ///
    /// XX000 outside of an aggregation: SQL cannot call these functions.
    pub(crate) fn of(state: Internal, call: pg_sys::FunctionCallInfo) -> Result<GroupState, PgError> {
        let mut context: pg_sys::MemoryContext = std::ptr::null_mut();
        // SAFETY: `call` is that of the function which runs.
        if unsafe { pg_sys::AggCheckCallContext(call, &mut context) } == 0 {
            return Err(PgError::internal("a function of an aggregate was called without it"));
        }
        Ok(GroupState { state: pointer(state), context })
    }

    /// A new one, in the memory that is current.
    pub(crate) fn new() -> GroupState {
        // SAFETY: there is always one.
        GroupState { state: None, context: unsafe { pg_sys::CurrentMemoryContext } }
    }

    /// The state as a value for PostgreSQL; NULL where nothing was ever added.
    pub(crate) fn into_internal(self) -> Internal {
        Internal::from(self.state.map(|state| pg_sys::Datum::from(state.as_ptr())))
    }

    /// Adds a value with its note. `most` says how many bytes the state may have.
    ///
    /// # Errors
    ///
    /// 54000, and those of `most`.
    pub(crate) fn push(
        &mut self,
        value: &str,
        note: &str,
        most: impl FnOnce() -> Result<usize, PgError>,
    ) -> Result<(), PgError> {
        let state = self.state();
        // SAFETY: the state is in memory that only this thread uses.
        let is_same = unsafe { state.as_ref() }.last_note() == Some(note.as_bytes());
        let note_bytes = if is_same { 0 } else { note.len() };
        let bytes = HEAD.saturating_add(value.len()).saturating_add(note_bytes);
        // SAFETY: as above.
        let mut told = unsafe { state.as_ref() }.told;
        // SAFETY: as above.
        told.add(value, note, unsafe { state.as_ref() }.first_note());
        reserve(state, bytes, told, most)?;
        let lengths = (u32::try_from(value.len()).ok()).zip(if is_same {
            Some(SAME_NOTE)
        } else {
            u32::try_from(note.len()).ok()
        });
        let Some((value_length, note_length)) = lengths else { return Err(too_much(MOST_BYTES)) };
        write(state, &value_length.to_ne_bytes());
        write(state, &note_length.to_ne_bytes());
        write(state, value.as_bytes());
        if !is_same {
            // SAFETY: as above.
            let at = unsafe { state.as_ref() }.length;
            write(state, note.as_bytes());
            // SAFETY: as above.
            unsafe { (*state.as_ptr()).note = (at, note.len()) };
        }
        Ok(())
    }

    /// Adds what another state holds.
    ///
    /// # Errors
    ///
    /// As [`GroupState::push`].
    pub(crate) fn append(
        &mut self,
        records: &[u8],
        most: impl FnOnce() -> Result<usize, PgError>,
    ) -> Result<(), PgError> {
        if records.is_empty() {
            return Ok(());
        }
        let state = self.state();
        // SAFETY: as in `push`.
        let (mut told, mut first) = unsafe { (state.as_ref().told, state.as_ref().first_note()) };
        each(records, |value, note| {
            told.add(value, note, first);
            first = first.or(Some(note.as_bytes()));
        })?;
        reserve(state, records.len(), told, most)?;
        write(state, records);
        // SAFETY: as in `push`. The next record writes its note whatever it is.
        unsafe { (*state.as_ptr()).note = (0, usize::MAX) };
        Ok(())
    }

    /// All records, as [`GroupState::append`] takes them.
    pub(crate) fn records(&self) -> &[u8] {
        // SAFETY: as in `push`; `data` has `length` bytes.
        self.state.map_or(&[], |state| unsafe {
            let GroupValues { data, length, .. } = *state.as_ptr();
            std::slice::from_raw_parts(data, length)
        })
    }

    /// The values with their notes, in the order in which they came.
    ///
    /// # Errors
    ///
    /// XX000 for records that cannot be read: a bug.
    pub(crate) fn rows(&self) -> Result<Vec<(&str, &str)>, PgError> {
        let mut rows = Vec::new();
        each(self.records(), |value, note| rows.push((value, note)))?;
        Ok(rows)
    }

    fn state(&mut self) -> NonNull<GroupValues> {
        let context = self.context;
        *self.state.get_or_insert_with(|| {
            let told = Told { values: 0, notes: 0, common: None };
            let new = GroupValues {
                data: std::ptr::null_mut(),
                length: 0,
                capacity: 0,
                note: (0, usize::MAX),
                told,
            };
            // SAFETY: the context is one of PostgreSQL's, which returns as many bytes or raises an error.
            unsafe {
                let state: *mut GroupValues =
                    pg_sys::MemoryContextAlloc(context, size_of::<GroupValues>()).cast();
                state.write(GroupValues {
                    data: pg_sys::MemoryContextAlloc(context, FIRST_BYTES).cast(),
                    ..new
                });
                (*state).capacity = FIRST_BYTES;
                NonNull::new_unchecked(state)
            }
        })
    }
}

impl GroupValues {
    fn last_note(&self) -> Option<&[u8]> {
        self.at(self.note)
    }

    /// The note of the first record. It is empty where notes differ, which is known then; `None` where there
    /// is no record.
    fn first_note(&self) -> Option<&[u8]> {
        if self.length == 0 {
            return None;
        }
        self.told.common.map_or(Some(&[]), |common| self.at(common))
    }

    fn at(&self, (start, length): (usize, usize)) -> Option<&[u8]> {
        let end = start.checked_add(length).filter(|end| *end <= self.length)?;
        // SAFETY: these bytes were written.
        Some(unsafe { std::slice::from_raw_parts(self.data.add(start), end - start) })
    }
}

/// The records of a state that is only read.
pub(crate) fn records(state: Internal) -> Vec<u8> {
    GroupState { state: pointer(state), context: std::ptr::null_mut() }.records().to_vec()
}

/// Whether the aggregate that calls a final function has an ORDER BY of its own. Unknown in windows, which
/// have none.
pub(crate) fn is_ordered(call: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: `call` is that of the function which runs; what comes back is null or lives as long as the
    // plan.
    unsafe {
        let aggregate = pg_sys::AggGetAggref(call);
        !aggregate.is_null() && !(*aggregate).aggorder.is_null() && (*(*aggregate).aggorder).length > 0
    }
}

fn pointer(state: Internal) -> Option<NonNull<GroupValues>> {
    state.into_datum().and_then(|datum| NonNull::new(datum.cast_mut_ptr()))
}

/// Makes room for more bytes, with which the text of the group is `with`.
fn reserve(
    state: NonNull<GroupValues>,
    bytes: usize,
    with: Told,
    most: impl FnOnce() -> Result<usize, PgError>,
) -> Result<(), PgError> {
    // SAFETY: the state was made by `GroupState::state`, and only this thread uses it.
    let GroupValues { data, length, capacity, told, .. } = unsafe { &mut *state.as_ptr() };
    let wanted = length.saturating_add(bytes);
    if wanted.max(with.bytes()) > *capacity {
        let most = most()?.min(MOST_BYTES);
        if wanted.max(with.bytes()) > most {
            return Err(too_much(most));
        }
        let more = wanted.max(capacity.saturating_mul(2)).min(most);
        if wanted > *capacity {
            // SAFETY: it was allocated by PostgreSQL, stays in its context, and is as long afterwards, or an
            // error is raised.
            *data = unsafe { pg_sys::repalloc((*data).cast(), more) }.cast();
            *capacity = more;
        }
    }
    *told = with;
    Ok(())
}

/// Writes bytes for which there is room.
fn write(state: NonNull<GroupValues>, bytes: &[u8]) {
    // SAFETY: `reserve` has made room for them.
    unsafe {
        let state = state.as_ptr();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), (*state).data.add((*state).length), bytes.len());
        (*state).length += bytes.len();
    }
}

/// Shows each of some records: its value and its note.
fn each<'a>(mut records: &'a [u8], mut see: impl FnMut(&'a str, &'a str)) -> Result<(), PgError> {
    let mut note = "";
    while !records.is_empty() {
        let (value, new) =
            record(&mut records).ok_or_else(|| PgError::internal("the state of an aggregate is damaged"))?;
        note = new.unwrap_or(note);
        see(value, note);
    }
    Ok(())
}

/// The first of some records: its value, and its note unless that is the one before.
fn record<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, Option<&'a str>)> {
    let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    let (head, behind) = rest.split_at_checked(HEAD)?;
    let (value_length, note_length) = (number(&head[..4])?, number(&head[4..])?);
    let (value, behind) = behind.split_at_checked(value_length as usize)?;
    let (note, behind) = match note_length {
        SAME_NOTE => (None, behind),
        length => {
            let (note, behind) = behind.split_at_checked(length as usize)?;
            (Some(std::str::from_utf8(note).ok()?), behind)
        }
    };
    *rest = behind;
    Some((std::str::from_utf8(value).ok()?, note))
}

fn too_much(most: usize) -> PgError {
    PgError::new(
        pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("the values of a group have more than {most} bytes together"),
    )
    .hint("Summarise smaller groups first, with steadytext_summarize_partial, give shorter metadata, or raise max_prompt_bytes with steadytext_config_set().")
}
