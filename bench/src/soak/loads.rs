//! Models that are loaded and unloaded over and over, as there is room for one of them only.

use std::path::Path;
use std::time::Instant;

use crossbeam_channel::unbounded;
use steadytext_bench::Report;
use steadytext_engine::{
    Config, Engine, EventKind, Generate, ModelSource, Output, Reply, Request, Sampling, Work,
};
use steadytext_test_models::{Architecture, Spec, write};
use steadytext_test_server::{Footprint, run_directory, slope};

/// Large enough that a limit in whole megabytes can have room for one and not for two.
const VOCABULARY: usize = 16_384;
/// Loads between two looks at the memory.
const LOOK_EVERY: u64 = 20;
const MOST_MB_PER_1000: f64 = 0.5;
/// The share that is not judged.
const WARM_UP: f64 = 1.0 / 3.0;

/// Asks for so many loads; what is wrong, in the end.
pub(crate) fn measure(wanted: u64, report: &mut Report) -> Vec<String> {
    let models: Vec<ModelSource> = [Architecture::Qwen3, Architecture::Llama]
        .into_iter()
        .map(|architecture| model(&run_directory().join(format!("{architecture:?}.gguf")), architecture))
        .collect();
    let limit_mb = least_limit(&models);
    let engine = engine(limit_mb);
    let begun = Instant::now();
    let (mut loads, mut asked, mut looked, mut memory) = (0, 0_u64, 0, Vec::new());
    let mut answers: Vec<Option<String>> = vec![None; models.len()];
    let mut faults = Vec::new();
    while loads < wanted && faults.is_empty() {
        let which = (asked % models.len() as u64) as usize;
        asked += 1;
        match ask(&engine, &models[which]) {
            Ok((loaded, answer)) => {
                loads += u64::from(loaded);
                let first = answers[which].get_or_insert_with(|| answer.clone());
                if *first != answer {
                    faults.push(format!(
                        "a model that was loaded again answers {answer:?} instead of {first:?}"
                    ));
                }
            }
            Err(error) => faults.push(error),
        }
        if asked > 2 * wanted + 100 {
            faults.push(format!("{asked} requests have loaded {loads} models only: both have room"));
        }
        if loads >= looked + LOOK_EVERY {
            looked = loads;
            let footprint = Footprint::of(std::process::id() as i32).expect("this process lives");
            memory.push((loads as f64 / 1000.0, footprint));
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let judged = &memory[(memory.len() as f64 * WARM_UP) as usize..];
    let points = |value: fn(&Footprint) -> f64| -> Vec<(f64, f64)> {
        judged.iter().map(|(loads, footprint)| (*loads, value(footprint))).collect()
    };
    let grown = slope(&points(|footprint| footprint.anonymous_kb / 1024.0));
    report.add("loads", loads as f64, "");
    report.add("loads_limit_mb", limit_mb as f64, "MB");
    report.add("loads_per_s", loads as f64 / seconds, "1/s");
    report.add("loads_memory_mb_per_1000", grown, "MB");
    report.add("loads_rss_mb_per_1000", slope(&points(|footprint| footprint.rss_kb / 1024.0)), "MB");
    report.add("loads_descriptors_per_1000", slope(&points(|footprint| footprint.descriptors)), "");
    for (name, at) in [("first", memory.first()), ("last", memory.last())] {
        report.add(
            &format!("loads_{name}_rss_mb"),
            at.map_or(0.0, |(_, footprint)| footprint.rss_kb / 1024.0),
            "MB",
        );
    }
    if grown > MOST_MB_PER_1000 {
        faults.push(format!("1,000 loads leave {grown:.2} MB behind, {MOST_MB_PER_1000} are allowed"));
    }
    faults
}

fn model(path: &Path, architecture: Architecture) -> ModelSource {
    let spec = Spec { vocab: VOCABULARY, context: 512, ..Spec::tiny(architecture) };
    write(&spec, path).expect("the model can be written");
    ModelSource::File(path.to_owned())
}

fn engine(memory_limit_mb: u64) -> Engine {
    let config = Config { threads: 1, nice: 0, kv_cache_mb: 1, memory_limit_mb, ..Config::default() };
    Engine::start(config).expect("an engine starts")
}

/// The least limit with which each of them answers.
fn least_limit(models: &[ModelSource]) -> u64 {
    (1..1024)
        .find(|limit_mb| {
            let engine = engine(*limit_mb);
            models.iter().all(|model| ask(&engine, model).is_ok())
        })
        .expect("a gigabyte is enough")
}

/// A short answer, and whether the model was loaded for it.
fn ask(engine: &Engine, model: &ModelSource) -> Result<(bool, String), String> {
    let (sender, events) = unbounded();
    let work = Work::Generate(Generate {
        prompt: "Again?".to_owned(),
        max_tokens: 2,
        sampling: Sampling::default(),
        ..Generate::default()
    });
    let request = Request { key: 1, model: model.clone(), salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    let mut loaded = false;
    for event in events {
        match event.kind {
            EventKind::Loading => loaded = true,
            EventKind::Done(output) => return Ok((loaded, text(output))),
            EventKind::Failed(error) => return Err(error.to_string()),
            _ => {}
        }
    }
    Err("the engine has gone".to_owned())
}

fn text(output: Output) -> String {
    match output {
        Output::Text { text, .. } => text,
        other => format!("{other:?}"),
    }
}
