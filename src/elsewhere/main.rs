//! `steadytext-worker`: serves the queues of databases with pg_steadytext from another machine, over
//! PostgreSQL's protocol, with this machine's processors.
//!
//! Each database has a thread with a connection of its own ([`serve`]), and one that listens ([`listen`]).
//! They share an engine, whose threads compute, and the engines of others that answer for some models
//! ([`endpoints`]). The meaning of a request is the server's business: a claim brings work for an engine, and
//! a report of its outcome goes back.
//!
//! Invariant: no transaction is open while anything is computed, and nothing is written but through the
//! protocol's functions.
#![cfg_attr(feature = "noop-engine", allow(unused_imports, unused_variables, reason = "nothing is computed"))]

mod connect;
mod dsn;
mod endpoints;
mod engine;
mod http;
mod in_flight;
mod listen;
mod log;
mod models;
#[cfg(feature = "noop-engine")]
mod noop;
mod options;
mod protocol;
mod serve;
mod shared;
mod tls;
mod turn_error;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use steadytext_engine::memory::Allocator;

use crate::log::Severity;
use crate::options::{WorkerAction, WorkerOptions};
use crate::shared::SharedState;

/// Time for giving requests back, after the time that they have to end.
const MARGIN: Duration = Duration::from_secs(15);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Errors that end the program.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("could not listen on {address}: {source}")]
    Listen { address: String, source: std::io::Error },
    #[error("could not start a thread: {0}")]
    Thread(std::io::Error),
    #[error("the worker at {address} is not ready{why}")]
    NotReady { address: String, why: String },
    #[error("{failed} of {databases} databases could not be served")]
    Failed { failed: usize, databases: usize },
}

fn main() -> ExitCode {
    let outcome = match options::parse(std::env::args_os().skip(1).collect()) {
        Ok(WorkerAction::Help) => return log::print(options::HELP),
        Ok(WorkerAction::Version) => {
            return log::print(&format!("steadytext-worker {}\n", env!("CARGO_PKG_VERSION")));
        }
        Ok(WorkerAction::Healthcheck(address)) => http::check(&address),
        Ok(WorkerAction::Serve(options)) => run(*options),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = matches!(error, Error::Usage(_));
            log::say(Severity::Error, None, &error.to_string());
            if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Serves until it is told to stop, or there is nothing left to do.
fn run(options: WorkerOptions) -> Result<(), Error> {
    log::start(options.log_format);
    let endpoints = endpoints::start(options.endpoints.as_deref())?;
    let shared = Arc::new(SharedState::new(options, endpoints));
    if let Some(address) = &shared.options.listen {
        http::serve(address, Arc::clone(&shared))?;
    }
    let mut wakers: Vec<Sender<()>> = Vec::new();
    let mut threads = Vec::new();
    for number in 0..shared.databases.len() {
        let (waker, wakes) = unbounded();
        listen::start(number, Arc::clone(&shared), waker.clone()).map_err(Error::Thread)?;
        wakers.push(waker);
        let shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("database {number}"));
        threads.push(thread.spawn(move || serve::serve(number, &shared, &wakes)).map_err(Error::Thread)?);
    }
    heed_signals(Arc::clone(&shared), wakers)?;
    let databases = threads.len();
    let served = threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|served| *served).count();
    shared.engine.stop();
    if served < databases {
        return Err(Error::Failed { failed: databases - served, databases });
    }
    Ok(())
}

/// A server that does not answer must not keep the program from ending: leases give back what it holds.
fn end_in_time(patience: Duration) {
    let end = move || {
        std::thread::sleep(patience);
        log::say(Severity::Warning, None, "what is still held is given back by its leases");
        std::process::exit(1);
    };
    // Where there is no thread for it, the second signal and the server's answer still end the program.
    drop(std::thread::Builder::new().name("end".to_owned()).spawn(end));
}

/// The first signal lets requests end that have begun, the second one gives them back.
fn heed_signals(shared: Arc<SharedState>, wakers: Vec<Sender<()>>) -> Result<(), Error> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::Thread)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let heed = move || {
        for _ in signals.forever() {
            if shared.stopping() == 0 {
                end_in_time(shared.options.grace + MARGIN);
            }
            shared.stop();
            for waker in &wakers {
                // A thread that has ended need not be told.
                let _ = waker.send(());
            }
        }
    };
    thread.spawn(heed).map(|_| ()).map_err(Error::Thread)
}
