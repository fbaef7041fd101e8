//! The output of a benchmark: `name<TAB>value<TAB>unit` lines, on standard output and in a file under
//! `bench/out`.
//!
//! Names are stable, so that runs can be compared.
#![allow(clippy::print_stdout, reason = "standard output is where a benchmark's numbers go")]

use std::fs;
use std::io;
use std::path::PathBuf;

/// The lines of one run.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    lines: String,
}

impl Report {
    /// A report that ends up in `bench/out/NAME.tsv`.
    pub fn new(name: &str) -> Self {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("out").join(format!("{name}.tsv"));
        Report { file, lines: String::new() }
    }

    /// Prints and keeps one number.
    pub fn add(&mut self, name: &str, value: f64, unit: &str) {
        let line = match value {
            value if value >= 100.0 => format!("{name}\t{value:.0}\t{unit}"),
            value => format!("{name}\t{value:.3}\t{unit}"),
        };
        println!("{line}");
        self.lines.push_str(&line);
        self.lines.push('\n');
    }

    /// Writes the file.
    pub fn write(&self) -> io::Result<()> {
        if let Some(directory) = self.file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&self.file, &self.lines)
    }
}

/// The value below which `share` of the sorted values lie.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (share * last as f64).ceil() as usize;
    sorted.get(index.min(last)).copied().unwrap_or(f64::NAN)
}
