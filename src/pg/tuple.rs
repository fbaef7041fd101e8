//! Rows of triggers.

use std::num::NonZeroUsize;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, PgTupleDesc};

/// The new row of a BEFORE INSERT trigger with other values in some of its columns.
pub(crate) fn with_values<'a>(
    trigger: &'a PgTrigger<'a>,
    values: &[(NonZeroUsize, pg_sys::Datum)],
) -> PgHeapTuple<'a, AllocatedByPostgres> {
    let mut columns: Vec<i32> = values.iter().map(|(number, _)| number.get() as i32).collect();
    let mut data: Vec<pg_sys::Datum> = values.iter().map(|(_, datum)| *datum).collect();
    let mut nulls = vec![false; values.len()];
    // SAFETY: row and descriptor are the trigger's; three arrays of the length that is given, copied by the callee into
    // memory that lives as long as the trigger.
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
