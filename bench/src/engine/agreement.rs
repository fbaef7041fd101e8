//! Whether the engine computes what llama.cpp computes: logits of every type and family, perplexity of the
//! builtin model.
//!
//! Both sides are given the same token ids: tokenizers are not compared here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use steadytext_bench::Report;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{Instructions, ModelSource, Probe};
use steadytext_test_models::{Architecture, Quantization, Spec, write};

use crate::peer::Peer;
use crate::settings::Settings;

/// Largest root mean square of the differences, in standard deviations of llama.cpp's logits. Weights in f32
/// leave the rounding of keys and values to f16 (measured: 0.0005). llama.cpp rounds activations to f16 or
/// bf16 where weights are, the engine does not (measured: 0.006).
const BOUND_FLOAT: f64 = 0.01;
/// Both sides quantize activations to 8 bits, and any difference, however small, flips the rounding of some
/// (measured: 0.020 to 0.030).
const BOUND_QUANTIZED: f64 = 0.05;
/// A router that finds two experts nearly equal chooses one of them here and the other one there: then the
/// logits of that token are other ones, and those of the tokens that attend to it. Where routers choose, a
/// bound is that of all tokens but this share, those that are furthest apart (measured: 0 to 0.054 of the
/// tokens of a model in f32 are beyond it, 0.002 to 0.13 of those of quantized ones). Where all experts are
/// used there is nothing to choose, and bounds are those of other families.
const FLIPPED_FLOAT: f64 = 0.08;
const FLIPPED_QUANTIZED: f64 = 0.15;
/// Experts of a block, and how many of them each token uses.
const EXPERTS: [[usize; 2]; 2] = [[12, 4], [5, 5]];
/// Perplexities of the builtin model differ by this share at most.
const BOUND_PERPLEXITY: f64 = 0.005;

/// Quantizations that are compared for one family; the others are compared for three of them.
const QUANTIZATIONS: [&str; 14] = [
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "q4_k_m",
];
const OF_OTHERS: [&str; 3] = ["f32", "q8_0", "q4_k_m"];

/// The formats of families whose files have experts in MXFP4.
const OF_GPT_OSS: [&str; 4] = ["f32", "q8_0", "q4_k_m", "mxfp4"];

/// Every family, what it is quantized to, and its experts if it has some.
fn models() -> Vec<(Architecture, &'static str, [usize; 2])> {
    let of = |architecture| match architecture {
        Architecture::Qwen3 => QUANTIZATIONS.as_slice(),
        Architecture::GptOss => OF_GPT_OSS.as_slice(),
        _ => OF_OTHERS.as_slice(),
    };
    let experts =
        |architecture: Architecture| if architecture.has_experts() { &EXPERTS[..] } else { &EXPERTS[..1] };
    let models = Architecture::ALL.into_iter().flat_map(|family| {
        of(family)
            .iter()
            .flat_map(move |quant| experts(family).iter().map(move |experts| (family, *quant, *experts)))
    });
    models.collect()
}

