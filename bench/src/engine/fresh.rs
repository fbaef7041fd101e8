//! Measurements that need a fresh process: time to load, peak memory.

use std::path::Path;
use std::process::Command;

use crate::ours::{Ours, load_ms, summary};
use crate::settings::Settings;

pub(crate) const PROMPT_TOKENS: usize = 512;
pub(crate) const GENERATED_TOKENS: usize = 128;

/// Runs this program once more for one task (`load` or `peak`) and returns the number that it prints.
pub(crate) fn ask(task: &str, path: &Path, settings: &Settings) -> f64 {
    let instructions = format!("{:?}", settings.instructions).to_lowercase();
    let output = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--fresh", task, "--threads", &settings.threads.to_string(), "--instructions", &instructions])
        .args(["--kv_cache_type", &settings.kv_cache_type.to_string()])
        .arg("--model")
        .arg(path)
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| {
        panic!("--fresh {task} failed: {text}{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Does the task and prints its number.
pub(crate) fn run(task: &str, settings: &Settings) {
    let path = settings.model.as_deref().expect("a fresh process is given a model");
    let number = match task {
        "load" => load_ms(path, settings),
        "peak" => {
            let mut ours = Ours::open(path, settings);
            ours.decode(1, PROMPT_TOKENS, GENERATED_TOKENS, None);
            peak_mb()
        }
        _ => panic!("there is no task {task}"),
    };
    println!("{number}");
}

/// Peak resident memory of this process, in megabytes of 1,000,000 bytes.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says how much memory was used");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("there is a peak");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").trim().parse().expect("the peak is a number");
    kilobytes * 1024.0 / 1e6
}

/// Megabytes of the file, and of what the tokens that `peak` computes leave behind: keys and values, as a
/// rule.
pub(crate) fn file_and_state_mb(path: &Path, settings: &Settings) -> f64 {
    let summary = summary(path, settings.kv_cache_type);
    let tokens = PROMPT_TOKENS + GENERATED_TOKENS;
    let of_all = summary.state_bytes_per_token.unwrap_or(0) * tokens as u64;
    let of_last =
        summary.window.map_or(0, |window| window.bytes_per_token * window.tokens.min(tokens) as u64);
    (summary.bytes + of_all + of_last) as f64 / 1e6
}
