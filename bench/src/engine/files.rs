//! The models that are measured: made once, kept in target/bench-models.

use std::path::{Path, PathBuf};

use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::{KvCacheType, ModelSource};
use steadytext_test_models::{Quantization, Spec, write};

use crate::settings::Settings;

/// Part of the file names: another number where the same name would mean another model.
const VERSION: u32 = 1;

/// Names and paths of the models to measure. None where results are compared.
///
/// # Errors
/// The reason why the file that was given cannot be measured.
pub(crate) fn of(settings: &Settings) -> Result<Vec<(String, PathBuf)>, String> {
    if settings.compares() {
        return Ok(Vec::new());
    }
    if let Some(path) = &settings.model {
        check(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().replace(['\t', ' '], "_");
        return Ok(vec![(name, path.clone())]);
    }
    Ok(settings.quants.iter().map(|quant| (quant.clone(), made(&settings.shape, quant))).collect())
}

/// Whether the file is a decoder that runs.
fn check(path: &Path) -> Result<(), String> {
    let load = Load { requests: 1, tokens: 0, threads: 1, kv_cache_type: KvCacheType::F16 };
    let described = |error: &steadytext_engine::Error| match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let (summary, _) =
        ModelSummary::of(&ModelSource::File(path.into()), load).map_err(|error| described(&error))?;
    if let Some(refusal) = summary.refusals.first() {
        return Err(format!("{}: {}", path.display(), refusal.reason));
    }
    match summary.kind {
        Some("decoder") => Ok(()),
        _ => Err(format!("{}: only decoders are measured", path.display())),
    }
}

/// Makes the model unless it is there.
fn made(shape: &str, quant: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-models");
    let path = directory.join(format!("{shape}-{quant}-{VERSION}.gguf"));
    if path.exists() {
        return path;
    }
    let shape = match shape {
        "qwen3-0.6b" => Spec::qwen3_0_6b(),
        "qwen3-1.7b" => Spec::qwen3_1_7b(),
        "qwen3.5-2b" => Spec::qwen3_5_2b(),
        "gemma3-1b" => Spec::gemma3_1b(),
        "phi-4-mini" => Spec::phi4_mini(),
        "granite-h-1b" => Spec::granite_h_1b(),
        "qwen3moe-small" => Spec::qwen3moe_small(),
        "llama-3.2-1b" => Spec::llama_3_2_1b(),
        _ => panic!("there is no shape {shape}"),
    };
    let quantization =
        Quantization::named(quant).unwrap_or_else(|| panic!("there is no quantization {quant}"));
    std::fs::create_dir_all(&directory).expect("target/bench-models can be made");
    eprintln!("bench-engine: making {}", path.display());
    let unfinished = path.with_extension("unfinished");
    write(&Spec { quantization, endless: true, ..shape }, &unfinished).expect("the model can be written");
    std::fs::rename(&unfinished, &path).expect("the model can be renamed");
    path
}
