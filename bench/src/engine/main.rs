//! `bench-engine`: how fast the engine is, through its public API, and beside llama.cpp. See [`HELP`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on has nothing to say"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod agreement;
mod constraints;
mod files;
mod fresh;
mod ours;
mod peer;
mod prompts;
mod rounds;
mod settings;

use std::process::ExitCode;

use settings::Settings;
use steadytext_bench::Report;

const HELP: &str = "\
usage: bench-engine [--quants q8_0,q4_k_m] [--shape qwen3-0.6b|qwen3-1.7b|qwen3moe-small|qwen3.5-2b|gemma3-1b|phi-4-mini|granite-h-1b|llama-3.2-1b]
                    [--model FILE]
                    [--only METRIC,…] [--threads N] [--rounds N] [--instructions avx512|avx2|portable]
                    [--peer PYTHON] [--kv_cache_type f16|q8_0]

Measures the engine on models with random weights, made in target/bench-models when missing, or on a real FILE, whose
answers do not end by themselves here. Prints name, value and unit, separated by tabs, and writes the same to
bench/out/engine.tsv. Names end with the quantization (the file's name with --model); numbers are medians of the rounds (3).
2 threads are the default.

prefill_512.Q.tok_s    Tokens a second from the beginning of the prefill of a prompt of 512 tokens to its first token.
decode_N.Q.tok_s       Tokens a second of N requests together (1, 4, 16): prompts of 128 tokens, all different, timed
                       from when all have their first token until 128 times N more are there.
decode_long.Q.tok_s    Only when asked for: as decode_1, behind a prompt of 8,192 tokens, or of half the context.
embed_64.Q.texts_s     64 texts of 64 tokens, submitted at once: texts a second.
constrained_8.Q.tok_s  As decode_8, along a JSON schema of records; free_8 beside it without, constrained_ratio the median of the
                       ratios of neighbouring runs.
json_mask_p50_us.Q     Microseconds of a mask along documents of some schemas, over the model's vocabulary; also json_mask_p99_us
                       and json_mask_max_us. Along walks that take any token that is allowed, which is harder:
                       json_random_mask_p99_us. The slowest of the schemas to compile: json_compile_max_ms. The same with
                       regex_ for patterns.
load_ms.Q              A fresh process, file in the page cache: from the start of the engine to the first token of a
                       short prompt.
peak_mb.Q              Peak resident memory of a fresh process: a prompt of 512 tokens and 128 generated tokens.
memory_ratio.Q         That by the size of the file plus keys and values of those tokens.
agreement              Only when asked for, needs --peer: logits of tiny models of every type and family at positions up to
                       4,096, and perplexity of the builtin model, against llama.cpp. Fails beyond the bounds.
perplexity             The second part of that alone.

With --peer (a Python that has llama_cpp and numpy) llama.cpp runs on the same file with the same number of threads, in
turns with the engine: peer.NAME, and ratio.NAME, the median of the ratios of neighbouring runs, above 1 where the
engine is better. It runs with flash attention or without, and embeds in batches of the size, that a first
try found faster. It does not sample; the engine does.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--version") {
        println!("bench-engine {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::parse(&arguments) {
        Ok(settings) => settings,
        Err(mistake) => {
            eprintln!("bench-engine: {mistake}\nbench-engine --help says what can be asked for");
            return ExitCode::from(2);
        }
    };
    if let Some(task) = &settings.fresh {
        fresh::run(task, &settings);
        return ExitCode::SUCCESS;
    }
    let mut report = Report::new("engine");
    let mut sound = true;
    let models = match files::of(&settings) {
        Ok(models) => models,
        Err(reason) => {
            eprintln!("bench-engine: {reason}");
            return ExitCode::FAILURE;
        }
    };
    for (name, path) in models {
        rounds::measure(&name, &path, &settings, &mut report);
        constraints::measure(&name, &path, &settings, &mut report);
    }
    if settings.compares() {
        sound = agreement::check(&settings, &mut report);
    }
    if let Err(error) = report.write() {
        eprintln!("bench-engine: bench/out/engine.tsv: {error}");
        return ExitCode::FAILURE;
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
