//! Reused keys and values, and guessed tokens: the work that they save, and that no byte changes.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Embed, Engine, Event, EventKind, Generate, ModelSource, Output, PromptLookup, Reply, Request,
    Sampling, Work,
};
use steadytext_test_models::{Architecture, Pooling, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

struct World {
    engine: Engine,
    model: ModelSource,
    _directory: TempDir,
}

impl World {
    fn new(config: Config, spec: &Spec) -> World {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        write(spec, &path).unwrap();
        let engine = Engine::start(Config { threads: 2, nice: 0, ..config }).unwrap();
        World { engine, model: ModelSource::File(path), _directory: directory }
    }

    fn submit(&self, salt: u64, work: Work) -> Receiver<Event> {
        let (sender, events) = unbounded();
        self.engine.submit(
            Request { key: 0, model: self.model.clone(), salt, dedup_key: None, work },
            Reply::new(sender),
        );
        events
    }

    fn run(&self, salt: u64, work: Work) -> Output {
        finish(&self.submit(salt, work)).1
    }

    /// The tokens that `something` has reused and computed.
    fn counting<T>(&self, something: impl FnOnce() -> T) -> (u64, u64, T) {
        let before = self.engine.statistics();
        let result = something();
        let after = self.engine.statistics();
        let reused = after.reused_tokens - before.reused_tokens;
        (reused, after.computed_tokens - before.computed_tokens, result)
    }
}

/// Length of the prompt and the result.
fn finish(events: &Receiver<Event>) -> (u64, Output) {
    let mut length = 0;
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => return (length, output),
            EventKind::Failed(error) => panic!("{error}"),
            EventKind::Started { prompt_tokens, .. } => length = prompt_tokens as u64,
            EventKind::Loading | EventKind::FirstToken { .. } | EventKind::Progress { .. } => {}
        }
    }
}

fn spec() -> Spec {
    Spec { endless: true, context: 8192, ..Spec::tiny(Architecture::Qwen3) }
}

/// About four tokens a word, different from the first one on for each seed.
fn words(seed: u64, count: u64) -> String {
    (0..count).map(|i| format!("{} ", (seed + 1) * 7919 + i * i * 31)).collect()
}

fn generate(prompt: &str, max_tokens: usize) -> Work {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens,
        sampling,
        stop: Vec::new(),
        ..Generate::default()
    })
}

fn greedy(prompt: &str, max_tokens: usize) -> Work {
    let sampling = Sampling::default();
    Work::Generate(Generate {
        prompt: prompt.to_owned(),
        max_tokens,
        sampling,
        stop: Vec::new(),
        ..Generate::default()
    })
}

fn never() -> Config {
    Config { prefix_reuse: false, prompt_lookup: PromptLookup::Off, ..Config::default() }
}

#[test]
fn a_prompt_that_was_computed_is_not_computed_again() {
    let world = World::new(Config { prompt_lookup: PromptLookup::Off, ..Config::default() }, &spec());
    let prompt = words(0, 200);
    let (reused, computed, (length, first)) =
        world.counting(|| finish(&world.submit(0, generate(&prompt, 20))));
    assert!(length > 500);
    assert_eq!((reused, computed), (0, length + 19));
    let kept = (length - 1) / 64 * 64;
    let (reused, computed, second) = world.counting(|| world.run(0, generate(&prompt, 20)));
    assert_eq!((reused, computed), (kept, length + 19 - kept));
    assert_eq!(second, first);
    // Only the common beginning is reused, which ends inside a block.
    let longer = format!("{prompt} and more");
    let (reused, _, other) = world.counting(|| world.run(0, generate(&longer, 20)));
    assert!(reused > 400 && reused % 64 == 0, "{reused} of {length}");
    assert_eq!(World::new(never(), &spec()).run(0, generate(&longer, 20)), other);
    let (reused, ..) = world.counting(|| world.run(0, generate(&words(1, 200), 20)));
    assert!(reused < 64 + 1, "{reused}: nothing but the template is the same");
}

