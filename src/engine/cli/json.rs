//! Lines of JSON on standard output.

use std::fmt::Write as _;
use std::io::Write as _;

use super::Error;

/// One JSON object, built member by member.
#[derive(Debug, Default)]
pub(super) struct JsonObject {
    members: String,
}

impl JsonObject {
    /// Adds a text.
    pub(super) fn text(self, name: &str, value: &str) -> Self {
        self.member(name, &quoted(value))
    }

    /// Adds a number, or anything else that is JSON already.
    pub(super) fn number(self, name: &str, value: impl ToString) -> Self {
        self.member(name, &value.to_string())
    }

    /// Adds an array of numbers.
    pub(super) fn numbers<T: ToString>(self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        self.member(name, &format!("[{}]", values.join(",")))
    }

    /// Adds an array of texts.
    pub(super) fn texts<T: AsRef<str>>(self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| quoted(value.as_ref())).collect();
        self.member(name, &format!("[{}]", values.join(",")))
    }

    fn member(mut self, name: &str, value: &str) -> Self {
        if !self.members.is_empty() {
            self.members.push(',');
        }
        self.members += &format!("{}:{value}", quoted(name));
        self
    }

    /// The object as text.
    pub(super) fn json(&self) -> String {
        format!("{{{}}}", self.members)
    }

    /// Writes the object as one line.
    pub(super) fn print(self) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.json())?;
        Ok(out.flush()?)
    }
}

/// A JSON string.
fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn control_characters_and_quotes_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd\u{1}é"), "\"a\\\"b\\\\c\\nd\\u0001é\"");
    }
}
