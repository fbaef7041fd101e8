//! `verify`: whether two independent implementations compute the same on this file and this machine.

use steadytext_engine::{Deviation, Verify, hex, verify};

use super::Error;
use super::arguments::Arguments;
use super::json::JsonObject;

/// Tokens that are compared unless it is said otherwise.
const POSITIONS: usize = 64;

/// Prints a line for each token and one about all of them.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let text = arguments.text_file.as_ref().map(std::fs::read_to_string).transpose()?;
    let what = Verify { text, positions: arguments.positions.unwrap_or(POSITIONS) };
    let verified = verify(&arguments.source(), &what, arguments.compute_threads())?;
    for Deviation { position, token, rms, largest, same_choice, passed } in &verified.rows {
        JsonObject::default()
            .number("position", position)
            .text("token", token)
            .number("rms", decimal(*rms))
            .number("largest", decimal(*largest))
            .number("same_choice", same_choice)
            .number("passed", passed)
            .print()?;
    }
    let count = |which: fn(&Deviation) -> bool| verified.rows.iter().filter(|row| which(row)).count();
    let most = |of: fn(&Deviation) -> f32| {
        verified
            .rows
            .iter()
            .map(of)
            .fold(0.0, |most, next| if next > most || next.is_nan() { next } else { most })
    };
    JsonObject::default()
        .text("sha256", &hex(&verified.hash))
        .text("quantization", &verified.quantization)
        .number("bound", verified.bound)
        .number("positions", verified.rows.len())
        .number("rms", decimal(most(|row| row.rms)))
        .number("largest", decimal(most(|row| row.largest)))
        .number("same_choices", count(|row| row.same_choice))
        .number("passed", verified.passed())
        .print()?;
    if verified.passed() { Ok(()) } else { Err(Error::Deviates) }
}

/// The number as JSON; null where it is not finite, as JSON has no such numbers.
fn decimal(value: f32) -> String {
    if value.is_finite() { format!("{value:.5}") } else { "null".to_owned() }
}
