//! Counted matching of patterns in schemas, as the crates that match them have no limit for a whole document.
//!
//! Before a string is matched, the most steps that this may take are subtracted from those of the whole check
//! ([`within`]). Regular patterns take time in proportion to the string. Others backtrack, so they are tried
//! with few steps back first, and with more where these do not decide. A pattern that stays undecided, or
//! takes too much, ends the check.
//!
//! Invariant: the steps of a check depend on the schema and the document alone, so that the same document
//! passes or fails everywhere.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, Keyword, PatternOptions, ValidationError, Validator};
use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Value, json};

use crate::Ticket;

/// Most bytes of a compiled regular expression, and of its cache.
const MAX_REGEX_BYTES: usize = 2 << 20;
/// Backtracking limits of successive attempts to match one string with a pattern that is not regular.
const STEPS_BACK: [usize; 3] = [16, 400, 10_000];
/// The backtracking limit for names of members, which the crate matches by itself, and up to [`KEY_RUNS`]
/// times where it cannot decide.
const KEY_STEPS_BACK: usize = 100;
const KEY_RUNS: u64 = 64;
/// Steps for a character class beyond ASCII, whose bytes are compared one by one.
const WIDE_CLASS: u64 = 8;
/// Steps for each byte of a pattern that only the crate can parse.
const UNREAD: u64 = 64;

/// The steps left for a check.
#[derive(Default)]
struct PatternBudget {
    steps: u64,
    /// Whether the work would have taken more steps, or no listener waits for the answer any more.
    is_over: bool,
    /// The tickets of the listeners that wait for the answer.
    tickets: Vec<Ticket>,
}

thread_local! {
    static BUDGET: RefCell<PatternBudget> = RefCell::default();
}

/// Runs work whose patterns take at most `steps` steps. None where they would take more, or all tickets are
/// cancelled.
pub(super) fn within<T>(steps: u64, tickets: &[Ticket], work: impl FnOnce() -> T) -> Option<T> {
    BUDGET.set(PatternBudget { steps, is_over: false, tickets: tickets.to_vec() });
    let result = work();
    let is_over = BUDGET.take().is_over;
    (!is_over).then_some(result)
}

/// Subtracts steps from those left; false where there are too few.
fn spend(steps: u64) -> bool {
    BUDGET.with_borrow_mut(|budget| {
        let unwanted = || !budget.tickets.is_empty() && budget.tickets.iter().all(Ticket::is_cancelled);
        budget.is_over = budget.is_over || steps > budget.steps || unwanted();
        budget.steps = budget.steps.saturating_sub(steps);
        !budget.is_over
    })
}

/// A pattern for strings.
pub(super) struct Pattern {
    /// Steps for each byte of a string; for a pattern that is not regular, a number that is added to the
    /// string's length.
    weight: u64,
    matcher: PatternMatcher,
}

enum PatternMatcher {
    Regular(Validator),
    /// One validator for each number of steps back, made when it is first needed.
    Irregular(Value, Box<[OnceLock<Option<Validator>>; STEPS_BACK.len()]>),
}

impl Pattern {
    /// The pattern that is the value of the keyword `pattern`.
    ///
    /// # Errors
    /// That of the crate.
    pub(super) fn new(pattern: &Value) -> Result<Pattern, ValidationError<'static>> {
        let schema = json!({ "pattern": pattern });
        let text = pattern.as_str().unwrap_or_default();
        match alone(&schema, regular()) {
            Ok(matcher) => Ok(Pattern { weight: weight(text), matcher: PatternMatcher::Regular(matcher) }),
            Err(error) => {
                let few = alone(&schema, irregular(STEPS_BACK[0])).map_err(|_| error)?;
                let matchers: [OnceLock<Option<Validator>>; STEPS_BACK.len()] = Default::default();
                let _ = matchers[0].set(Some(few));
                Ok(Pattern {
                    weight: irregular_weight(text),
                    matcher: PatternMatcher::Irregular(schema, Box::new(matchers)),
                })
            }
        }
    }

    fn matches(&self, text: &str, instance: &Value) -> bool {
        let length = text.len() as u64;
        match &self.matcher {
            PatternMatcher::Regular(matcher) => {
                spend(regular_steps(length, self.weight)) && matcher.is_valid(instance)
            }
            PatternMatcher::Irregular(schema, matchers) => {
                for (most, matcher) in STEPS_BACK.iter().zip(matchers.iter()) {
                    if !spend(irregular_steps(length, self.weight, *most)) {
                        return false;
                    }
                    let matcher = matcher.get_or_init(|| alone(schema, irregular(*most)).ok());
                    let Some(matcher) = matcher else { break };
                    match matcher.validate(instance) {
                        Ok(()) => return true,
                        Err(error) if is_undecided(&error) => {}
                        Err(_) => return false,
                    }
                }
                // It is not known whether the pattern matches, so the rest of the check would be a guess.
                spend(u64::MAX)
            }
        }
    }
}

