//! `chaos`: a long storm over a throwaway server. LOOPS sets the number of disturbances, SEED repeats a run's
//! choices, CLIENTS the number of clients. Ends with one line of counts; fails unless all of the last three
//! are 0.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::process::ExitCode;

use steadytext_test_server::chaos::{Chaos, EngineProcess};

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

const HELP: &str = "\
usage: chaos

Kills, cancels and DDL under load, on a throwaway server with the installed extension. Takes from the environment:

LOOPS    disturbances (20)
CLIENTS  clients that enqueue and wait meanwhile (10)
SEED     repeats a run's choices
ENGINE_PROCESS
         where the engine runs: worker, separate, or alternate, some rounds here and some there (alternate)

Ends with a line of counts, and fails unless the last four of them are 0. engine_restarts counts those times when the server's processes
were started anew because an engine had died that was a program of its own: 0 as well.
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help" | "-h") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("--version") => {
            println!("chaos {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!(
                "chaos: there is no option {other}; LOOPS, CLIENTS, SEED and ENGINE_PROCESS in the environment are all that can be chosen"
            );
            return ExitCode::from(2);
        }
    }
    let chaos = Chaos {
        loops: setting("LOOPS", 20),
        clients: setting("CLIENTS", 10),
        engine: setting("ENGINE_PROCESS", EngineProcess::Alternate),
        seed: setting("SEED", rand::random()),
    };
    println!(
        "LOOPS={} CLIENTS={} SEED={} ENGINE_PROCESS={:?}",
        chaos.loops, chaos.clients, chaos.seed, chaos.engine
    );
    let counts = chaos.run(|line| println!("{line}"));
    for fault in counts.faults().iter().take(50) {
        println!("{fault}");
    }
    println!("{counts}");
    if counts.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
