//! The values of `tokenizer.ggml.pre`: the way in which the text of a byte-pair encoding is cut into words,
//! and other properties that depend on that name. Names, patterns and flags are those of
//! [llama.cpp](https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp), which wrote the files.
//! Where llama.cpp reads a pattern otherwise than the model's authors meant it (`\p{Lu}` is any letter to it,
//! for instance), the patterns here do what llama.cpp does.

use super::split::SplitStage::{self, *};

/// The pre-tokenizer for some values of `tokenizer.ggml.pre`.
#[derive(Debug)]
pub(super) struct Pre {
    pub(super) names: &'static [&'static str],
    pub(super) stages: &'static [SplitStage],
    /// Whether a word that is a token is taken whole, without regard to merges.
    pub(super) whole_words: bool,
    /// Whether texts begin with a token unless the file says otherwise.
    pub(super) begins_with_a_token: bool,
    /// Whether tokens are written as text with `▁` for spaces, not in the alphabet of bytes.
    pub(super) plain: bool,
}

/// English contractions, in capitals or not.
macro_rules! contractions {
    () => {
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    };
}

/// The end of most patterns: line breaks with the white space before them, other white space.
macro_rules! white_space {
    () => {
        r"\s*[\r\n]+|\s+"
    };
}

/// Punctuation with the line breaks behind it, and white space.
macro_rules! tail {
    () => {
        concat!(r" ?[^\s\p{L}\p{N}]+[\r\n]*|", white_space!())
    };
}

/// The same with slashes among the line breaks.
macro_rules! tail_with_slashes {
    () => {
        concat!(r" ?[^\s\p{L}\p{N}]+[\r\n/]*|", white_space!())
    };
}

/// Words of capitals and small letters, whose case only ASCII letters have; `$letter` is all else that counts
/// as a letter.
macro_rules! cased {
    ($letter:literal, $suffix:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"--[a-z]]*[",
            $letter,
            r"--[A-Z]]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letter,
            r"--[a-z]]+[",
            $letter,
            r"--[A-Z]]*",
            $suffix
        )
    };
}

const QWEN2: &str = concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", tail!());
const LLAMA3: &str = concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|", tail!());
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const QWEN35: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|",
    white_space!()
);
/// Scripts of East Asia, as in the patterns of DeepSeek and others.
const IDEOGRAPHS_AND_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
/// Nearly all scripts beyond U+0800, but no white space, which llama.cpp has replaced by then.
const SCRIPTS: &str = r"[[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]--\s]+";
/// Letters that have a case.
const CASED_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}",
    r"\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}",
    r"\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}",
    r"\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}",
    r"\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}",
    r"\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}",
    r"\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}",
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}",
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}",
    r"\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
);
/// A punctuation mark with ASCII letters behind it, words with their marks, punctuation with its line breaks.
const MARKS: &str = concat!(
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|",
    white_space!()
);
const LINES: &str = r"[^\n]+|\n+";
/// Words without characters that end a sentence in any script.
const NO_SENTENCE_ENDS: &str = r" ?[^(\s|.,!?)\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C}]+";

const PLAIN: Pre =
    Pre { names: &[], stages: &[], whole_words: false, begins_with_a_token: false, plain: false };

/// The pre-tokenizer of a file without the key, as in llama.cpp.
pub(super) const DEFAULT: &str = "default";

