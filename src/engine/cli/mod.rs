//! The command line: a subcommand, a model, a text, and options. Results go to standard output as JSON lines,
//! errors to standard error.

mod arguments;
mod embed;
mod generate;
mod inspect;
mod json;
mod logits;
mod tokenize;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
usage: steadytext-engine COMMAND MODEL [TEXT] [OPTION...]

MODEL is the path of a GGUF file, the folder of an encoder, or \"builtin\". Without TEXT, standard input is read.

commands:
  generate   text from a prompt, in the model's chat template
  embed      the embedding of a text
  logits     logits of the last token of a text (of all with --all)
  tokenize   tokens of a text
  inspect    what the file contains

options:
  --max-tokens N      most tokens to generate (512)
  --temperature X     0 is greedy (0)
  --top-k N --top-p X --min-p X --seed N
  --stop TEXT         generation ends before this string; may be given more than once
  --schema JSON       the answer is a JSON document that conforms to this schema
  --regex PATTERN     the answer matches this pattern from end to end
  --system TEXT       generate, tokenize: a system message; an empty one keeps the template from adding its own
  --thinking          generate, tokenize: the model thinks before it answers, and its thoughts are printed
  --template NAME     inspect, tokenize: this one of the file's chat templates
  --choice TEXT       the answer is one of these texts; given more than once
  --out FILE          logits: write raw little-endian f32 to this file
  --all               logits: of every token
  --marked            logits, tokenize: control tokens in the text stand for themselves
  --chat              tokenize: put the chat template around the text
  --context N         context length (the model's)
  --verify            inspect: compare the stored panels with the model's weights
  --threads N         compute threads (one per core)
";

/// What a subcommand can fail with.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Engine(#[from] steadytext_engine::Error),
    #[error("the stored panels are not those of the model: remove their file")]
    CorruptPackedWeights,
    #[error("could not read or write")]
    Io(#[from] std::io::Error),
}

/// Runs the command line.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let outcome = Arguments::parse(arguments).and_then(|arguments| match arguments.command.as_str() {
        "generate" => generate::run(&arguments),
        "embed" => embed::run(&arguments),
        "logits" => logits::run(&arguments),
        "tokenize" => tokenize::run(&arguments),
        "inspect" => inspect::run(&arguments),
        other => Err(Error::Usage(format!("there is no command \"{other}\""))),
    });
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let mut message = format!("steadytext-engine: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    if matches!(error, Error::Usage(_)) {
        message += &format!("\n\n{USAGE}");
    }
    // Nobody is left to be told when this fails.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::FAILURE
}
