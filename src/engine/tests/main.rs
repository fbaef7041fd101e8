//! Tests of the engine from outside. One binary, with one module for each subject: linking a binary for each
//! of them took longer than running most of them. `cargo test -p steadytext-engine --test engine NAME` runs
//! the tests with NAME in their path.
//!
//! Modules run side by side in one process. A test that changes the process, or reads what belongs to all of
//! it, runs in a process of its own ([`alone`]).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use steadytext_engine::memory::Allocator;

/// The allocator of the extension.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

mod cancel;
mod candle;
mod cli;
mod constraints;
mod dedup;
mod descriptors;
mod determinism;
mod encoders;
mod engine;
mod families;
mod figures;
mod gguf_mutants;
mod golden;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_in_place;
#[cfg(feature = "hub")]
mod hub_refusals;
#[cfg(feature = "hub")]
mod hub_versions;
mod kv_cache;
mod likelihoods;
mod load;
mod loading;
mod lost_files;
mod memory;
mod minilm;
mod models_page;
mod options;
mod oracle;
mod panics;
mod perplexity;
mod real_models;
mod replays;
mod rerank;
mod reuse;
mod safetensors_mutants;
mod serve;
mod split_files;
mod thoughts;
mod threads;
mod tokenizer_files;
mod turns;
mod unread_keys;
mod valid_text;
mod vocabularies;
mod windows;

/// No step of these tests takes longer unless it hangs, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(300);

/// Set in the process that a test has to itself.
const ALONE: &str = "STEADYTEXT_TEST_ALONE";

/// Runs `body` in another process, which runs nothing but the test of this path (`module::name`), and fails
/// if it fails. For limits of the process, its list of threads, and signals that would end all tests.
fn alone(path: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([path, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {printed}{failed}", output.status);
    assert!(printed.contains("1 passed"), "there is no test {path}: {printed}");
}
