//! A short storm; `make chaos` runs a long one.

use steadytext_test_server::chaos::{Chaos, EngineProcess};

#[test]
fn a_short_storm_loses_doubles_and_sticks_nothing() {
    let mut told = Vec::new();
    let seed = rand::random();
    let engine = EngineProcess::Alternate;
    let counts = Chaos { loops: 6, clients: 10, engine, seed }.run(|line| told.push(line.to_owned()));
    assert!(counts.is_clean(), "SEED={seed}\n{}\n{:#?}\n{counts}", told.join("\n"), counts.faults());
    assert!(counts.completed > 0, "{counts}");
}
