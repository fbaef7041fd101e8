//! Replays of a mixed set of requests in all circumstances that must not matter: batch mates, order of
//! arrival, slices of prompts, reuse of prefixes, guesses, memory, threads, instruction sets, restarts,
//! priorities and pauses, which suspend requests.
//!
//! Some dozens of replays by default; `make bench-determinism` sets REPLAYS=1000 and reads the lines
//! `name<TAB>value` that are printed. A replay follows from its number, so a failure can be repeated:
//! FIRST_REPLAY=n, a multiple of 3, begins with that one.
#![allow(clippy::print_stdout, reason = "the benchmark reads the counts")]

use crossbeam_channel::{Receiver, Sender, unbounded};
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Error, Event, EventKind, Generate, Instructions, KvCacheType,
    Likelihoods, ModelSource, Output, Penalties, PromptLookup, Reply, Request, Rerank, Sampling, Standing,
    Statistics, Ticket, Work,
};
use steadytext_test_models::{Architecture, Bert, Kind, Pooling, Quantization, Rerank as Form, Spec, write};
use tempfile::TempDir;

use crate::PATIENCE;

/// Number of replays by default.
const FEW: u64 = 24;
/// Bytes of a long text.
const LONG: usize = 300;
/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            things.swap(i, self.below(i + 1));
        }
    }
}

/// The builtin model and some with random weights, two of them with layers other than attention, in all the
/// formats that are reproducible everywhere.
fn models(directory: &TempDir) -> Vec<ModelSource> {
    let mixed = Quantization {
        embedding: Kind::Q6K,
        attention: Kind::Q8_0,
        value: Kind::F16,
        feed_forward: Kind::Q4K,
        down: Kind::Q6K,
        output: Kind::Q4_0,
        in_some_layers: false,
    };
    let spec = |architecture, quantization, pooling| Spec {
        pooling: Some(pooling),
        ..Spec::wide(architecture, quantization)
    };
    let specs = [
        Spec { rerank: Some(Form::YesNo), ..spec(Architecture::Qwen3, mixed, Pooling::Rank) },
        spec(Architecture::Llama, Quantization::q4_k_m(), Pooling::Mean),
        spec(Architecture::Gemma3, mixed, Pooling::Last),
        spec(Architecture::Lfm2, Quantization::q4_k_m(), Pooling::Mean),
        spec(Architecture::Qwen35, mixed, Pooling::Last),
        spec(Architecture::GraniteHybrid, mixed, Pooling::Mean),
        // Experts, and windows with sinks.
        spec(Architecture::GptOss, Quantization::mxfp4(), Pooling::Last),
    ];
    let files = specs.iter().enumerate().map(|(i, spec)| {
        let path = directory.path().join(format!("{i}.gguf"));
        write(spec, &path).unwrap();
        ModelSource::File(path)
    });
    std::iter::once(ModelSource::Builtin).chain(files).collect()
}

