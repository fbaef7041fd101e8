//! Tokenizers and templates of generated files: refusals, and the effects of metadata.

use std::path::Path;

use steadytext_engine::Error;
use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::{ChatTemplate, Origin};
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Spec, Text};

fn spec() -> Spec {
    Spec { vocab: 400, width: 32, heads: 1, kv_heads: 1, layers: 1, ..Spec::tiny(Architecture::Qwen3) }
}

/// The file of a specification, without the bulk of its tensors.
fn file(spec: &Spec) -> File {
    let mut file = steadytext_test_models::file(spec).unwrap();
    file.tensors.clear();
    file
}

fn gguf(file: &File) -> Gguf {
    let mut out = tempfile::NamedTempFile::new().unwrap();
    file.write(&mut out).unwrap();
    // The mapping outlives the name.
    Gguf::open(out.path()).unwrap()
}

fn tokenizer(file: &File) -> Tokenizer {
    Tokenizer::from_gguf(&gguf(file)).unwrap()
}

/// A file with one key changed; `None` removes it.
fn with(key: &str, value: Option<Value>) -> File {
    let mut file = file(&spec());
    match value {
        Some(value) => file.set(key, value),
        None => file.remove(key),
    }
    file
}

fn text(value: &str) -> Option<Value> {
    Some(Value::String(value.into()))
}

fn strings_mut<'a>(file: &'a mut File, key: &str) -> &'a mut Vec<String> {
    match file.keys.iter_mut().find(|(name, _)| name == key) {
        Some((_, Value::Strings(strings))) => strings,
        other => panic!("{other:?}"),
    }
}

