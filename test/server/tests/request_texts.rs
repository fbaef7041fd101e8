//! Processing of texts around a model's answer, without a server: words that are replaced, pieces, and JSON
//! as it is written.

use serde_json::{Value, json};

#[path = "../../../src/request/json_text.rs"]
mod json_text;
#[path = "../../../src/request/text_spans.rs"]
mod text_spans;

use json_text::{elements, without_zeros};

fn masked(text: &str, named: &[(&str, usize)]) -> String {
    let named = named.iter().map(|(words, number)| ((*words).to_owned(), *number)).collect();
    text_spans::replaced(text, named, |number| format!("[{number}]"))
}

#[test]
fn only_words_that_are_named_and_whole_are_replaced() {
    let text = "Ann met Annabel, Ann Lee and Ann's brother at ann@example.org.";
    let named = [("Ann", 0), ("Ann Lee", 0), ("Bob", 0), ("", 0), ("ann@example.org", 1)];
    assert_eq!(masked(text, &named), "[0] met Annabel, [0] and [0]'s brother at [1].");
    assert_eq!(masked(text, &[]), text);
    assert_eq!(masked("", &named), "");
    // Signs are whole wherever they stand.
    assert_eq!(masked("a-b, a--b", &[("-", 7)]), "a[7]b, a[7][7]b");
}

#[test]
fn of_words_that_overlap_the_longest_and_of_the_same_words_the_first_number_is_taken() {
    assert_eq!(
        masked("New York City", &[("York City", 1), ("New York", 2), ("New", 3), ("York", 4)]),
        "[2] City"
    );
    assert_eq!(masked("New York City", &[("York City", 1), ("New", 3), ("York", 4)]), "[3] [1]");
    assert_eq!(masked("Paris", &[("Paris", 2), ("Paris", 1), ("Paris", 3)]), "[1]");
    // The text of a mark is not looked at again.
    assert_eq!(masked("1 0", &[("1", 0), ("0", 1)]), "[0] [1]");
    assert_eq!(masked("Zoë, zoë, Zoëë", &[("Zoë", 0)]), "[0], zoë, Zoëë");
}

#[test]
fn many_words_that_begin_alike_take_no_more_time_than_few() {
    let text = "a".repeat(200) + &" aaaa".repeat(20_000);
    let named: Vec<(String, usize)> = (1..2000).map(|length| ("a".repeat(length), length)).collect();
    let found = text_spans::replaced(&text, named, |length| length.to_string());
    assert_eq!(found, "200".to_owned() + &" 4".repeat(20_000));
}

#[test]
fn pieces_are_the_text_and_end_where_something_ends() {
    let sentence = "Nothing happened here. ";
    for text in
        [sentence.repeat(500), "ä€".repeat(3000), "word ".repeat(2000), String::new(), "line\n".repeat(1000)]
    {
        let ends = text_spans::ends(&text);
        let mut begin = 0;
        for end in &ends {
            let piece = &text[begin..*end];
            assert!(piece.len() <= 2000, "{} bytes", piece.len());
            assert!(!piece.is_empty() || text.is_empty());
            begin = *end;
        }
        assert_eq!(begin, text.len());
    }
    let text = sentence.repeat(500);
    assert!(text_spans::ends(&text).iter().all(|end| text[..*end].ends_with(sentence)));
}

#[test]
fn a_list_is_cut_between_its_elements() {
    let json = r#" [ "a,]\"[", {"b": [1, {"c": "}"}]} ,-1.50e2,[] , "ä\\" ] "#;
    let expected = [r#""a,]\"[""#, r#"{"b": [1, {"c": "}"}]}"#, "-1.50e2", "[]", r#""ä\\""#];
    assert_eq!(elements(json), expected);
    assert!(elements("[ ]").is_empty());
}

#[test]
fn a_document_has_nothing_that_jsonb_cannot_have() {
    let plain = r#"{"b": 1.50, "a": "x\u0001"}"#;
    assert_eq!(without_zeros(plain).as_deref(), Some(plain));
    // A backslash and a word that looks like the character.
    let escaped = r#"{"a": "\\u0000"}"#;
    let value = |text: &str| serde_json::from_str::<Value>(text).expect("a document");
    assert_eq!(without_zeros(escaped).map(|text| value(&text)), Some(value(escaped)));
    let zeros = r#"{"a\u0000": ["x\u0000y", {"b": "\u0000"}]}"#;
    assert_eq!(without_zeros(zeros).map(|text| value(&text)), Some(json!({ "a": ["xy", { "b": "" }] })));
    assert_eq!(without_zeros("\\u0000"), None);
    // The removal takes nothing else along: digits, spaces, order, other escapes beside it.
    assert_eq!(
        without_zeros(
            r#"{ "z": 12345678901234567890.123456789012345678901,"a\u0000": ["\\\u0000\"ä\u0001\\u0000", 1.50E+400] }"#
        )
        .as_deref(),
        Some(r#"{ "z": 12345678901234567890.123456789012345678901,"a": ["\\\"ä\u0001\\u0000", 1.50E+400] }"#)
    );
}
