//! The size that the patterns of a schema take when they are compiled, estimated before they are: the crate
//! that compiles them has a limit for each, and none for all together.
//!
//! Invariant: the estimate depends on the pattern's text alone, and is seldom less than the truth.

use std::collections::HashSet;

use regex_syntax::hir::{Class, Hir, HirKind};

use super::invalid;
use crate::Error;

/// Most places of all patterns of a schema. A compiled place takes some 50 bytes, and half a microsecond.
const MAX_PLACES: u64 = 400_000;
/// Places that a pattern takes beside its own, and a part of one that a backtracking matcher compiles by
/// itself.
const OF_PATTERN: u64 = 400;
const OF_GROUP: u64 = 100;
/// Places of a pattern that is as large as one may be.
const OF_LARGEST: u64 = 50_000;
/// Places of the largest character class, and of the smallest with a character beyond ASCII.
const OF_LARGEST_CLASS: u64 = 800;
const OF_WIDE_CLASS: u64 = 8;
/// Matchers of a pattern that is not regular.
const MATCHERS: u64 = 3;

/// The patterns of a schema, counted.
#[derive(Debug, Default)]
pub(super) struct PatternSizes<'a> {
    seen: HashSet<&'a str>,
    places: u64,
}

impl<'a> PatternSizes<'a> {
    /// Counts a pattern, unless it was counted before: it is compiled once.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where all patterns together are too large.
    pub(super) fn add(&mut self, pattern: &'a str) -> Result<(), Error> {
        if self.seen.insert(pattern) {
            self.places = self.places.saturating_add(places(pattern)).saturating_add(OF_PATTERN);
        }
        if self.places > MAX_PLACES {
            return invalid("the schema has too many patterns, or too large ones");
        }
        Ok(())
    }
}

/// Places of a compiled pattern.
fn places(pattern: &str) -> u64 {
    let readable = readable(pattern);
    let Ok(parsed) = regex_syntax::parse(&readable) else {
        let repetitions = pattern.bytes().filter(|byte| *byte == b'{').count() as u64;
        let bytes = (pattern.len() as u64).saturating_mul(OF_LARGEST_CLASS);
        return bytes.saturating_add(repetitions.saturating_mul(OF_LARGEST));
    };
    if readable == pattern || regex_syntax::parse(pattern).is_ok() {
        return of(&parsed);
    }
    let groups = pattern.bytes().filter(|byte| *byte == b'(').count() as u64;
    of(&parsed).saturating_add(groups.saturating_mul(OF_GROUP)).saturating_mul(MATCHERS)
}

/// The pattern with the means of another language replaced by those of regular patterns that are as large:
/// groups that look around, references back, classes that are of ASCII there.
fn readable(pattern: &str) -> String {
    const GROUPS: [&str; 5] = ["(?=", "(?!", "(?<=", "(?<!", "(?>"];
    let mut readable = String::with_capacity(pattern.len() * 2);
    let (mut rest, mut in_class) = (pattern, false);
    while let Some(first) = rest.chars().next() {
        if let Some(escaped) = rest.strip_prefix('\\') {
            let class = escaped.chars().next();
            rest = &escaped[class.map_or(0, char::len_utf8)..];
            match class {
                Some('w') => readable.push_str("[0-9A-Za-z_]"),
                Some('W') => readable.push_str("[^0-9A-Za-z_]"),
                Some('d') => readable.push_str("[0-9]"),
                Some('D') => readable.push_str("[^0-9]"),
                Some('1'..='9') => readable.push('a'),
                other => {
                    readable.push('\\');
                    readable.extend(other);
                }
            }
            continue;
        }
        let group = GROUPS.iter().find(|group| !in_class && rest.starts_with(**group));
        if let Some(group) = group {
            readable.push_str("(?:");
            rest = &rest[group.len()..];
            continue;
        }
        match first {
            '[' => in_class = true,
            ']' => in_class = false,
            _ => {}
        }
        readable.push(first);
        rest = &rest[first.len_utf8()..];
    }
    readable
}

/// Recurses as deep as groups are nested, of which the parser has a limit.
fn of(pattern: &Hir) -> u64 {
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) if !class.is_ascii() => {
            (class.ranges().len() as u64).max(OF_WIDE_CLASS)
        }
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min.saturating_add(1)).max(1);
            of(&repetition.sub).saturating_add(1).saturating_mul(times.into())
        }
        HirKind::Capture(capture) => of(&capture.sub).saturating_add(2),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(of).fold(1, u64::saturating_add)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PLACES, OF_LARGEST, PatternSizes, places, readable};

    #[test]
    fn what_only_other_languages_have_is_counted_as_what_is_as_large() {
        assert_eq!(readable(r"^(?!x)\w{2}(?<=[(?=])\1\\(?=a)$"), r"^(?:x)[0-9A-Za-z_]{2}(?:[(?=])a\\(?:a)$");
        assert_eq!(readable(r"\p{L}[\w-]é"), r"\p{L}[[0-9A-Za-z_]-]é");
        let large = places(r"\p{L}{40}");
        assert!(large > 20_000, "{large}");
        assert!(places(r"(?=x)\p{L}{40}") > 3 * large);
        assert!(places(r"^\w{1,255}$") < 1_000);
        assert!(places(r"(?(1)a{9}") > OF_LARGEST);
        assert!(places("(((a{1000}){1000}){1000}){1000000}") > MAX_PLACES);
    }

    #[test]
    fn all_patterns_of_a_schema_share_a_limit_and_the_same_one_counts_once() {
        let mut sizes = PatternSizes::default();
        assert!((0..10_000).all(|_| sizes.add("^[a-f0-9]{8}(-[a-f0-9]{4}){3}-[a-f0-9]{12}$").is_ok()));
        let patterns: Vec<String> = (0..2_000).map(|i| format!("^x-{i}$")).collect();
        let fit = patterns.iter().take_while(|pattern| sizes.add(pattern).is_ok()).count();
        assert!((500..1_000).contains(&fit), "{fit}");
        let large: Vec<String> = (0..100).map(|i| format!(r"a\p{{L}}{{40}}b{i}")).collect();
        let mut sizes = PatternSizes::default();
        let fit = large.iter().take_while(|pattern| sizes.add(pattern).is_ok()).count();
        assert!((5..30).contains(&fit), "{fit}");
    }
}