fn types_mut(file: &mut File) -> &mut Vec<i32> {
    match file.keys.iter_mut().find(|(name, _)| name == "tokenizer.ggml.token_type") {
        Some((_, Value::I32s(types))) => types,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_kinds_of_tokenizers_are_not_supported_and_named() {
    for (file, expected) in [
        (with("tokenizer.ggml.model", text("rwkv")), "key \"tokenizer.ggml.model\" is \"rwkv\""),
        (with("tokenizer.ggml.model", text("plamo2")), "\"llama\" (SentencePiece)"),
        (with("tokenizer.ggml.pre", text("deepseek-v9")), "key \"tokenizer.ggml.pre\" is \"deepseek-v9\""),
        (with("tokenizer.ggml.pre", text("qwen3")), "like it: \"qwen2\", "),
    ] {
        match Tokenizer::from_gguf(&gguf(&file)) {
            Err(Error::UnsupportedModel { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    for name in ["qwen2", "llama-bpe", "gpt-2", "default", "tekken", "smollm"] {
        assert!(Tokenizer::from_gguf(&gguf(&with("tokenizer.ggml.pre", text(name)))).is_ok());
    }
    // Without the key, llama.cpp's default pattern cuts digits into groups of three behind letters.
    let default = tokenizer(&with("tokenizer.ggml.pre", None));
    let named = tokenizer(&with("tokenizer.ggml.pre", text("default")));
    assert_eq!(default.encode("ab 1234 !?x").unwrap(), named.encode("ab 1234 !?x").unwrap());
}

#[test]
fn contradicting_metadata_are_corrupt_and_named() {
    let merges = |merges: &[&str]| {
        let merges = merges.iter().map(|merge| (*merge).to_owned()).collect();
        with("tokenizer.ggml.merges", Some(Value::Strings(merges)))
    };
    let mut twice = file(&spec());
    strings_mut(&mut twice, "tokenizer.ggml.tokens")[7] = "!".into();
    for (file, expected) in [
        (with("tokenizer.ggml.model", None), "key \"tokenizer.ggml.model\" is missing"),
        (with("tokenizer.ggml.tokens", None), "key \"tokenizer.ggml.tokens\" is missing"),
        (with("tokenizer.ggml.tokens", Some(Value::Strings(vec![]))), "has 0 elements"),
        (with("tokenizer.ggml.token_type", Some(Value::I32s(vec![1]))), "has 1 elements for 400 tokens"),
        (with("tokenizer.ggml.token_type", Some(Value::I32s(vec![9; 400]))), "is 9, not a token type"),
        (
            with("tokenizer.ggml.eos_token_id", Some(Value::U32(400))),
            "\"tokenizer.ggml.eos_token_id\" is 400",
        ),
        (with("tokenizer.ggml.merges", None), "key \"tokenizer.ggml.merges\" is missing"),
        (merges(&["a b", "ab"]), "element 0 of key \"tokenizer.ggml.merges\" names a token that is missing"),
        (merges(&["ab"]), "element 0 of key \"tokenizer.ggml.merges\" is not a pair"),
        (merges(&["longer thananytokeninthisvocabulary"]), "names a token that is missing"),
        (twice, "are the same"),
    ] {
        match Tokenizer::from_gguf(&gguf(&file)) {
            Err(Error::CorruptModel { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn user_defined_tokens_are_found_in_any_text_but_not_those_that_look_like_control_tokens() {
    let mut file = file(&spec());
    let count = {
        let tokens = strings_mut(&mut file, "tokenizer.ggml.tokens");
        tokens.extend(["<think>".to_owned(), "<|tool|>".to_owned(), "<｜User｜>".to_owned()]);
        tokens.len() as u32
    };
    types_mut(&mut file).extend([4, 4, 4]);
    let (think, tool, user) = (count - 3, count - 2, count - 1);
    let tokenizer = tokenizer(&file);
    let ids = tokenizer.encode("a<think>b").unwrap();
    assert!(ids.contains(&think) && !tokenizer.is_control(think));
    assert_eq!(tokenizer.decode(&ids), b"a<think>b");
    for (text, id) in [("<|tool|>", tool), ("<｜User｜>", user)] {
        assert!(tokenizer.is_control(id));
        assert!(!tokenizer.encode(text).unwrap().contains(&id), "{text}");
        assert_eq!(tokenizer.encode_marked(text).unwrap(), [id]);
        assert!(tokenizer.token_bytes(id).is_empty());
    }
}

#[test]
fn the_longest_special_token_wins() {
    let mut file = file(&spec());
    let count = {
        let tokens = strings_mut(&mut file, "tokenizer.ggml.tokens");
        tokens.extend(["<|im".to_owned(), "<|im_start|><|im".to_owned()]);
        tokens.len() as u32
    };
    types_mut(&mut file).extend([3, 3]);
    let tokenizer = tokenizer(&file);
    assert_eq!(tokenizer.encode_marked("<|im_start|><|im").unwrap(), [count - 1]);
    assert_eq!(tokenizer.encode_marked("<|im_start|>").unwrap(), [256]);
}

#[test]
fn the_first_token_is_added_once() {
    let bos = 256;
    let mut file = with("tokenizer.ggml.bos_token_id", Some(Value::U32(bos)));
    let chat = |file: &File| {
        let gguf = gguf(file);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        ChatTemplate::from_gguf(&gguf).unwrap().encode_prompt(&tokenizer, "x").unwrap()
    };
    file.set("tokenizer.chat_template", Value::String("[{{ messages[0].content }}]".into()));
    assert_eq!(tokenizer(&file).bos(), None);
    assert_ne!(chat(&file)[0], bos);
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    assert_eq!(tokenizer(&file).bos(), Some(bos));
    assert_eq!(chat(&file).iter().filter(|id| **id == bos).count(), 1);
    // Llama 3's texts begin with the token unless the file says otherwise.
    file.remove("tokenizer.ggml.add_bos_token");
    assert_eq!(tokenizer(&file).bos(), None);
    file.set("tokenizer.ggml.pre", Value::String("llama-bpe".into()));
    assert_eq!(tokenizer(&file).bos(), Some(bos));
    // A template that writes the token itself.
    file.set("tokenizer.chat_template", Value::String("{{ bos_token }}[{{ messages[0].content }}]".into()));
    let ids = chat(&file);
    assert_eq!((ids[0], ids.iter().filter(|id| **id == bos).count()), (bos, 1));
    // Without a template the prompt follows the token.
    file.remove("tokenizer.chat_template");
    assert_eq!(chat(&file)[0], bos);
}

#[test]
fn embeddings_end_as_the_metadata_want() {
    let mut file = file(&spec());
    let plain = tokenizer(&file).encode("abc").unwrap();
    assert_eq!(tokenizer(&file).encode_embedding("abc").unwrap(), plain);
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    assert_eq!(tokenizer(&file).encode_embedding("abc").unwrap(), [plain.as_slice(), &[257]].concat());
    // Last-token pooling without a key for the end: <|endoftext|> if there is one.
    file.remove("tokenizer.ggml.add_eos_token");
    file.set("qwen3.pooling_type", Value::U32(3));
    assert_eq!(tokenizer(&file).encode_embedding("abc").unwrap(), plain);
    strings_mut(&mut file, "tokenizer.ggml.tokens")[399] = "<|endoftext|>".into();
    types_mut(&mut file)[399] = 3;
    strings_mut(&mut file, "tokenizer.ggml.merges").clear();
    let plain = tokenizer(&file).encode("abc").unwrap();
    assert_eq!(tokenizer(&file).encode_embedding("abc").unwrap(), [plain.as_slice(), &[399]].concat());
    file.set("tokenizer.ggml.add_eos_token", Value::Bool(false));
    assert_eq!(tokenizer(&file).encode_embedding("abc").unwrap(), plain);
}

#[test]
fn a_byte_without_token_is_an_error_that_names_it() {
    let mut file = file(&spec());
    strings_mut(&mut file, "tokenizer.ggml.tokens")[0xe2] = "gone".into();
    strings_mut(&mut file, "tokenizer.ggml.merges").clear();
    let tokenizer = tokenizer(&file);
    assert!(tokenizer.encode("ascii").is_ok());
    match tokenizer.encode("a € sign") {
        Err(Error::UnreadableText { reason }) => assert!(reason.contains("0xE2"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn end_tokens_come_from_metadata_and_names() {
    let mut file = file(&spec());
    assert_eq!(tokenizer(&file).end_tokens(), [257]);
    file.set("tokenizer.ggml.eot_token_id", Value::U32(300));
    assert!(tokenizer(&file).is_end(300) && !tokenizer(&file).is_end(301));
    // A number with all bits set means none.
    file.set("tokenizer.ggml.eos_token_id", Value::U32(u32::MAX));
    file.remove("tokenizer.ggml.eot_token_id");
    assert_eq!((tokenizer(&file).eos(), tokenizer(&file).end_tokens().to_vec()), (None, vec![257]));
}

/// A file with a vocabulary for `model`: unknown, beginning, end, the bytes as `<0xFF>`, then these with
/// their scores.
fn scored(model: &str, pieces: &[(&str, i32, f32)]) -> File {
    let special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)];
    let mut tokens: Vec<String> = special.iter().map(|(token, _)| (*token).to_owned()).collect();
    let mut types: Vec<i32> = special.iter().map(|(_, kind)| *kind).collect();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), 6);
    let mut scores = vec![0.0; tokens.len()];
    for (token, kind, score) in pieces {
        tokens.push((*token).to_owned());
        types.push(*kind);
        scores.push(*score);
    }
    let mut file = file(&spec());
    file.set("tokenizer.ggml.model", Value::String(model.into()));
    file.set("tokenizer.ggml.tokens", Value::Strings(tokens));
    file.set("tokenizer.ggml.token_type", Value::I32s(types));
    file.set("tokenizer.ggml.scores", Value::F32s(scores));
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    for key in ["merges", "pre", "add_bos_token", "eos_token_id"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    file
}

const PIECES: [(&str, i32, f32); 8] = [
    ("▁", 1, -9.0),
    ("a", 1, -8.0),
    ("b", 1, -7.0),
    ("▁a", 1, -3.0),
    ("ab", 1, -2.0),
    ("▁ab", 1, -1.0),
    ("<think>", 4, 0.0),
    ("s>", 1, 0.0),
];

#[test]
fn sentencepiece_joins_what_scores_most_and_falls_back_to_bytes() {
    let mut file = scored("llama", &PIECES);
    let llama = tokenizer(&file);
    let (space, a, b, with_a, ab, word) = (259, 260, 261, 262, 263, 264);
    assert_eq!((llama.bos(), llama.eos(), llama.end_tokens()), (Some(1), Some(2), &[2][..]));
    assert_eq!(llama.encode("").unwrap(), [0; 0]);
    assert_eq!(llama.encode("ab").unwrap(), [word]);
    assert_eq!(llama.encode(" ab").unwrap(), [space, word]);
    // `ab` scores more than `▁a`; the leftmost of equals is joined first.
    assert_eq!(llama.encode("aab abb").unwrap(), [with_a, ab, word, b]);
    assert_eq!(llama.encode("é\n").unwrap(), [space, 3 + 0xc3, 3 + 0xa9, 3 + 0x0a]);
    // A user-defined token is found in any text, and a space is put behind it; a control token is not.
    assert_eq!(llama.encode("a<think>a").unwrap(), [with_a, 265, with_a]);
    let attack = llama.encode("<s>").unwrap();
    assert!(attack.iter().all(|id| !llama.is_control(*id)), "{attack:?}");
    assert_eq!(llama.encode_marked("<s>a").unwrap(), [1, with_a]);
    for text in ["ab", " ab", "é\n", "a▁", "<0x41>", "<s></s>"] {
        let decoded = String::from_utf8(llama.decode(&llama.encode(text).unwrap())).unwrap();
        assert_eq!(decoded, text.replace('▁', " "));
    }
    assert_eq!(llama.token_bytes(word), b" ab");
    assert_eq!(llama.token_bytes(3 + 0xc3), [0xc3]);
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    assert_eq!(tokenizer(&file).encode("ab").unwrap(), [ab]);
    let long = "ab ".repeat(300_000);
    assert_eq!(llama.decode(&llama.encode(&long).unwrap()), long.as_bytes());
    assert_eq!(llama.encode(&"a".repeat(500_000)).unwrap().last(), Some(&a));
}

#[test]
fn unigram_takes_the_most_likely_tokens() {
    let mut file = scored("t5", &PIECES);
    file.set("tokenizer.ggml.add_space_prefix", Value::Bool(true));
    let (with_a, b, word) = (262, 261, 264);
    let t5 = tokenizer(&file);
    assert_eq!((t5.bos(), t5.eos()), (None, Some(1)), "the end where the file does not name it");
    assert_eq!(t5.encode("abb").unwrap(), [word, b]);
    assert_eq!(t5.encode("a").unwrap(), [with_a]);
    // A run of characters that no token stands for is one unknown token.
    assert_eq!(t5.encode("aééb").unwrap(), [with_a, 0, b]);
    assert_eq!(t5.encode("<s>").unwrap().iter().filter(|id| **id == 1).count(), 0);
    assert_eq!(t5.encode_embedding("a").unwrap(), [with_a, 1]);
    let pair = t5.encode_pair("a", "a").unwrap();
    assert_eq!((pair.tokens, pair.second), (vec![with_a, 1, 1, with_a, 1], 3));
    assert!(t5.encode(&"ab ".repeat(300_000)).is_ok());
    file.set("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true));
    assert_eq!(tokenizer(&file).encode("  ab   a ").unwrap(), [word, with_a]);
}

#[test]
fn gemma_4_merges_the_characters_of_a_line() {
    let mut file =
        scored("gemma4", &[("▁", 1, 0.0), ("a", 1, 0.0), ("▁a", 1, 0.0), ("\n\n", 1, 0.0), ("<|x>", 4, 0.0)]);
    file.set("tokenizer.ggml.merges", Value::Strings(vec!["▁ a".into()]));
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    let gemma = tokenizer(&file);
    assert_eq!(gemma.bos(), Some(1), "whatever the file says");
    assert_eq!(gemma.encode(" a a\n\na").unwrap(), [261, 261, 262, 260]);
    assert_eq!(gemma.encode("é\n").unwrap(), [3 + 0xc3, 3 + 0xa9, 3 + 0x0a]);
    assert!(gemma.is_control(263) && !gemma.encode("<|x>").unwrap().contains(&263));
    assert_eq!(gemma.decode(&gemma.encode(" a é\n\n\n").unwrap()), " a é\n\n\n".as_bytes());
}

#[test]
fn no_merges_make_a_control_token_of_a_users_text() {
    let mut file = file(&spec());
    let tokens = strings_mut(&mut file, "tokenizer.ggml.tokens");
    tokens.extend(["QZ".to_owned(), "ZQ".to_owned()]);
    let id = tokens.len() as u32 - 2;
    types_mut(&mut file).extend([3, 3]);
    strings_mut(&mut file, "tokenizer.ggml.merges").splice(0..0, ["Q Z".to_owned()]);
    let tokenizer = tokenizer(&file);
    assert!(tokenizer.is_control(id) && !tokenizer.encode("QZ").unwrap().contains(&id));
    assert_eq!(tokenizer.encode_marked("ZQ").unwrap(), [id + 1]);
    // A token that merges make of text is text, even if it looks like a control token.
    let mut html = self::file(&spec());
    let tokens = strings_mut(&mut html, "tokenizer.ggml.tokens");
    tokens.extend(["</".to_owned(), "s>".to_owned(), "</s>".to_owned()]);
    let id = tokens.len() as u32 - 1;
    types_mut(&mut html).extend([1; 3]);
    strings_mut(&mut html, "tokenizer.ggml.merges").extend(["< /", "s >", "</ s>"].map(str::to_owned));
    html.set("tokenizer.ggml.pre", Value::String("superbpe".into()));
    let tokenizer = self::tokenizer(&html);
    assert!(!tokenizer.is_control(id) && !tokenizer.is_end(id));
    assert_eq!(tokenizer.encode("</s>").unwrap(), [id]);
}

#[test]
fn hostile_scores_and_vocabularies_are_errors_or_bounded() {
    for model in ["llama", "t5"] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut pieces = PIECES;
            pieces[2].2 = bad;
            match Tokenizer::from_gguf(&gguf(&scored(model, &pieces))) {
                Err(Error::CorruptModel { reason, .. }) => {
                    assert!(reason.contains("element 261 of key \"tokenizer.ggml.scores\""), "{reason}");
                }
                other => panic!("{model} {bad}: {other:?}"),
            }
        }
        let mut short = scored(model, &PIECES);
        short.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 3]));
        assert!(matches!(Tokenizer::from_gguf(&gguf(&short)), Err(Error::CorruptModel { .. })));
        // Huge scores, tokens that contain each other to great lengths, and empty ones.
        let nested: Vec<String> = (0..3000).map(|length| "a".repeat(length)).collect();
        let pieces: Vec<(&str, i32, f32)> =
            nested.iter().map(|piece| (&**piece, 1, f32::MAX)).chain([("", 1, f32::MIN)]).collect();
        let mut file = scored(model, &pieces);
        file.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        let tokenizer = tokenizer(&file);
        let text = "a".repeat(20_000);
        let ids = tokenizer.encode(&text).unwrap();
        // Whichever pieces are taken, each stands for some of the text.
        assert!((1..=text.len()).contains(&ids.len()), "{model}: {} tokens", ids.len());
        if model == "llama" {
            assert_eq!(tokenizer.decode(&ids), text.as_bytes());
        }
    }
    // Without the tokens of bytes.
    let mut file = scored("llama", &PIECES);
    strings_mut(&mut file, "tokenizer.ggml.tokens")[3 + 0xc3] = "gone".into();
    match tokenizer(&file).encode("aé") {
        Err(Error::UnreadableText { reason }) => assert!(reason.contains("0xC3"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let mut file = scored("t5", &PIECES);
    file.set("tokenizer.ggml.precompiled_charsmap", Value::Strings(vec![]));
    assert!(matches!(Tokenizer::from_gguf(&gguf(&file)), Err(Error::CorruptModel { .. })));
    file.remove("tokenizer.ggml.precompiled_charsmap");
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(9999));
    assert!(matches!(Tokenizer::from_gguf(&gguf(&file)), Err(Error::CorruptModel { .. })));
}

#[test]
fn phi_3_takes_white_space_behind_special_tokens_away() {
    let mut file = scored("llama", &PIECES);
    assert_eq!(tokenizer(&file).encode_marked("</s>\n a").unwrap().len(), 4);
    file.set("general.name", Value::String("Phi-3.5 mini".into()));
    assert_eq!(tokenizer(&file).encode_marked("</s>\n a").unwrap(), [2, 262]);
    assert_eq!(tokenizer(&file).encode_marked("<s> a").unwrap().len(), 3);
}

#[test]
fn names_of_end_tokens_count_as_the_rest_of_the_vocabulary_has_it() {
    let ends = |names: &[&str]| -> Vec<String> {
        let mut file = file(&Spec { endless: true, ..spec() });
        let mut first = 0;
        for (key, value) in &mut file.keys {
            if let ("tokenizer.ggml.tokens", Value::Strings(tokens)) = (key.as_str(), value) {
                first = tokens.len() - names.len();
                tokens.splice(first.., names.iter().map(ToString::to_string));
            }
        }
        // The merges that make the tokens which were there before.
        file.keys.iter_mut().for_each(|(key, value)| {
            if let ("tokenizer.ggml.merges", Value::Strings(merges)) = (key.as_str(), value) {
                merges.truncate(merges.len() - names.len());
            }
        });
        let tokenizer = tokenizer(&file);
        tokenizer.end_tokens().iter().map(|id| names[*id as usize - first].to_owned()).collect()
    };
    assert_eq!(
        ends(&["<turn|>", "<|flush|>", "[e~[", "<fim_pad>", "<x>"]),
        ["<turn|>", "<|flush|>", "[e~[", "<fim_pad>"]
    );
    assert_eq!(ends(&["<|end|>", "<|return|>"]), ["<|end|>", "<|return|>"]);
    assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"]), ["<|return|>", "<|call|>"]);
    assert_eq!(ends(&["<|end|>", "<|flush|>", "<|calls|>"]), ["<|flush|>", "<|calls|>"]);
    assert_eq!(ends(&["</s>", "<eos>"]), ["</s>", "<eos>"]);
    assert_eq!(ends(&["</s>", "<|tool_response>", "<eos>"]), ["<|tool_response>", "<eos>"]);
}

#[test]
fn random_models_say_what_their_vocabulary_promises() {
    for splitter in [
        steadytext_test_models::Splitter::Qwen2,
        steadytext_test_models::Splitter::LlamaBpe,
        steadytext_test_models::Splitter::Gpt2,
    ] {
        let ascii = tokenizer(&file(&Spec { splitter, ..spec() }));
        for id in 0..400 {
            assert!(ascii.token_bytes(id).iter().all(|byte| (1..0x80).contains(byte)), "{id}");
        }
        let text = "some words, 123 numbers\nand lines";
        let ids = ascii.encode(text).unwrap();
        assert_eq!(ascii.decode(&ids), text.as_bytes());
        // Its words are words of the splitter, so that merges are used.
        let word = (300..400).map(|id| ascii.token_bytes(id)).find(|bytes| bytes.starts_with(b" ")).unwrap();
        assert_eq!(ascii.encode(std::str::from_utf8(word).unwrap()).unwrap().len(), 1);
    }
    let invalid = tokenizer(&file(&Spec { text: Text::InvalidUtf8, ..spec() }));
    for id in 0..400 {
        assert!(invalid.token_bytes(id).iter().all(|byte| (0x80..0xc0).contains(byte)), "{id}");
    }
    let endless = tokenizer(&file(&Spec { endless: true, ..spec() }));
    assert_eq!((endless.eos(), endless.end_tokens().len()), (None, 0));
    let chat = ChatTemplate::from_gguf(&gguf(&file(&Spec { endless: true, ..spec() }))).unwrap();
    assert_eq!(chat.to_string(), "<|turn|>user\nPROMPT<|over|>\n<|turn|>assistant\n");
}

#[test]
fn random_models_depend_on_their_specification_alone() {
    let bytes = |spec: &Spec| {
        let mut bytes = Vec::new();
        steadytext_test_models::file(spec).unwrap().write(&mut bytes).unwrap();
        bytes
    };
    assert!(bytes(&spec()) == bytes(&spec()));
    assert!(bytes(&spec()) != bytes(&Spec { seed: 2, ..spec() }));
}

#[test]
fn a_file_may_have_several_templates_or_none() {
    let mut file = file(&spec());
    let shown = |file: &File, name: Option<&str>| {
        let gguf = gguf(file);
        let template = match name {
            Some(name) => ChatTemplate::named(&gguf, name),
            None => ChatTemplate::from_gguf(&gguf),
        };
        template.map(|template| (template.to_string(), template.origin().clone()))
    };
    let template =
        |open: &str, close: &str| Value::String(format!("{open}{{{{ messages[0].content }}}}{close}"));
    file.set("tokenizer.chat_template", template("[", "]"));
    file.set("tokenizer.chat_template.tool_use", template("<", ">"));
    file.set("tokenizer.chat_templates", Value::Strings(vec!["tool_use".into()]));
    assert_eq!(shown(&file, None).unwrap(), ("[PROMPT]".to_owned(), Origin::File));
    assert_eq!(
        shown(&file, Some("tool_use")).unwrap(),
        ("<PROMPT>".to_owned(), Origin::Named("tool_use".to_owned()))
    );
    match shown(&file, Some("rag")) {
        Err(Error::Template { reason, .. }) => {
            assert_eq!(reason, "there is no template \"rag\", but tool_use");
        }
        other => panic!("{other:?}"),
    }
    // An empty template means that texts go to the model as they are.
    file.set("tokenizer.chat_template", Value::String(String::new()));
    assert_eq!(shown(&file, None).unwrap(), ("PROMPT".to_owned(), Origin::None));
    file.remove("tokenizer.chat_template");
    let chatml = "<|im_start|>user\nPROMPT<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(shown(&file, None).unwrap(), (chatml.to_owned(), Origin::Family("chatml")));
    file.set("tokenizer.chat_templates", Value::Strings(vec!["default".into()]));
    file.set("tokenizer.chat_template.default", template("(", ")"));
    assert_eq!(shown(&file, None).unwrap(), ("(PROMPT)".to_owned(), Origin::Named("default".to_owned())));
    let turns = steadytext_test_models::file(&Spec { endless: true, ..spec() });
    let mut other = turns.unwrap();
    other.remove("tokenizer.chat_template");
    assert_eq!(shown(&other, None).unwrap(), ("PROMPT".to_owned(), Origin::None));
}

#[test]
fn a_template_that_is_no_text_or_fails_names_the_file() {
    let gguf = gguf(&with("tokenizer.chat_template", Some(Value::Bool(true))));
    assert!(matches!(ChatTemplate::from_gguf(&gguf), Err(Error::CorruptModel { .. })));
    let broken = self::gguf(&with("tokenizer.chat_template", text("{% for %}")));
    match ChatTemplate::from_gguf(&broken) {
        Err(Error::Template { path, reason }) => {
            assert_eq!(path, broken.path());
            assert_ne!(path, Path::new(""));
            assert!(reason.contains("syntax error"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
