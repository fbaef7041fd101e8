//! Every family of decoders against recorded logits of llama.cpp: random weights in f32, at positions beyond
//! windows and the contexts that rotations are stretched from. `make check-peer` makes the file again, and
//! compares quantized weights as well.

use std::collections::HashMap;

use steadytext_engine::{BackendKind, ModelSource, Probe};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, write};
use tempfile::TempDir;

const REFERENCE: &str = include_str!("families.tsv");

/// Largest difference of a logit, in standard deviations of all that are compared. The differences come from
/// the rounding of keys and values to f16 and of sums (measured: at most 0.004).
const BOUND: f32 = 0.01;

/// Logits that are compared, by family and position.
fn reference() -> HashMap<&'static str, Vec<(usize, Vec<f32>)>> {
    let mut families: HashMap<&str, Vec<(usize, Vec<f32>)>> = HashMap::new();
    for line in REFERENCE.lines().filter(|line| !line.starts_with('#')) {
        let [family, position, logits] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let logits = logits.split(' ').map(|logit| logit.parse().unwrap()).collect();
        families.entry(family).or_default().push((position.parse().unwrap(), logits));
    }
    families
}

/// The worst logit of a family up to a position, in standard deviations of all that are compared.
fn worst(backend: BackendKind, family: Architecture, expected: &[(usize, Vec<f32>)], most: usize) -> f32 {
    let all: Vec<f32> = expected.iter().flat_map(|(_, logits)| logits).copied().collect();
    let mean = all.iter().sum::<f32>() / all.len() as f32;
    let deviation = (all.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / all.len() as f32).sqrt();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let spec = Spec::compared(family, Quantization::uniform(Kind::F32));
    write(&spec, &path).unwrap();
    let mut probe =
        Probe::open_on(backend, &ModelSource::File(path), 2, steadytext_engine::Instructions::best())
            .unwrap();
    let (mut position, mut worst) = (0, 0.0f32);
    let mut expected = expected.iter().filter(|(at, _)| *at < most).peekable();
    let tokens = spec.compared_tokens();
    probe
        .extend_each(&tokens[..most.min(tokens.len())], |logits| {
            if let Some((_, expected)) = expected.next_if(|(at, _)| *at == position) {
                let logits = logits.iter().step_by(32);
                assert_eq!(logits.len(), expected.len());
                let apart = logits.zip(expected).map(|(got, expected)| (got - expected).abs());
                worst = apart.fold(worst, f32::max);
            }
            position += 1;
        })
        .unwrap();
    assert!(expected.next().is_none(), "{family:?}");
    worst / deviation
}

#[test]
fn logits_are_those_of_llama_cpp() {
    let mut reference = reference();
    for family in Architecture::ALL {
        let expected = reference.remove(family.variant()).unwrap_or_else(|| panic!("nothing of {family:?}"));
        let worst = worst(BackendKind::default(), family, &expected, usize::MAX);
        assert!(worst < BOUND, "{family:?}: {worst} deviations");
    }
    assert!(reference.is_empty(), "families that nobody makes: {:?}", reference.keys());
}

/// Candle shares no code with the other backend's computation, nor with the reference. Positions go beyond
/// windows, and for one family to where rotations are stretched.
#[test]
fn logits_on_candle_are_those_of_llama_cpp() {
    let reference = reference();
    for family in Architecture::ALL.into_iter().filter(|family| crate::candle::computes(*family)) {
        let most = if family == Architecture::Llama { usize::MAX } else { 1001 };
        let worst = worst(BackendKind::Candle, family, &reference[family.variant()], most);
        assert!(worst < BOUND, "{family:?}: {worst} deviations");
    }
}
