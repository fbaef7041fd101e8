//! The output of `--help`: commands and options, each described once.

use std::fmt::Write as _;

use steadytext_engine::nearest;

/// A subcommand.
struct Command {
    name: &'static str,
    /// Its arguments, as they follow its name.
    arguments: &'static str,
    about: &'static str,
    /// Its output, and notes.
    more: &'static str,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "generate",
        arguments: "MODEL [TEXT]",
        about: "text from a prompt, in the model's chat template",
        more: "Prints a line of JSON for each event, the last one with the whole text.",
    },
    Command {
        name: "embed",
        arguments: "MODEL [TEXT]",
        about: "the embedding of a text",
        more: "Prints a line of JSON for each event, the last one with the vector.",
    },
    Command {
        name: "logits",
        arguments: "MODEL [TEXT]",
        about: "logits of the last token of a text (of all with --all)",
        more: "Prints each token with the five most likely ones after it, as JSON.",
    },
    Command {
        name: "tokenize",
        arguments: "MODEL [TEXT]",
        about: "tokens of a text",
        more: "Prints ids and texts as JSON.",
    },
    Command {
        name: "inspect",
        arguments: "MODEL",
        about: "what a file is, whether it runs, what it needs; then its keys and tensors",
        more: "A file that cannot be used is shown as far as it can be read, with the reasons, and the exit status is 1.",
    },
    #[cfg(feature = "hub")]
    Command {
        name: "pull",
        arguments: "MODEL",
        about: "downloads a model from a hub",
        more: "\
MODEL is owner/name, owner/name:file.gguf or owner/name:Q4_K_M, with @revision behind the name where wanted. Without a
file, the best quantization for its size is taken. Prints a line of JSON with its path. What has arrived before an error is
kept, and the next call goes on from there. Of the environment, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the usual
variables of proxies count.",
    },
    Command {
        name: "serve",
        arguments: "SOCKET",
        about: "the engine of a server, which starts this by itself",
        more: "\
Serves whoever may connect to the socket of this path, until standard input ends. Prints a line when it takes connections, or why it
cannot. pg_steadytext does this where pg_steadytext.engine_process is \"separate\".",
    },
    Command {
        name: "verify",
        arguments: "MODEL",
        about: "whether both backends compute the same of a text, on this file and this machine",
        more: "Prints how far the logits behind each token are apart, in their standard deviations, as JSON. Where that is more than rounding,\nthe exit status is 1.",
    },
];

/// An option: its name, its value, the commands that it belongs to (all where there are none), what it means.
type DescribedOption = (&'static str, &'static str, &'static [&'static str], &'static str);

