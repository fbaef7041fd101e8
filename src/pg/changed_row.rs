//! The keys that a trigger AFTER a change of a vectorized table reports: of rows that came, changed or went.
//!
//! Invariant: no function that somebody else has written is called. Values are made texts by [`key_text`],
//! and compared as bytes.

use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{PgTupleDesc, pg_sys};

use super::error::PgError;
use super::key_text;
use super::noted_keys::NoteTarget;
use super::slots;

/// The change that a trigger has seen.
pub(crate) enum Changed {
    /// No change that matters.
    Nothing,
    /// One row, by its key as a JSON array.
    Key(String),
    /// A row that has another key than before: both.
    Keys([String; 2]),
    /// All rows may be gone.
    Everything,
}

/// A trigger that fires.
pub(crate) struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
}

/// The columns that a trigger is about: those of the key, then those that are embedded, then those that
/// vectorizers write themselves.
struct TriggerColumns<'a> {
    key: &'a [i16],
    embedded: &'a [i16],
    written: &'a [i16],
}

impl<'a> TriggerColumns<'a> {
    /// The columns that a trigger lists; `None` where its arguments do not fit them.
    fn of(link: &'a pg_sys::Trigger) -> Option<Self> {
        // SAFETY: as many columns as the trigger says.
        let columns = unsafe { std::slice::from_raw_parts(link.tgattr, usize::try_from(link.tgnattr).ok()?) };
        let count = |index| argument(link, index)?.to_str().ok()?.parse::<usize>().ok();
        let (key, embedded) = (count(1)?, count(2)?);
        if key == 0 || key.checked_add(embedded)? > columns.len() {
            return None;
        }
        let (key, others) = columns.split_at(key);
        let (embedded, written) = others.split_at(embedded);
        Some(TriggerColumns { key, embedded, written })
    }
}

impl<'a> Firing<'a> {
    /// The trigger that called.
    pub(crate) fn of(trigger: &'a PgTrigger<'_>) -> Self {
        Firing { data: trigger.trigger_data() }
    }

