//! Footprints over time, and what they say.

use steadytext_bench::Report;
use steadytext_test_server::{Footprint, slope};

const HOUR_S: f64 = 3600.0;

/// The resources that one process took, second by second.
pub(crate) struct Series {
    /// The kind of process.
    pub(crate) kind: String,
    /// Its number.
    pub(crate) pid: i32,
    points: Vec<(f64, Footprint)>,
}

impl Series {
    pub(crate) fn new(kind: &str, pid: i32) -> Series {
        Series { kind: kind.to_owned(), pid, points: Vec::new() }
    }

    pub(crate) fn note(&mut self, second: f64, footprint: Footprint) {
        self.points.push((second, footprint));
    }

    /// The seconds between the first look and the last one from then on.
    pub(crate) fn span(&self, from: f64) -> f64 {
        let mut judged = self.points.iter().map(|point| point.0).filter(|second| *second >= from);
        let first = judged.next().unwrap_or(0.0);
        judged.next_back().unwrap_or(first) - first
    }

    /// Reports what was seen from that second on; returns what has grown.
    pub(crate) fn judge(&self, from: f64, report: &mut Report) -> Vec<String> {
        let points: Vec<(f64, Footprint)> =
            self.points.iter().filter(|point| point.0 >= from).copied().collect();
        let values = |value: fn(&Footprint) -> f64| -> Vec<(f64, f64)> {
            points.iter().map(|(second, footprint)| (*second, value(footprint))).collect()
        };
        let hours = self.span(from) / HOUR_S;
        let kind = &self.kind;
        let mut grown = Vec::new();
        let mut judge = |name: &str, unit: &str, points: &[(f64, f64)], allowed: f64| {
            let per_hour = slope(points) * HOUR_S;
            report.add(&format!("soak_{kind}_{name}_per_hour"), per_hour, unit);
            if per_hour * hours > allowed {
                grown.push(format!(
                    "{kind}: {name} has grown by {:.2}, {allowed:.2} are allowed",
                    per_hour * hours
                ));
            }
        };
        let memory = values(|footprint| footprint.anonymous_kb / 1024.0);
        judge("memory_mb", "MB", &memory, 2.0_f64.max(0.05 * mean(&memory)));
        judge("descriptors", "", &values(|footprint| footprint.descriptors), 3.0);
        judge("threads", "", &values(|footprint| footprint.threads), 1.0);
        report.add(&format!("soak_{kind}_memory_mb"), mean(&memory), "MB");
        report.add(
            &format!("soak_{kind}_rss_mb"),
            mean(&values(|footprint| footprint.rss_kb / 1024.0)),
            "MB",
        );
        report.add(
            &format!("soak_{kind}_pss_mb"),
            mean(&values(|footprint| footprint.pss_kb / 1024.0)),
            "MB",
        );
        report.add(&format!("soak_{kind}_descriptors"), mean(&values(|footprint| footprint.descriptors)), "");
        report.add(&format!("soak_{kind}_threads"), mean(&values(|footprint| footprint.threads)), "");
        grown
    }
}

pub(crate) fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|point| point.1).sum::<f64>() / points.len().max(1) as f64
}
