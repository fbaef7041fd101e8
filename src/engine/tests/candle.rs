//! The backend on candle's tensors: the same bytes on one machine, whole requests, refusals; and the
//! verification of models, which compares the backends.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::{
    BackendChoice, BackendKind, Config, Embed, Engine, Error, Event, EventKind, Finish, Generate,
    Instructions, KvCacheType, Likelihoods, MAX_POSITIONS, ModelIdentity, ModelSource, Output, Probe,
    PromptLookup, Reply, Request, Verification, Verify, Work, verify,
};
use steadytext_test_models::{Architecture, Bert, Kind, Quantization, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// Whether candle computes the family; others are refused by name.
pub(crate) fn computes(architecture: Architecture) -> bool {
    !matches!(architecture, Architecture::Gemma3n | Architecture::Gemma4Moe)
}

fn families() -> impl Iterator<Item = Architecture> {
    Architecture::ALL.into_iter().filter(|architecture| computes(*architecture))
}

fn model(directory: &TempDir, spec: &Spec) -> PathBuf {
    let path = directory.path().join("model.gguf");
    write(spec, &path).unwrap();
    path
}

fn mixed() -> Quantization {
    Quantization {
        embedding: Kind::Q6K,
        attention: Kind::Q8_0,
        value: Kind::F16,
        feed_forward: Kind::Q4K,
        down: Kind::Q6K,
        output: Kind::Q5_0,
        in_some_layers: false,
    }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7919 + i * i * 31) % 600).collect()
}

fn probe(path: &Path, threads: usize) -> Result<Probe, Error> {
    let source = ModelSource::File(path.to_owned());
    Probe::open_on(BackendKind::Candle, &source, threads, Instructions::best())
}

/// Logits of every token, computed in passes of these sizes.
fn logits(path: &Path, threads: usize, tokens: &[u32], passes: &[usize]) -> Vec<Vec<u32>> {
    let mut probe = probe(path, threads).unwrap();
    let (mut rows, mut rest) = (Vec::new(), tokens);
    for size in passes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (pass, left) = rest.split_at((*size).min(rest.len()));
        probe.extend_each(pass, |logits| rows.push(logits.iter().map(|x| x.to_bits()).collect())).unwrap();
        rest = left;
    }
    rows
}

#[test]
fn passes_threads_and_truncations_change_no_byte_on_one_machine() {
    for architecture in families() {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::wide(architecture, mixed()));
        let tokens = tokens(140);
        let whole = logits(&path, 1, &tokens, &[256]);
        assert!(whole == logits(&path, 1, &tokens, &[256]), "{architecture:?}: once more");
        assert!(whole == logits(&path, 2, &tokens, &[1]), "{architecture:?}: one by one");
        assert!(whole == logits(&path, 3, &tokens, &[7, 64, 1, 30]), "{architecture:?}: uneven passes");
        let mut probe = probe(&path, 2).unwrap();
        probe.extend(&tokens).unwrap();
        for kept in [140, 128, 127, 65, 64, 1, 0] {
            probe.truncate(kept);
            // Recurrent layers go back to the last copy of their state.
            let left = probe.len();
            let recurrent = architecture.is_recurrent_family();
            assert!(
                left == kept || recurrent && left < kept && left.is_multiple_of(64),
                "{architecture:?}: {left}"
            );
            probe.extend(&[5, 6, 7, 8]).unwrap();
            probe.truncate(left);
            assert!(probe.len() == left || recurrent && probe.len() < left, "{architecture:?}");
            let left = probe.len();
            let again = probe.extend(&tokens[left..]).unwrap().map(<[f32]>::to_vec);
            let again = again.map(|logits| logits.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
            assert!(again.is_none_or(|again| again == whole[139]), "{architecture:?} truncated to {kept}");
        }
    }
}

