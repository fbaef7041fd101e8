//! The engine under measurement, driven as the worker drives it.

use std::path::Path;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Event, EventKind, Generate, KvCacheType, ModelSource, PromptLookup,
    Reply, Request, Sampling, Ticket, Work,
};

use crate::prompts::Prompts;
use crate::settings::Settings;

/// Tokens of the first prompt, which loads the model.
const WARM_UP_TOKENS: usize = 32;
/// Tokens of a prompt at least, beside those of the template.
const LEAST_TEXT: usize = 16;

/// An engine with a model.
pub(crate) struct Ours {
    engine: Engine,
    source: ModelSource,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompts: Prompts,
    context_length: usize,
    /// The length of prompts that was told last, where it is not what was asked for.
    noted: usize,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Ours {
    /// Starts an engine and makes it load the model, which [`super::files`] has looked at.
    pub(crate) fn open(path: &Path, settings: &Settings) -> Ours {
        let gguf = Gguf::open(path).expect("the model can be opened");
        let (sender, events) = unbounded();
        let mut ours = Ours {
            engine: start(settings),
            source: ModelSource::File(path.into()),
            tokenizer: Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer"),
            template: ChatTemplate::from_gguf(&gguf).expect("the model has a template"),
            prompts: Prompts::new(),
            context_length: context_length(path, settings),
            noted: WARM_UP_TOKENS,
            sender,
            events,
        };
        ours.prefill(WARM_UP_TOKENS);
        ours
    }

    fn submit(&self, key: u64, work: Work) -> Ticket {
        let request = Request { salt: 0, dedup_key: None, key, model: self.source.clone(), work };
        self.engine.submit(request, Reply::new(self.sender.clone()))
    }

    /// A chat of so many tokens, template included; of more where the template alone has almost as many, and
    /// of fewer where the context does not leave room for an answer as long. And how many they are.
    fn prompt(&mut self, tokens: usize) -> (String, usize) {
        let Ours { prompts, template, tokenizer, context_length, .. } = self;
        let count =
            |text: &str| template.encode_prompt(tokenizer, text).expect("the prompt can be encoded").len();
        let length = tokens.max(count("") + LEAST_TEXT).min(*context_length / 2);
        if length != tokens && length != self.noted {
            eprintln!("bench-engine: prompts have {length} tokens in the place of {tokens}");
            self.noted = length;
        }
        (prompts.text(length, count), length)
    }

    /// Tokens a second of one prefill, from its beginning to the first token.
    pub(crate) fn prefill(&mut self, tokens: usize) -> f64 {
        let (prompt, tokens) = self.prompt(tokens);
        self.submit(0, generate(prompt, 1));
        let mut begin = Instant::now();
        loop {
            match next(&self.events).kind {
                EventKind::Started { prompt_tokens, .. } => {
                    assert_eq!(prompt_tokens, tokens, "the prompt has another length than asked for");
                    begin = Instant::now();
                }
                EventKind::Done(_) => return tokens as f64 / begin.elapsed().as_secs_f64(),
                _ => {}
            }
        }
    }

    /// Tokens a second of so many requests together, once all of them generate, over `steps` tokens of each.
    pub(crate) fn decode(
        &mut self,
        requests: usize,
        prompt_tokens: usize,
        steps: usize,
        constraint: Option<&Constraint>,
    ) -> f64 {
        let prompts: Vec<String> = (0..requests).map(|_| self.prompt(prompt_tokens).0).collect();
        // The first ones to generate do so while the prompts of others are computed.
        let tickets: Vec<Ticket> = (0..)
            .zip(prompts)
            .map(|(key, prompt)| {
                // More than are timed, but for models of short contexts.
                let (max_tokens, constraint) = (8 * steps, constraint.cloned());
                let how = Generate {
                    prompt,
                    max_tokens,
                    sampling: Sampling::default(),
                    stop: Vec::new(),
                    constraint,
                    ..Generate::default()
                };
                self.submit(key, Work::Generate(how))
            })
            .collect();
        let mut generated = vec![0; requests];
        let mut begin = None;
        let rate = loop {
            let event = next(&self.events);
            match event.kind {
                EventKind::Progress { generated_tokens, .. } => {
                    generated[event.key as usize] = generated_tokens
                }
                EventKind::Done(_) => panic!("an answer ended before the time did: the context is too short"),
                _ => continue,
            }
            let sum: usize = generated.iter().sum();
            match begin {
                None if !generated.contains(&0) => begin = Some((Instant::now(), sum)),
                Some((begin, before)) if sum - before >= requests * steps => {
                    break (sum - before) as f64 / Instant::now().duration_since(begin).as_secs_f64();
                }
                None | Some(_) => {}
            }
        };
        tickets.iter().for_each(Ticket::cancel);
        let mut ended = 0;
        while ended < requests {
            let event = self.events.recv().expect("the engine lives");
            ended += usize::from(matches!(event.kind, EventKind::Done(_) | EventKind::Failed(_)));
        }
        rate
    }

    /// Texts a second, all of them submitted at once.
    pub(crate) fn embed(&mut self, texts: usize, tokens: usize) -> f64 {
        let Ours { prompts, tokenizer, .. } = self;
        let count = |text: &str| tokenizer.encode_embedding(text).expect("the text can be encoded").len();
        let texts: Vec<String> = (0..texts).map(|_| prompts.text(tokens, count)).collect();
        let begin = Instant::now();
        let count = texts.len();
        for (key, text) in (0..).zip(texts) {
            self.submit(key, Work::Embed(Embed::passage(text)));
        }
        let mut done = 0;
        while done < count {
            done += usize::from(matches!(next(&self.events).kind, EventKind::Done(_)));
        }
        count as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Tokens that a request may have.
fn context_length(path: &Path, settings: &Settings) -> usize {
    summary(path, settings.kv_cache_type).context_length.expect("the model has a context")
}

/// The summary of a model for one request at a time.
pub(crate) fn summary(path: &Path, kv_cache_type: KvCacheType) -> ModelSummary {
    let load = Load { requests: 1, tokens: 0, threads: 1, kv_cache_type };
    ModelSummary::of(&ModelSource::File(path.into()), load).expect("the model can be opened").0
}

/// Milliseconds from the start of an engine to the first token of a short prompt.
pub(crate) fn load_ms(path: &Path, settings: &Settings) -> f64 {
    let begin = Instant::now();
    let engine = start(settings);
    let (sender, events) = unbounded();
    let work = generate("Hello".to_owned(), 1);
    engine.submit(
        Request { salt: 0, dedup_key: None, key: 0, model: ModelSource::File(path.into()), work },
        Reply::new(sender),
    );
    while !matches!(next(&events).kind, EventKind::Done(_)) {}
    begin.elapsed().as_secs_f64() * 1000.0
}

fn start(settings: &Settings) -> Engine {
    let config = Config {
        threads: settings.threads,
        instructions: settings.instructions,
        nice: 0,
        kv_cache_mb: 4096,
        kv_cache_type: settings.kv_cache_type,
        prompt_lookup: PromptLookup::Off,
        // Real models end their answers, most of all after made-up words.
        endless: true,
        ..Config::default()
    };
    Engine::start(config).expect("the engine starts")
}

fn generate(prompt: String, max_tokens: usize) -> Work {
    Work::Generate(Generate {
        prompt,
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    })
}

/// The next event, which is no failure.
fn next(events: &Receiver<Event>) -> Event {
    let event = events.recv().expect("the engine lives");
    if let EventKind::Failed(error) = &event.kind {
        panic!("a request failed: {error}");
    }
    event
}