#[test]
fn another_salt_or_the_switch_reuses_nothing() {
    let world = World::new(Config::default(), &spec());
    let prompt = words(0, 200);
    let first = world.run(1, generate(&prompt, 5));
    let (reused, _, second) = world.counting(|| world.run(2, generate(&prompt, 5)));
    assert_eq!((reused, second), (0, first.clone()));
    let world = World::new(never(), &spec());
    world.run(1, generate(&prompt, 5));
    let (reused, _, second) = world.counting(|| world.run(1, generate(&prompt, 5)));
    assert_eq!((reused, second), (0, first));
}

#[test]
fn requests_that_come_together_compute_their_common_beginning_once() {
    let world = World::new(Config { prompt_lookup: PromptLookup::Off, ..Config::default() }, &spec());
    world.run(0, generate("load the model", 1));
    let common = words(0, 300);
    let prompts: Vec<String> = (0..8).map(|i| format!("{common}{}", words(i, 3))).collect();
    let (reused, computed, (length, outputs)) = world.counting(|| {
        let events: Vec<_> = prompts.iter().map(|prompt| world.submit(0, generate(prompt, 5))).collect();
        let ends: Vec<_> = events.iter().map(finish).collect();
        (ends[0].0, ends.into_iter().map(|(_, output)| output).collect::<Vec<_>>())
    });
    assert!(length > 800);
    assert!(computed < 2 * length, "{computed} computed, {reused} reused for prompts of {length}");
    let world = World::new(never(), &spec());
    for (prompt, output) in prompts.iter().zip(outputs) {
        assert_eq!(world.run(0, generate(prompt, 5)), output);
    }
}

#[test]
fn only_embeddings_pooled_from_the_last_token_reuse_anything() {
    for (pooling, reuses) in [(Pooling::Mean, false), (Pooling::Cls, false), (Pooling::Last, true)] {
        let world = World::new(Config::default(), &Spec { pooling: Some(pooling), ..spec() });
        let text = words(0, 100);
        let first = world.run(0, Work::Embed(Embed::passage(text.clone())));
        world.run(0, generate(&text, 1));
        let (reused, _, second) = world.counting(|| world.run(0, Work::Embed(Embed::passage(text))));
        assert_eq!(reused > 64, reuses, "{pooling:?}: {reused}");
        assert_eq!(first, second, "{pooling:?}");
    }
}

#[test]
fn kept_blocks_make_room_for_requests() {
    // One MB holds some thousand positions of this model.
    let config = || Config { kv_cache_mb: 1, max_running: 4, ..Config::default() };
    let world = World::new(config(), &spec());
    let requests: Vec<_> = (0..40).map(|i| world.submit(0, generate(&words(i % 7, 150), 20))).collect();
    let outputs: Vec<_> = requests.iter().map(|events| finish(events).1).collect();
    let other = World::new(never(), &spec());
    for (i, output) in (0..).zip(outputs) {
        assert_eq!(other.run(0, generate(&words(i % 7, 150), 20)), output);
    }
    // A request that needs nearly all memory, while blocks are kept.
    let Output::Text { generated_tokens, .. } = world.run(0, generate("long", 1200)) else { panic!() };
    assert_eq!(generated_tokens, 1200);
}

#[test]
fn an_unloaded_model_takes_its_blocks_along() {
    let timeout = Some(Duration::from_millis(50));
    let world = World::new(Config { model_idle_timeout: timeout, ..Config::default() }, &spec());
    let prompt = words(0, 100);
    let first = world.run(0, generate(&prompt, 5));
    let deadline = Instant::now() + PATIENCE;
    while !world.engine.loaded_models().is_empty() {
        assert!(Instant::now() < deadline, "an idle model stays");
        std::thread::yield_now();
    }
    let (reused, _, second) = world.counting(|| world.run(0, generate(&prompt, 5)));
    assert_eq!((reused, second), (0, first));
}