/// The patterns of a schema, each of which is made once.
#[derive(Clone, Default)]
pub(super) struct KnownPatterns(Arc<Mutex<HashMap<String, SharedPattern>>>);

/// A pattern that stands at several places of a schema.
#[derive(Clone)]
pub(super) struct SharedPattern(Arc<Pattern>);

impl KnownPatterns {
    /// The pattern that is the value of the keyword `pattern`.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub(super) fn pattern(&self, pattern: &Value) -> Result<SharedPattern, ValidationError<'static>> {
        let Some(text) = pattern.as_str() else { return Ok(SharedPattern(Arc::new(Pattern::new(pattern)?))) };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pattern) = known.get(text) {
            return Ok(pattern.clone());
        }
        let made = SharedPattern(Arc::new(Pattern::new(pattern)?));
        known.insert(text.to_owned(), made.clone());
        Ok(made)
    }
}

impl<'i> Keyword<'i> for SharedPattern {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        Err(ValidationError::custom("the string does not match the pattern"))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        instance.as_str().is_none_or(|text| self.0.matches(text, instance))
    }
}

/// Options for regular patterns: the crate matches them in time in proportion to the string.
pub(super) fn regular() -> PatternOptions<jsonschema::Regex> {
    PatternOptions::regex().size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES)
}

/// Options for patterns of names of members that are not regular.
pub(super) fn of_names() -> PatternOptions<jsonschema::FancyRegex> {
    irregular(KEY_STEPS_BACK)
}

fn irregular(steps_back: usize) -> PatternOptions<jsonschema::FancyRegex> {
    PatternOptions::fancy_regex()
        .backtrack_limit(steps_back)
        .size_limit(MAX_REGEX_BYTES)
        .dfa_size_limit(MAX_REGEX_BYTES)
}

/// A validator of one pattern and nothing else.
fn alone<E>(schema: &Value, how: PatternOptions<E>) -> Result<Validator, ValidationError<'static>> {
    jsonschema::options().with_draft(Draft::Draft202012).with_pattern_options(how).build(schema)
}

fn is_undecided(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::BacktrackLimitExceeded { .. })
}

/// A pattern of names of members: all that is known before it is matched.
#[derive(Debug)]
pub(super) struct NamePattern {
    weight: u64,
    is_regular: bool,
}

impl NamePattern {
    pub(super) fn new(pattern: &str) -> NamePattern {
        let is_regular = alone(&json!({ "pattern": pattern }), regular()).is_ok();
        let weight = if is_regular { weight(pattern) } else { irregular_weight(pattern) };
        NamePattern { weight, is_regular }
    }

    /// Most steps to match a name.
    pub(super) fn steps(&self, name: &str) -> u64 {
        let length = name.len() as u64;
        if self.is_regular {
            return regular_steps(length, self.weight);
        }
        irregular_steps(length, self.weight, KEY_STEPS_BACK).saturating_mul(KEY_RUNS)
    }
}

/// Most steps to match a regular pattern with a text of this length.
pub(super) fn most_steps(pattern: &str, length: usize) -> u64 {
    regular_steps(length as u64, weight(pattern))
}

fn regular_steps(length: u64, weight: u64) -> u64 {
    length.saturating_add(1).saturating_mul(weight)
}

/// Between two steps back it may go through all of the string and look ahead from everywhere, but it does so
/// in large steps.
fn irregular_steps(length: u64, weight: u64, steps_back: usize) -> u64 {
    let both = length.saturating_add(weight);
    both.saturating_mul(both).div_ceil(8).saturating_mul(steps_back as u64)
}

/// Most places in a regular pattern at which a matcher may be at the same time.
fn weight(pattern: &str) -> u64 {
    let unread = || (pattern.len() as u64).saturating_mul(UNREAD);
    regex_syntax::parse(pattern).map_or_else(|_| unread(), |pattern| places(&pattern)).saturating_add(1)
}

