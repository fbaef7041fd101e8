//! `steadytext_model_verify`: whether two independent implementations compute the same of a model, on its
//! file and this machine.

use pgrx::name;
use pgrx::prelude::*;
use steadytext_engine::MAX_POSITIONS;

use super::answers;
use crate::pg::error::{OrRaise, PgError};

/// The deviations between the backends' logits behind each token of a short text.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn model_verify(
    name: Option<&str>,
    positions: Option<i64>,
) -> TableIterator<
    'static,
    (
        name!(position, i32),
        name!(token, String),
        name!(rms, f32),
        name!(largest, f32),
        name!(same_choice, bool),
        name!(bound, f32),
        name!(passed, bool),
    ),
> {
    let positions = positions.and_then(|positions| usize::try_from(positions).ok());
    let Some(positions) = positions.filter(|positions| (1..=MAX_POSITIONS).contains(positions)) else {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("positions must be from 1 to {MAX_POSITIONS}"),
        )
        .hint("Each is a token that both backends compute; 64 are enough for most purposes.")
        .raise()
    };
    let verified = answers::verification(name, positions).or_raise();
    let bound = verified.bound;
    TableIterator::new(verified.rows.into_iter().map(move |row| {
        // A zero byte is a token of some models, and of no text.
        let token = row.token.replace('\0', "\u{fffd}");
        (row.position as i32, token, row.rms, row.largest, row.same_choice, bound, row.passed)
    }))
}
