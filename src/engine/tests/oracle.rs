//! The decoder against candle-transformers' quantized models, which share no code with it except for the dot
//! products of blocks without panels.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use steadytext_engine::{ModelSource, Probe};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, write};
use tempfile::TempDir;

/// Candle's model for an architecture.
enum Oracle {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Oracle {
    fn open(spec: &Spec, path: &std::path::Path) -> Oracle {
        let mut file = std::fs::File::open(path).unwrap();
        let mut content = gguf_file::Content::read(&mut file).unwrap();
        // Without this key candle makes the tables of qwen3's rotation in f16, which cannot represent all
        // integers beyond 2,048.
        content.metadata.insert("general.dtype".to_owned(), gguf_file::Value::U32(0));
        match spec.architecture {
            Architecture::Llama => Oracle::Llama(
                quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap(),
            ),
            Architecture::Qwen2 => Oracle::Qwen2(
                quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap(),
            ),
            Architecture::Qwen3 => Oracle::Qwen3(
                quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap(),
            ),
            other => panic!("{other:?} is compared with llama.cpp only"),
        }
    }

    /// Logits of the last of `tokens`, which follow `position` others.
    fn logits(&mut self, tokens: &[u32], position: usize) -> Vec<f32> {
        let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = match self {
            Oracle::Llama(model) => model.forward(&input, position),
            Oracle::Qwen2(model) => model.forward(&input, position),
            Oracle::Qwen3(model) => model.forward(&input, position),
        };
        logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// A model with sizes that all oracles can do: heads · head_dim = width.
fn spec(architecture: Architecture, kind: Kind) -> Spec {
    Spec {
        layers: 3,
        width: 256,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 512,
        vocab: 600,
        context: 4096,
        rope_theta: 1_000_000.0,
        norm_epsilon: 1e-5,
        quantization: Quantization::uniform(kind),
        endless: true,
        ..Spec::tiny(architecture)
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7919 + i * i * 31) % 600).collect()
}

/// Largest difference, in standard deviations of the expected logits.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let variance = expected.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / expected.len() as f32;
    let largest = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    largest / variance.sqrt()
}

fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == best).unwrap() as u32
}

const ARCHITECTURES: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

/// Compares logits of a prompt of each length.
fn compare(architecture: Architecture, kind: Kind, lengths: &[usize]) -> f32 {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let spec = spec(architecture, kind);
    write(&spec, &path).unwrap();
    let mut probe = Probe::open(&ModelSource::File(path.clone()), 2).unwrap();
    let mut worst = 0.0f32;
    for length in lengths {
        let tokens = tokens(*length);
        probe.truncate(0);
        let got = probe.extend(&tokens).unwrap().unwrap().to_vec();
        let expected = Oracle::open(&spec, &path).logits(&tokens, 0);
        worst = worst.max(distance(&got, &expected));
    }
    worst
}

/// With f32 weights the two differ by the rounding of keys and values to f16 (2^-11 each, where candle keeps
/// f32) and of the sums.
#[test]
fn logits_agree_with_candle_in_f32() {
    for architecture in ARCHITECTURES {
        let distance = compare(architecture, Kind::F32, &[1, 2, 63, 64, 65, 200]);
        assert!(distance < 0.005, "{architecture:?}: {distance} standard deviations");
    }
}

/// Beyond position 1,000 candle's f32 angles (position · frequency) are off by up to 2^-24 of the position,
/// which adds about 1e-4 radians to the usual difference.
#[test]
fn logits_agree_with_candle_beyond_position_1000() {
    for architecture in ARCHITECTURES {
        let distance = compare(architecture, Kind::F32, &[1025, 3000]);
        assert!(distance < 0.01, "{architecture:?}: {distance} standard deviations");
    }
}

/// With quantized weights any difference, however small, flips the rounding of some activations to 8 bits,
/// and each flip causes more: the two end up as far from each other as both are from exact activations
/// (measured: 0.05 to 0.14). Other tests show that the products themselves are right.
#[test]
fn logits_agree_with_candle_on_every_quantization() {
    let kinds = [
        Kind::Q4_0,
        Kind::Q4_1,
        Kind::Q5_0,
        Kind::Q5_1,
        Kind::Q8_0,
        Kind::Q2K,
        Kind::Q3K,
        Kind::Q4K,
        Kind::Q5K,
        Kind::Q6K,
    ];
    for (kind, architecture) in kinds.into_iter().zip(ARCHITECTURES.into_iter().cycle()) {
        let distance = compare(architecture, kind, &[70]);
        assert!(distance < 0.2, "{architecture:?} {kind:?}: {distance} standard deviations");
    }
    // Candle multiplies these in f32, as the decoder does.
    for (kind, architecture) in [Kind::F16, Kind::BF16].into_iter().zip(ARCHITECTURES) {
        let distance = compare(architecture, kind, &[70]);
        assert!(distance < 0.005, "{architecture:?} {kind:?}: {distance} standard deviations");
    }
}

/// Greedy runs from the same prompt choose the same tokens.
#[test]
fn greedy_runs_are_equal() {
    for architecture in ARCHITECTURES {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        let spec = spec(architecture, Kind::F32);
        write(&spec, &path).unwrap();
        let mut probe = Probe::open(&ModelSource::File(path.clone()), 2).unwrap();
        let mut oracle = Oracle::open(&spec, &path);
        let prompt = tokens(40);
        let mut ours = greedy(probe.extend(&prompt).unwrap().unwrap());
        let mut theirs = greedy(&oracle.logits(&prompt, 0));
        for step in 0..80 {
            assert_eq!(ours, theirs, "{architecture:?}, token {step}");
            ours = greedy(probe.extend(&[ours]).unwrap().unwrap());
            theirs = greedy(&oracle.logits(&[theirs], prompt.len() + step));
        }
    }
}
