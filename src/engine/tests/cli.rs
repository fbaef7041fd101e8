//! The command line `steadytext-engine`: help, mistakes, and the output of `inspect` for files that run and
//! files that don't.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
use steadytext_engine::DEFAULT_SEED;
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Bert, Spec, file};
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_steadytext-engine")).args(arguments).output().unwrap()
}

/// Standard output, standard error and exit status.
fn said(arguments: &[&str]) -> (String, String, i32) {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap())
}

struct World(TempDir);

impl World {
    /// A tiny model, altered by `spoil`.
    fn model(&self, spoil: impl FnOnce(&mut File)) -> PathBuf {
        let mut model = file(&Spec::tiny(Architecture::Qwen3)).unwrap();
        spoil(&mut model);
        let path = self.0.path().join("model.gguf");
        model.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        path
    }
}

fn world() -> World {
    World(TempDir::new().unwrap())
}

/// The output of `inspect` for a file, and its exit status.
fn inspected(path: &Path) -> (String, i32) {
    let (text, _, status) = said(&["inspect", path.to_str().unwrap()]);
    (text, status)
}

#[test]
fn every_command_has_help_with_its_own_options_and_a_version() {
    for command in ["generate", "embed", "logits", "tokenize", "inspect", "pull", "verify"] {
        let (help, errors, status) = said(&[command, "--help"]);
        assert!(help.starts_with(&format!("usage: steadytext-engine {command} MODEL")), "{help}");
        assert_eq!(help.contains("--schema"), command == "generate", "{help}");
        let seed = format!("what chance begins with ({DEFAULT_SEED})");
        assert_eq!(help.contains(&seed), command == "generate", "{help}");
        assert_eq!(help.contains("--model-dir"), command == "pull", "{help}");
        assert_eq!(help.contains("--threads"), command != "pull", "{help}");
        assert!(errors.is_empty() && status == 0, "{help}{errors}");
        let (version, _, status) = said(&[command, "--version"]);
        assert_eq!((version, status), (format!("steadytext-engine {}\n", env!("CARGO_PKG_VERSION")), 0));
    }
    let (help, _, status) = said(&["serve", "--help"]);
    assert!(
        help.starts_with("usage: steadytext-engine serve SOCKET") && help.contains("--max-running"),
        "{help}"
    );
    assert!(!help.contains("--schema") && status == 0, "{help}");
    let (help, _, status) = said(&["--help"]);
    assert!(help.contains("  inspect ") && help.contains("--max-tokens N"), "{help}");
    assert_eq!((said(&["-h"]).0, status), (help, 0));
}

#[test]
fn mistakes_name_what_may_have_been_meant_and_end_with_2() {
    for (arguments, expected) in [
        (&["generate", "builtin", "Hi", "--max-token", "3"][..], "did you mean \"--max-tokens\"?"),
        (&["generate", "builtin", "Hi", "--shcema", "{}"], "did you mean \"--schema\"?"),
        (&["inspekt", "builtin"], "did you mean \"inspect\"?"),
        (&["pull", "a/b", "--model-dri", "x"], "did you mean \"--model-dir\"?"),
        (&["frobnicate"], "there is no command \"frobnicate\"\n"),
        (&["inspect"], "a model is needed"),
        (&["serve"], "a path for the socket is needed"),
        (&["inspect", "builtin", "--requests", "many"], "\"many\" is no value for option --requests"),
        (&[], "a command and a model are needed"),
    ] {
        let (out, errors, status) = said(arguments);
        assert!(errors.contains(expected) && out.is_empty(), "{arguments:?}: {out}{errors}");
        assert_eq!(status, 2, "{arguments:?}");
    }
}

#[test]
fn inspect_sums_up_a_model_before_its_keys() {
    let (text, errors, status) = said(&["inspect", "builtin", "--requests", "3", "--context", "100"]);
    assert_eq!((&*errors, status), ("", 0), "{text}");
    let (summary, rest) = text.split_once("\n\n").unwrap();
    for line in
        ["family ", "quantization ", "context ", "tokenizer ", "chat template ", "prompt ", "end tokens "]
    {
        assert!(summary.lines().any(|said| said.starts_with(line)), "{line}: {summary}");
    }
    assert!(summary.contains("PROMPT"), "{summary}");
    assert!(summary.contains("for 3 requests of 100 tokens"), "{summary}");
    assert!(summary.contains("runs on         native kernels"), "{summary}");
    assert!(rest.contains("general.architecture = \"") && rest.contains("token_embd.weight"), "{rest}");
}

