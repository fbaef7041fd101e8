//! Normalizers give the same text as those of the tokenizers crate, and unknown ones are refused.

use std::path::Path;

use serde_json::{Value, json};
use steadytext_test_models::{Bert, EncoderFamily};
use tempfile::TempDir;

use super::refusal;
use crate::safetensors::open;
use crate::tokenizer::Tokenizer;

/// Letters and marks of each kind, some that a form of Unicode changes and some that none does.
const PARTS: [&str; 54] = [
    "a",
    "B",
    "the",
    "Nothing",
    "tokenizer",
    "1234",
    " ",
    "  ",
    ".",
    "-",
    "é",
    "e\u{301}",
    "É",
    "E\u{301}\u{327}",
    "ﬁ",
    "ﬀ",
    "Ⅳ",
    "①",
    "½",
    "²",
    "ｆｕｌｌ",
    "ﾊﾝｶｸ",
    "が",
    "か\u{3099}",
    "한국",
    "\u{1112}\u{1161}\u{11ab}",
    "日本語",
    "\u{f900}",
    "Ω",
    "\u{2126}",
    "Å",
    "\u{212b}",
    "ΣΑΣ",
    "İ",
    "ı",
    "ß",
    "ẞ",
    "Ǆ",
    "ж",
    "Й",
    "и\u{306}",
    "שָׁ",
    "\u{fb2a}",
    "ﷺ",
    "الْعَرَبِيَّة",
    "हिन्दी",
    "क़",
    "ไทย",
    "ก\u{e33}",
    "a\u{323}\u{307}",
    "a\u{307}\u{323}",
    "q\u{307}\u{323}\u{301}",
    "👩\u{200d}👩",
    "\u{1d400}",
];

fn texts(count: usize) -> impl Iterator<Item = String> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    (0..count).map(move |_| (0..next(14)).map(|_| PARTS[next(PARTS.len())]).collect())
}

fn set_normalizer(folder: &Path, normalizer: &Value) {
    let path = folder.join("tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["normalizer"] = normalizer.clone();
    std::fs::write(path, file.to_string()).unwrap();
}

/// `tokenizer.json` in the place of `vocab.txt`.
fn write_wordpiece(folder: &Path) {
    let tokens = std::fs::read_to_string(folder.join("vocab.txt")).unwrap();
    let vocab: serde_json::Map<String, Value> =
        tokens.lines().enumerate().map(|(id, token)| (token.to_owned(), id.into())).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    });
    std::fs::remove_file(folder.join("vocab.txt")).unwrap();
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

fn of_all_families() -> Vec<Value> {
    let one = |kind: &str| json!({"type": kind});
    let sequence = |kinds: &[&str]| json!({"type": "Sequence", "normalizers": kinds.iter().map(|kind| one(kind)).collect::<Vec<_>>()});
    vec![
        Value::Null,
        one("NFC"),
        one("NFD"),
        one("NFKC"),
        one("NFKD"),
        one("Lowercase"),
        one("StripAccents"),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Strip", "strip_left": true, "strip_right": false}),
        sequence(&["NFD", "StripAccents", "Lowercase"]),
        sequence(&["NFKC", "Lowercase", "NFC"]),
        sequence(&["Lowercase", "NFKD", "StripAccents", "NFKC"]),
        json!({"type": "Sequence", "normalizers": [sequence(&["NFKD"]), sequence(&["Lowercase"])]}),
    ]
}

#[test]
fn texts_are_normalised_as_the_tokenizers_crate_does_it() {
    for family in [EncoderFamily::XlmRoberta, EncoderFamily::ModernBert, EncoderFamily::Bert] {
        let directory = TempDir::new().unwrap();
        Bert { family, vocab: 900, ..Bert::default() }.write_folder(directory.path()).unwrap();
        if family == EncoderFamily::Bert {
            write_wordpiece(directory.path());
        }
        let mut normalizers = of_all_families();
        match family {
            EncoderFamily::Bert => normalizers.extend([
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
                json!({"type": "BertNormalizer", "clean_text": false, "handle_chinese_chars": false, "strip_accents": true, "lowercase": false}),
                json!({"type": "Sequence", "normalizers": [{"type": "NFKC"},
                    {"type": "BertNormalizer", "clean_text": false, "handle_chinese_chars": true, "strip_accents": false, "lowercase": true}]}),
            ]),
            EncoderFamily::XlmRoberta => normalizers.push(json!({"type": "Sequence", "normalizers":
                [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]})),
            _ => {}
        }
        let mut different = std::collections::BTreeSet::new();
        for normalizer in normalizers {
            set_normalizer(directory.path(), &normalizer);
            let ours = Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap();
            let theirs = tokenizers::Tokenizer::from_file(directory.path().join("tokenizer.json")).unwrap();
            let mut all = Vec::new();
            for text in texts(1_000) {
                let expected = theirs.encode(text.as_str(), false).unwrap();
                let got = ours.encode(&text).unwrap();
                assert_eq!(got, expected.get_ids(), "{family:?}, {normalizer}: {text:?}");
                all.extend(got);
            }
            different.insert(all);
        }
        assert!(different.len() > 5, "{family:?}: what a normalizer does is seen in the tokens");
    }
}