/// The requests to each model: short and long, greedy and sampled, common beginnings, repetitions.
fn work(model: &ModelSource) -> Vec<(ModelSource, Work)> {
    let text = |seed: usize, words: usize| -> String {
        (0..words).map(|i| format!("{} ", (seed * 7919 + i * i * 31) % 1000)).collect()
    };
    let hot = |seed| Sampling {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        min_p: 0.01,
        seed,
        ..Sampling::default()
    };
    let penalised = |how| Sampling {
        penalties: Penalties { repeat: 1.2, presence: 0.1, frequency: 0.05 },
        logit_bias: vec![(40, 1.5)],
        ..how
    };
    let warm = |seed| Sampling { temperature: 0.4, seed, ..Sampling::default() };
    let generate = |prompt: String, max_tokens, sampling, stop: &[&str]| {
        let stop = stop.iter().map(ToString::to_string).collect();
        Work::Generate(Generate { prompt, max_tokens, sampling, stop, ..Generate::default() })
    };
    let rerank = |query: &str, document: &str| {
        let task = "find what answers the query".to_owned();
        Work::Rerank(Rerank {
            query: query.to_owned(),
            document: document.to_owned(),
            task,
            ..Rerank::default()
        })
    };
    let likelihoods = |prompt: String, begin: &str, answers: &[&str]| {
        let (begin, answers) = (begin.to_owned(), answers.iter().map(ToString::to_string).collect());
        Work::Likelihoods(Likelihoods { prompt, begin, answers, repeated: true, ..Likelihoods::default() })
    };
    let constrained = |prompt: &str, sampling, constraint| {
        let (prompt, constraint) = (prompt.to_owned(), Some(constraint));
        Work::Generate(Generate {
            prompt,
            max_tokens: 80,
            sampling,
            stop: Vec::new(),
            constraint,
            ..Generate::default()
        })
    };
    let schema = r#"{"type": "object", "properties": {"kind": {"enum": ["a table", "an index"]}, "rows": {"type": "integer", "minimum": 0, "maximum": 9999}},
        "required": ["kind", "rows"], "additionalProperties": false}"#;
    let common = text(1, 60);
    let work = [
        generate("What does VACUUM do?".to_owned(), 60, Sampling::default(), &[]),
        generate("What does VACUUM do?".to_owned(), 40, hot(3), &[]),
        generate(format!("{common} one"), 12, Sampling::default(), &[]),
        generate(format!("{common} two {}", text(2, 10)), 12, hot(4), &["e"]),
        generate(common.clone(), 8, warm(5), &[]),
        generate("again and again and again and".repeat(4), 70, Sampling::default(), &["never there"]),
        generate("a b c a b c a b c a b".to_owned(), 50, warm(9), &[]),
        generate("a b c a b c a b c a b".to_owned(), 50, penalised(hot(8)), &[]),
        generate("again and again and again and".repeat(4), 50, penalised(Sampling::default()), &[]),
        generate(text(3, 200), 3, Sampling::default(), &[]),
        constrained(
            "Is it one?",
            Sampling::default(),
            Constraint::Choice(vec!["yes".to_owned(), "yes it is".to_owned(), "no".to_owned()]),
        ),
        constrained(&common, hot(6), Constraint::Regex("[a-z]{5,9}( [a-z]{1,6}){3}".to_owned())),
        constrained("a b c a b c a b", warm(2), Constraint::Json(schema.to_owned())),
        Work::Embed(Embed::passage("a short text")),
        Work::Embed(Embed::passage(format!("{common} as a text"))),
        Work::Embed(Embed::passage(text(4, 120))),
        likelihoods("which one?".to_owned(), "", &["yes", "yes it is", "no"]),
        likelihoods(format!("{common} which"), "It is", &["this", "that one", "that other one", "ö"]),
        likelihoods(text(5, 90), "", &["one", "two", "one and two", "one and three"]),
        rerank("which one?", "this one"),
        rerank(&common, &text(6, 40)),
        rerank(&common, "another one"),
    ];
    work.into_iter().map(|work| (model.clone(), work)).collect()
}

/// An encoder, with its requests.
fn encoder(directory: &TempDir) -> Vec<(ModelSource, Work)> {
    let path = directory.path().join("encoder");
    Bert { kind: Kind::F16, labels: 1, ..Bert::default() }.write_folder(&path).unwrap();
    let text = |seed: usize, words: usize| {
        (0..words).map(|i| format!("w{} ", (seed + i * i) % 90)).collect::<String>()
    };
    let rerank = |seed, words| {
        Work::Rerank(Rerank {
            query: "which one".to_owned(),
            document: text(seed, words),
            ..Rerank::default()
        })
    };
    let work = [
        Work::Embed(Embed::passage("a short text")),
        Work::Embed(Embed::passage(text(1, 70))),
        Work::Embed(Embed::query(text(2, 20), None)),
        rerank(3, 5),
        rerank(4, 60),
    ];
    work.into_iter().map(|work| (ModelSource::File(path.clone()), work)).collect()
}

