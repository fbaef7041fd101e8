//! Rows of triggers, and values in rows.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::num::NonZeroUsize;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, AnyElement, FromDatum, IntoDatum, PgTupleDesc};

use super::jsonb::Jsonb;
use super::varlena;

/// The new row of a BEFORE INSERT trigger, in the executor's slot: each value is there already, and only
/// those that are asked for are looked at.
#[derive(Clone, Copy)]
pub(crate) struct NewRow<'a> {
    slot: *const pg_sys::TupleTableSlot,
    relation: pg_sys::Oid,
    lifetime: PhantomData<&'a ()>,
}

impl<'a> NewRow<'a> {
    /// The row of a trigger; `None` where it is fired by or for anything else.
    pub(crate) fn of(trigger: &'a PgTrigger<'_>) -> Option<NewRow<'a>> {
        use pg_sys::{TRIGGER_EVENT_BEFORE, TRIGGER_EVENT_INSERT, TRIGGER_EVENT_OPMASK};
        use pg_sys::{TRIGGER_EVENT_ROW, TRIGGER_EVENT_TIMINGMASK};
        // SAFETY: the slot is the trigger's, and has all columns of its relation when it is filled.
        unsafe {
            let data = trigger.trigger_data();
            let mask = TRIGGER_EVENT_OPMASK | TRIGGER_EVENT_TIMINGMASK | TRIGGER_EVENT_ROW;
            let slot = data.tg_trigslot;
            if data.tg_event & mask != (TRIGGER_EVENT_INSERT | TRIGGER_EVENT_BEFORE | TRIGGER_EVENT_ROW)
                || slot.is_null()
            {
                return None;
            }
            let columns = (*(*slot).tts_tupleDescriptor).natts;
            if i32::from((*slot).tts_nvalid) < columns {
                pg_sys::slot_getsomeattrs_int(slot, columns);
            }
            Some(NewRow { slot, relation: (*data.tg_relation).rd_id, lifetime: PhantomData })
        }
    }

    /// The table.
    pub(crate) fn table(self) -> pg_sys::Oid {
        self.relation
    }

    /// Number of the column of this name.
    pub(crate) fn column(self, name: &CStr) -> Option<NonZeroUsize> {
        // SAFETY: a catalog look-up.
        let number = unsafe { pg_sys::get_attnum(self.relation, name.as_ptr()) };
        usize::try_from(number).ok().and_then(NonZeroUsize::new)
    }

    /// The value of a column, if it is of this type; the number is one of [`NewRow::column`].
    fn datum(self, column: NonZeroUsize, of: pg_sys::Oid) -> Option<pg_sys::Datum> {
        let index = column.get() - 1;
        // SAFETY: all columns of the slot are filled, and it has as many as its descriptor.
        unsafe {
            let descriptor = (*self.slot).tts_tupleDescriptor;
            if index >= (*descriptor).natts as usize || *(*self.slot).tts_isnull.add(index) {
                return None;
            }
            let kind = PgTupleDesc::from_pg_unchecked(descriptor).get(index)?.atttypid;
            (kind == of).then(|| *(*self.slot).tts_values.add(index))
        }
    }

    fn value<T: FromDatum + IntoDatum>(self, column: NonZeroUsize) -> Option<T> {
        // SAFETY: the column is of the type that T is read from.
        self.datum(column, T::type_oid()).and_then(|datum| unsafe { T::from_datum(datum, false) })
    }

    /// Whether a column has no value, or is not of this type.
    pub(crate) fn is_null(self, column: NonZeroUsize, of: pg_sys::Oid) -> bool {
        self.datum(column, of).is_none()
    }

    /// Bytes of a value of variable length as they are before compression, known without fetching them; 0 for
    /// NULL.
    pub(crate) fn bytes(self, column: NonZeroUsize, of: pg_sys::Oid) -> usize {
        // SAFETY: the types that are asked for are of variable length.
        self.datum(column, of).map_or(0, |datum| unsafe { varlena::bytes(datum) })
    }

    /// A text.
    pub(crate) fn text(self, column: NonZeroUsize) -> Option<&'a str> {
        self.value(column)
    }

    /// An integer.
    pub(crate) fn integer(self, column: NonZeroUsize) -> Option<i32> {
        self.value(column)
    }

    /// A `bigint`.
    pub(crate) fn long(self, column: NonZeroUsize) -> Option<i64> {
        self.value(column)
    }

    /// A UUID.
    pub(crate) fn uuid(self, column: NonZeroUsize) -> Option<pgrx::Uuid> {
        self.value(column)
    }

    /// The role in a column of type steadytext.role_id; nobody where it is NULL.
    pub(crate) fn role(self, column: NonZeroUsize) -> pg_sys::Oid {
        let index = column.get() - 1;
        // SAFETY: as in `datum`; four bytes passed by value, as an OID is.
        unsafe {
            let descriptor = (*self.slot).tts_tupleDescriptor;
            if index >= (*descriptor).natts as usize || *(*self.slot).tts_isnull.add(index) {
                return pg_sys::InvalidOid;
            }
            pg_sys::Oid::from((*(*self.slot).tts_values.add(index)).value() as u32)
        }
    }

    /// A `timestamptz`, as PostgreSQL counts it.
    pub(crate) fn time(self, column: NonZeroUsize) -> Option<i64> {
        self.datum(column, pg_sys::TIMESTAMPTZOID).map(|datum| datum.value() as i64)
    }

    /// A `jsonb`.
    pub(crate) fn jsonb(self, column: NonZeroUsize) -> Option<Jsonb<'a>> {
        // SAFETY: the column is of that type.
        self.datum(column, pg_sys::JSONBOID).and_then(|datum| unsafe { Jsonb::from_datum(datum, false) })
    }

    /// A `text[]`; `Err` with the number of its elements where these are more than `most`: nothing is made of
    /// them then.
    pub(crate) fn texts(
        self,
        column: NonZeroUsize,
        most: usize,
    ) -> Result<Option<Vec<Option<&'a str>>>, usize> {
        let Some(datum) = self.datum(column, pg_sys::TEXTARRAYOID) else { return Ok(None) };
        // SAFETY: the column is of that type; the trigger's memory is current.
        unsafe { varlena::texts(datum, most).map(Some) }
    }
}