#[test]
fn encoders_are_refused_and_say_what_computes_them() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("encoder.gguf");
    Bert::default().write(&path).unwrap();
    let Err(Error::UnsupportedModel { reason, hint: Some(hint), .. }) = probe(&path, 1) else {
        panic!("an encoder")
    };
    assert!(reason.contains("encoder") && hint.contains("native"), "{reason} {hint}");
    let what = Verify { text: None, positions: 4 };
    let refused = verify(&ModelSource::File(path), &what, 1);
    assert!(matches!(refused, Err(Error::UnsupportedModel { .. })), "{refused:?}");
}

#[test]
fn families_that_candle_has_no_form_for_are_refused_by_name_and_auto_keeps_them_on_the_kernels() {
    for (architecture, named) in
        [(Architecture::Gemma3n, "several residual streams"), (Architecture::Gemma4Moe, "norms of their own")]
    {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::tiny(architecture));
        let Err(Error::UnsupportedModel { reason, hint: Some(hint), .. }) = probe(&path, 1) else {
            panic!("{architecture:?}")
        };
        assert!(reason.contains(named) && reason.contains("candle"), "{reason}");
        assert!(hint.contains("native"), "{hint}");
        let ask = |choice: BackendChoice| {
            let engine = Engine::start(config(choice)).unwrap();
            end(&submit(&engine, &path, 1, generate("Hi", 3)))
        };
        let (_, refused) = ask(BackendChoice::Candle);
        assert!(matches!(refused, Err(Error::UnsupportedModel { .. })), "{refused:?}");
        let (identity, answer) = ask(BackendChoice::Auto);
        assert!(answer.is_ok(), "{answer:?}");
        assert_eq!(identity.unwrap().backend, BackendKind::default());
    }
}

#[test]
fn likelihoods_on_candle_are_the_same_each_time_and_close_to_those_of_the_kernels() {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(Architecture::Qwen3, Quantization::uniform(Kind::F32)));
    let work = Work::Likelihoods(Likelihoods {
        prompt: "Is it so?".to_owned(),
        system: None,
        begin: String::new(),
        answers: ["yes", "yes it is", "no", "a"].map(str::to_owned).into(),
        repeated: false,
    });
    let ask = |choice: BackendChoice, threads: usize| {
        let engine = Engine::start(Config { threads, ..config(choice) }).unwrap();
        match end(&submit(&engine, &path, 1, work.clone())) {
            (Some(model), Ok(Output::LogProbabilities(values))) => (model.backend, values),
            other => panic!("{other:?}"),
        }
    };
    let (backend, candle) = ask(BackendChoice::Candle, 2);
    assert_eq!(backend, BackendKind::Candle);
    assert!(candle.len() == 4 && candle.iter().all(|value| *value < 0.0), "{candle:?}");
    assert_eq!(ask(BackendChoice::Candle, 1).1, candle);
    let (_, native) = ask(BackendChoice::Native, 2);
    assert_ne!(native, candle, "the same code computes both");
    for (native, candle) in native.iter().zip(&candle) {
        assert!((native - candle).abs() < 0.1, "{native} and {candle}");
    }
}

#[test]
fn candle_keeps_keys_and_values_in_its_own_way_whatever_the_setting_says() {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(Architecture::Qwen3, mixed()));
    let ask = |kv_cache_type| {
        let engine = Engine::start(Config { kv_cache_type, ..config(BackendChoice::Candle) }).unwrap();
        let (identity, output) = end(&submit(&engine, &path, 1, generate("some words", 12)));
        (identity.unwrap().backend, output.unwrap())
    };
    let [f16, q8_0] = KvCacheType::ALL.map(ask);
    assert_eq!(f16, q8_0);
    assert_eq!(f16.0, BackendKind::Candle);
}

fn config(backend: BackendChoice) -> Config {
    Config { threads: 2, nice: 0, backend, ..Config::default() }
}

fn generate(prompt: &str, max_tokens: usize) -> Work {
    Work::Generate(Generate { prompt: prompt.to_owned(), max_tokens, ..Generate::default() })
}

fn submit(engine: &Engine, path: &Path, key: u64, work: Work) -> Receiver<Event> {
    let (sender, events) = unbounded();
    let model = ModelSource::File(path.to_owned());
    engine.submit(Request { key, model, salt: 0, dedup_key: None, work }, Reply::new(sender));
    events
}