#[test]
fn normalizers_that_are_not_known_or_come_too_late_are_refused_by_name() {
    let replace = |pattern: Value| json!({"type": "Replace", "pattern": pattern, "content": " "});
    let sequence = |parts: &[Value]| json!({"type": "Sequence", "normalizers": parts});
    let (bert, nfc) = (json!({"type": "BertNormalizer"}), json!({"type": "NFC"}));
    let map = json!({"type": "Precompiled", "precompiled_charsmap": ""});
    for (family, normalizer, reason) in [
        (EncoderFamily::XlmRoberta, json!({"type": "Nmt"}), "its normalizer \"Nmt\" is not known there"),
        (EncoderFamily::XlmRoberta, json!({}), "its normalizer \"\" is not known there"),
        (EncoderFamily::XlmRoberta, json!({"type": "Sequence"}), "its sequence of normalizers is none"),
        (EncoderFamily::XlmRoberta, bert.clone(), "its normalizer \"BertNormalizer\" is not known there"),
        (
            EncoderFamily::XlmRoberta,
            replace(json!({"String": "a"})),
            "its normalizer \"Replace\" is not known there",
        ),
        (
            EncoderFamily::XlmRoberta,
            sequence(&[map.clone(), nfc.clone()]),
            "\"NFC\" comes after a map of characters",
        ),
        (
            EncoderFamily::XlmRoberta,
            sequence(&[map.clone(), map.clone()]),
            "\"Precompiled\" is not known there",
        ),
        (
            EncoderFamily::XlmRoberta,
            json!({"type": "Precompiled", "precompiled_charsmap": "*"}),
            "its map of characters",
        ),
        (EncoderFamily::ModernBert, map.clone(), "its normalizer belongs to another kind of tokenizer"),
        (EncoderFamily::ModernBert, bert.clone(), "its normalizer \"BertNormalizer\" is not known there"),
        (
            EncoderFamily::ModernBert,
            json!({"type": "ByteLevel"}),
            "its normalizer \"ByteLevel\" is not known there",
        ),
        (EncoderFamily::Bert, map, "its normalizer belongs to another kind of tokenizer"),
        (EncoderFamily::Bert, sequence(&[bert.clone(), nfc]), "\"NFC\" comes after a map of characters"),
        (EncoderFamily::Bert, json!({"type": "BertNormalizer", "lowercase": 1}), "expected a boolean"),
    ] {
        let directory = TempDir::new().unwrap();
        Bert { family, ..Bert::default() }.write_folder(directory.path()).unwrap();
        if family == EncoderFamily::Bert {
            write_wordpiece(directory.path());
        }
        set_normalizer(directory.path(), &normalizer);
        let (file, said) = refusal(directory.path());
        assert_eq!(file, "tokenizer.json");
        assert!(said.contains(reason), "{normalizer}: {said}");
    }
}

#[test]
fn a_normalizer_beside_vocab_txt_is_obeyed() {
    let directory = TempDir::new().unwrap();
    Bert::default().write_folder(directory.path()).unwrap();
    let tokens = std::fs::read(directory.path().join("vocab.txt")).unwrap();
    write_wordpiece(directory.path());
    std::fs::write(directory.path().join("vocab.txt"), tokens).unwrap();
    let encode = || Tokenizer::from_gguf(&open(directory.path()).unwrap()).unwrap().encode("AB").unwrap();
    assert_ne!(encode(), [1], "where nothing is said, capitals go");
    set_normalizer(directory.path(), &json!({"type": "NFC"}));
    assert_eq!(encode(), [1], "its vocabulary has no capitals");
}
