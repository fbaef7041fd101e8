//! Against Hugging Face's tokenizers, which transformers use.

use std::collections::HashMap;

use tempfile::TempDir;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;

use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;
use steadytext_test_models::Bert;
use steadytext_test_models::gguf::Value;

/// Ours and theirs for one vocabulary, which have to agree.
struct Both {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
    _directory: TempDir,
}

/// The cleaning of text, in the words of transformers.
#[derive(Clone, Copy)]
struct How {
    lower_case: bool,
    strip_accents: Option<bool>,
    split_chinese: bool,
}

const UNCASED: How = How { lower_case: true, strip_accents: None, split_chinese: true };

impl Both {
    fn new(how: How) -> Both {
        let spec = Bert { vocab: 2500, ..Bert::default() };
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        let mut file = spec.file().unwrap();
        file.tensors.clear();
        if !how.lower_case {
            file.set("steadytext.tokenizer.lower_case", Value::Bool(false));
        }
        if let Some(strip) = how.strip_accents {
            file.set("steadytext.tokenizer.strip_accents", Value::Bool(strip));
        }
        if !how.split_chinese {
            file.set("steadytext.tokenizer.split_chinese", Value::Bool(false));
        }
        file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let ours = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();

        let vocab: HashMap<String, u32> =
            spec.vocabulary().into_iter().enumerate().map(|(id, token)| (token, id as u32)).collect();
        let model = Model::builder()
            .vocab(vocab.into_iter().collect::<ahash::AHashMap<String, u32>>())
            .unk_token("[UNK]".into())
            .max_input_chars_per_word(100)
            .build()
            .unwrap();
        let mut theirs = tokenizers::Tokenizer::new(model);
        let _ = theirs.with_normalizer(Some(BertNormalizer::new(
            true,
            how.split_chinese,
            how.strip_accents,
            how.lower_case,
        )));
        theirs.with_pre_tokenizer(Some(BertPreTokenizer));
        theirs.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 3), ("[CLS]".into(), 2))));
        Both { ours, theirs, _directory: directory }
    }

    fn agree(&self, text: &str) {
        let expected = self.theirs.encode(text, true).unwrap();
        assert_eq!(self.ours.encode_embedding(text).unwrap(), expected.get_ids(), "{text:?}");
    }
}

const TEXTS: [&str; 36] = [
    "",
    " ",
    "a",
    "hello world",
    "Hello, WORLD!",
    "  many   spaces\t\n\r\n here ",
    "don't e-mail me@example.com",
    "a\u{0}b\u{fffd}c\u{7}d\u{200b}e\u{ad}f\u{feff}",
    "x\u{85}y\u{a0}z\u{2028}w\u{3000}v",
    "naïve CAFÉ résumé ÅNGSTRÖM",
    "e\u{301}a\u{308}o\u{302}\u{323}",
    "İstanbul ıI ß ẞ ﬁ Ⅷ ½",
    "日本語 and 中文abc日本",
    "\u{20000}\u{2f800}\u{f900} x",
    "한국어 문장 नमस्ते สวัสดี",
    "Привет жжж ЖЖ Ёё Йй",
    "مرحبا بالعالم שלום",
    "“quotes” «x» ‘y’ — – … ¿qué?",
    "$5 €7 a+b=c a^b `x` ~y |z|",
    "under_score snake_case __x__",
    "[CLS",
    "CLS] [x] []",
    "##a ## #a #",
    "▁ ▁a",
    "1234567890 12 3.14",
    "ab abc abcd zzzz 9z8y",
    "日",
    "é É e\u{301}",
    "ж ж\u{301}",
    "😀 👩‍👩‍👧 🇩🇪 ✔\u{fe0f}",
    "a\u{300}\u{301}\u{302}\u{327}b",
    "\u{1100}\u{1161}\u{11a8} \u{ac00}",
    "ΑΣ ας ὈΔΥΣΣΕΎΣ",
    "\u{e000}\u{f8ff}private\u{10fffd}",
    "\u{202e}right to left\u{202c}",
    "x\u{1d15e}y \u{fb1d} \u{0344}",
];

#[test]
fn it_agrees_with_tokenizers_of_transformers() {
    for how in [
        UNCASED,
        How { lower_case: false, ..UNCASED },
        How { strip_accents: Some(false), ..UNCASED },
        How { lower_case: false, strip_accents: Some(true), split_chinese: false },
    ] {
        let both = Both::new(how);
        for text in TEXTS {
            both.agree(text);
        }
        both.agree(&"ab".repeat(50));
        both.agree(&"ab".repeat(51));
        both.agree(&"é".repeat(100));
        both.agree(&"é".repeat(101));
    }
}

#[test]
fn it_agrees_on_random_texts() {
    let both = Both::new(UNCASED);
    // Blocks whose characters are in every version of Unicode that matters here.
    let blocks = [
        0x20..0x7f_u32,
        0x20..0x7f,
        0xa0..0x17f,
        0x300..0x345,
        0x391..0x3a2,
        0x410..0x450,
        0x4e00..0x4f00,
        0x2010..0x2060,
        0x1f600..0x1f620,
    ];
    let mut state = 11u64;
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for _ in 0..3000 {
        let length = next(40);
        let text: String = (0..length)
            .filter_map(|_| {
                let block = &blocks[next(blocks.len() as u64) as usize];
                char::from_u32(block.start + next(u64::from(block.end - block.start)) as u32)
            })
            .collect();
        both.agree(&text);
    }
}

#[test]
fn a_pair_has_a_separator_behind_each_text() {
    let both = Both::new(UNCASED);
    let expected = both.theirs.encode(("what is it", "It is this."), true).unwrap();
    let got = both.ours.encode_pair("what is it", "It is this.").unwrap();
    assert_eq!(got.tokens, expected.get_ids());
    let types: Vec<u32> = (0..got.tokens.len()).map(|at| u32::from(at >= got.second)).collect();
    assert_eq!(types, expected.get_type_ids());
}

#[test]
fn what_a_user_writes_is_no_control_token() {
    let both = Both::new(UNCASED);
    for text in ["[SEP]", "[CLS] x [SEP]", "[MASK]", "[PAD][UNK]", "a[SEP]b"] {
        let ids = both.ours.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id >= 5), "{text}: {ids:?}");
    }
}