    fn trigger(&self) -> &'a pg_sys::Trigger {
        // SAFETY: set for every call of a trigger.
        unsafe { &*self.data.tg_trigger }
    }

    /// The place where keys are noted that come from here; `None` where the trigger names no definition.
    pub(crate) fn place(&self) -> Option<NoteTarget<'a>> {
        let definition = argument(self.trigger(), 0)?.to_str().ok()?;
        // SAFETY: an open relation.
        let (table, owner) = unsafe {
            let relation = self.data.tg_relation;
            ((*relation).rd_id, (*(*relation).rd_rel).relowner)
        };
        Some(NoteTarget { definition, table, owner, is_clone: self.trigger().tgisclone })
    }

    /// The change that a trigger has seen.
    ///
    /// # Errors
    ///
    /// The trigger was not made by steadytext_create_vectorizer().
    pub(crate) fn changed(&self) -> Result<Changed, PgError> {
        let event = self.data.tg_event;
        let operation = event & pg_sys::TRIGGER_EVENT_OPMASK;
        if operation == pg_sys::TRIGGER_EVENT_TRUNCATE {
            return Ok(Changed::Everything);
        }
        if event & pg_sys::TRIGGER_EVENT_ROW == 0
            || event & pg_sys::TRIGGER_EVENT_TIMINGMASK != pg_sys::TRIGGER_EVENT_AFTER
        {
            return Err(misused());
        }
        let lists_columns = self.trigger().tgnattr > 0;
        let is_update = operation == pg_sys::TRIGGER_EVENT_UPDATE;
        // Of the two triggers, the one that lists no columns sees all updates.
        if lists_columns == is_update {
            return if is_update { Ok(Changed::Nothing) } else { Err(misused()) };
        }
        let Some(link) = self.link() else {
            // The trigger goes with any column that it lists. The definition is broken then, and its table is
            // searched when it is mended.
            return if is_update { Ok(Changed::Nothing) } else { Err(misused()) };
        };
        let columns = TriggerColumns::of(link).ok_or_else(misused)?;
        let before = self.data.tg_trigtuple;
        if !is_update {
            return Ok(Changed::Key(self.key(before, &columns)));
        }
        let after = self.data.tg_newtuple;
        let moved = !columns.key.iter().all(|column| self.is_same(*column));
        Ok(if moved {
            Changed::Keys([self.key(before, &columns), self.key(after, &columns)])
        } else if columns.embedded.iter().all(|column| self.is_same(*column))
            && (self.is_written_by_step() || columns.written.iter().all(|column| self.is_same(*column)))
        {
            Changed::Nothing
        } else {
            Changed::Key(self.key(after, &columns))
        })
    }

    /// Whether the definition's own step makes the change. Code of the table's owner may change what belongs
    /// to other definitions meanwhile.
    fn is_written_by_step(&self) -> bool {
        argument(self.trigger(), 0).is_some_and(|id| id.to_str().is_ok_and(slots::is_step_for))
    }

    /// The trigger of this definition that lists its columns; PostgreSQL keeps them right, in partitions too.
    fn link(&self) -> Option<&'a pg_sys::Trigger> {
        let own = argument(self.trigger(), 0)?;
        // SAFETY: the relation's triggers, as many as it says; they are there as long as the trigger runs.
        let all = unsafe {
            let triggers = (*self.data.tg_relation).trigdesc.as_ref()?;
            std::slice::from_raw_parts(triggers.triggers, usize::try_from(triggers.numtriggers).ok()?)
        };
        all.iter().find(|other| {
            other.tgnattr > 0 && other.tgfoid == self.trigger().tgfoid && argument(other, 0) == Some(own)
        })
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.data.tg_relation).rd_att }
    }

    fn value(&self, row: pg_sys::HeapTuple, column: i16) -> Option<pg_sys::Datum> {
        let mut is_null = true;
        // SAFETY: a row of the trigger's relation; the columns of a trigger are the relation's.
        let datum = unsafe { pg_sys::SPI_getbinval(row, self.descriptor(), i32::from(column), &mut is_null) };
        (!is_null).then_some(datum)
    }

    /// Whether an update has left a column as it was. A value that lies apart from its row, and was not
    /// touched, has the same pointer, so that nothing is fetched; the same text written anew may count as
    /// another one.
    fn is_same(&self, column: i16) -> bool {
        let (before, after) = (self.data.tg_trigtuple, self.data.tg_newtuple);
        let (Some(before), Some(after)) = (self.value(before, column), self.value(after, column)) else {
            return self.value(before, column).is_none() && self.value(after, column).is_none();
        };
        // SAFETY: the descriptor says of which length the values are.
        unsafe {
            let descriptor = PgTupleDesc::from_pg_unchecked(self.descriptor());
            let Some(attribute) = usize::try_from(column - 1).ok().and_then(|index| descriptor.get(index))
            else {
                return false;
            };
            if attribute.attbyval {
                return before == after;
            }
            let bytes = |datum: pg_sys::Datum| {
                let start: *const u8 = datum.cast_mut_ptr();
                let length = match attribute.attlen {
                    -1 => pgrx::varsize_any(start.cast()),
                    -2 => CStr::from_ptr(start.cast()).to_bytes().len(),
                    length => usize::try_from(length).unwrap_or(0),
                };
                std::slice::from_raw_parts(start, length)
            };
            bytes(before) == bytes(after)
        }
    }

    fn key(&self, row: pg_sys::HeapTuple, columns: &TriggerColumns<'_>) -> String {
        let mut json = String::with_capacity(48);
        for (index, column) in columns.key.iter().enumerate() {
            json.push(if index == 0 { '[' } else { ',' });
            // SAFETY: the descriptor says of which type the values are.
            unsafe {
                let kind = PgTupleDesc::from_pg_unchecked(self.descriptor())
                    .get(usize::try_from(*column - 1).unwrap_or(usize::MAX))
                    .map_or(pg_sys::InvalidOid, |attribute| attribute.atttypid);
                key_text::push(&mut json, kind, self.value(row, *column));
            }
        }
        json.push(']');
        json
    }
}

fn argument(trigger: &pg_sys::Trigger, index: usize) -> Option<&CStr> {
    if index >= usize::try_from(trigger.tgnargs).ok()? {
        return None;
    }
    // SAFETY: as many C strings as the trigger says.
    Some(unsafe { CStr::from_ptr(*trigger.tgargs.add(index)) })
}

fn misused() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        "this trigger is not as steadytext_create_vectorizer() makes it",
    )
    .hint("Drop it; steadytext_create_vectorizer() makes the triggers of a vectorizer.")
}
