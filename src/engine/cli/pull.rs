//! `pull`: downloads a model.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use steadytext_engine::card::Card;
use steadytext_engine::hub::{self, Hub, HubError, Moment, Order, Progress, Pulled, Reference, Token};

use super::Error;
use super::arguments::Arguments;

/// Interval at which the progress is written.
const INTERVAL: Duration = Duration::from_millis(500);

/// Prints a line of JSON that says where the model is; on the way, its progress to a terminal.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let reference = Reference::parse(&arguments.model_text()?)?;
    let directory = arguments.model_dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let order = Order { reference, name: None, sha256: None, card: Card::default() };
    let hub = settings(arguments)?;
    let progress = Progress::default();
    let pulled = std::thread::scope(|scope| {
        let download = scope.spawn(|| hub::pull(&hub, &order, &directory, &progress));
        if std::io::stderr().is_terminal() {
            while !download.is_finished() {
                show(&progress.moment());
                std::thread::sleep(INTERVAL);
            }
            let _ = writeln!(std::io::stderr());
        }
        download.join().unwrap_or(Err(HubError::Cancelled))
    })?;
    report(&pulled)
}

/// The environment that other programs for the hub know, and options.
fn settings(arguments: &Arguments) -> Result<Hub, HubError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let token = match &arguments.token_file {
        Some(path) => Token::read(path)?,
        None => variable("HF_TOKEN").map_or(Ok(None), |token| Token::new(&token))?,
    };
    let endpoint = arguments.endpoint.clone().or_else(|| variable("HF_ENDPOINT"));
    let offline = variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0");
    Ok(Hub {
        endpoint: endpoint.unwrap_or_else(|| hub::DEFAULT_ENDPOINT.to_owned()),
        token,
        offline,
        ..Hub::default()
    })
}

fn show(moment: &Moment) {
    let megabytes = |bytes: u64| bytes / 1_000_000;
    let rate = moment.rate.map_or(String::new(), |rate| format!(", {:.1} MB/s", rate / 1e6));
    let left = moment.left().map_or(String::new(), |left| format!(", {} s left", left.as_secs()));
    let note = if moment.note.is_empty() { String::new() } else { format!(" ({})", moment.note) };
    let (done, total) = (megabytes(moment.done), megabytes(moment.total));
    // The rest of the line is cleared. Nobody is left to be told when this fails.
    let _ = write!(std::io::stderr(), "\r{done} of {total} MB{rate}{left}{note}\x1b[K");
}

fn report(pulled: &Pulled) -> Result<(), Error> {
    if let Some(said) = &pulled.said {
        let _ = writeln!(std::io::stderr(), "chosen: {said}");
    }
    let line = json!({
        "name": pulled.name,
        "path": pulled.path.to_string_lossy(),
        "size": pulled.size,
        "was_there": pulled.was_there,
        "replaced": pulled.replaced,
        "adapters": pulled.adapters,
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
