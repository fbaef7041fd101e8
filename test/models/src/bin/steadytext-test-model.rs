//! Makes a random-weight model from a shell: `steadytext-test-model [--arch llama|qwen3|gemma3|…] [--shape
//! tiny|small|compared|qwen3-0.6b|qwen3-1.7b|llama-3.2-1b] [--quant q8_0|q4_k_m|…] [--layers N] [--width N]
//! [--vocab N] [--context N] [--seed N] [--endless] [--invalid-utf8] OUT`, or an encoder: `--encoder
//! bert|modern-bert|… OUT`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steadytext_test_models::{Architecture, Bert, EncoderFamily, Error, Kind, Quantization, Spec, Text};

const USAGE: &str = "usage: steadytext-test-model [--arch llama|qwen3|gemma3|…]
    [--shape tiny|small|compared|qwen3-0.6b|qwen3-1.7b|llama-3.2-1b]
    [--quant f32|f16|bf16|q4_0|q4_1|q5_0|q5_1|q8_0|q2_k|q3_k|q4_k|q5_k|q6_k|q4_k_m|tq1_0|tq2_0]
    [--layers N] [--width N] [--vocab N] [--context N] [--seed N] [--endless] [--invalid-utf8] OUT
   or: steadytext-test-model --encoder bert|nomic-bert|nomic-bert-moe|jina-bert-v2|jina-bert-v3|modern-bert|gemma-embedding OUT";

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--version") {
        println!("steadytext-test-model {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let written = match &arguments[..] {
        [option, name, out] if option == "--encoder" => EncoderFamily::named(name)
            .map(|family| Bert { family, layers: 4, ..Bert::default() }.write(Path::new(out))),
        _ => parse(&arguments).map(|(spec, out)| steadytext_test_models::write(&spec, &out)),
    };
    let Some(written) = written else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steadytext-test-model: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A change to the specification that an option asks for.
type Change = Box<dyn Fn(&mut Spec)>;

fn parse(arguments: &[String]) -> Option<(Spec, PathBuf)> {
    let mut arguments = arguments.iter();
    let mut architecture = Architecture::Qwen3;
    let mut shape: fn(Architecture) -> Spec = Spec::tiny;
    let mut quantization = Quantization::uniform(Kind::Q8_0);
    let mut out = None;
    // Applied last, over the shape.
    let mut changes: Vec<Change> = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--arch" => {
                architecture = Architecture::named(arguments.next()?)?;
            }
            "--shape" => {
                shape = match arguments.next()?.as_str() {
                    "tiny" => Spec::tiny,
                    "small" => Spec::small,
                    "compared" => {
                        |architecture| Spec::compared(architecture, Quantization::uniform(Kind::F32))
                    }
                    "qwen3-0.6b" => |architecture| Spec { architecture, ..Spec::qwen3_0_6b() },
                    "qwen3moe-small" => |_| Spec::qwen3moe_small(),
                    "qwen3-1.7b" => |architecture| Spec { architecture, ..Spec::qwen3_1_7b() },
                    "llama-3.2-1b" => |_| Spec::llama_3_2_1b(),
                    _ => return None,
                };
            }
            "--quant" => quantization = Quantization::named(arguments.next()?)?,
            "--endless" => changes.push(Box::new(|spec| spec.endless = true)),
            "--invalid-utf8" => changes.push(Box::new(|spec| spec.text = Text::InvalidUtf8)),
            name @ ("--layers" | "--width" | "--vocab" | "--context" | "--seed") => {
                let value: usize = arguments.next()?.parse().ok()?;
                changes.push(match name {
                    "--layers" => Box::new(move |spec| spec.layers = value),
                    "--width" => Box::new(move |spec| spec.width = value),
                    "--vocab" => Box::new(move |spec| spec.vocab = value),
                    "--context" => Box::new(move |spec| spec.context = value),
                    _ => Box::new(move |spec| spec.seed = value as u64),
                });
            }
            path if !path.starts_with('-') && out.is_none() => out = Some(PathBuf::from(path)),
            _ => return None,
        }
    }
    let mut spec = Spec { quantization, ..shape(architecture) };
    changes.iter().for_each(|change| change(&mut spec));
    Some((spec, out?))
}
