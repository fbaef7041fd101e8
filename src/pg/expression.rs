//! Conditions that users write, which become a part of a larger query.
//!
//! Invariant: an accepted text is one expression by PostgreSQL's own grammar. In parentheses, with the end of
//! a line behind it for comments, it is one in every query, and nothing of it gets out of them.

use std::ffi::CString;
use std::panic::AssertUnwindSafe;

use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use super::error::PgError;

const HINT: &str = "Write the filter as it would stand behind WHERE, and nothing else: 'price < 10 and in_stock'. Texts in it have quotes of their own: 'kind = ''book'''.";

/// Refuses a text that is not one expression. Whether the expression is valid, whether it is a condition, and
/// whether the caller may read its columns is found when the query runs.
///
/// # Errors
///
/// 42601 for several expressions, names for them, and anything that follows one in a SELECT; PostgreSQL's own
/// syntax errors are raised.
pub(crate) fn check(text: &str) -> Result<(), PgError> {
    let text = CString::new(text).map_err(|_| PgError::internal("an expression contains a zero byte"))?;
    // SAFETY: the parser takes any text, and its nodes are as their tags say. It holds nothing that an error
    // would leave behind but memory of the statement.
    let parsed = PgTryBuilder::new(AssertUnwindSafe(|| unsafe {
        // The parser takes what may follow SELECT, which is how PL/pgSQL reads expressions.
        let parsed = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        Ok(only(parsed).is_some_and(|raw: &pg_sys::RawStmt| {
            !raw.stmt.is_null()
                && (*raw.stmt).type_ == pg_sys::NodeTag::T_SelectStmt
                && is_one_expression(&*raw.stmt.cast::<pg_sys::SelectStmt>())
        }))
    }))
    .catch_when(PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, |caught| Err(PgError::from(caught).hint(HINT)))
    .execute();
    if parsed? {
        return Ok(());
    }
    Err(PgError::new(PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, "the filter is not one condition").hint(HINT))
}

/// # Safety
///
/// A node that the parser has made.
unsafe fn is_one_expression(select: &pg_sys::SelectStmt) -> bool {
    let nothing_else = select.distinctClause.is_null()
        && select.intoClause.is_null()
        && select.fromClause.is_null()
        && select.whereClause.is_null()
        && select.groupClause.is_null()
        && select.havingClause.is_null()
        && select.windowClause.is_null()
        && select.valuesLists.is_null()
        && select.sortClause.is_null()
        && select.limitOffset.is_null()
        && select.limitCount.is_null()
        && select.lockingClause.is_null()
        && select.withClause.is_null()
        && select.op == pg_sys::SetOperation::SETOP_NONE;
    // SAFETY: a list of targets.
    let target: Option<&pg_sys::ResTarget> = unsafe { only(select.targetList) };
    nothing_else && target.is_some_and(|target| target.name.is_null() && !target.val.is_null())
}

/// The element of a list that has one.
///
/// # Safety
///
/// Null, or a list of pointers to what is expected.
unsafe fn only<'a, T>(list: *const pg_sys::List) -> Option<&'a T> {
    // SAFETY: the caller's; a list has as many cells as it says.
    unsafe {
        let list = list.as_ref().filter(|list| list.length == 1)?;
        (*list.elements).ptr_value.cast::<T>().as_ref()
    }
}
