//! Constraints compiled for a model's vocabulary, of which the last ones are kept.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{JsonCompileOptions, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::checker::{self, Checker};
use super::closing::{self, Chart, Way};
use super::counting::CountedText;
use super::guide::{PARTS, SchemaPart};
use super::matcher::{Matcher, reason};
use super::ordering::ordered;
use super::plain::plain;
use super::regular::{Language, Regular};
use super::tree::Tree;
use super::{Constraint, trie};
use crate::Error;
use crate::memory::{Ledger, Reservation};
use crate::tokenizer::Tokenizer;

/// Most grammars that are kept, and most bytes of their languages.
const MAX_KEPT: usize = 32;
const MAX_KEPT_BYTES: usize = 32 << 20;

/// Steps of the lexer while a grammar is compiled; some 50,000 a millisecond.
const COMPILE_FUEL: u64 = 500_000;
/// Steps of the lexer for one mask; some 14,000 a millisecond.
pub(super) const STEP_FUEL: u64 = 100_000;
/// Items of the parser for one mask; some 20,000 a millisecond.
pub(super) const STEP_ITEMS: usize = 20_000;
/// States that the lexer of a request may have: some kilobytes each.
const MAX_LEXER_STATES: usize = 20_000;
/// Symbols in the productions of a grammar.
const MAX_GRAMMAR_SIZE: usize = 200_000;

/// The message of llguidance about a schema to which nothing conforms.
const UNSATISFIABLE: &str = "Unsatisfiable schema";

/// Bytes of a request's copy of a grammar, apart from those that its text adds.
const MATCHER_BYTES: u64 = 1 << 20;
/// Bytes of a compiled constraint for each byte of its text: productions, states, symbols.
const BYTES_PER_BYTE: u64 = 64;
/// Bytes that the trie and the tree of a vocabulary take for each token, and llguidance's slices.
const BYTES_PER_TOKEN: u64 = 400;

fn own_bytes(constraint: &Constraint) -> u64 {
    constraint.bytes() as u64 * BYTES_PER_BYTE
}

/// A constraint, ready to be followed by any number of requests.
pub(crate) struct Grammar {
    /// The parser at its beginning. It is only copied, never advanced.
    parser: Mutex<TokenParser>,
    /// The automaton of a pattern.
    language: Option<Arc<Language>>,
    /// The chart at its beginning, for constraints without a language.
    chart: Option<Mutex<Chart>>,
    /// A shortest answer, and the count of its tokens.
    way: Option<(Way, CountedText)>,
    checker: Arc<Checker>,
    _held: Reservation,
}

/// A vocabulary, prepared.
struct GrammarVocabulary {
    _held: Reservation,
    factory: ParserFactory,
    tree: Arc<Tree>,
}

/// The grammars of a model.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Rows of the head.
    rows: usize,
    memory: Arc<Ledger>,
    /// Made when the first constraint comes.
    vocabulary: OnceLock<GrammarVocabulary>,
    kept: Mutex<KeptGrammars>,
}

#[derive(Default)]
struct KeptGrammars {
    grammars: HashMap<Constraint, (u64, Arc<Grammar>)>,
    /// Counts uses.
    clock: u64,
}

