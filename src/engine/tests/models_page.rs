//! The tables of docs/models.md: generated from the engine and from the names in its tests, and compared with
//! the page. A family that is added to the engine or to a test appears in them by itself; `make docs-models`
//! writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use steadytext_engine::summary::{self, Load, ModelSummary};
use steadytext_engine::{KvCacheType, ModelSource};
use steadytext_test_models::gguf::Value;
use steadytext_test_models::{Architecture, Spec, file};
use tempfile::TempDir;

/// Set to write the page instead of comparing it.
const WRITE: &str = "STEADYTEXT_WRITE_DOCS";
const PAGE: &str = "../../docs/models.md";

/// The published models of a family.
struct Published {
    family: &'static str,
    /// Models that people use.
    models: &'static str,
    /// `tokenizer.ggml.model`, and `tokenizer.ggml.pre` where it matters.
    tokenizers: &'static [(&'static str, &'static str)],
    /// Their chat templates, by the names that llama.cpp's tree has for them.
    templates: &'static [&'static str],
    /// Their names in the tests of real weights.
    real: &'static [&'static str],
}

const SENTENCE_PIECE: (&str, &str) = ("llama", "");

/// Entries of families that the engine does not have are not shown.
const PUBLISHED: &[Published] = &[
    Published {
        family: "llama",
        models: "Llama 2 to 3.3, Mistral 7B and Nemo, Mixtral, SmolLM2, TinyLlama",
        tokenizers: &[("gpt2", "llama-bpe"), ("gpt2", "smollm"), ("gpt2", "tekken"), SENTENCE_PIECE],
        templates: &[
            "meta-llama-Llama-3.1-8B-Instruct",
            "meta-llama-Llama-3.2-3B-Instruct",
            "meta-llama-Llama-3.3-70B-Instruct",
            "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
            "mistralai-Mistral-Nemo-Instruct-2407",
        ],
        real: &["smollm2"],
    },
    Published {
        family: "mistral3",
        models: "Ministral 3",
        tokenizers: &[("gpt2", "tekken")],
        templates: &["mistralai-Ministral-3-14B-Reasoning-2512"],
        real: &[],
    },
    Published {
        family: "smollm3",
        models: "SmolLM3",
        tokenizers: &[("gpt2", "smaug-bpe")],
        templates: &["HuggingFaceTB-SmolLM3-3B"],
        real: &[],
    },
    Published {
        family: "qwen2",
        models: "Qwen 2 and 2.5, QwQ, DeepSeek R1 distilled",
        tokenizers: &[("gpt2", "qwen2"), ("gpt2", "deepseek-r1-qwen")],
        templates: &["Qwen-Qwen2.5-7B-Instruct", "Qwen-QwQ-32B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"],
        real: &[],
    },
    Published {
        family: "qwen3",
        models: "Qwen3, its embedding and reranking models",
        tokenizers: &[("gpt2", "qwen2")],
        templates: &["Qwen-Qwen3-0.6B"],
        real: &[],
    },
    Published {
        family: "qwen3moe",
        models: "Qwen3 with experts",
        tokenizers: &[("gpt2", "qwen2")],
        templates: &["Qwen3-Coder"],
        real: &[],
    },
    Published {
        family: "qwen35",
        models: "Qwen3.5",
        tokenizers: &[("gpt2", "qwen35")],
        templates: &["Qwen3.5-4B"],
        real: &[],
    },
    Published {
        family: "qwen35moe",
        models: "Qwen3.5 with experts",
        tokenizers: &[("gpt2", "qwen35")],
        templates: &["Qwen3.5-4B"],
        real: &[],
    },
    Published {
        family: "gemma",
        models: "Gemma 1",
        tokenizers: &[SENTENCE_PIECE],
        templates: &[],
        real: &[],
    },
    Published {
        family: "gemma2",
        models: "Gemma 2",
        tokenizers: &[SENTENCE_PIECE],
        templates: &["google-gemma-2-2b-it"],
        real: &[],
    },
    Published {
        family: "gemma3",
        models: "Gemma 3",
        tokenizers: &[SENTENCE_PIECE],
        templates: &[],
        real: &["gemma3"],
    },
    Published {
        family: "gemma3n",
        models: "Gemma 3n E2B and E4B",
        tokenizers: &[SENTENCE_PIECE],
        templates: &[],
        real: &[],
    },
    Published {
        family: "gemma4",
        models: "Gemma 4",
        tokenizers: &[("gemma4", "")],
        templates: &["google-gemma-4-31B-it"],
        real: &[],
    },
    Published {
        family: "gemma-embedding",
        models: "EmbeddingGemma",
        tokenizers: &[SENTENCE_PIECE],
        templates: &[],
        real: &[],
    },
    Published {
        family: "phi3",
        models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
        tokenizers: &[SENTENCE_PIECE, ("gpt2", "dbrx"), ("gpt2", "gpt-4o")],
        templates: &["microsoft-Phi-3.5-mini-instruct"],
        real: &[],
    },
    Published {
        family: "granite",
        models: "Granite 3 and 4",
        tokenizers: &[("gpt2", "refact")],
        templates: &[
            "ibm-granite-granite-3.3-2B-Instruct",
            "ibm-granite-granite-4.0",
            "ibm-granite-granite-4.1",
        ],
        real: &[],
    },
    Published {
        family: "granitemoe",
        models: "Granite 3 with experts (1B A400M, 3B A800M)",
        tokenizers: &[("gpt2", "refact")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "olmoe",
        models: "OLMoE 1B 7B",
        tokenizers: &[("gpt2", "olmo")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "starcoder2",
        models: "StarCoder 2 3B, 7B and 15B",
        tokenizers: &[("gpt2", "starcoder")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "granitehybrid",
        models: "Granite 4 H",
        tokenizers: &[("gpt2", "dbrx")],
        templates: &["ibm-granite-granite-4.0"],
        real: &[],
    },
    Published {
        family: "olmo2",
        models: "OLMo 2 and 3",
        tokenizers: &[("gpt2", "dbrx")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "exaone4",
        models: "EXAONE 4",
        tokenizers: &[("gpt2", "exaone4")],
        templates: &[],
        real: &[],
    },
    Published { family: "glm4", models: "GLM-4", tokenizers: &[("gpt2", "glm4")], templates: &[], real: &[] },
    Published {
        family: "gpt-oss",
        models: "gpt-oss",
        tokenizers: &[("gpt2", "gpt-4o")],
        templates: &["openai-gpt-oss-120b"],
        real: &[],
    },
    Published {
        family: "lfm2",
        models: "LFM2, LFM2.5",
        tokenizers: &[("gpt2", "lfm2")],
        templates: &["LFM2.5-Instruct"],
        real: &[],
    },
    Published {
        family: "bert",
        models: "all-MiniLM, BGE and bge-m3, multilingual-e5, cross-encoders, bge-reranker",
        tokenizers: &[("bert", ""), ("t5", "")],
        templates: &[],
        real: &["minilm"],
    },
    Published {
        family: "nomic-bert",
        models: "nomic-embed-text 1 and 1.5",
        tokenizers: &[("bert", "")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "nomic-bert-moe",
        models: "nomic-embed-text 2",
        tokenizers: &[("t5", "")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "jina-bert-v2",
        models: "jina-embeddings-v2 (English, German, Spanish)",
        tokenizers: &[("bert", "jina-v2-en"), ("gpt2", "jina-v2-de"), ("gpt2", "jina-v2-es")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "jina-bert-v3",
        models: "jina-embeddings-v3, with its adapters",
        tokenizers: &[("t5", "")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "modern-bert",
        models: "gte-modernbert, gte-reranker-modernbert, Granite Embedding R2",
        tokenizers: &[("gpt2", "modern-bert")],
        templates: &[],
        real: &[],
    },
    Published {
        family: "gemma-embedding",
        models: "EmbeddingGemma",
        tokenizers: &[("llama", "")],
        templates: &[],
        real: &[],
    },
];

/// Proof by any test with this name in its first lines, beside the files below.
const LLAMA_CPP: &str = "llama.cpp";

/// The proofs of a family: a word for the table, and files that prove it by naming the family.
const PROOFS: &[(&str, &[&str])] = &[
    ("candle", &["tests/oracle.rs", "tests/oracle", "model/encoder/tests/families.rs"]),
    (LLAMA_CPP, &["../../bench/src/engine/agreement.rs"]),
    ("digests", &["tests/golden.rs", "tests/golden"]),
    ("replays", &["tests/replays.rs", "tests/determinism.rs"]),
];
const REAL: &[&str] = &["tests/real_models.rs", "tests/real_models", "tests/minilm.rs"];

#[test]
fn the_tables_of_docs_models_are_those_of_the_engine_and_its_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let mut expected = page.clone();
    for (name, table) in [("families", families()), ("element types", element_types())] {
        expected = replaced(&expected, name, &table);
    }
    if std::env::var_os(WRITE).is_some() {
        return std::fs::write(&path, expected).unwrap();
    }
    assert!(page == expected, "docs/models.md is not current; `make docs-models` writes it:\n{expected}");
}

#[test]
fn every_family_and_every_table_of_the_page_says_something() {
    let table = families();
    for family in summary::families() {
        let row = table.lines().find(|line| line.starts_with(&format!("| {family} |"))).unwrap();
        assert!(!row.ends_with("| – |"), "no test names the family: {row}");
    }
    assert!(!is_read(("gpt2", "nobody's")), "a tokenizer that nobody has is refused");
    assert!(is_read(("gpt2", "llama-bpe")) && is_read(("bert", "")));
}

/// The page with a table between its marks.
fn replaced(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}{table}{end}{after}")
}

fn families() -> String {
    let mut table = String::from(
        "| family | models | is a | tokenizers | templates | verified by |\n|---|---|---|---|---|---|\n",
    );
    let templates = template_outcomes();
    for family in summary::families() {
        let published = PUBLISHED.iter().find(|published| published.family == family);
        let kind = if summary::is_encoder(family) { "encoder" } else { "decoder" };
        let models = published.map_or("–", |published| published.models);
        let tokenizers = published.map(|published| published.tokenizers).unwrap_or_default();
        let tokenizers = listed(tokenizers.iter().map(|tokenizer| {
            let (model, pre) = *tokenizer;
            let name = if pre.is_empty() { format!("`{model}`") } else { format!("`{model}, {pre}`") };
            if is_read(*tokenizer) { name } else { format!("{name} (not yet)") }
        }));
        let checked = published.map(|published| published.templates).unwrap_or_default();
        let checked = checked.iter().filter(|name| templates.contains(&format!("\"{name}.jinja\""))).count();
        let rendered = match (summary::is_encoder(family), checked) {
            (true, _) => "none".to_owned(),
            (false, 0) => "the file's".to_owned(),
            (false, count) => format!("the file's; {count} published checked"),
        };
        let proofs = listed(proofs(family, published).into_iter());
        let _ = writeln!(table, "| {family} | {models} | {kind} | {tokenizers} | {rendered} | {proofs} |");
    }
    table
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "–".to_owned() } else { items.join(", ") }
}

fn proofs(family: &str, published: Option<&Published>) -> Vec<String> {
    let mut proofs: Vec<String> = PROOFS
        .iter()
        .filter(|(proof, files)| {
            names_in(files).contains(&plain(family)) || *proof == LLAMA_CPP && beside_llama_cpp(family)
        })
        .map(|(proof, _)| (*proof).to_owned())
        .collect();
    let real = names_in(REAL);
    if published.is_some_and(|published| published.real.iter().any(|name| real.contains(*name))) {
        proofs.push("real weights".to_owned());
    }
    proofs
}

/// Whether a test names the family that, by its first lines, compares with llama.cpp.
fn beside_llama_cpp(family: &str) -> bool {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = tests.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files = files
        .filter(|name| name.ends_with(".rs") && name != "models_page.rs")
        .map(|name| format!("tests/{name}"));
    files.filter(|file| !REAL.contains(&&**file)).any(|file| {
        let text = texts(&tests.parent().unwrap().join(&file)).concat();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        head.contains("llama.cpp") && names_in(&[&file]).contains(&plain(family))
    })
}

/// All words of some files and folders, comments left out, as [`plain`] words.
fn names_in(files: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in files.iter().flat_map(|file| texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file))) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            names.extend(
                line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).map(plain),
            );
            // SmolLM2-135M-Instruct counts as smollm2.
            names.extend(line.split(|c: char| !c.is_ascii_alphanumeric()).map(plain));
        }
        for (all, encoders) in [("Architecture::ALL", false), ("EncoderFamily::OTHERS", true)] {
            if text.contains(all) {
                let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/models/src");
                let known = texts(&models).concat();
                let of_kind = summary::families().filter(|family| summary::is_encoder(family) == encoders);
                names.extend(of_kind.filter(|family| known.contains(&format!("=> \"{family}\""))).map(plain));
            }
        }
    }
    names
}