/// The model that answers, and the result.
fn end(events: &Receiver<Event>) -> (Option<ModelIdentity>, Result<Output, Error>) {
    let mut identity = None;
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Started { model, .. } => identity = Some(model),
            EventKind::Done(output) => return (identity, Ok(output)),
            EventKind::Failed(error) => return (identity, Err(error)),
            EventKind::Loading | EventKind::FirstToken { .. } | EventKind::Progress { .. } => {}
        }
    }
}

#[test]
fn whole_requests_run_on_candle_and_batch_mates_guesses_and_kept_prefixes_change_no_byte() {
    for architecture in
        [Architecture::Qwen3, Architecture::Lfm2, Architecture::Qwen35, Architecture::GraniteHybrid]
    {
        whole_requests(architecture);
    }
}

fn whole_requests(architecture: Architecture) {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(architecture, mixed()));
    let works: Vec<Work> = (0..6usize)
        .map(|i| match i % 3 {
            2 => Work::Embed(Embed::passage("some words of a text ".repeat(3 + i))),
            _ => generate(&"some words of a prompt ".repeat(4 + i * 5), 20 + i),
        })
        .collect();
    let run = |config: Config, repeats: usize| {
        let engine = Engine::start(config).unwrap();
        let mut outputs = Vec::new();
        for _ in 0..repeats {
            let events: Vec<_> =
                (0..).zip(&works).map(|(key, work)| submit(&engine, &path, key, work.clone())).collect();
            let ends = events.iter().map(|events| {
                let (identity, output) = end(events);
                assert_eq!(identity.unwrap().backend, BackendKind::Candle);
                output.unwrap()
            });
            outputs.push(ends.collect::<Vec<_>>());
        }
        (outputs, engine.statistics().reused_tokens)
    };
    let alone = Config {
        max_running: 1,
        prefix_reuse: false,
        prompt_lookup: PromptLookup::Off,
        ..config(BackendChoice::Candle)
    };
    let (expected, _) = run(alone, 1);
    let guessing = Config { prompt_lookup: PromptLookup::On, ..config(BackendChoice::Candle) };
    let (twice, reused) = run(guessing, 2);
    // Recurrent layers have copies of their state in some blocks only.
    let is_recurrent = architecture != Architecture::Qwen3;
    assert!(reused > 0 || is_recurrent, "the second time finds the blocks of the first");
    assert!(twice.iter().all(|outputs| *outputs == expected[0]));
    let [Output::Text { text, generated_tokens: 20, finish: Finish::Length, .. }, ..] = &expected[0][..]
    else {
        panic!("{:?}", expected[0][0])
    };
    assert!(!text.is_empty());
}

#[test]
fn a_request_on_candle_is_cancelled_between_tokens() {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(Architecture::Llama, mixed()));
    let engine = Engine::start(config(BackendChoice::Candle)).unwrap();
    let (sender, events) = unbounded();
    let work = generate("a prompt", 900);
    let request = Request { key: 1, model: ModelSource::File(path), salt: 0, dedup_key: None, work };
    let ticket = engine.submit(request, Reply::new(sender));
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Progress { generated_tokens, .. } => {
                ticket.cancel();
                assert!(generated_tokens < 900);
            }
            EventKind::Failed(Error::Cancelled) => break,
            EventKind::Done(_) | EventKind::Failed(_) => panic!("it went on to its end"),
            EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => {}
        }
    }
}

