//! Comparison with Hugging Face's tokenizers: ids written down by `reference/make.py`, and the crate of the
//! same name on random strings. Both run the published patterns, look-ahead included.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::pre::Pre;
use super::*;

fn ours() -> HashMap<&'static str, Tokenizer> {
    let gguf = crate::builtin::gguf().unwrap();
    let tokenizer = |name| {
        let (vocabulary, algorithm) = Algorithm::bpe(&gguf, Pre::named(name).unwrap()).unwrap();
        Tokenizer::new(&gguf, vocabulary, algorithm).unwrap()
    };
    ["qwen2", "llama-bpe", "gpt-2"].map(|name| (name, tokenizer(name))).into()
}

#[test]
fn ids_are_those_of_hugging_face() {
    let ours = ours();
    let mut compared = 0;
    for line in include_str!("reference/expected.jsonl").lines() {
        let expected: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = expected["text"].as_str().unwrap();
        for (name, tokenizer) in &ours {
            let ids: Vec<u32> = serde_json::from_value(expected[*name].clone()).unwrap();
            // Hugging Face would need the added tokens declared; a user's text contains none of them here.
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name} {text:?}");
            assert_eq!(tokenizer.decode(&ids), text.as_bytes(), "{name} {text:?}");
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared}");
}

/// The crate's tokenizer with the builtin vocabulary. `[sS]` for `(?i:s)`: see `split.rs`.
fn theirs(name: &str) -> tokenizers::Tokenizer {
    let contractions = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";
    let tail = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let pattern = match name {
        "qwen2" => format!(r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{tail}"),
        "llama-bpe" => format!(r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{tail}"),
        _ => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".into(),
    };
    let gguf = crate::builtin::gguf().unwrap();
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    let merges = gguf.strings("tokenizer.ggml.merges").unwrap();
    let model = BPE::builder()
        .vocab_and_merges(
            tokens
                .enumerate()
                .map(|(id, token)| (token.to_owned(), id as u32))
                .collect::<ahash::AHashMap<_, _>>(),
            merges
                .map(|line| line.split_once(' ').unwrap())
                .map(|(left, right)| (left.into(), right.into()))
                .collect(),
        )
        .ignore_merges(name == "llama-bpe")
        .build()
        .unwrap();
    let split = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false).unwrap();
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
    ])));
    tokenizer
}

#[test]
fn ids_agree_with_the_tokenizers_crate_on_random_text() {
    const PIECES: [&str; 48] = [
        "a", "B", "the", " the", "er", "ing", "'s", "'LL", "'ſ", "'", " ", "  ", "\n", "\r", "\t", "\u{a0}",
        "\u{3000}", "\u{2028}", "0", "12", "345", "٣", "½", "Ⅷ", ".", ",", "_", "--", "<|", "|>", "é",
        "e\u{301}", "ß", "語", "한", "я", "ع", "😀", "\u{200d}", "\0", "\u{7f}", "\u{85}", "\u{fdd0}", "-",
        "$", "\n\n", "VACUUM", "ᾳ",
    ];
    let ours = ours();
    let mut state = 1u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for (name, tokenizer) in &ours {
        let theirs = theirs(name);
        for _ in 0..2000 {
            let text: String = (0..1 + next(40)).map(|_| PIECES[next(PIECES.len())]).collect();
            let expected = theirs.encode(text.as_str(), false).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap(), expected.get_ids(), "{name} {text:?}");
        }
    }
}