/// The texts of a file, or of the files of a folder.
fn texts(path: &Path) -> Vec<String> {
    if !path.is_dir() {
        return std::fs::read_to_string(path).into_iter().collect();
    }
    let mut paths: Vec<PathBuf> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().flat_map(|path| texts(path)).collect()
}

/// A name in the form that code and files share.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The recorded outcomes of published templates.
fn template_outcomes() -> String {
    texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("template/reference/expected.jsonl")).concat()
}

/// Whether files with such a tokenizer are not refused because of it.
fn is_read((model, pre): (&str, &str)) -> bool {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let mut made = file(&Spec::tiny(Architecture::Qwen3)).unwrap();
    made.set("tokenizer.ggml.model", Value::String(model.into()));
    made.set("tokenizer.ggml.pre", Value::String(pre.into()));
    made.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    let load = Load { requests: 1, tokens: 1, threads: 1, kv_cache_type: KvCacheType::F16 };
    let (summary, _) = ModelSummary::of(&ModelSource::File(path), load).unwrap();
    // The file has nothing else that such a tokenizer needs, which makes it a corrupt one.
    let about = |reason: &str| reason.contains("tokenizer") && !reason.starts_with("it is corrupt");
    !summary.refusals.iter().any(|refusal| about(&refusal.reason))
}

fn element_types() -> String {
    let (mut known, mut others) = (Vec::new(), Vec::new());
    for (name, supported) in summary::element_types() {
        if supported { known.push(name) } else { others.push(name) }
    }
    format!(
        "| element types | |\n|---|---|\n| run | {} |\n| are refused by name | {} |\n",
        known.join(", "),
        others.join(", ")
    )
}
