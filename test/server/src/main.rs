//! `chaos`: a long storm over a throwaway server. LOOPS sets the number of disturbances, SEED repeats a run's
//! choices, CLIENTS the number of clients. Ends with one line of counts; fails unless all of the last three
//! are 0.
#![allow(clippy::print_stdout, reason = "a command line program")]

use std::process::ExitCode;

use steadytext_test_server::chaos::Chaos;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn main() -> ExitCode {
    let chaos = Chaos {
        loops: setting("LOOPS", 20),
        clients: setting("CLIENTS", 10),
        seed: setting("SEED", rand::random()),
    };
    println!("LOOPS={} CLIENTS={} SEED={}", chaos.loops, chaos.clients, chaos.seed);
    let counts = chaos.run(|line| println!("{line}"));
    for fault in counts.faults().iter().take(50) {
        println!("{fault}");
    }
    println!("{counts}");
    if counts.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
