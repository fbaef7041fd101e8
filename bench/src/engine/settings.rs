//! Options of the command line.

use std::path::PathBuf;

use steadytext_engine::{Instructions, KvCacheType, nearest};

const OPTIONS: [&str; 10] = [
    "--quants",
    "--shape",
    "--model",
    "--only",
    "--threads",
    "--rounds",
    "--peer",
    "--fresh",
    "--instructions",
    "--kv_cache_type",
];

/// The options, with their defaults.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) quants: Vec<String>,
    pub(crate) shape: String,
    pub(crate) model: Option<PathBuf>,
    /// Metrics that are wanted, by the beginnings of their names; all where there are none.
    pub(crate) only: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) rounds: usize,
    pub(crate) instructions: Instructions,
    /// Format in which the engine keeps keys and values; llama.cpp has f16.
    pub(crate) kv_cache_type: KvCacheType,
    /// The Python that runs llama.cpp.
    pub(crate) peer: Option<PathBuf>,
    /// The measurement that this process makes as the fresh process of another one.
    pub(crate) fresh: Option<String>,
}

impl Settings {
    /// Takes the options.
    ///
    /// # Errors
    /// A message about an option that is not understood.
    pub(crate) fn parse(arguments: &[String]) -> Result<Settings, String> {
        let list =
            |text: &str| text.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let mut settings = Settings {
            quants: list("q8_0,q4_k_m"),
            shape: "qwen3-0.6b".to_owned(),
            model: None,
            only: Vec::new(),
            threads: 2,
            rounds: 3,
            instructions: Instructions::Avx512,
            kv_cache_type: KvCacheType::F16,
            peer: None,
            fresh: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            if !OPTIONS.contains(&name.as_str()) {
                let near = nearest::one(name, OPTIONS.into_iter());
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                return Err(format!("there is no option {name}{near}"));
            }
            let value = arguments.next().ok_or_else(|| format!("option {name} needs a value"))?;
            let wrong = || format!("\"{value}\" is no value for option {name}");
            let number = || value.parse().ok().filter(|number: &usize| *number > 0).ok_or_else(wrong);
            match name.as_str() {
                "--quants" => settings.quants = list(value),
                "--shape" => settings.shape = value.clone(),
                "--model" => settings.model = Some(value.into()),
                "--only" => settings.only = list(value),
                "--threads" => settings.threads = number()?,
                "--rounds" => settings.rounds = number()?,
                "--peer" => settings.peer = Some(value.into()),
                "--kv_cache_type" => settings.kv_cache_type = value.parse().map_err(|()| wrong())?,
                "--fresh" => settings.fresh = Some(value.clone()),
                _ => settings.instructions = instructions(value).ok_or_else(wrong)?,
            }
        }
        Ok(settings)
    }

    /// Whether results are to be compared with llama.cpp's, instead of speed.
    pub(crate) fn compares(&self) -> bool {
        self.only.iter().any(|only| only.starts_with("agreement") || only == "perplexity")
    }

    /// Whether this metric is to be measured.
    pub(crate) fn wants(&self, metric: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| metric.starts_with(only.as_str()))
    }
}

fn instructions(name: &str) -> Option<Instructions> {
    match name {
        "avx512" => Some(Instructions::Avx512),
        "avx2" => Some(Instructions::Avx2),
        "neon" => Some(Instructions::Neon),
        "portable" => Some(Instructions::Portable),
        _ => None,
    }
}
