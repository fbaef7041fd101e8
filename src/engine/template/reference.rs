//! Comparison with Python's jinja2, whose results `reference/make.py` has written down: of templates as they
//! are published with models, fetched by `scripts/fetch-llama-cpp.sh`, and of expressions that templates are
//! made of.

use std::io::Write;
use std::path::Path;

use minijinja::{Value, context};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::sandbox;
use super::switches::switches;

fn lines(text: &str) -> impl Iterator<Item = Json> + '_ {
    text.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// The context of a conversation of `reference/conversations.json`.
fn context_of(source: &str, conversation: &Json) -> Value {
    let text = |message: &Json, key: &str| message[key].as_str().unwrap().to_owned();
    let messages: Vec<Value> = conversation["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| context! { role => text(message, "role"), content => text(message, "content") })
        .collect();
    context! {
        messages => messages,
        tools => (),
        documents => (),
        add_generation_prompt => conversation.get("add_generation_prompt").is_none(),
        bos_token => "<s>",
        eos_token => "</s>",
        ..switches(source, conversation.get("thinking").is_some())
    }
}

#[test]
fn published_templates_give_the_text_of_jinja2() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/templates");
    if !folder.is_dir() {
        let folder = folder.display();
        let _ = writeln!(
            std::io::stderr(),
            "skipped: there are no templates in {folder}, run scripts/fetch-llama-cpp.sh"
        );
        return;
    }
    let conversations: Json = serde_json::from_str(include_str!("reference/conversations.json")).unwrap();
    let (mut equal, mut raised, mut different) = (0, 0, Vec::new());
    for line in lines(include_str!("reference/expected.jsonl")) {
        let name = line["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(crate::hex(&Sha256::digest(&source)), line["sha256"].as_str().unwrap(), "{name}");
        for (conversation, expected) in line["outcomes"].as_object().unwrap() {
            let context = context_of(&source, &conversations[conversation]);
            match sandbox::render(&source, &context, true) {
                Ok(text) if *expected == crate::hex(&Sha256::digest(&text)) => equal += 1,
                Err(_) if expected == "raises" => raised += 1,
                other => different.push(format!("{name}, {conversation}: {other:?}")),
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!((equal, raised), (684, 16));
}

#[test]
fn expressions_give_the_text_of_jinja2() {
    let mut compared = 0;
    for line in lines(include_str!("reference/expressions.jsonl")) {
        let source = line["template"].as_str().unwrap();
        let text = sandbox::render(source, &context! {}, true);
        assert_eq!(text.as_deref(), Ok(line["text"].as_str().unwrap()), "{source}");
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}