#[test]
fn guesses_save_passes_and_change_nothing() {
    // Greedy answers of such a model soon repeat themselves.
    let config = |prompt_lookup| Config { prompt_lookup, prefix_reuse: false, ..Config::default() };
    let off = World::new(config(PromptLookup::Off), &spec());
    let prompt = words(0, 20);
    for lookup in [PromptLookup::On, PromptLookup::Auto] {
        let world = World::new(config(lookup), &spec());
        for max_tokens in [1, 2, 3, 64, 300] {
            assert_eq!(
                world.run(0, greedy(&prompt, max_tokens)),
                off.run(0, greedy(&prompt, max_tokens)),
                "{lookup:?}, {max_tokens} tokens"
            );
        }
        let statistics = world.engine.statistics();
        assert!(statistics.right_guesses > 100, "{lookup:?}: {statistics:?}");
        assert!(statistics.right_guesses <= statistics.guessed_tokens);
    }
    assert_eq!(off.engine.statistics().guessed_tokens, 0);
}

#[test]
fn recurrent_layers_reuse_whole_blocks_and_take_guesses_back() {
    // Large matrices beside few keys and values: one block in four has a copy of them.
    let large = Spec { heads: 16, kv_heads: 1, head_dim: 64, ..spec() };
    for (architecture, spec, unit) in [
        (Architecture::Lfm2, spec(), 64),
        (Architecture::Qwen35, spec(), 64),
        (Architecture::Qwen35, large, 256),
        (Architecture::GraniteHybrid, spec(), 64),
    ] {
        let spec = Spec { architecture, ..spec };
        let off = World::new(never(), &spec);
        let world = World::new(Config { prompt_lookup: PromptLookup::Off, ..Config::default() }, &spec);
        let prompt = words(0, 200);
        let first = world.run(0, generate(&prompt, 20));
        assert_eq!(first, off.run(0, generate(&prompt, 20)), "{architecture:?}");
        let longer = format!("{prompt} and more");
        let (reused, _, other) = world.counting(|| world.run(0, generate(&longer, 20)));
        assert!(reused > 400 && reused % unit == 0, "{architecture:?}: {reused}");
        assert_eq!(other, off.run(0, generate(&longer, 20)), "{architecture:?}");
        let prompt = words(0, 20);
        for lookup in [PromptLookup::On, PromptLookup::Auto] {
            let config = Config { prompt_lookup: lookup, prefix_reuse: false, ..Config::default() };
            let world = World::new(config, &spec);
            for (seed, max_tokens) in [(0, 1), (0, 3), (0, 300), (1, 200)] {
                let work =
                    || if seed == 0 { greedy(&prompt, max_tokens) } else { generate(&prompt, max_tokens) };
                let (_, computed, output) = world.counting(|| world.run(0, work()));
                assert_eq!(output, off.run(0, work()), "{architecture:?}, {lookup:?}, {max_tokens} tokens");
                // A wrong guess is taken back, and no token before it.
                assert!(computed < 4000, "{architecture:?}, {lookup:?}: {computed} rows");
            }
            let statistics = world.engine.statistics();
            assert!(statistics.guessed_tokens > 50, "{architecture:?}, {lookup:?}: {statistics:?}");
            assert!(statistics.right_guesses < statistics.guessed_tokens, "{architecture:?}, {lookup:?}");
        }
    }
}

#[test]
fn a_stop_string_inside_right_guesses_ends_as_without_them() {
    let on = World::new(Config { prompt_lookup: PromptLookup::On, ..Config::default() }, &spec());
    let off = World::new(never(), &spec());
    let prompt = words(0, 20);
    let Output::Text { text: whole, .. } = off.run(0, greedy(&prompt, 200)) else { panic!() };
    for start in (0..whole.len() - 12).step_by(41) {
        for length in [1, 5, 12] {
            let stop = vec![whole[start..start + length].to_owned()];
            let how = Generate {
                prompt: prompt.clone(),
                max_tokens: 200,
                sampling: Sampling::default(),
                stop,
                ..Generate::default()
            };
            assert_eq!(
                on.run(0, Work::Generate(how.clone())),
                off.run(0, Work::Generate(how)),
                "stop at {start}"
            );
        }
    }
    assert!(on.engine.statistics().right_guesses > 0);
}