/// All known pre-tokenizers.
pub(super) const ALL: &[Pre] = &[
    Pre {
        names: &[DEFAULT],
        stages: &[Isolate(r"[\p{P}$+<=>^~|]+"), Words(GPT2), Isolate(r"\p{N}+"), Isolate(r"[0-9][0-9][0-9]")],
        ..PLAIN
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        stages: &[WordsAndLines(LLAMA3)],
        whole_words: true,
        begins_with_a_token: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], stages: &[WordsAndLines(LLAMA3)], ..PLAIN },
    Pre { names: &["glm4", "glm5"], stages: &[WordsAndLines(LLAMA3)], whole_words: true, ..PLAIN },
    Pre {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        stages: &[WordsAndLines(QWEN2)],
        ..PLAIN
    },
    Pre { names: &["qwen35"], stages: &[WordsAndLines(QWEN35)], ..PLAIN },
    Pre {
        names: &["ufakzeka"],
        stages: &[WordsAndLines(concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", tail!()))],
        ..PLAIN
    },
    Pre { names: &["laguna"], stages: &[Isolate(LINES), WordsAndLines(QWEN2)], ..PLAIN },
    Pre {
        names: &["minicpm5"],
        stages: &[
            Isolate(r"\p{N}{1,3}"),
            WordsAndLines(concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|", tail!())),
        ],
        whole_words: true,
        ..PLAIN
    },
    Pre {
        names: &["seed-coder"],
        stages: &[WordsAndLines(concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|",
            white_space!()
        ))],
        ..PLAIN
    },
    Pre {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        stages: &[WordsAndLines(concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
        ))],
        ..PLAIN
    },
    Pre {
        names: &["exaone-moe"],
        stages: &[WordsAndLines(concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
        ))],
        ..PLAIN
    },
    Pre { names: &["jais-2"], stages: &[PowersOfTwo(LLAMA3)], ..PLAIN },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
        stages: &[Words(GPT2)],
        ..PLAIN
    },
    Pre {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        stages: &[Isolate(r"\p{N}"), Words(GPT2)],
        ..PLAIN
    },
    Pre {
        names: &["falcon"],
        stages: &[Isolate(r"[\p{P}$+<=>^~|`]+"), Words(GPT2), Isolate(r"[0-9][0-9][0-9]")],
        ..PLAIN
    },
    Pre {
        names: &["chameleon"],
        stages: &[
            Isolate(r"<sentinel:[0-9]+>"),
            Isolate(r"IMGIMG[A-I]{1,4}Z"),
            Isolate(r"[\t\n]|    |  "),
            Isolate(r"\p{N}"),
            Isolate(r"[\p{P}!-/:-@\[-`{-~]"),
            Words(GPT2),
        ],
        begins_with_a_token: true,
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        stages: &[
            Isolate(r"[\r\n]"),
            Isolate(CASED_LETTERS),
            Isolate(r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+"),
            Isolate(r"\s+$"),
            Isolate(SCRIPTS),
            Isolate(r"\p{N}+"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        stages: &[
            Isolate(r"[\r\n]"),
            Isolate(r"\s?\p{L}+"),
            Isolate(r"\s?\p{P}+"),
            Isolate(SCRIPTS),
            Isolate(r"\p{N}"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        stages: &[Isolate(r"\p{N}{1,3}"), Isolate(IDEOGRAPHS_AND_KANA), WordsAndLines(MARKS)],
        ..PLAIN
    },
    Pre {
        names: &["spark2_5"],
        stages: &[
            Isolate(r"\p{N}{1,3}"),
            Isolate(IDEOGRAPHS_AND_KANA),
            Words(
                r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+",
            ),
            Isolate(r"\p{N}"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["afmoe"],
        stages: &[
            DigitGroups,
            Isolate(concat!(
                r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}",
                r"\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}",
                r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
            )),
            WordsAndLines(MARKS),
        ],
        ..PLAIN
    },
    Pre {
        names: &["youtu"],
        stages: &[
            Isolate(concat!(
                r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}",
                r"\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|",
                r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
            )),
            WordsAndLines(concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:",
                contractions!(),
                r")?|\p{N}|",
                tail_with_slashes!()
            )),
        ],
        whole_words: true,
        ..PLAIN
    },
    Pre {
        names: &["tiny_aya", "cohere2moe"],
        stages: &[
            DigitGroups,
            WordsAndLines(concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:",
                contractions!(),
                r")?|\p{N}{1,3}|",
                tail_with_slashes!()
            )),
        ],
        ..PLAIN
    },
    Pre { names: &["poro-chat", "bloom", "gpt3-finnish"], stages: &[Isolate(NO_SENTENCE_ENDS)], ..PLAIN },
    Pre { names: &["viking"], stages: &[Isolate(NO_SENTENCE_ENDS), Isolate(r"\p{N}")], ..PLAIN },
    Pre {
        names: &["tekken"],
        stages: &[WordsAndLines(concat!(cased!(r"\p{L}", ""), r"|\p{N}|", tail_with_slashes!()))],
        whole_words: true,
        begins_with_a_token: true,
        ..PLAIN
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        stages: &[WordsAndLines(concat!(
            cased!(r"\p{L}", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"),
            r"|\p{N}{1,3}|",
            tail_with_slashes!()
        ))],
        ..PLAIN
    },
    Pre {
        names: &["granite-embed-multi-97m"],
        stages: &[WordsAndLines(concat!(
            cased!(r"[\p{L}\p{M}]", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"),
            r"|\p{N}{1,3}|",
            tail_with_slashes!()
        ))],
        whole_words: true,
        ..PLAIN
    },
    Pre {
        names: &["kimi-k2"],
        stages: &[WordsAndLines(concat!(
            r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2EBEF}",
            r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{L}--[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}",
            r"\x{2B740}-\x{2B81F}\x{2B820}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]]+(?:",
            contractions!(),
            r")?|\p{N}{1,3}|",
            tail!()
        ))],
        ..PLAIN
    },
    Pre { names: &["superbpe"], stages: &[Isolate(r"\p{N}+"), Thousands], ..PLAIN },
    // Text as in SentencePiece: merges go over whole lines.
    Pre {
        names: &[GEMMA4, "granite-embed-multi-311m"],
        stages: &[Isolate(LINES)],
        begins_with_a_token: true,
        plain: true,
        ..PLAIN
    },
    Pre { names: &["sarvam-moe"], stages: &[Isolate(LINES)], plain: true, ..PLAIN },
];

/// The one that `tokenizer.ggml.model` = "gemma4" implies.
pub(super) const GEMMA4: &str = "gemma4";

impl Pre {
    pub(super) fn named(name: &str) -> Option<&'static Pre> {
        ALL.iter().find(|pre| pre.names.contains(&name))
    }

    /// Known names similar to this one, the most similar first.
    pub(super) fn like(name: &str) -> Vec<&'static str> {
        if name.len() > 64 {
            return Vec::new();
        }
        let mut names: Vec<(usize, &str)> = ALL
            .iter()
            .flat_map(|pre| pre.names)
            .map(|known| (distance(name, known), *known))
            .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
            .collect();
        names.sort_unstable();
        names.into_iter().take(3).map(|(_, name)| name).collect()
    }
}

/// Number of bytes to be inserted, deleted or changed to turn one into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, above) in b.bytes().zip(row.iter_mut().skip(1)) {
            let here = (diagonal + usize::from(x != y)).min(left + 1).min(*above + 1);
            (diagonal, *above, left) = (*above, here, here);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_likened() {
        let names: Vec<&str> = ALL.iter().flat_map(|pre| pre.names).copied().collect();
        for name in &names {
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
            assert!(Pre::named(name).is_some());
        }
        assert_eq!(Pre::like("qwen3")[0], "qwen2");
        assert_eq!(Pre::like("deepseek-v4")[0], "deepseek-v3");
        assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("a", "a")), (3, 3, 0));
        assert!(Pre::like(&"x".repeat(1000)).is_empty());
    }
}
