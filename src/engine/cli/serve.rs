//! `serve`: the engine of a server, in a process of its own.
//!
//! The server starts it, with a socket as standard input and output: on it the program says one line,
//! [`READY`] or why it cannot serve, and when the other end is closed it ends. It serves whoever has the
//! right to connect to the path.
//!
//! Invariant: it outlives its parent by nothing. The kernel kills it when its parent dies (which the parent
//! asks for before it becomes this program), and it ends by itself when standard input does.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use steadytext_engine::memory::{exit_at_once, set_last_resort};
use steadytext_engine::process::{
    BUILD, FAILED_STATUS, NO_MEMORY_STATUS, QUEUE_CAPACITY, READY, REFUSED, fault_while, give_way,
    limit_data, offer_first,
};
use steadytext_engine::socket::{Board, Server};
use steadytext_engine::{Config, Engine, Notifier};

use super::arguments::{Arguments, ServeArguments};
use super::{Error, print};

/// The process may take more memory than its engine accounts for, for stacks, fragments of the allocator and
/// memory that crates keep: a share of the engine's limit, and at least this many MiB.
const UNCOUNTED_MB: u64 = 1024;
/// Time in which the last events must reach their readers, when the engine has failed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until standard input ends.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    set_last_resort(|| exit_at_once(NO_MEMORY_STATUS));
    // A panic's message may quote a text; where it was is enough.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // Nobody is left to be told when this fails.
        let _ = writeln!(std::io::stderr(), "steadytext-engine: a panic at {place}");
    }));
    offer_first();
    let Err(error) = serve(arguments);
    let _ = print(&format!("{REFUSED}{}\n", super::message(&error).replace('\n', "; ")));
    ExitCode::FAILURE
}

/// Serves until standard input ends. Nothing is cleaned up then, because nobody waits for it.
fn serve(arguments: &Arguments) -> Result<Infallible, Error> {
    let serving = &arguments.serving;
    if let Some(build) = serving.build.as_deref().filter(|build| *build != BUILD) {
        return Err(Error::OtherBuild { build: build.to_owned() });
    }
    let ServeArguments { nice, memory_limit_mb, .. } = *serving;
    if memory_limit_mb > 0 {
        let uncounted_mb = UNCOUNTED_MB.max(memory_limit_mb / 4);
        limit_data(memory_limit_mb.saturating_add(uncounted_mb).saturating_mul(1 << 20));
    }
    let fault = serving.fault.as_deref().and_then(|fault| fault.split_once(':'));
    let notifier = Notifier::new()?;
    let (board, once) = (Arc::<Board>::default(), Once::new());
    let engine = Engine::start(Config {
        threads: arguments.threads,
        nice,
        max_running: serving.max_running.max(1),
        queue_capacity: QUEUE_CAPACITY,
        context_length: arguments.context,
        kv_cache_mb: serving.kv_cache_mb,
        backend: arguments.backend,
        kv_cache_type: arguments.kv_cache_type,
        memory_limit_mb,
        model_idle_timeout: Duration::try_from_secs_f64(serving.idle_timeout_s)
            .ok()
            .filter(|timeout| !timeout.is_zero()),
        thread_start: Some(Arc::new(move || once.call_once(|| give_way(nice)))),
        ended: Some(notifier.handle()),
        figures: Some(board.sink()),
        fault: fault.map(|(place, file)| fault_while(place.to_owned(), file.into())),
        ..Config::default()
    })?;
    let engine = Arc::new(engine);
    let server = Server::start_watched(Path::new(arguments.place()), Arc::clone(&engine), board)?;
    print(&format!("{READY}\n"))?;
    wait(&notifier, &engine)?;
    if !engine.is_gone() {
        exit_at_once(0);
    }
    // Requests that were running have failed, and their clients are told so before the connection ends.
    let begun = Instant::now();
    while server.unfinished() > 0 && begun.elapsed() < LAST_WORDS {
        std::thread::sleep(Duration::from_millis(1));
    }
    exit_at_once(FAILED_STATUS)
}

/// Waits until standard input ends, or the engine does.
fn wait(notifier: &Notifier, engine: &Engine) -> Result<(), Error> {
    let mut input = std::io::stdin().lock();
    let mut bytes = [0; 64];
    while !engine.is_gone() {
        let mut waits = [
            PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(notifier.as_fd(), PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let readable = !waits[0].revents().is_empty();
        notifier.reset();
        // The result of the read does not matter: only the end of the input does.
        if readable && input.read(&mut bytes).unwrap_or(0) == 0 {
            return Ok(());
        }
    }
    Ok(())
}
