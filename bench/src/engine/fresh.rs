//! What only a fresh process can tell: time to load, peak memory.

use std::path::Path;
use std::process::Command;

use steadytext_engine::gguf::Gguf;

use crate::ours::{Ours, load_ms};
use crate::settings::Settings;

pub(crate) const PROMPT_TOKENS: usize = 512;
pub(crate) const GENERATED_TOKENS: usize = 128;

/// Runs this program once more for one task (`load` or `peak`) and returns the number that it prints.
pub(crate) fn ask(task: &str, path: &Path, settings: &Settings) -> f64 {
    let instructions = format!("{:?}", settings.instructions).to_lowercase();
    let output = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--fresh", task, "--threads", &settings.threads.to_string(), "--instructions", &instructions])
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

/// Megabytes of the file, and of the keys and values of the tokens that `peak` computes.
pub(crate) fn file_and_kv_mb(path: &Path) -> f64 {
    let gguf = Gguf::open(path).expect("the model can be opened");
    let arch = gguf.str("general.architecture").expect("the model has an architecture").to_owned();
    let number = |key: &str| gguf.u32(&format!("{arch}.{key}")).expect("the model has its sizes") as usize;
    let heads = number("attention.head_count");
    let head_dim = gguf
        .opt_u32(&format!("{arch}.attention.key_length"))
        .expect("the key is a number")
        .map_or(number("embedding_length") / heads, |length| length as usize);
    let per_token =
        number("block_count") * number("attention.head_count_kv") * head_dim * 2 * size_of::<u16>();
    (gguf.file_size() as f64 + (per_token * (PROMPT_TOKENS + GENERATED_TOKENS)) as f64) / 1e6
}