impl Grammars {
    /// For a model whose head has `rows` rows. Compiled grammars are counted in `memory`.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, rows: usize, memory: Arc<Ledger>) -> Grammars {
        Grammars { tokenizer, rows, memory, vocabulary: OnceLock::new(), kept: Mutex::default() }
    }

    /// A matcher of the constraint, at its beginning. Compiles the constraint unless its grammar is kept,
    /// which takes long, and a large stack.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the constraint makes no sense, or is more than llguidance or its
    /// limits allow.
    pub(crate) fn matcher(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        let grammar = match self.find(constraint) {
            Some(grammar) => grammar,
            None => self.keep(constraint, Arc::new(self.compile(constraint)?)),
        };
        let mut matcher = self.follow(&grammar, constraint)?;
        matcher.set_way(grammar.way.clone());
        Ok(matcher)
    }

    /// A matcher without a known way to the end.
    fn follow(&self, grammar: &Grammar, constraint: &Constraint) -> Result<Matcher, Error> {
        let vocabulary = self.vocabulary()?;
        let parser = grammar.parser.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let regular = grammar.language.as_ref().map(Regular::new);
        let chart = grammar.chart.as_ref();
        let chart = chart.map(|chart| chart.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let bytes = chart.as_ref().map_or(0, |chart| chart.bytes() as u64);
        let held = self.memory.hold(MATCHER_BYTES + own_bytes(constraint) + bytes, "a constraint")?;
        Ok(Matcher::new(
            llguidance::Matcher::new(Ok(parser)),
            regular,
            chart.map(Box::new),
            Arc::clone(&self.tokenizer),
            Arc::clone(vocabulary.factory.tok_env()),
            Arc::clone(&grammar.checker),
            held,
        ))
    }

    fn vocabulary(&self) -> Result<&GrammarVocabulary, Error> {
        // Two threads that come first may both make it; one result is dropped. A failure is not kept, as
        // there may be memory later.
        if self.vocabulary.get().is_none() {
            let _ = self.vocabulary.set(vocabulary(&self.tokenizer, self.rows, &self.memory)?);
        }
        let Some(vocabulary) = self.vocabulary.get() else { unreachable!("it was set above") };
        Ok(vocabulary)
    }

    fn find(&self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let clock = kept.clock;
        let (used, grammar) = kept.grammars.get_mut(constraint)?;
        *used = clock;
        Some(Arc::clone(grammar))
    }

    /// Keeps a grammar, in the place of the least recently used ones.
    fn keep(&self, constraint: &Constraint, grammar: Arc<Grammar>) -> Arc<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |grammar: &Grammar| grammar.language.as_ref().map_or(0, |language| language.bytes());
        let kept_bytes =
            |kept: &KeptGrammars| kept.grammars.values().map(|(_, grammar)| bytes(grammar)).sum::<usize>();
        while kept.grammars.len() >= MAX_KEPT || kept_bytes(&kept) + bytes(&grammar) > MAX_KEPT_BYTES {
            let oldest = kept.grammars.iter().min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(constraint, _)| constraint.clone()) else { break };
            kept.grammars.remove(&oldest);
        }
        let clock = kept.clock;
        kept.grammars.insert(constraint.clone(), (clock, Arc::clone(&grammar)));
        grammar
    }

    fn compile(&self, constraint: &Constraint) -> Result<Grammar, Error> {
        let checker = Checker::new(constraint)?;
        let GrammarVocabulary { factory, tree, .. } = self.vocabulary()?;
        let parser = parser(constraint, factory)?;
        let language = pattern(constraint).and_then(|pattern| Language::new(&pattern, tree, self.rows));
        let chart = match &language {
            Some(_) => None,
            None => closing::chart(&parser, factory.tok_env(), factory.limits()),
        };
        let of_chart = chart.as_ref().map_or(0, Chart::bytes);
        let bytes = (language.as_ref().map_or(0, |language| language.bytes()) + of_chart) as u64;
        let held = self.memory.hold(bytes + own_bytes(constraint), "a constraint")?;
        let chart = chart.map(Mutex::new);
        let (parser, language) = (Mutex::new(parser), language.map(Arc::new));
        let checker = Arc::new(checker);
        let mut grammar = Grammar { parser, language, chart, way: None, checker, _held: held };
        grammar.way = self.follow(&grammar, constraint)?.find_way();
        Ok(grammar)
    }
}

