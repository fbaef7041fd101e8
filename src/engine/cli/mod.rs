//! The command line: a subcommand, a model, a text, and options. Results go to standard output, as JSON lines
//! but for `inspect`, errors to standard error. The exit status is 2 where the command line is not
//! understood.

mod arguments;
mod generate;
mod help;
mod inspect;
mod json;
mod logits;
#[cfg(feature = "hub")]
mod pull;
mod serve;
mod tokenize;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use arguments::{Arguments, CliAction};

/// An error of a subcommand.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Engine(#[from] steadytext_engine::Error),
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] steadytext_engine::hub::HubError),
    #[error("the model cannot be used")]
    Refused,
    #[error("the stored panels are not those of the model: remove their file")]
    CorruptPackedWeights,
    #[error(
        "the backends do not compute the same: the model's file, what is stored of it, or this machine is not sound"
    )]
    Deviates,
    #[error(
        "the program is of build {}, and the server's library of {build}",
        steadytext_engine::process::BUILD
    )]
    OtherBuild { build: String },
    #[error("could not read or write")]
    Io(#[from] std::io::Error),
}

/// Runs the command line.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let outcome = match Arguments::parse(arguments) {
        // The program's messages go to the server that has started it.
        Ok(CliAction::Run(arguments)) if arguments.command == "serve" => return serve::run(&arguments),
        Ok(CliAction::Run(arguments)) => run_command(&arguments),
        Ok(CliAction::Help(command)) => print(&help::text(command.as_deref())),
        Ok(CliAction::Version) => print(&format!("steadytext-engine {}\n", env!("CARGO_PKG_VERSION"))),
        Err(error) => Err(error),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // The reader of the output has closed it, as `head` does when it has enough.
    if matches!(&error, Error::Io(error) if error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut message = format!("steadytext-engine: {}", message(&error));
    if let Some(hint) = hint(&error) {
        message += &format!("\nhint: {hint}");
    }
    let usage = matches!(error, Error::Usage(_));
    if usage {
        message += "\nsteadytext-engine --help says what can be asked for";
    }
    // Nobody is left to be told when this fails.
    let _ = writeln!(std::io::stderr(), "{message}");
    if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// An error and its causes.
fn message(error: &Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    message
}

/// Advice about an error.
fn hint(error: &Error) -> Option<String> {
    match error {
        Error::Engine(error) => error.hint().map(|hint| hint.to_string()),
        #[cfg(feature = "hub")]
        Error::Hub(error) => error.hint(),
        _ => None,
    }
}

fn run_command(arguments: &Arguments) -> Result<(), Error> {
    match arguments.command.as_str() {
        "generate" => generate::run(arguments),
        "embed" => generate::run_embed(arguments),
        "logits" => logits::run(arguments),
        "tokenize" => tokenize::run(arguments),
        "inspect" => inspect::run(arguments),
        #[cfg(feature = "hub")]
        "pull" => pull::run(arguments),
        "verify" => verify::run(arguments),
        other => Err(Error::Usage(help::unknown(other))),
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
