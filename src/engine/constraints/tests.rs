//! Tests of matchers: the texts that they allow, force and refuse.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Checker, Constraint, Grammars, Matcher};
use crate::memory::Ledger;
use crate::sampling::{Sampler, TokenCounts};
use crate::tokenizer::Tokenizer;
use crate::{Error, Instructions, ModelSource, Probe, Sampling, builtin};

struct Model {
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
}

fn model() -> Model {
    let gguf = builtin::gguf().unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    // More rows than tokens, as in padded heads.
    let grammars = Grammars::new(Arc::clone(&tokenizer), tokenizer.vocab_size() + 64, Ledger::new(0));
    Model { tokenizer, grammars }
}

fn json_of(schema: Value) -> Constraint {
    Constraint::Json(schema.to_string())
}

fn regex(pattern: &str) -> Constraint {
    Constraint::Regex(pattern.to_owned())
}

fn choice(choices: &[&str]) -> Constraint {
    Constraint::Choice(choices.iter().map(ToString::to_string).collect())
}

impl Model {
    fn matcher(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        constraint.check_limits()?;
        self.grammars.matcher(constraint)
    }

    /// Whether the constraint allows this text, and lets it end there.
    fn accepts(&self, constraint: &Constraint, text: &str) -> bool {
        let mut matcher = self.matcher(constraint).unwrap();
        let mut taken = matcher.begin().unwrap();
        let mut written = self.tokenizer.decode(&taken.forced);
        loop {
            let Some(rest) = text.as_bytes().strip_prefix(written.as_slice()) else { return false };
            if taken.complete || rest.is_empty() {
                return rest.is_empty() && matcher.matches();
            }
            let allowed = matcher.allowed().unwrap();
            // The longest token that is allowed and agrees with the text.
            let next = allowed
                .iter()
                .filter(|id| !self.tokenizer.is_end(*id) && rest.starts_with(self.tokenizer.token_bytes(*id)))
                .max_by_key(|id| self.tokenizer.token_bytes(*id).len());
            let Some(next) = next else { return false };
            written.extend_from_slice(self.tokenizer.token_bytes(next));
            taken = matcher.take(next).unwrap();
            written.extend(self.tokenizer.decode(&taken.forced));
        }
    }