#[test]
fn auto_takes_candle_for_what_native_kernels_do_not_compute() {
    let directory = TempDir::new().unwrap();
    // The kernels want the rows of each expert in whole panels.
    let spec = Spec { feed_forward: 100, ..Spec::tiny(Architecture::Qwen3Moe) };
    let spec = Spec { quantization: Quantization::uniform(Kind::F32), endless: true, ..spec };
    let path = model(&directory, &spec);
    let ask = |choice: BackendChoice| {
        let engine = Engine::start(config(choice)).unwrap();
        end(&submit(&engine, &path, 1, generate("Hi", 5)))
    };
    let (_, refused) = ask(BackendChoice::Native);
    assert!(matches!(refused, Err(Error::UnsupportedModel { .. })), "{refused:?}");
    let (identity, answer) = ask(BackendChoice::Auto);
    assert_eq!(identity.unwrap().backend, BackendKind::Candle);
    assert_eq!(answer.unwrap(), ask(BackendChoice::Candle).1.unwrap());
    let usual = directory.path().join("usual.gguf");
    write(&Spec::tiny(Architecture::Qwen3), &usual).unwrap();
    let engine = Engine::start(config(BackendChoice::Auto)).unwrap();
    let (identity, _) = end(&submit(&engine, &usual, 1, generate("Hi", 5)));
    assert_eq!(identity.unwrap().backend, BackendKind::default());
}