/// The new row of a BEFORE INSERT trigger with other values in some of its columns.
pub(crate) fn with_values<'a>(
    trigger: &'a PgTrigger<'a>,
    values: &[(NonZeroUsize, pg_sys::Datum)],
) -> PgHeapTuple<'a, AllocatedByPostgres> {
    let mut columns: Vec<i32> = values.iter().map(|(number, _)| number.get() as i32).collect();
    let mut data: Vec<pg_sys::Datum> = values.iter().map(|(_, datum)| *datum).collect();
    let mut nulls = vec![false; values.len()];
    // SAFETY: row and descriptor are the trigger's; three arrays of the length that is given, copied by the
    // callee into memory that lives as long as the trigger.
    unsafe {
        let data_of_trigger = trigger.trigger_data();
        let descriptor = (*data_of_trigger.tg_relation).rd_att;
        let row = pg_sys::heap_modify_tuple_by_cols(
            data_of_trigger.tg_trigtuple,
            descriptor,
            values.len() as i32,
            columns.as_mut_ptr(),
            data.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
        PgHeapTuple::from_heap_tuple(PgTupleDesc::from_pg_unchecked(descriptor), row)
    }
}

/// Bytes of a value of variable length as it is uncompressed, and without its header. Where it is stored
/// apart from its row, it is not read. 0 for values of fixed length.
pub(crate) fn raw_size(value: &AnyElement) -> i64 {
    // SAFETY: a look-up in the catalog; the size is read from the header of a value whose type has one.
    unsafe {
        if pg_sys::get_typlen(value.oid()) != -1 {
            return 0;
        }
        varlena::bytes(value.datum()) as i64
    }
}