/// llguidance for a vocabulary, with limits and without words: its messages would show prompts.
fn vocabulary(
    tokenizer: &Arc<Tokenizer>,
    rows: usize,
    memory: &Arc<Ledger>,
) -> Result<GrammarVocabulary, Error> {
    let held = memory.hold(rows as u64 * BYTES_PER_TOKEN, "the vocabulary of constraints")?;
    let (environment, tree) = trie::environment(tokenizer, rows)?;
    let capabilities = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
    let mut slices = SlicedBiasComputer::general_slices();
    // Slices: words of a string that may have this many more characters are allowed in one step. llguidance's
    // own slices, of 10 and of 30, leave most of the vocabulary to be walked through near the end of a
    // `maxLength`. Each takes some 8 MB.
    slices.extend([5, 18].map(|most| format!(r#"[^"\\\x00-\x1F\x7F]{{1,{most}}}"#)));
    let mut factory = ParserFactory::new(&environment, capabilities, &slices)
        .map_err(|error| Error::InvalidRequest(reason(&format!("{error:#}"))))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = COMPILE_FUEL;
    limits.step_lexer_fuel = STEP_FUEL;
    limits.step_max_items = STEP_ITEMS;
    limits.max_lexer_states = MAX_LEXER_STATES;
    limits.max_grammar_size = MAX_GRAMMAR_SIZE;
    limits.verbose_errors = false;
    Ok(GrammarVocabulary { _held: held, factory, tree: Arc::new(tree) })
}

/// The parser that guides an answer: of a schema, the largest part that llguidance can take.
fn parser(constraint: &Constraint, factory: &ParserFactory) -> Result<TokenParser, Error> {
    let told = |error: &dyn std::fmt::Display, what| {
        let reason = reason(&format!("{error:#}"));
        Error::InvalidRequest(format!("the {what} cannot be followed: {reason}"))
    };
    let schema = match constraint {
        Constraint::Json(schema) => {
            let mut schema = checker::parse(schema)?;
            ordered(&mut schema)?;
            plain(schema)?
        }
        Constraint::Regex(pattern) => {
            let parser = factory.create_parser(TopLevelGrammar::from_regex(pattern));
            return parser.map_err(|error| told(&error, "pattern"));
        }
        Constraint::Choice(_) => {
            let pattern = pattern(constraint).unwrap_or_default();
            let parser = factory.create_parser(TopLevelGrammar::from_regex(&pattern));
            return parser.map_err(|error| told(&error, "list of choices"));
        }
    };
    let mut first = None;
    for part in PARTS {
        match factory.create_parser(json_grammar(part.of(&schema))) {
            Ok(parser) => return Ok(parser),
            Err(error) => {
                // No document conforms to it: a smaller part would allow answers that never do.
                let empty = format!("{error:#}").contains(UNSATISFIABLE);
                let error = first.get_or_insert(told(&error, "schema"));
                // This does not hold for the whole, which takes keywords beside a reference for part of the
                // schema, in all drafts.
                if empty && part != SchemaPart::Whole {
                    return Err(error.clone());
                }
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::InvalidRequest("the schema cannot be followed".to_owned())))
}

/// The pattern of a constraint that has one.
fn pattern(constraint: &Constraint) -> Option<Cow<'_, str>> {
    match constraint {
        Constraint::Json(_) => None,
        Constraint::Regex(pattern) => Some(pattern.into()),
        Constraint::Choice(choices) => {
            let choices: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
            Some(format!("(?:{})", choices.join("|")).into())
        }
    }
}

/// One line, with a space after each comma and colon, so that a small model does not lose itself in white
/// space, and all that the schema fixes is forced, in tokens. That only one branch of a `oneOf` holds is
/// checked at the end.
fn json_grammar(schema: Value) -> TopLevelGrammar {
    let options = JsonCompileOptions {
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        whitespace_flexible: false,
        coerce_one_of: true,
        // Keywords that llguidance does not know are left to the check.
        lenient: true,
        ..JsonCompileOptions::default()
    };
    let mut schema = if schema.is_object() { schema } else { json!({ "allOf": [schema] }) };
    // These options replace those that the user may have written into the schema.
    options.apply_to(&mut schema);
    TopLevelGrammar::from_json_schema(schema)
}