/// Compares and prints; false where a bound is exceeded.
pub(crate) fn check(settings: &Settings, report: &mut Report) -> bool {
    let python = settings.peer.as_ref().expect("agreement needs --peer");
    let mut side = Sides {
        peer: Peer::start(python),
        directory: directory(),
        threads: settings.threads,
        instructions: settings.instructions,
    };
    let mut sound = true;
    let mut reference = String::from(
        "# Logits of llama.cpp for the tests that run without it: family, position, every 32nd logit. Written to bench/out by\n\
         # `make check-peer`.\n",
    );
    // `--only perplexity` leaves all of them out, and `--only agreement.qwen3.` the other families: names are
    // compared by their beginnings, so that without the last dot qwen3moe would be measured as well.
    for (architecture, quant, experts) in models() {
        let all_used = if experts[0] == experts[1] { ".all_experts" } else { "" };
        let name = format!("{}.{quant}{all_used}", architecture.variant());
        if !settings.wants(&format!("agreement.{name}")) {
            continue;
        }
        let quantization = Quantization::named(quant).expect("the quantization has a name");
        let spec = Spec { experts, ..Spec::compared(architecture, quantization) };
        let path = side.directory.join("model.gguf");
        write(&spec, &path).expect("the model can be written");
        let ids = spec.compared_tokens();
        let (ours, peers) = side.logits(&path, &ids);
        let chooses = architecture.has_experts() && all_used.is_empty();
        if quant == "f32" && !chooses {
            reference.push_str(&lines(architecture, &peers, spec.vocab));
        }
        let (rms, largest) = differences(&ours, &peers);
        report.add(&format!("agreement.{name}.rms"), rms, "deviations");
        report.add(&format!("agreement.{name}.max"), largest, "deviations");
        let float = matches!(quant, "f32" | "f16" | "bf16");
        let bound = if float { BOUND_FLOAT } else { BOUND_QUANTIZED };
        let rms = if chooses {
            let flipped = if float { FLIPPED_FLOAT } else { FLIPPED_QUANTIZED };
            let (rest, beyond) = without_flipped(&ours, &peers, spec.vocab, flipped, bound);
            report.add(&format!("agreement.{name}.rest"), rest, "deviations");
            report.add(&format!("agreement.{name}.flipped"), beyond, "of all tokens");
            rest
        } else {
            rms
        };
        if rms.is_nan() || rms > bound {
            eprintln!("bench-engine: {name}: {rms} is above the bound of {bound}");
            sound = false;
        }
    }
    write_out("families.tsv", &reference);
    let text = settings.wants("agreement") || settings.wants("perplexity");
    sound & (!text || perplexity(&mut side, report))
}

/// Some of the logits after some tokens: around tiles and windows, and far from the beginning.
fn lines(architecture: Architecture, logits: &[f32], vocabulary: usize) -> String {
    let positions = [0, 1, 63, 64, 99, 100, 127, 200, 1000, 2047, 4095];
    let line = |position: usize| {
        let row = &logits[position * vocabulary..(position + 1) * vocabulary];
        let row: Vec<String> = row.iter().step_by(32).map(|logit| format!("{logit:.5}")).collect();
        format!("{}\t{position}\t{}\n", architecture.variant(), row.join(" "))
    };
    positions.into_iter().map(line).collect()
}

/// Writes a file that is committed elsewhere once it has been looked at.
fn write_out(name: &str, text: &str) {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("out");
    std::fs::create_dir_all(&out)
        .and_then(|()| std::fs::write(out.join(name), text))
        .expect("bench/out can be written");
}

/// Perplexities of the builtin model on the pages of this repository; and, for the tests that run without
/// llama.cpp, its losses on the licence.
fn perplexity(side: &mut Sides, report: &mut Report) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = root.join("src/engine/builtin/builtin.gguf");
    let (mut ours_sum, mut peers_sum, mut count) = (0.0, 0.0, 0);
    for page in ["README.md", "docs/architecture.md", "docs/operations.md", "docs/sql.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect("the page can be read");
        for window in tokens(&model, &text).chunks(512).filter(|window| window.len() > 1) {
            let (ours, peers) = side.logits(&model, window);
            ours_sum += losses(&ours, window).iter().sum::<f64>();
            peers_sum += losses(&peers, window).iter().sum::<f64>();
            count += window.len() - 1;
        }
    }
    let [ours, peers] = [ours_sum, peers_sum].map(|sum| (sum / count as f64).exp());
    report.add("perplexity.builtin", ours, "");
    report.add("peer.perplexity.builtin", peers, "");
    report.add("ratio.perplexity.builtin", ours / peers, "");

    let licence = std::fs::read_to_string(root.join("LICENSE")).expect("the licence can be read");
    let ids = tokens(&model, &licence);
    let (_, peers_logits) = side.logits(&model, &ids);
    let mut lines = String::from(
        "# Losses of llama.cpp on the LICENSE with the builtin model: token, nats. Written to bench/out by\n\
         # `make check-peer`.\n",
    );
    for (id, loss) in ids[1..].iter().zip(losses(&peers_logits, &ids)) {
        let _ = writeln!(lines, "{id}\t{loss:.6}");
    }
    write_out("builtin_losses.tsv", &lines);
    (ours / peers - 1.0).abs() <= BOUND_PERPLEXITY
}

