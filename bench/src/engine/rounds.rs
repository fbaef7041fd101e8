//! Runs of the engine and of llama.cpp in turns, so that other work on the machine hits both.

use std::path::Path;

use steadytext_bench::{Report, percentile};

use crate::fresh;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::settings::Settings;

const DECODE_REQUESTS: [usize; 3] = [1, 4, 16];
const PROMPT_TOKENS: usize = 128;
const LONG_PROMPT_TOKENS: usize = 8192;
const STEPS: usize = 128;
const TEXTS: usize = 64;
const TEXT_TOKENS: usize = 64;

/// Whether more of it is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

/// Measures everything that is wanted on one model.
pub(crate) fn measure(quant: &str, path: &Path, settings: &Settings, report: &mut Report) {
    speeds(quant, path, settings, report);
    let peer = || settings.peer.as_ref().map(|python| Peer::start(python));
    if settings.wants("load_ms") {
        fresh::ask("load", path, settings);
        let runs = (0..settings.rounds).map(|_| {
            let ours = fresh::ask("load", path, settings);
            (ours, peer().map(|mut peer| peer.load_ms(path, settings.threads)))
        });
        add(report, &format!("load_ms.{quant}"), "ms", Better::Less, &runs.collect::<Vec<_>>());
    }
    if settings.wants("peak_mb") || settings.wants("memory_ratio") {
        let peak = fresh::ask("peak", path, settings);
        let peer = peer().map(|mut peer| {
            peer.open(path, settings.threads);
            peer.decode(1, fresh::PROMPT_TOKENS, fresh::GENERATED_TOKENS);
            peer.peak_mb()
        });
        add(report, &format!("peak_mb.{quant}"), "MB", Better::Less, &[(peak, peer)]);
        let bound = fresh::file_and_state_mb(path, settings);
        report.add(&format!("file_and_kv_mb.{quant}"), bound, "MB");
        report.add(&format!("memory_ratio.{quant}"), peak / bound, "");
    }
}

/// The metrics that need a model loaded on both sides.
fn speeds(quant: &str, path: &Path, settings: &Settings, report: &mut Report) {
    let mut both: Option<(Ours, Option<Peer>)> = None;
    let mut turns =
        |name: String, unit: &str, ours: &dyn Fn(&mut Ours) -> f64, peer: &dyn Fn(&mut Peer) -> f64| {
            if !settings.wants(&name) {
                return;
            }
            let (engine, other) = both.get_or_insert_with(|| {
                let other = settings.peer.as_ref().map(|python| {
                    let mut other = Peer::start(python);
                    other.open(path, settings.threads);
                    other
                });
                (Ours::open(path, settings), other)
            });
            // The first time finds the better setting of llama.cpp.
            if let Some(other) = other {
                peer(other);
            }
            let runs: Vec<_> =
                (0..settings.rounds).map(|_| (ours(engine), other.as_mut().map(peer))).collect();
            add(report, &name, unit, Better::More, &runs);
        };
    turns(format!("prefill_512.{quant}.tok_s"), "tokens/s", &|ours| ours.prefill(512), &|peer| {
        peer.prefill(512)
    });
    for requests in DECODE_REQUESTS {
        turns(
            format!("decode_{requests}.{quant}.tok_s"),
            "tokens/s",
            &|ours| ours.decode(requests, PROMPT_TOKENS, STEPS, None),
            &|peer| peer.decode(requests, PROMPT_TOKENS, STEPS),
        );
    }
    if settings.only.iter().any(|only| only.starts_with("decode_long")) {
        turns(
            format!("decode_long.{quant}.tok_s"),
            "tokens/s",
            &|ours| ours.decode(1, LONG_PROMPT_TOKENS, STEPS, None),
            &|peer| peer.decode(1, LONG_PROMPT_TOKENS, STEPS),
        );
    }
    turns(format!("embed_64.{quant}.texts_s"), "texts/s", &|ours| ours.embed(TEXTS, TEXT_TOKENS), &|peer| {
        peer.embed(TEXTS, TEXT_TOKENS)
    });
}

/// Prints the medians of what both did and of their ratios.
fn add(report: &mut Report, name: &str, unit: &str, better: Better, runs: &[(f64, Option<f64>)]) {
    report.add(name, median(runs.iter().map(|run| run.0)), unit);
    let both: Vec<(f64, f64)> = runs.iter().filter_map(|(ours, peer)| Some((*ours, (*peer)?))).collect();
    if both.is_empty() {
        return;
    }
    report.add(&format!("peer.{name}"), median(both.iter().map(|run| run.1)), unit);
    let ratio = |(ours, peer): &(f64, f64)| if better == Better::More { ours / peer } else { peer / ours };
    report.add(&format!("ratio.{name}"), median(both.iter().map(ratio)), "");
}

/// The one in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}
