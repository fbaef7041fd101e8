//! The resources that a process takes, and whether they grow.

use std::fs;

/// Memory, descriptors and threads of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Footprint {
    /// Memory of its own that no file is behind, in kB: what a leak makes larger. Shared memory is not part
    /// of it.
    pub anonymous_kb: f64,
    /// All its pages in memory, in kB.
    pub rss_kb: f64,
    /// All its pages in memory, in kB, of shared ones its share only.
    pub pss_kb: f64,
    /// Open files, sockets and pipes.
    pub descriptors: f64,
    /// Threads.
    pub threads: f64,
}

impl Footprint {
    /// The footprint of a process, from /proc (Linux); `None` when the process has gone.
    pub fn of(process: i32) -> Option<Footprint> {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
        Some(Footprint {
            anonymous_kb: number(&rollup, "Anonymous:")?,
            rss_kb: number(&rollup, "Rss:")?,
            pss_kb: number(&rollup, "Pss:")?,
            descriptors: descriptors as f64,
            threads: number(&status, "Threads:")?,
        })
    }
}

/// The number behind a name, at the beginning of a line.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The straight line through points (x, y) by least squares: how much y grows by each x; 0 where they do not
/// say.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) =
        points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let (above, below) = points.iter().fold((0.0, 0.0), |sum, point| {
        (sum.0 + (point.0 - x) * (point.1 - y), sum.1 + (point.0 - x) * (point.0 - x))
    });
    if below > 0.0 { above / below } else { 0.0 }
}