fn submit(
    engine: &Engine,
    key: usize,
    (model, work): &(ModelSource, Work),
    (salt, standing): (u64, Standing),
    to: &Sender<Event>,
) -> Ticket {
    let request =
        Request { key: key as u64, model: model.clone(), salt, dedup_key: None, work: work.clone() };
    let ticket = Ticket::new();
    engine.submit_as(request, standing, Reply::new(to.clone()), ticket.clone());
    ticket
}

/// A random user and priority.
fn any_standing(random: &mut Random) -> Standing {
    Standing { owner: random.below(3) as u32, priority: 1 + random.below(10) as u8, paced: false }
}

/// The last event of the next request that ends.
fn last(events: &Receiver<Event>) -> (usize, Result<Output, Error>) {
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(output) => return (event.key as usize, Ok(output)),
            EventKind::Failed(error) => return (event.key as usize, Err(error)),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

/// Each request by itself, without anything that could save work.
fn alone(set: &[(ModelSource, Work)], kv_cache_type: KvCacheType) -> Vec<Output> {
    let config = Config {
        kv_cache_type,
        threads: 1,
        max_running: 1,
        prefix_reuse: false,
        prompt_lookup: PromptLookup::Off,
        ..Config::default()
    };
    let engine = Engine::start(config).unwrap();
    set.iter()
        .map(|request| {
            let (sender, events) = unbounded();
            submit(&engine, 0, request, (0, Standing::default()), &sender);
            last(&events).1.unwrap()
        })
        .collect()
}

fn any_config(random: &mut Random, kv_cache_type: KvCacheType) -> Config {
    let sizes = [1, 2, 5, 8, 17, 31, 63, 64, 65, 100, 128, 200, 256];
    Config {
        threads: 1 + random.below(4),
        max_running: random.of(&[1, 2, 3, 5, 8, 16]),
        kv_cache_mb: random.of(&[4, 8, 1024]),
        kv_cache_type,
        prefix_reuse: random.below(4) > 0,
        prompt_lookup: random.of(&[PromptLookup::On, PromptLookup::Auto, PromptLookup::Off]),
        prefill_rows: (0..random.below(4)).map(|_| random.of(&sizes)).collect(),
        ..Config::default()
    }
}

/// Runs some of the set, in random order, among requests that are cancelled; if `slowly`, only a few that are
/// not long. Returns how many were run, and which of them gave another result.
fn replay(
    engine: &Engine,
    set: &[(ModelSource, Work)],
    expected: &[Output],
    random: &mut Random,
    slowly: bool,
) -> (usize, Vec<usize>) {
    let (mut order, most) = if slowly {
        ((0..set.len()).filter(|key| set[*key].1.text_bytes() < LONG).collect(), 3)
    } else {
        ((0..set.len()).collect::<Vec<_>>(), set.len())
    };
    random.shuffle(&mut order);
    order.truncate(1 + random.below(most));
    let (sender, events) = unbounded();
    let (mut tickets, mut differing, mut pending) = (Vec::new(), Vec::new(), 0);
    let mut held: Vec<Ticket> = Vec::new();
    let release = |held: &mut Vec<Ticket>| {
        held.drain(..).for_each(|ticket| ticket.hold(false));
        engine.wake();
    };
    let mut settle = |(key, result): (usize, Result<Output, Error>)| match result {
        Ok(output) if key < set.len() && output != expected[key] => differing.push(key),
        Err(Error::Cancelled) if key >= set.len() => {}
        Err(error) => panic!("request {key}: {error}"),
        Ok(_) => {}
    };
    for key in &order {
        let (salt, standing) = (random.next() % 2, any_standing(random));
        let ticket = submit(engine, *key, &set[*key], (salt, standing), &sender);
        pending += 1;
        // Some requests pause at once or later, and go on before the test waits for any.
        if random.below(4) == 0 {
            held.push(ticket);
        }
        if random.below(2) == 0 {
            held.iter().for_each(|ticket| ticket.hold(true));
        }
        if random.below(6) == 0 {
            let mate = random.of(set);
            tickets.push(submit(engine, set.len(), &mate, (0, any_standing(random)), &sender));
            pending += 1;
        }
        if random.below(3) == 0 {
            release(&mut held);
            settle(last(&events));
            pending -= 1;
            tickets.pop().iter().for_each(|ticket| ticket.cancel());
        }
    }
    release(&mut held);
    tickets.iter().for_each(|ticket| ticket.cancel());
    (0..pending).for_each(|_| settle(last(&events)));
    (order.len(), differing)
}

#[test]
fn replays_change_no_byte() {
    let number =
        |name: &str, otherwise: u64| std::env::var(name).map_or(otherwise, |number| number.parse().unwrap());
    let (first, replays) = (number("FIRST_REPLAY", 0), number("REPLAYS", FEW));
    let directory = TempDir::new().unwrap();
    let set: Vec<_> = models(&directory).iter().flat_map(work).chain(encoder(&directory)).collect();
    let expected = KvCacheType::ALL.map(|kind| alone(&set, kind));
    assert!(expected[0] != expected[1], "how keys and values are kept makes a difference");
    let mut session: Option<(Engine, String)> = None;
    let mut total = Statistics::default();
    let (mut requests, mut differing, mut slowly, mut kind) = (0, 0, false, 0);
    for number in first..first + replays {
        let mut random = Random(number);
        // A third of the replays begin with a restart; the others reuse the state that those before them have
        // left.
        if number % 3 == 0 || session.is_none() {
            add(&mut total, session.take());
            // Without vectors, and on x86 without fused multiply-add, a token takes a hundred times as long.
            slowly = number % 24 == 21;
            let instructions = match slowly {
                true => Instructions::Portable,
                false => random.of(&[Instructions::Avx2, Instructions::Avx512]),
            };
            // One restart in three is with 8 bits.
            kind = usize::from(number % 9 == 3);
            let config = Config { instructions, ..any_config(&mut random, KvCacheType::ALL[kind]) };
            session = Some((Engine::start(config.clone()).unwrap(), format!("{config:?}")));
        }
        let (engine, config) = session.as_ref().unwrap();
        let (count, other) = replay(engine, &set, &expected[kind], &mut random, slowly);
        requests += count;
        differing += other.len();
        if !other.is_empty() {
            println!("\nreplay {number}: requests {other:?} differ, {config}");
        }
    }
    add(&mut total, session.take());
    println!("\nreplays\t{replays}\nrequests\t{requests}\nreused tokens\t{}", total.reused_tokens);
    println!(
        "right guesses\t{}\nwrong guesses\t{}",
        total.right_guesses,
        total.guessed_tokens - total.right_guesses
    );
    println!("suspended\t{}\nforgotten tokens\t{}", total.suspended_requests, total.forgotten_tokens);
    println!("differing\t{differing}");
    assert_eq!(differing, 0);
    assert!(total.reused_tokens > 64 * replays && total.right_guesses > replays, "{total:?}");
    assert!(total.guessed_tokens > total.right_guesses + replays, "{total:?}");
    // Whether keys and values are forgotten depends on time, so the tests of turns cover it.
    assert!(total.suspended_requests > replays, "{total:?}");
}

fn add(total: &mut Statistics, session: Option<(Engine, String)>) {
    let Some((engine, _)) = session else { return };
    let more = engine.statistics();
    total.computed_tokens += more.computed_tokens;
    total.reused_tokens += more.reused_tokens;
    total.guessed_tokens += more.guessed_tokens;
    total.right_guesses += more.right_guesses;
    total.suspended_requests += more.suspended_requests;
    total.forgotten_tokens += more.forgotten_tokens;
}