const OPTIONS: &[DescribedOption] = &[
    ("--max-tokens", "N", &["generate"], "most tokens to generate (512)"),
    ("--temperature", "X", &["generate"], "how freely tokens are chosen; 0 is greedy (0)"),
    ("--top-k", "N", &["generate"], "only the N most likely tokens; 0 for all (0)"),
    ("--top-p", "X", &["generate"], "only the most likely tokens, with probabilities of X together (1)"),
    ("--min-p", "X", &["generate"], "only tokens at least X times as likely as the most likely one (0)"),
    ("--seed", "N", &["generate"], "what chance begins with (42)"),
    ("--stop", "TEXT", &["generate"], "generation ends before this text; may be given more than once"),
    ("--schema", "JSON", &["generate"], "the answer is a JSON document that conforms to this schema"),
    ("--regex", "PATTERN", &["generate"], "the answer matches this pattern from end to end"),
    ("--choice", "TEXT", &["generate"], "the answer is one of these texts; given more than once"),
    (
        "--system",
        "TEXT",
        &["generate", "tokenize"],
        "a system message; an empty one keeps the template from adding its own",
    ),
    (
        "--thinking",
        "",
        &["generate", "tokenize"],
        "the model thinks before it answers, and its thoughts are printed",
    ),
    ("--template", "NAME", &["tokenize"], "this one of the file's chat templates"),
    ("--out", "FILE", &["logits"], "write raw little-endian f32 to this file"),
    ("--all", "", &["logits"], "logits of every token"),
    ("--marked", "", &["logits", "tokenize"], "control tokens in the text stand for themselves"),
    ("--chat", "", &["tokenize"], "put the chat template around the text"),
    ("--jsonl", "", &["tokenize"], "each line of the text is a JSON string, and a text of its own"),
    ("--json", "", &["inspect"], "lines of JSON: a summary, then each key, tensor and part"),
    ("--verify", "", &["inspect"], "compare the stored panels with the model's weights"),
    ("--requests", "N", &["inspect"], "estimate the memory of N requests at a time (16)"),
    (
        "--context",
        "N",
        &["generate", "embed", "inspect", "serve"],
        "context length, in tokens (the model's; inspect: at most 4096)",
    ),
    ("--backend", "NAME", &["generate", "embed", "logits", "serve"], "auto, native or candle (auto)"),
    ("--text", "FILE", &["verify"], "the text (one that comes with the program)"),
    ("--positions", "N", &["verify"], "its first N tokens, at most 512 (64)"),
    (
        "--kv-cache-type",
        "TYPE",
        &["generate", "embed", "logits", "inspect", "serve"],
        "how native kernels keep keys and values: f16 or q8_0, which takes half the memory (f16)",
    ),
    ("--model-dir", "FOLDER", &["pull"], "where models lie (the working directory)"),
    ("--endpoint", "URL", &["pull"], "another hub than https://huggingface.co"),
    ("--token-file", "FILE", &["pull"], "a file with the token of somebody who may read the model"),
    (
        "--threads",
        "N",
        &["generate", "embed", "logits", "tokenize", "inspect", "serve", "verify"],
        "compute threads (one per core)",
    ),
    ("--nice", "N", &["serve"], "how much the threads that compute give way, 0 to 19 (10)"),
    ("--max-running", "N", &["serve"], "requests computed together (16)"),
    ("--kv-cache-mb", "N", &["serve"], "memory for keys and values (1024)"),
    ("--memory-limit-mb", "N", &["serve"], "memory for models, keys and values together; 0 for no limit (0)"),
    ("--idle-timeout", "S", &["serve"], "seconds after which an unused model is unloaded; 0 for never (600)"),
    ("--build", "TEXT", &["serve"], "refuse to serve where the program is of another build"),
    ("--fault", "PLACE:FILE", &["serve"], "for tests: panic there as long as the file is there"),
    ("--help", "", &[], "this text; behind a command, what is to be known of it"),
    ("--version", "", &[], "the version"),
];

const MODEL: &str = "\
MODEL is the path of a GGUF file (of the first part of a split one), the folder of an encoder, or \"builtin\". Without
TEXT, standard input is read.";

/// The help on a command, or on all of them.
pub(super) fn text(command: Option<&str>) -> String {
    let command = COMMANDS.iter().find(|known| Some(known.name) == command);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match command {
        Some(Command { name, arguments, about, more }) => {
            let model = if ["pull", "serve"].contains(name) { String::new() } else { format!("\n\n{MODEL}") };
            writeln!(
                text,
                "usage: steadytext-engine {name} {arguments} [OPTION...]\n\n{name}: {about}.\n{more}{model}"
            )
        }
        None => writeln!(
            text,
            "usage: steadytext-engine COMMAND MODEL [TEXT] [OPTION...]\n\n{MODEL}\n\ncommands:"
        ),
    };
    if command.is_none() {
        for Command { name, about, .. } in COMMANDS {
            let _ = writeln!(text, "  {name:<10} {about}");
        }
    }
    text.push_str("\noptions:\n");
    for (name, value, commands, about) in OPTIONS {
        let concerned = commands.is_empty() || command.is_none_or(|command| commands.contains(&command.name));
        let whose = if command.is_some() || commands.is_empty() {
            String::new()
        } else {
            format!("{}: ", commands.join(", "))
        };
        if concerned {
            let _ = writeln!(text, "  {:<20} {whose}{about}", format!("{name} {value}"));
        }
    }
    text
}

/// Whether there is such a command.
pub(super) fn knows(command: &str) -> bool {
    COMMANDS.iter().any(|known| known.name == command)
}

/// The error that there is no such option or command, with the one that may have been meant.
pub(super) fn unknown(name: &str) -> String {
    let (what, near) = if name.starts_with('-') {
        ("option", nearest::one(name, OPTIONS.iter().map(|option| option.0)))
    } else {
        ("command", nearest::one(name, COMMANDS.iter().map(|command| command.name)))
    };
    match near {
        Some(near) => format!("there is no {what} \"{name}\"; did you mean \"{near}\"?"),
        None => format!("there is no {what} \"{name}\""),
    }
}