/// Recurses as deep as groups are nested, of which the parser has a limit.
fn places(pattern: &Hir) -> u64 {
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => 1,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(Class::Unicode(class)) if !class.is_ascii() => WIDE_CLASS,
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min).max(1);
            places(&repetition.sub).saturating_mul(times.into())
        }
        HirKind::Capture(capture) => places(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(places).fold(0, u64::saturating_add)
        }
    }
}

/// The length of a pattern that is not regular, times the repetitions of its groups: empty ones are repeated
/// as well, which takes no step back.
fn irregular_weight(pattern: &str) -> u64 {
    let repeated = pattern.split("){").skip(1).map(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit);
        digits.fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    });
    repeated.fold(pattern.len() as u64, |weight, times| weight.saturating_mul(times.max(1)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Pattern, irregular_weight, weight, within};
    use crate::Ticket;

    const MUCH: u64 = 100_000_000;

    fn matches(pattern: &str, text: &str, steps: u64) -> Option<bool> {
        let pattern = Pattern::new(&json!(pattern)).unwrap();
        within(steps, &[], || pattern.matches(text, &Value::String(text.to_owned())))
    }

    #[test]
    fn patterns_match_as_they_do_without_a_limit() {
        for (pattern, yes, no) in [
            ("^[a-c]+$", "abc", "abd"),
            (r"^(?!x-)[a-z-]+$", "y-a", "x-a"),
            (r"(a|b)\1c", "zaac", "zabc"),
            (r"^(?=.*\d)(?=.*[a-z])\w{4,}$", "ab12", "abcd"),
            (r"\bone\b", "two one", "twone"),
        ] {
            assert_eq!(matches(pattern, yes, MUCH), Some(true), "{pattern} {yes}");
            assert_eq!(matches(pattern, no, MUCH), Some(false), "{pattern} {no}");
        }
    }

    #[test]
    fn what_would_take_too_many_steps_is_not_begun() {
        let long = "a".repeat(8000);
        // Goes through all of the string from every place in it, with hardly a step back.
        let leaps = "^(?:(?=[^z]*)a)*b";
        assert_eq!(matches(leaps, &long, 1_000_000), None);
        assert_eq!(matches("^(?:(?=[^zy0]*z)x|a(?=a?))*c0$", &long, MUCH), None);
        assert_eq!(matches("^(?:(?=[^zy0]*z)x|a(?=a?))*c0$", "aaaac0", 1_000_000), Some(true));
        // Takes no step back at all.
        assert_eq!(matches(r"^(?:(?:(?:(\1?)){65535}){65535}){65535}$", "a", MUCH), None);
        let regular = format!("[ab]*a[ab]{{{}}}", 500);
        assert_eq!(matches(&regular, &long, 1_000_000), None, "as many places for each byte");
        assert_eq!(matches(&regular, &long, MUCH), Some(true));
    }

    #[test]
    fn all_patterns_of_a_check_share_what_it_may_spend() {
        let pattern = Pattern::new(&json!("^(?!x)[a-z]+$")).unwrap();
        let text = json!("some text or other");
        let times = |count: usize, steps| {
            let all = || (0..count).filter(|_| !pattern.matches(text.as_str().unwrap(), &text)).count();
            within(steps, &[], all)
        };
        assert_eq!(times(10, 1_000_000), Some(10));
        assert_eq!(times(1000, 1_000_000), None);
    }

    #[test]
    fn a_check_that_nobody_wants_ends() {
        let ticket = Ticket::new();
        let pattern = Pattern::new(&json!("^a+$")).unwrap();
        let check = |tickets: &[Ticket]| within(MUCH, tickets, || pattern.matches("aa", &json!("aa")));
        assert_eq!(check(&[ticket.clone(), Ticket::new()]), Some(true));
        ticket.cancel();
        assert_eq!(check(&[ticket.clone(), Ticket::new()]), Some(true), "somebody wants it");
        assert_eq!(check(&[ticket]), None);
    }

    #[test]
    fn weights_are_of_what_is_repeated() {
        assert_eq!(weight("a"), 2);
        assert!(weight("[ab]*a[ab]{500}") > 500);
        assert!(weight(r"\w{50}") >= 400);
        assert!(weight("(((a{1000}){1000}){1000}){1000000}") > 1 << 40);
        assert_eq!(irregular_weight("(?=a)(b){3}(c){4,}"), 18 * 12);
        assert_eq!(irregular_weight("(a){0}(b){x}"), 12);
    }
}