    fn refusal(&self, constraint: &Constraint) -> String {
        match self.matcher(constraint).map(drop) {
            Err(Error::InvalidRequest(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn choices_are_taken_verbatim_whatever_they_contain() {
    let model = model();
    let lists: [&[&str]; 5] = [
        &["yes", "yes please", "yes please do", "no"],
        &["it's", "say \"it\"", "a\nb", "a\r\n\tb", "back\\slash", "slash/slash"],
        &["naïve", "日本語", "日本", "🙂", "🙂🙃", "e\u{301}"],
        &["a.c", "abc", "(a|b)*", "[x]", "^$", "#{1}", "a b", " a", "a "],
        &["null", "true", "{\"a\": 1}", "<|im_end|>", "\u{1}"],
    ];
    for choices in lists {
        let constraint = choice(choices);
        constraint.check().unwrap();
        for text in choices {
            assert!(model.accepts(&constraint, text), "{text:?} of {choices:?}");
            assert!(!model.accepts(&constraint, &format!("{text}x")), "{text:?} and more");
        }
        assert!(!model.accepts(&constraint, "other"));
        assert!(!model.accepts(&constraint, ""));
    }
}

#[test]
fn a_pattern_matches_from_end_to_end_with_or_without_anchors() {
    let model = model();
    for pattern in ["[a-c]{2,4}", "^[a-c]{2,4}$", "^(?:[a-c]{2,4})$", "^[a-c]{2,4}$|^zz$", "\\A[a-c]{2,4}\\z"]
    {
        let constraint = regex(pattern);
        constraint.check().unwrap();
        for text in ["ab", "abc", "aaaa"] {
            assert!(model.accepts(&constraint, text), "{pattern}: {text}");
        }
        for text in ["a", "aaaaa", "xab", "abx", " ab", ""] {
            assert!(!model.accepts(&constraint, text), "{pattern}: {text}");
        }
    }
    // A comment at the end of a pattern ends with it.
    let checker = Checker::new(&regex("(?x)[a-c] {2,4} # letters")).unwrap();
    assert!(checker.check("abc", &[]).is_ok());
    assert!(checker.check("abcde", &[]).is_err());
    assert!(model.accepts(&regex("/\\d+/\"\\n"), "/12/\"\n"), "slashes, quotes and newlines");
    assert!(model.accepts(&regex("(?i)select .+"), "SeLeCt ä"));
    assert!(model.accepts(&regex("\\p{Han}+"), "漢字"));
    assert!(!model.accepts(&regex(".+"), "a\nb"), "a dot is no newline");
}

#[test]
fn documents_conform_and_are_written_on_one_line() {
    let model = model();
    let schema = json_of(json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 5 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 2 },
            "size": { "type": "integer", "minimum": 1, "maximum": 20 }
        },
        "required": ["name", "size"],
        "additionalProperties": false
    }));
    for text in [
        r#"{"name": "abc", "size": 20}"#,
        r#"{"name": "", "tags": [], "size": 1}"#,
        r#"{"name": "\"äö", "tags": ["a", "b"], "size": 7}"#,
    ] {
        assert!(model.accepts(&schema, text), "{text}");
    }
    for text in [
        r#"{"name": "abc", "size": 21}"#,
        r#"{"name": "abcdef", "size": 2}"#,
        r#"{"name": "abc"}"#,
        r#"{"size": 2, "name": "abc"}"#,
        r#"{"name":"abc","size":2}"#,
        r#"{"name": "abc", "size": 2, "more": 1}"#,
        r#"{"name": "abc", "tags": ["c"], "size": 2}"#,
        "[]",
    ] {
        assert!(!model.accepts(&schema, text), "{text}");
    }
    assert!(model.accepts(&json_of(json!(true)), r#"[{"a": null}, 1.5e3]"#));
    let tree = json_of(json!({
        "$ref": "#/$defs/tree",
        "$defs": { "tree": { "type": "array", "items": { "$ref": "#/$defs/tree" }, "maxItems": 2 } }
    }));
    assert!(model.accepts(&tree, "[[], [[[]], []]]"));
    assert!(!model.accepts(&tree, "[[], [], []]"));
    // Keys that llguidance reads itself have no effect in a user's schema.
    let own =
        json_of(json!({ "x-guidance": { "whitespace_pattern": "x", "lenient": true }, "const": [1, 2] }));
    assert!(model.accepts(&own, "[1, 2]"));
}

#[test]
fn what_is_fixed_is_forced() {
    let model = model();
    let text = |tokens: &[u32]| String::from_utf8(model.tokenizer.decode(tokens)).unwrap();
    let mut matcher = model.matcher(&json_of(json!({ "const": { "a": "something", "b": [true] } }))).unwrap();
    let all = matcher.begin().unwrap();
    assert!(all.complete && matcher.matches());
    assert_eq!(text(&all.forced), r#"{"a": "something", "b": [true]}"#);
    let schema = json!({
        "type": "object", "properties": { "verdict": { "enum": ["right", "wrong"] } },
        "required": ["verdict"], "additionalProperties": false
    });
    let mut matcher = model.matcher(&json_of(schema)).unwrap();
    let begun = matcher.begin().unwrap();
    assert!(text(&begun.forced).starts_with(r#"{"verdict":"#), "{:?}", text(&begun.forced));
    assert!(!begun.complete && !matcher.matches());
    let canonical = model.tokenizer.encode(&text(&begun.forced)).unwrap();
    assert_eq!(begun.forced, canonical, "forced tokens are those of the tokenizer");
}

#[test]
fn refusals_say_why_and_nothing_else() {
    let model = model();
    for (constraint, words) in [
        (json_of(json!([1])), "the schema is neither an object nor a boolean"),
        (Constraint::Json("{\"type\": ".to_owned()), "the schema is no JSON document: EOF"),
        (json_of(json!({ "type": "strang" })), "the schema is invalid at"),
        (json_of(json!(false)), "the schema cannot be followed: "),
        (
            json_of(json!({ "type": "integer", "minimum": 5, "maximum": 2 })),
            "the schema cannot be followed: ",
        ),
        (json_of(json!({ "$ref": "http://example.com/schema.json" })), "not part of it"),
        (json_of(json!({ "$ref": "file:///etc/passwd" })), "not part of it"),
        (json_of(json!({ "$ref": "#/$defs/none" })), "a part of it that is not there"),
        (regex("a(b"), "the pattern is invalid: unclosed group"),
        (regex("(?=a)b"), "the pattern is invalid: look-around"),
        (regex("(a)\\1"), "the pattern is invalid: backreferences"),
        (regex("a\\bb"), "the pattern cannot be followed: lookarounds"),
        (regex("(a{1000}){1000}"), "the pattern is invalid: "),
        (regex(""), "the pattern is empty"),
        (regex(&"a".repeat(8193)), "the pattern has 8193 bytes, at most 8192 are allowed"),
        (regex(&format!("{}a{}", "(".repeat(100), ")".repeat(100))), "the pattern is invalid: "),
        (choice(&[]), "there are no choices"),
        (choice(&["a", ""]), "a choice is empty"),
        (Constraint::Choice(vec!["a".to_owned(); 1001]), "there are 1001 choices, at most 1000 are allowed"),
        (choice(&["a", &"b".repeat(65536)]), "the choices have 65537 bytes, at most 65536 are allowed"),
        (
            Constraint::Json(format!("{}1{}", "[".repeat(65), "]".repeat(65))),
            "the schema is nested more than 64",
        ),
        (Constraint::Json("[".repeat(60_000)), "the schema is nested more than 64"),
        (json_of(json!({ "title": "a".repeat(262_144) })), "the schema has 262156 bytes, at most 262144 are"),
    ] {
        let reason = model.refusal(&constraint);
        assert!(reason.contains(words), "{words:?} is not in {reason:?}");
        assert!(!reason.contains('<') && !reason.contains('\n') && reason.len() < 500, "{reason:?}");
    }
}

#[test]
fn a_used_guide_leaves_no_trace_in_the_next_one() {
    let model = model();
    let constraint = regex("(a|b|ab)*c(d|e){3,40}f");
    // A long walk fills the caches of its own copy.
    let walk = |matcher: &mut Matcher| {
        let mut masks = Vec::new();
        matcher.begin().unwrap();
        for byte in "abababbabacdededdf".bytes() {
            let allowed = matcher.allowed().unwrap();
            masks.push(allowed.as_slice().to_vec());
            let next = allowed.iter().find(|id| self::bytes(&model, *id) == [byte]).unwrap();
            if matcher.take(next).unwrap().complete {
                break;
            }
        }
        masks
    };
    let first = walk(&mut model.matcher(&constraint).unwrap());
    assert!(first.len() > 10);
    for _ in 0..3 {
        assert!(walk(&mut model.matcher(&constraint).unwrap()) == first);
    }
    let other = self::model();
    assert!(walk(&mut other.matcher(&constraint).unwrap()) == first, "compiled anew");
}

fn bytes(model: &Model, id: u32) -> &[u8] {
    model.tokenizer.token_bytes(id)
}

#[test]
fn answers_are_checked_by_other_code() {
    let checker = |constraint: &Constraint| Checker::new(constraint).unwrap();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    let json = checker(&json_of(schema));
    assert!(json.check(r#"{"a": 1}"#, &[]).is_ok());
    for (bad, words) in [
        (r#"{"a": 1"#, "no JSON document"),
        (r#"{"a": "secret"}"#, "does not conform to the schema"),
        ("{}", "does not conform to the schema"),
    ] {
        let Err(Error::Mismatch { reason }) = json.check(bad, &[]) else { panic!("{bad} passes") };
        assert!(reason.contains(words) && !reason.contains("secret"), "{reason}");
    }
    let nested = "[".repeat(5000);
    assert!(checker(&json_of(json!(true))).check(&nested, &[]).is_err(), "and without running out of stack");
    let regex = checker(&regex("yes|yes please"));
    assert!(regex.check("yes please", &[]).is_ok() && regex.check("yes", &[]).is_ok());
    assert!(
        regex.check("yes ", &[]).is_err()
            && regex.check("oh yes", &[]).is_err()
            && regex.check("yes\n", &[]).is_err()
    );
    let choice = checker(&choice(&["a", "b"]));
    assert!(
        choice.check("a", &[]).is_ok() && choice.check("A", &[]).is_err() && choice.check("", &[]).is_err()
    );
}

/// Schemas that refer to each other in circles, or in exponentially many ways, without going on in the
/// document.
#[test]
fn checking_an_answer_takes_no_longer_than_it_should() {
    let ladder = |count: usize| {
        let mut ladder = serde_json::Map::new();
        for i in 0..count {
            let next = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
            ladder.insert(format!("a{i}"), json!({ "anyOf": [next, next, next] }));
        }
        ladder.insert(format!("a{count}"), json!({ "type": "string" }));
        ladder
    };
    let asking = |depth: usize| {
        (0..depth).fold(
            json!({ "type": "object" }),
            |inner, _| json!({ "anyOf": [inner, { "properties": { "a": true } }], "unevaluatedProperties": false }),
        )
    };
    let twice = json!({ "items": { "$ref": "#" } });
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    let branch = |kind: &str| json!({ "type": "object", "properties": { "kind": { "const": kind }, "of": { "$ref": "#" } }, "required": ["kind"] });
    for (schema, document, outcome) in [
        (json!({ "$ref": "#" }), "1", "refers to itself"),
        (json!({ "anyOf": [{ "$ref": "#" }, { "type": "null" }] }), "1", "refers to itself"),
        (
            json!({ "allOf": [{ "$ref": "#/$defs/a" }], "$defs": { "a": { "allOf": [{ "$ref": "#" }] } } }),
            "1",
            "refers to itself",
        ),
        (json!({ "$ref": "#/$defs/a0", "$defs": ladder(300) }), "1", "in a row"),
        (
            json!({ "anyOf": [{ "$ref": "#/$defs/a0" }, { "type": "integer" }], "$defs": ladder(40) }),
            "1",
            "too many ways",
        ),
        (
            json!({ "oneOf": [{ "$ref": "#/$defs/a0" }, { "type": "integer" }], "$defs": ladder(40) }),
            "1",
            "too many ways",
        ),
        (json!({ "oneOf": [{ "$ref": "#/$defs/a0" }, { "type": "integer" }], "$defs": ladder(5) }), "1", ""),
        (json!({ "allOf": [twice, twice, twice] }), deep.as_str(), "too many ways"),
        (json!({ "allOf": [twice, twice, twice] }), "[[[]], []]", ""),
        (json!({ "type": "array", "items": { "$ref": "#" } }), &deep, ""),
        (
            json!({ "anyOf": [branch("a"), branch("b"), branch("c")] }),
            r#"{"kind": "a", "of": {"kind": "c", "of": {"kind": "b"}}}"#,
            "",
        ),
        (
            json!({ "anyOf": [branch("a"), branch("b"), branch("c")] }),
            r#"{"kind": "a", "of": {"kind": "d"}}"#,
            "does not conform",
        ),
        (
            json!({ "properties": { "a b": { "$ref": "#/$defs/%C3%A4~1" } }, "$defs": { "ä/": { "type": "null" } } }),
            r#"{"a b": null}"#,
            "",
        ),
        // What is evaluated at each level is asked of all levels below, each of which asks again.
        (asking(29), r#"{"c": 1}"#, "too many ways"),
        (asking(5), r#"{"a": 1}"#, ""),
        (
            json!({ "anyOf": [{ "contains": { "$ref": "#" } }, { "type": "null" }], "unevaluatedItems": false }),
            &format!("{}null{}", "[".repeat(40), "]".repeat(40)),
            "too many ways",
        ),
        (json!({ "properties": { "a": { "$ref": "#/$defs/b" } } }), "{}", "not there"),
        (json!({ "properties": { "a": { "$ref": "other.json" } } }), "{}", "not part of it"),
    ] {
        let checked = Checker::new(&json_of(schema.clone())).and_then(|checker| checker.check(document, &[]));
        let told = checked.map_or_else(|error| error.to_string(), |()| String::new());
        assert!(told.contains(outcome) && told.is_empty() == outcome.is_empty(), "{told:?} for {schema}");
    }
}

/// The engine's loop in its simplest form: one token after the other through the model, forced or chosen.
#[test]
fn forced_tokens_are_computed_as_if_they_had_been_chosen() {
    let model = model();
    let schema = json!({
        "type": "object",
        "properties": {
            "a_rather_long_name": { "type": "string", "maxLength": 12 },
            "kind": { "enum": ["table", "index", "materialized view"] },
            "columns": { "type": "array", "items": { "type": "integer", "maximum": 99, "minimum": 0 }, "minItems": 2, "maxItems": 3 }
        },
        "required": ["a_rather_long_name", "kind", "columns"], "additionalProperties": false
    });
    let constraint = json_of(schema);
    let prompt = "Describe a table";
    let mut probe = Probe::open(&ModelSource::Builtin, 1).unwrap();
    let template = crate::template::ChatTemplate::from_gguf(probe.gguf()).unwrap();
    let grammars = Grammars::new(Arc::clone(&model.tokenizer), probe.vocabulary(), Ledger::new(0));
    let mut tokens = template.encode_prompt(&model.tokenizer, prompt).unwrap();
    let mut matcher = grammars.matcher(&constraint).unwrap();
    let mut taken = matcher.begin().unwrap();
    let (mut answer, mut forced) = (Vec::new(), taken.forced.len());
    tokens.extend(&taken.forced);
    answer.extend(&taken.forced);
    let mut sampler = Sampler::new(Instructions::best());
    while !taken.complete {
        for token in &tokens[probe.len()..tokens.len() - 1].to_vec() {
            probe.extend(&[*token]).unwrap();
        }
        let logits = probe.extend(&tokens[tokens.len() - 1..]).unwrap().unwrap();
        let allowed = matcher.allowed().unwrap();
        let token = sampler
            .choose(logits, &Sampling::default(), tokens.len(), Some(&allowed), &TokenCounts::default())
            .unwrap();
        assert!(!model.tokenizer.is_end(token), "this one ends by itself");
        taken = matcher.take(token).unwrap();
        forced += taken.forced.len();
        for token in [token].iter().chain(&taken.forced) {
            tokens.push(*token);
            answer.push(*token);
        }
    }
    let expected = String::from_utf8(model.tokenizer.decode(&answer)).unwrap();
    assert!(forced > 10, "{forced} tokens are forced in {expected}");
    for prefill_rows in [vec![], vec![1], vec![3, 1, 7]] {
        let engine =
            crate::Engine::start(crate::Config { threads: 2, prefill_rows, ..crate::Config::default() });
        let (sender, events) = crossbeam_channel::unbounded();
        let how = crate::Generate {
            prompt: prompt.to_owned(),
            max_tokens: 200,
            sampling: Sampling::default(),
            stop: Vec::new(),
            constraint: Some(constraint.clone()),
            ..crate::Generate::default()
        };
        let work = crate::Work::Generate(how);
        let request = crate::Request { key: 1, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
        engine.as_ref().unwrap().submit(request, crate::Reply::new(sender));
        let last = events.iter().last().unwrap().kind;
        let crate::EventKind::Done(crate::Output::Text { text, generated_tokens, .. }) = last else {
            panic!("{last:?}")
        };
        assert_eq!((text, generated_tokens), (expected.clone(), answer.len()));
    }
}

/// Takes the last token that is allowed and admitted, which opens and never closes where possible.
fn last_of_all(model: &Model, constraint: &Constraint, max_tokens: usize) -> (String, usize) {
    let mut matcher = model.matcher(constraint).unwrap();
    let mut taken = matcher.begin().unwrap();
    let mut answer = taken.forced.clone();
    while !taken.complete && answer.len() < max_tokens {
        let room = max_tokens - answer.len();
        let allowed = matcher.allowed().unwrap();
        let mut open: Vec<u32> = allowed.iter().filter(|id| !model.tokenizer.is_end(*id)).collect();
        // Brackets first, then the highest numbers.
        open.sort_by_key(|id| (model.tokenizer.token_bytes(*id).contains(&b'['), *id));
        let Some(token) = open.into_iter().rev().find(|id| matcher.admits(*id, room)) else { break };
        taken = matcher.take(token).unwrap();
        answer.push(token);
        answer.extend(&taken.forced);
    }
    let text = String::from_utf8_lossy(&model.tokenizer.decode(&answer)).into_owned();
    assert!(matcher.matches(), "{text}");
    (text, answer.len())
}

#[test]
fn nothing_is_admitted_that_cannot_be_completed() {
    let model = model();
    let tree = json!({ "type": "array", "items": { "$ref": "#" } });
    let both = json!({
        "anyOf": [
            { "type": "object", "properties": { "children": tree, "name": { "type": "string" } }, "required": ["name", "children"] },
            { "type": "array", "items": { "type": "string", "pattern": "^[a-f]{3,9}-[0-9]+$" }, "minItems": 2 }
        ]
    });
    for (constraint, more) in [
        (json_of(tree), 20),
        (json_of(both.clone()), 40),
        (json_of(both), 3),
        (json_of(json!({ "enum": ["a", "ab", "abc and much more that is never so short"] })), 5),
        (json_of(json!(true)), 30),
        (regex("(ab?)+[0-9]{3}(x{4}y)*"), 9),
        (regex("[a-z0-9]{200}[.]{200}|[a-z]*[0-9]{9}"), 9),
        (choice(&["a", "a very long one", "no"]), 3),
    ] {
        let needed = model.matcher(&constraint).unwrap().needed().unwrap();
        let (text, tokens) = last_of_all(&model, &constraint, needed + more);
        assert!(tokens <= needed + more, "{tokens} tokens of {text}");
        Checker::new(&constraint).unwrap().check(&text, &[]).unwrap();
    }
}

/// Where the search is given up, nothing is guaranteed, and nothing fails.
#[test]
fn a_way_to_the_end_that_is_too_long_is_none() {
    let model = model();
    for constraint in [
        json_of(json!({ "type": "string", "minLength": 1_000_000 })),
        json_of(json!({ "type": "array", "minItems": 1_000_000, "items": { "type": "integer" } })),
    ] {
        let mut matcher = model.matcher(&constraint).unwrap();
        assert_eq!(matcher.needed(), None);
        matcher.begin().unwrap();
        let allowed = matcher.allowed().unwrap();
        assert!(allowed.iter().all(|id| matcher.admits(id, 1)));
    }
}

/// An array of words, the shortest of which has more bytes than any answer may have tokens.
fn words(count: usize, length: usize) -> Constraint {
    let word = |first: u8| -> String {
        let mut state = u32::from(first);
        let letters = (0..length).map(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            char::from(b"qwzxkj"[(state >> 16) as usize % 6])
        });
        std::iter::once(char::from(first)).chain(letters).collect()
    };
    let words: Vec<String> = (b'a'..b'i').map(word).collect();
    json_of(json!({ "type": "array", "minItems": count, "maxItems": count, "items": { "enum": words } }))
}

#[test]
fn counting_the_way_to_the_end_takes_few_steps_for_each_choice_and_comes_to_the_same() {
    let model = model();
    let constraint = words(200, 12);
    let mut matcher = model.matcher(&constraint).unwrap();
    let max_tokens = matcher.needed().unwrap() + 60;
    let mut taken = matcher.begin().unwrap();
    let (mut tokens, mut choices, mut counted, mut most) = (taken.forced.len(), 0, 0, 0);
    while !taken.complete {
        let allowed: Vec<u32> = matcher.allowed().unwrap().iter().collect();
        let before = matcher.steps();
        let tried = allowed.iter().cycle().skip(choices * 3).take(allowed.len()).copied();
        let next = tried.take(8).find(|id| matcher.admits(*id, max_tokens - tokens));
        most = most.max(before - matcher.steps());
        counted += usize::from(before > matcher.steps());
        let next = next.or_else(|| matcher.way_on()).unwrap();
        assert!(matcher.admits(next, max_tokens - tokens), "choice {choices}");
        taken = matcher.take(next).unwrap();
        if choices % 20 == 0
            && let Some((known, anew)) = matcher.count_anew()
        {
            // While much is left, the known number may be larger than the actual one.
            assert!(known == anew || known > anew && known > 300, "{known} and {anew}");
        }
        tokens += 1 + taken.forced.len();
        choices += 1;
    }
    assert!(tokens <= max_tokens && matcher.matches());
    assert!(counted > 100, "{counted} of {choices} choices were counted");
    // Counting to the end would take a step for each of 200 items.
    assert!(most <= 64, "{most} steps for one choice");
}

#[test]
fn a_check_between_two_tokens_leaves_what_would_take_long_to_the_end() {
    let long = "a".repeat(8000);
    let pattern = |i: usize| json!({ "pattern": format!("^(?:(?=[^zy{}]*z)x|a(?=a?))*c{i}$", i % 10) });
    let patterns: Vec<Value> = (0..60).map(pattern).collect();
    let checker = |schema: Value| Checker::new(&json_of(schema)).unwrap();
    let all = checker(json!({ "properties": { "x": { "anyOf": patterns } } }));
    let document = json!({ "x": long }).to_string();
    assert_eq!(all.flaw(&document), None);
    let Err(Error::Mismatch { reason }) = all.check(&document, &[]) else { panic!("it passes") };
    assert!(reason.contains("too many steps"), "{reason}");
    assert!(all.check(r#"{"x": "aac7"}"#, &[]).is_ok());
    // Patterns that take few steps are matched.
    let one = checker(json!({ "properties": { "x": { "pattern": "^(?!a)" } } }));
    assert_eq!(one.flaw(r#"{"x": "ab"}"#), Some(6..10));
    assert_eq!(one.flaw(r#"{"x": "ba"}"#), None);
    // Names are matched with patterns as well.
    let names: serde_json::Map<String, Value> =
        (0..60).map(|i| (format!("^(?:(?=[^zy]*z)x|a(?=a?))*c{i}$"), json!(false))).collect();
    let names = checker(json!({ "patternProperties": names }));
    let document = json!({ long: 1 }).to_string();
    assert_eq!(names.flaw(&document), None);
    let Err(Error::Mismatch { reason }) = names.check(&document, &[]) else { panic!("it passes") };
    assert!(reason.contains("too many ways"), "{reason}");
    assert!(names.check(r#"{"b": 1}"#, &[]).is_ok() && names.check(r#"{"ac3": 1}"#, &[]).is_err());
}

#[test]
fn masks_of_patterns_and_choices_are_those_of_llguidance() {
    let model = model();
    let constraints = [
        regex("[A-Z][a-z]+ [A-Z][a-z]+, \\d{1,3} years"),
        regex("(\\w+ ){2,30}\\w+\\."),
        regex("^(yes|no)( .*)?$"),
        regex("[^ ]{1,12}|(a|b|ab)*c"),
        regex("(?i)select [a-zäöü_, ]{1,60} from .{3,9}(/[^/]+){0,2};?"),
        regex("(?s).+\\n\\d\\D*"),
        regex("\\p{Greek}+|[^\\x00-\\x7f]{1,5}|-?(0|[1-9]\\d*)(\\.\\d+)?"),
        regex("a{0,3}"),
        choice(&["yes", "yes please", "no", "no \"thanks\"\n", "naïve", "日本"]),
        choice(&["only one"]),
    ];
    let mut masks = 0;
    for constraint in &constraints {
        for seed in 0..20u64 {
            let mut matcher = model.matcher(constraint).unwrap();
            let mut taken = matcher.begin().unwrap();
            let mut state = seed + 1;
            let mut random = |count: usize| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (state >> 33) as usize % count
            };
            for _ in 0..60 {
                if taken.complete {
                    break;
                }
                let allowed = matcher.allowed().unwrap();
                let expected = matcher.allowed_by_llguidance().expect("it has an automaton");
                assert!(allowed.as_slice() == expected.as_slice(), "{constraint:?}: mask {masks}");
                masks += 1;
                let tokens: Vec<u32> = allowed.iter().filter(|id| !model.tokenizer.is_end(*id)).collect();
                if tokens.is_empty() {
                    break;
                }
                taken = matcher.take(tokens[random(tokens.len())]).unwrap();
            }
        }
    }
    assert!(masks > 1000, "{masks} masks");
}

/// The test asserts amounts of work, which are the same on every machine, instead of times.
#[test]
fn a_mask_never_costs_more_steps_than_it_may() {
    let model = model();
    for pattern in
        ["(a|b)*a(a|b){40}c", "(((a{1,50}){1,50}){1,20})b", "\\w{200}\\W{200}", "((a*)*b?)*c", "(.*a){20}"]
    {
        let Ok(mut matcher) = model.matcher(&regex(pattern)) else { continue };
        matcher.begin().unwrap();
        for step in 0..100 {
            let Ok(allowed) = matcher.allowed() else { break };
            let (fuel, items) = matcher.cost();
            assert!(fuel <= 3 * super::grammar::STEP_FUEL, "{pattern}: fuel {fuel} in step {step}");
            assert!(items <= 2 * super::grammar::STEP_ITEMS, "{pattern}: {items} items in step {step}");
            let next = allowed.iter().filter(|id| !model.tokenizer.is_end(*id)).nth(step % 3);
            let Some(next) = next else { break };
            if matcher.take(next).is_ok_and(|taken| taken.complete) {
                break;
            }
        }
    }
}

#[test]
fn what_takes_long_to_refute_is_not_refuted() {
    let pattern = Constraint::Regex("[ab]*a[ab]{5000}c".to_owned());
    // In an order that keeps an automaton from finding the same states again.
    let mut state = 1_u32;
    let text: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 { 'a' } else { 'b' }
    })
    .take(2_000_000)
    .collect();
    assert!(!pattern.refutes(&text));
    assert!(pattern.refutes(&text[..1000]));
    assert!(!Constraint::Regex("[ab]*".to_owned()).refutes(&text));
    assert!(Constraint::Regex("[a]*".to_owned()).refutes(&text));
}
