//! The conditions of a table's CHECK constraints, kept for the session.
//!
//! PostgreSQL has them as text, and reads and plans them in every statement: for a statement that inserts
//! one row that is a tenth of its work. The plans here are PostgreSQL's kept expressions, which say
//! themselves when a function in them has changed; a constraint that has changed has another text.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::mem::ManuallyDrop;

use pgrx::pg_sys;

/// Tables whose conditions are kept, at most.
const MOST_TABLES: usize = 8;

struct Table {
    oid: pg_sys::Oid,
    conditions: Vec<Condition>,
}

struct Condition {
    /// As the catalog has it.
    text: CString,
    kept: *mut pg_sys::CachedExpression,
}

impl Drop for Condition {
    fn drop(&mut self) {
        // SAFETY: made by GetCachedExpression, and freed once, while no condition is evaluated.
        unsafe { pg_sys::FreeCachedExpression(self.kept) };
    }
}

thread_local! {
    /// Not freed when the process ends, where nothing of PostgreSQL may be called any more.
    static TABLES: RefCell<ManuallyDrop<Vec<Table>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// How many statements are at their constraints: more than one where a condition calls a function that
    /// inserts.
    static CHECKING: Cell<u32> = const { Cell::new(0) };
}

/// Raises an error where a row breaks a constraint of its table, as `ExecConstraints` does.
///
/// # Safety
///
/// Table, slot and executor belong together, as in `ExecInsert`, and the table has constraints.
pub(super) unsafe fn check(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    executor: *mut pg_sys::EState,
) {
    struct Checking;
    impl Drop for Checking {
        fn drop(&mut self) {
            CHECKING.set(CHECKING.get() - 1);
        }
    }
    CHECKING.set(CHECKING.get() + 1);
    let _checking = Checking;
    // SAFETY: by the caller. What is set here is what PostgreSQL makes itself where it finds nothing.
    unsafe {
        if CHECKING.get() == 1 {
            let conditions = conditions((*result).ri_RelationDesc);
            #[cfg(not(feature = "pg18"))]
            (&raw mut (*result).ri_ConstraintExprs).write(conditions);
            #[cfg(feature = "pg18")]
            (&raw mut (*result).ri_CheckConstraintExprs).write(conditions);
        }
        pg_sys::ExecConstraints(result, slot, executor);
    }
}

/// The conditions of a table, ready to be evaluated; null if there are none.
unsafe fn conditions(relation: pg_sys::Relation) -> *mut *mut pg_sys::ExprState {
    // SAFETY: an open relation, whose constraints stay as they are while it is locked; an array as long as
    // there are conditions.
    unsafe {
        let constraints = (*(*relation).rd_att).constr;
        let count = usize::from((*constraints).num_check);
        if count == 0 {
            return std::ptr::null_mut();
        }
        let texts = std::slice::from_raw_parts((*constraints).check, count).iter();
        let texts = texts.map(|constraint| CStr::from_ptr(constraint.ccbin));
        TABLES.with_borrow_mut(|tables| {
            let table = kept(tables, (*relation).rd_id, texts);
            let states: *mut *mut pg_sys::ExprState =
                pg_sys::palloc(count * size_of::<*mut pg_sys::ExprState>()).cast();
            for (index, condition) in table.conditions.iter().enumerate() {
                states.add(index).write(if is_enforced(constraints, index) {
                    pg_sys::ExecInitExpr((*condition.kept).expr.cast(), std::ptr::null_mut())
                } else {
                    std::ptr::null_mut()
                });
            }
            states
        })
    }
}

/// Whether a constraint is looked at: from PostgreSQL 18 on some are not.
#[cfg_attr(not(feature = "pg18"), expect(unused_variables, reason = "all are"))]
unsafe fn is_enforced(constraints: *const pg_sys::TupleConstr, index: usize) -> bool {
    #[cfg(feature = "pg18")]
    // SAFETY: one of the table's constraints.
    return unsafe { (*(*constraints).check.add(index)).ccenforced };
    #[cfg(not(feature = "pg18"))]
    true
}

/// The entry of a table, made anew where a condition is another one than before.
unsafe fn kept<'a, 'b>(
    tables: &'a mut Vec<Table>,
    oid: pg_sys::Oid,
    texts: impl ExactSizeIterator<Item = &'b CStr> + Clone,
) -> &'a Table {
    let is_current = |table: &Table| {
        // SAFETY: an expression that is kept.
        let same = |(condition, text): (&Condition, &CStr)| unsafe {
            condition.text.as_c_str() == text && (*condition.kept).is_valid
        };
        table.conditions.len() == texts.len() && table.conditions.iter().zip(texts.clone()).all(same)
    };
    let index = match tables.iter().position(|table| table.oid == oid) {
        Some(index) if is_current(&tables[index]) => index,
        known => {
            match known {
                Some(index) => drop(tables.swap_remove(index)),
                None if tables.len() >= MOST_TABLES => tables.clear(),
                None => {}
            }
            tables.push(Table { oid, conditions: Vec::with_capacity(texts.len()) });
            let index = tables.len() - 1;
            for text in texts {
                // SAFETY: a tree that PostgreSQL has written. If it cannot be planned, that is raised, and
                // the entry stays without it, which is not the table's.
                let kept = unsafe { pg_sys::GetCachedExpression(pg_sys::stringToNode(text.as_ptr()).cast()) };
                tables[index].conditions.push(Condition { text: text.to_owned(), kept });
            }
            index
        }
    };
    &tables[index]
}
