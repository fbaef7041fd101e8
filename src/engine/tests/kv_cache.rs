//! Keys and values in 8 bits: the same bytes in all circumstances, their distance from those in 16 bits, and
//! the memory that they save.

use crossbeam_channel::unbounded;
use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::{
    BackendKind, Config, Engine, Error, EventKind, Generate, Instructions, KvCacheType, ModelSource, Output,
    Probe, PromptLookup, Reply, Request, Sampling, Work,
};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// Largest rms of deviations from logits with f16, in standard deviations (measured: 0.006 to 0.03; to 0.085
/// with experts, which change).
const BOUND: f64 = 0.15;

fn model(directory: &TempDir, spec: &Spec) -> ModelSource {
    let path = directory.path().join("model.gguf");
    write(spec, &path).unwrap();
    ModelSource::File(path)
}

/// Logits of every token, computed in passes of the given sizes, again and again.
fn logits(
    model: &ModelSource,
    kind: KvCacheType,
    (threads, instructions): (usize, Instructions),
    passes: &[usize],
) -> Vec<f32> {
    let mut probe = Probe::open_keeping(model, threads, instructions, kind, false).unwrap();
    let tokens: Vec<u32> = (0..300).map(|i| (i * 7919 + i * i * 31) % 600).collect();
    let (mut logits, mut rest) = (Vec::new(), &tokens[..]);
    for size in passes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (pass, left) = rest.split_at((*size).min(rest.len()));
        probe.extend_each(pass, |row| logits.extend_from_slice(row)).unwrap();
        rest = left;
    }
    logits
}

#[test]
fn logits_of_every_family_are_near_those_with_16_bits_and_do_not_depend_on_passes_threads_or_instructions() {
    let (mut report, mut worst) = (String::new(), 0.0f64);
    for family in Architecture::ALL {
        let directory = TempDir::new().unwrap();
        let model = model(&directory, &Spec::wide(family, Quantization::uniform(Kind::Q8_0)));
        let best = Instructions::best();
        let [f16, q8_0] = KvCacheType::ALL.map(|kind| logits(&model, kind, (2, best), &[256]));
        for (threads, instructions, passes) in
            [(1, best, &[1, 30, 64, 7][..]), (2, Instructions::Avx2, &[63, 2, 65]), (3, best, &[100])]
        {
            let again = logits(&model, KvCacheType::Q8_0, (threads, instructions), passes);
            assert!(again == q8_0, "{family:?}: {threads} threads, {instructions:?}, {passes:?}");
        }
        let count = f16.len() as f64;
        let mean = f16.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let squares = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>();
        let deviation = squares(&mut f16.iter().map(|x| f64::from(*x) - mean));
        let apart = squares(&mut f16.iter().zip(&q8_0).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let ratio = (apart / deviation).sqrt();
        report += &format!("{family:?} {ratio:.4}\n");
        worst = worst.max(ratio);
        assert!(ratio > 0.0, "{family:?}: it makes no difference");
    }
    assert!(worst < BOUND, "deviations:\n{report}");
}

#[test]
fn a_token_takes_about_half_the_memory() {
    let directory = TempDir::new().unwrap();
    let model = model(&directory, &Spec { head_dim: 64, ..Spec::tiny(Architecture::Qwen3) });
    let [f16, q8_0] = KvCacheType::ALL.map(|kv_cache_type| {
        let load = Load { requests: 1, tokens: 64, threads: 1, kv_cache_type };
        ModelSummary::of(&model, load).unwrap().0.state_bytes_per_token.unwrap()
    });
    // One byte for each element, and two for each 32.
    assert_eq!(q8_0 * 32, f16 * 17);
}

fn generate(prompt: &str, max_tokens: usize) -> Work {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    Work::Generate(Generate { prompt: prompt.to_owned(), max_tokens, sampling, ..Generate::default() })
}

fn run(engine: &Engine, model: &ModelSource, work: Work) -> (Option<BackendKind>, Result<Output, Error>) {
    let (sender, events) = unbounded();
    let request = Request { key: 0, model: model.clone(), salt: 0, dedup_key: None, work };
    engine.submit(request, Reply::new(sender));
    let mut backend = None;
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Started { model, .. } => backend = Some(model.backend),
            EventKind::Done(output) => return (backend, Ok(output)),
            EventKind::Failed(error) => return (backend, Err(error)),
            EventKind::Loading | EventKind::FirstToken { .. } | EventKind::Progress { .. } => {}
        }
    }
}

#[test]
fn what_does_not_fit_into_the_cache_in_16_bits_does_in_8() {
    let directory = TempDir::new().unwrap();
    let spec = Spec { head_dim: 64, context: 8192, endless: true, ..Spec::tiny(Architecture::Qwen3) };
    let model = model(&directory, &spec);
    let load = |kv_cache_type| Load { requests: 1, tokens: 64, threads: 1, kv_cache_type };
    let of_a_token =
        ModelSummary::of(&model, load(KvCacheType::F16)).unwrap().0.state_bytes_per_token.unwrap();
    // More than one megabyte holds, and less than two hold.
    let tokens = ((1 << 20) * 3 / 2 / of_a_token) as usize;
    let engine = |kv_cache_type| {
        Engine::start(Config { threads: 2, nice: 0, kv_cache_mb: 1, kv_cache_type, ..Config::default() })
            .unwrap()
    };
    let (_, refused) = run(&engine(KvCacheType::F16), &model, generate("long", tokens));
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
    let (backend, text) = run(&engine(KvCacheType::Q8_0), &model, generate("long", tokens));
    assert!(matches!(text, Ok(Output::Text { generated_tokens, .. }) if generated_tokens == tokens));
    assert_eq!(backend, Some(BackendKind::Native(KvCacheType::Q8_0)), "it is told with the answer");
}

#[test]
fn kept_prefixes_and_guesses_change_no_byte() {
    let directory = TempDir::new().unwrap();
    let spec = Spec { context: 4096, endless: true, ..Spec::tiny(Architecture::Gemma3) };
    let model = model(&directory, &spec);
    let config = |prefix_reuse, prompt_lookup| Config {
        threads: 2,
        nice: 0,
        kv_cache_type: KvCacheType::Q8_0,
        prefix_reuse,
        prompt_lookup,
        ..Config::default()
    };
    let plain = Engine::start(config(false, PromptLookup::Off)).unwrap();
    let saving = Engine::start(config(true, PromptLookup::On)).unwrap();
    let common = "the same words in all of them ".repeat(20);
    for number in 0..4 {
        let work = || generate(&format!("{common}{number}"), 60);
        assert_eq!(run(&saving, &model, work()).1.unwrap(), run(&plain, &model, work()).1.unwrap());
        let Work::Generate(mut greedy) = work() else { unreachable!() };
        greedy.sampling = Sampling::default();
        let work = || Work::Generate(greedy.clone());
        assert_eq!(run(&saving, &model, work()).1.unwrap(), run(&plain, &model, work()).1.unwrap());
    }
    let statistics = saving.statistics();
    assert!(statistics.reused_tokens > 100 && statistics.right_guesses > 10, "{statistics:?}");
}