#[test]
fn the_summary_of_what_only_candle_computes_has_the_memory_that_its_decoder_takes_for_sequences() {
    const REQUESTS: usize = 3;
    let directory = TempDir::new().unwrap();
    for architecture in [Architecture::Qwen3Moe, Architecture::GraniteHybridMoe] {
        // The kernels want the rows of each expert in whole panels.
        let spec = Spec { feed_forward: 100, vocab: 600, context: 2048, ..Spec::tiny(architecture) };
        let spec = Spec { quantization: Quantization::uniform(Kind::F32), ..spec };
        let path = model(&directory, &spec);
        let summary = |tokens: usize| {
            let load = Load { requests: REQUESTS, tokens, threads: 1, kv_cache_type: KvCacheType::F16 };
            ModelSummary::of(&ModelSource::File(path.clone()), load).unwrap().0
        };
        let (mut probe, mut kept) = (probe(&path, 1).unwrap(), Vec::new());
        for pass in tokens(1024).chunks(512) {
            probe.extend(pass).unwrap();
            let (now, most) = probe.state_bytes();
            let summary = summary(probe.len());
            assert!(summary.computed_by.starts_with("candle"), "{architecture:?}: {}", summary.computed_by);
            let memory = summary.memory.unwrap();
            assert!(most > 0, "{architecture:?}");
            assert_eq!(
                (memory.tokens, memory.state),
                (probe.len(), REQUESTS as u64 * most),
                "{architecture:?}"
            );
            kept.push(now);
        }
        // Eight blocks have as many copies of the state of other layers as any other eight.
        let of_each = (kept[1] - kept[0]).div_ceil(512);
        assert_eq!(summary(64).state_bytes_per_token, Some(of_each), "{architecture:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn candle_starts_no_threads_but_those_of_its_barrier() {
    crate::alone("candle::candle_starts_no_threads_but_those_of_its_barrier", || {
        let directory = TempDir::new().unwrap();
        let spec = Spec { head_dim: 256, ..Spec::wide(Architecture::Llama, mixed()) };
        let path = model(&directory, &spec);
        let engine = Engine::start(config(BackendChoice::Candle)).unwrap();
        end(&submit(&engine, &path, 1, generate(&"a prompt ".repeat(100), 3))).1.unwrap();
        let verified = end(&submit(&engine, &path, 2, Work::Verify(Verify { text: None, positions: 40 }))).1;
        assert!(matches!(verified, Ok(Output::Verification(_))), "{verified:?}");
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let known = |name: &String| name.starts_with("st-") || name.starts_with("candle-bp-");
        let strangers: Vec<String> = names.filter(|name| !known(name)).collect();
        // The threads of the harness and of the test.
        assert!(strangers.len() <= 2, "{strangers:?}");
    });
}

fn verified(path: &Path, positions: usize) -> Verification {
    verify(&ModelSource::File(path.to_owned()), &Verify { text: None, positions }, 2).unwrap()
}

#[test]
fn sound_models_are_verified_in_every_quantization_and_family() {
    let kinds = [
        Kind::F32,
        Kind::F16,
        Kind::BF16,
        Kind::Q8_0,
        Kind::Q4_0,
        Kind::Q4_1,
        Kind::Q5_0,
        Kind::Q5_1,
        Kind::Q2K,
        Kind::Q3K,
        Kind::Q4K,
        Kind::Q5K,
        Kind::Q6K,
        Kind::IQ4NL,
        Kind::IQ4XS,
        Kind::MXFP4,
        Kind::TQ1_0,
        Kind::TQ2_0,
    ];
    let models = kinds.into_iter().map(|kind| (Architecture::Llama, Quantization::uniform(kind)));
    let families = families().map(|architecture| (architecture, Quantization::uniform(Kind::F32)));
    for (architecture, quantization) in models.chain(families) {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec { experts: [5, 5], ..Spec::wide(architecture, quantization) });
        let verified = verified(&path, 48);
        let worst = verified.rows.iter().map(|row| row.rms).fold(0.0, f32::max);
        assert_eq!(verified.rows.len(), 48);
        assert!(verified.passed(), "{architecture:?} {quantization:?}: {worst} of {}", verified.bound);
        assert!(worst > verified.bound / 1000.0, "{architecture:?}: the same code computes both: {worst}");
    }
}

#[test]
fn verification_fails_where_stored_panels_are_no_longer_those_of_the_model() {
    for kind in [Kind::F32, Kind::Q8_0, Kind::Q4K] {
        let directory = TempDir::new().unwrap();
        let path = model(&directory, &Spec::wide(Architecture::Qwen3, Quantization::uniform(kind)));
        assert!(verified(&path, 16).passed(), "{kind:?}");
        let panels = directory.path().join("model.gguf.panels");
        let mode = |mode| std::fs::set_permissions(&panels, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        let file = std::fs::File::options().read(true).write(true).open(&panels).unwrap();
        let (start, length) = (file.metadata().unwrap().len() / 2, 32 << 10);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start).unwrap();
        bytes.reverse();
        file.write_all_at(&bytes, start).unwrap();
        mode(0o400);
        let spoiled = verified(&path, 16);
        assert!(!spoiled.passed(), "{kind:?}: {:?}", spoiled.rows);
        std::fs::remove_file(&panels).unwrap();
        assert!(verified(&path, 16).passed(), "{kind:?}: made anew");
    }
}

#[test]
fn verification_through_an_engine_says_which_file_it_was_and_can_be_cancelled() {
    let directory = TempDir::new().unwrap();
    let path = model(&directory, &Spec::wide(Architecture::Gemma3, mixed()));
    let engine = Engine::start(config(BackendChoice::Auto)).unwrap();
    let what = |positions| Work::Verify(Verify { text: Some("some words".repeat(200)), positions });
    let (identity, output) = end(&submit(&engine, &path, 1, what(20)));
    let Ok(Output::Verification(verified)) = output else { panic!("{output:?}") };
    assert!(verified.passed() && verified.rows.len() == 20);
    assert_eq!(identity.unwrap().hash, verified.hash);
    let (_, refused) = end(&submit(&engine, &path, 2, what(MAX_POSITIONS + 1)));
    assert!(matches!(refused, Err(Error::InvalidRequest(_))), "{refused:?}");

    // Two at a time are too many; the first is cancelled as soon as it has begun.
    let (sender, events) = unbounded();
    let model = ModelSource::File(path.clone());
    let request = Request { key: 3, model, salt: 0, dedup_key: None, work: what(MAX_POSITIONS) };
    let ticket = engine.submit(request, Reply::new(sender));
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap().kind, EventKind::Loading));
    let (_, second) = end(&submit(&engine, &path, 4, what(1)));
    assert!(matches!(second, Err(Error::QueueFull { .. })), "{second:?}");
    ticket.cancel();
    assert!(matches!(end(&events).1, Err(Error::Cancelled)));
    // If there is no room for a second form of the model, the error comes before the memory is taken.
    let little = Config { memory_limit_mb: 1, ..config(BackendChoice::Auto) };
    let engine = Engine::start(little).unwrap();
    let (_, refused) = end(&submit(&engine, &path, 5, what(4)));
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
}
