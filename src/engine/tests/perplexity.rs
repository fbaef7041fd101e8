//! The builtin model against llama.cpp, by losses of llama.cpp that `make check-peer` writes into
//! `builtin_losses.tsv`; that command makes all other comparisons as well.

use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{ModelSource, Probe};

/// The loss of each token but the first: minus the logarithm of its probability after those before it.
fn losses(text: &str) -> Vec<(u32, f64)> {
    let mut probe = Probe::open(&ModelSource::Builtin, 2).unwrap();
    let ids = Tokenizer::from_gguf(probe.gguf()).unwrap().encode(text).unwrap();
    let mut losses = Vec::new();
    let mut next = ids[1..].iter();
    probe
        .extend_each(&ids, |row| {
            let Some(id) = next.next() else { return };
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| libm::exp(f64::from(logit - largest))).sum();
            losses.push((*id, f64::from(largest) + libm::log(sum) - f64::from(row[*id as usize])));
        })
        .unwrap();
    losses
}

/// Both quantize activations to 8 bits, and llama.cpp sums in another order: single losses differ in the
/// second decimal place, their mean in the third.
#[test]
fn perplexity_of_the_licence_is_llama_cpps() {
    let expected: Vec<(u32, f64)> = include_str!("builtin_losses.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once('\t').unwrap())
        .map(|(id, loss)| (id.parse().unwrap(), loss.parse().unwrap()))
        .collect();
    let got = losses(include_str!("../../../LICENSE"));
    let ids = |of: &[(u32, f64)]| of.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert!(got.len() > 200);
    assert_eq!(ids(&got), ids(&expected), "the same tokens");
    let perplexity =
        |of: &[(u32, f64)]| libm::exp(of.iter().map(|(_, loss)| loss).sum::<f64>() / of.len() as f64);
    let ratio = perplexity(&got) / perplexity(&expected);
    assert!((ratio - 1.0).abs() < 0.005, "perplexity is {ratio} times llama.cpp's");
    let squares: f64 = got.iter().zip(&expected).map(|((_, a), (_, b))| (a - b) * (a - b)).sum();
    let rms = (squares / got.len() as f64).sqrt();
    assert!(rms < 0.1, "losses differ by {rms}");
}
