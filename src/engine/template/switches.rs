//! Switches by which templates learn whether the model is to think before it answers.
//!
//! There is no common switch. Templates read variables of several names, whose values some of them check, or
//! look for a word in the system message.

use minijinja::Value;

/// The word by which some templates recognise messages that switch thinking off.
pub(super) const NO_THINK: &str = "/no_think";

/// The variables that switch thinking on or off. Variables for the amount of thinking get the least value
/// that the template names.
pub(super) fn switches(source: &str, thinking: bool) -> Value {
    let names =
        |word: &str| ["'", "\""].iter().any(|quote| source.contains(&format!("{quote}{word}{quote}")));
    let mut switches = vec![
        ("enable_thinking", Value::from(thinking)),
        ("thinking", Value::from(thinking)),
        ("thinking_mode", Value::from(if thinking { "enabled" } else { "disabled" })),
    ];
    if !thinking {
        switches.push(("thinking_budget", Value::from(0)));
    }
    if names("no_think") {
        let effort = if thinking { "high" } else { "no_think" };
        switches.push(("reasoning_effort", Value::from(effort)));
    } else if !thinking && source.contains("reasoning_effort") {
        let effort = ["none", "minimal"].into_iter().find(|effort| names(effort)).unwrap_or("low");
        switches.push(("reasoning_effort", Value::from(effort)));
    }
    switches.into_iter().collect()
}

/// Whether the template looks for [`NO_THINK`] in messages and reads no variable.
pub(super) fn are_messages(source: &str) -> bool {
    let looks = ["'/no_think' in ", "\"/no_think\" in "].iter().any(|search| source.contains(search));
    // A variable of a namespace is the template's own.
    let own =
        source.matches(".enable_thinking").count() + source.matches("namespace(enable_thinking").count();
    looks && source.matches("enable_thinking").count() == own
}
