//! Requests with a constraint on a live server: answers, failures that are final, and the engine after both.

use steadytext_test_server::Cluster;
use uuid::Uuid;

#[test]
fn queued_answers_match_their_constraints_and_are_those_of_the_synchronous_functions() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "rows": {"type": "integer", "minimum": 1, "maximum": 500}},
        "required": ["name", "rows"], "additionalProperties": false}"#;
    let calls = [
        format!("generate_json{{}}('A table', '{schema}', 100)"),
        r"generate_regex{}('A date', '^\d{4}-\d\d-\d\d$', temperature => 1, seed => 9)".to_owned(),
        "generate_choice{}('Is it?', array['yes', 'yes please', 'no'])".to_owned(),
    ];
    for call in &calls {
        let id: Uuid = session.one(&format!("select steadytext_{}", call.replace("{}", "_async")));
        let queued = session.answer(id);
        let at_once: String = session.one(&format!("select steadytext_{}", call.replace("{}", "")));
        assert_eq!(queued, at_once, "{call}");
    }
    let ids: Vec<Uuid> = session.list(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate_choice', 'Which one is it? ' || n, '{\"choices\": [\"one\", \"two\", \"three\"]}' from generate_series(1, 20) as n
         returning request_id",
    );
    for id in ids {
        assert!(["one", "two", "three"].contains(&session.answer(id).as_str()));
    }
}

#[test]
fn what_cannot_match_fails_once_and_says_why() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for (call, code, words) in [
        ("json_async('x', 'false')", "22023", "the schema cannot be followed"),
        (
            "json_async('x', '{\"type\": \"integer\", \"minimum\": 3, \"maximum\": 2}')",
            "22023",
            "minimum (3) is greater",
        ),
        (
            "json_async('x', '{\"type\": \"string\", \"minLength\": 900}', 20)",
            "53400",
            "tokens, and 20 are allowed",
        ),
        ("regex_async('x', '[a-z]{500}', 4)", "53400", "tokens, and 4 are allowed"),
        ("regex_async('x', '\\x00{3}')", "22021", "not valid text"),
    ] {
        let id: Uuid = session.one(&format!("select steadytext_generate_{call}"));
        let request = session.wait_for_end(id);
        assert_eq!(request.status, "failed", "{call}");
        assert_eq!(request.error_code.as_deref(), Some(code), "{call}: {request:?}");
        assert!(request.error.as_deref().unwrap_or_default().contains(words), "{call}: {request:?}");
        assert_eq!(request.retry_count, 0, "{call}: trying again does not help");
    }
    let id = session.generate("the engine is fine", "max_tokens => 3");
    session.answer(id);
}