#[test]
fn inspect_says_of_a_folder_that_it_is_safetensors_and_what_its_card_says() {
    let world = world();
    let folder = world.0.path().join("shards");
    Bert::default().write_shards(&folder, 2).unwrap();
    std::fs::write(world.0.path().join("shards.card.json"), r#"{"licence": "apache-2.0"}"#).unwrap();
    let (text, status) = inspected(&folder);
    let file = text.lines().find(|line| line.starts_with("file ")).unwrap();
    assert!(file.contains(" and 1 more, ") && file.ends_with(", safetensors"), "{file}");
    assert!(!text.contains("GGUF"), "{text}");
    assert!(text.contains("license         apache-2.0\n"), "{text}");
    assert_eq!(status, 0);
    let (json, _, _) = said(&["inspect", folder.to_str().unwrap(), "--json"]);
    let summary: Json = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(summary["summary"]["gguf_version"], Json::Null);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_steadytext-engine"))
        .args(["inspect", "builtin"])
        .stdout(writer)
        .output()
        .unwrap();
    assert!(output.stderr.is_empty() && output.status.success(), "{output:?}");
}

#[test]
fn inspect_gives_the_same_as_json() {
    let (text, _, status) = said(&["inspect", "builtin", "--json"]);
    assert_eq!(status, 0);
    let lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = &lines[0]["summary"];
    assert_eq!(summary["refusals"], Json::Array(Vec::new()));
    let parameters: u64 = lines
        .iter()
        .filter_map(|line| line["shape"].as_array())
        .map(|shape| shape.iter().map(|extent| extent.as_u64().unwrap()).product::<u64>())
        .sum();
    assert_eq!(summary["parameters"], parameters, "elements of all tensors");
    let tensors: u64 = summary["element_types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share["tensors"].as_u64().unwrap())
        .sum();
    assert_eq!(lines.iter().filter(|line| line["tensor"].is_string()).count() as u64, tensors);
    assert!(summary["memory"]["state"].as_u64().unwrap() > 0);
    assert!(summary["state_bytes_per_token"].as_u64().unwrap() > 0);
}

#[test]
fn an_unknown_family_is_refused_with_its_neighbours_and_the_list() {
    let world = world();
    let path = world.model(|model| model.set("general.architecture", Value::String("qwen3xl".into())));
    let (text, status) = inspected(&path);
    assert_eq!(status, 1);
    assert!(text.contains("architecture \"qwen3xl\" is unknown; near it: \"qwen3\""), "{text}");
    assert!(text.contains("hint: Use a model of one of these architectures: "), "{text}");
    assert!(text.contains("tokenizer       gpt2, qwen2, 512 tokens"), "what can be read is there: {text}");
    // Other commands give the same reason, and the hint.
    let (_, errors, status) = said(&["generate", path.to_str().unwrap(), "Hi"]);
    assert!(errors.contains("\"qwen3xl\" is unknown") && errors.contains("\nhint: Use a model"), "{errors}");
    assert_eq!(status, 1);
}

#[test]
fn element_types_without_kernels_are_named_with_those_that_have_some() {
    let world = world();
    let path = world.model(|model| {
        let tensor = model.tensor_mut("blk.0.ffn_up.weight").unwrap();
        // IQ1_S: 256 elements in 50 bytes.
        (tensor.kind, tensor.shape, tensor.data) = (19, vec![256, 32], vec![0; 50 * 32]);
    });
    let (text, status) = inspected(&path);
    assert_eq!(status, 1);
    assert!(text.contains("there are no kernels for the element type IQ1_S"), "{text}");
    assert!(text.contains("in another quantization, of these types: ") && text.contains("Q4_K"), "{text}");
    assert!(text.contains("IQ1_S 1.6 kB in 1 tensor (no kernels)"), "{text}");
}

#[test]
fn files_of_other_versions_and_other_machines_are_refused_by_name() {
    let world = world();
    let path = world.model(|_| ());
    let mut bytes = std::fs::read(&path).unwrap();
    for (version, reason, hint) in [
        (1u32, "it is in version 1 of GGUF", "convert it again"),
        (3u32.swap_bytes(), "it was written for big-endian machines", "little-endian"),
    ] {
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let (text, status) = inspected(&path);
        assert!(text.contains(reason) && text.contains(hint) && status == 1, "{text}");
    }
    bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let (text, status) = inspected(&path);
    assert!(text.contains("GGUF 2") && status == 0, "{text}");
}

#[test]
fn a_file_that_ends_too_early_is_shown_as_far_as_it_goes() {
    let world = world();
    let path = world.model(|_| ());
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1000).unwrap();
    let (text, status) = inspected(&path);
    assert_eq!(status, 1);
    assert!(text.contains("family          qwen3, decoder, 2 blocks"), "{text}");
    assert!(text.contains("is corrupt: tensor \""), "{text}");
    assert!(text.contains("hint: Fetch the file again"), "{text}");
    assert_eq!(text.matches("\nrefused ").count(), 1, "one reason is enough: {text}");
}

#[test]
fn texts_of_a_file_do_not_steer_the_terminal() {
    let world = world();
    let name = "a\u{1b}[2Jb\u{202e}c\n".to_owned() + &"x".repeat(1000);
    let path = world.model(|model| model.set("general.name", Value::String(name)));
    let (text, status) = inspected(&path);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("name            a\\u{1b}[2Jb\\u{202e}c\\nxxx"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.contains(&"x".repeat(200)));
}

#[test]
fn verify_says_of_each_token_how_far_the_backends_are_apart() {
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "a few words, and some more of them").unwrap();
    let arguments = ["verify", "builtin", "--positions", "5", "--text", text.to_str().unwrap()];
    let (out, errors, status) = said(&arguments);
    assert_eq!((&*errors, status), ("", 0), "{out}");
    let lines: Vec<Json> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [rows @ .., summary] = &lines[..] else { panic!("{out}") };
    assert!(rows.len() == 5 && rows.iter().all(|row| row["passed"] == true), "{out}");
    assert!(summary["positions"] == 5 && summary["passed"] == true, "{summary}");
    assert!(summary["sha256"].as_str().unwrap().len() == 64, "{summary}");
    let (_, errors, status) = said(&["logits", "builtin", "Hi", "--backend", "cuda"]);
    assert!(errors.contains("no value for option --backend") && status == 2, "{errors}");
    let [native, candle] =
        ["native", "candle"].map(|backend| said(&["logits", "builtin", "Hi", "--backend", backend]));
    assert!(candle.2 == 0 && native.0 != candle.0, "{}", candle.0);
}