/// Token ids of a text.
fn tokens(model: &Path, text: &str) -> Vec<u32> {
    let gguf = steadytext_engine::gguf::Gguf::open(model).expect("the model can be opened");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer");
    tokenizer.encode(text).expect("the text can be encoded")
}

/// Both engines, and a directory for what goes between them.
struct Sides {
    peer: Peer,
    directory: PathBuf,
    threads: usize,
    instructions: Instructions,
}

impl Sides {
    /// Logits after every token, of the engine and of llama.cpp.
    fn logits(&mut self, model: &Path, ids: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let mut probe = Probe::open_with(&ModelSource::File(model.into()), self.threads, self.instructions)
            .expect("the model loads");
        let mut ours = Vec::with_capacity(ids.len() * probe.vocabulary());
        probe.extend_each(ids, |row| ours.extend_from_slice(row)).expect("the engine computes");
        let (input, output) = (self.directory.join("tokens"), self.directory.join("logits"));
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(&input, bytes).expect("tokens can be written");
        self.peer.open(model, self.threads);
        self.peer.logits(&input, &output);
        let bytes = std::fs::read(&output).expect("logits can be read");
        let peers: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(ours.len(), peers.len(), "as many logits on both sides");
        (ours, peers)
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory() -> PathBuf {
    let path = std::env::temp_dir().join(format!("bench-engine.{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory can be made");
    path
}

/// The standard deviation.
fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Root mean square and largest of the differences, in standard deviations of what is expected.
fn differences(got: &[f32], expected: &[f32]) -> (f64, f64) {
    let (count, deviation) = (expected.len() as f64, deviation(expected));
    let apart = || got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let rms = (apart().map(|x| x * x).sum::<f64>() / count).sqrt();
    // Not f64::max, which would overlook what is not a number.
    let largest = apart().map(f64::abs).fold(0.0, |largest, x| if x <= largest { largest } else { x });
    (rms / deviation, largest / deviation)
}

/// Root mean square of the differences of all tokens but a share `flipped` of them, those furthest apart; and
/// the share of those that are further apart than `bound`.
fn without_flipped(got: &[f32], expected: &[f32], vocab: usize, flipped: f64, bound: f64) -> (f64, f64) {
    let deviation = deviation(expected);
    let rows = got.chunks_exact(vocab).zip(expected.chunks_exact(vocab)).map(|(got, expected)| {
        let squares = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        squares.sum::<f64>() / vocab as f64 / (deviation * deviation)
    });
    let mut squares: Vec<f64> = rows.collect();
    squares.sort_by(f64::total_cmp);
    let beyond = squares.iter().filter(|square| square.is_nan() || square.sqrt() > bound).count() as f64;
    let kept = ((squares.len() as f64) * (1.0 - flipped)) as usize;
    let rms = (squares[..kept].iter().sum::<f64>() / kept as f64).sqrt();
    (rms, beyond / squares.len() as f64)
}

/// For each token but the first, minus the logarithm of its probability after those before it.
fn losses(logits: &[f32], ids: &[u32]) -> Vec<f64> {
    let vocabulary = logits.len() / ids.len();
    let loss = |(row, id): (&[f32], &u32)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        f64::from(largest) + sum.ln() - f64::from(row[*id as usize])
    };
    logits.chunks_exact(vocabulary).zip(&ids[1..]).map(loss).collect()
}
