//! The engine under measurement, driven as the worker drives it.

use std::path::Path;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{
    Config, Constraint, Embed, Engine, Event, EventKind, Generate, ModelSource, PromptLookup, Reply, Request,
    Sampling, Ticket, Work,
};

use crate::prompts::Prompts;
use crate::settings::Settings;

/// An engine with a model.
pub(crate) struct Ours {
    engine: Engine,
    source: ModelSource,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompts: Prompts,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Ours {
    /// Starts an engine and makes it load the model.
    pub(crate) fn open(path: &Path, settings: &Settings) -> Ours {
        let gguf = Gguf::open(path).expect("the model can be opened");
        let (sender, events) = unbounded();
        let mut ours = Ours {
            engine: start(settings),
            source: ModelSource::File(path.into()),
            tokenizer: Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer"),
            template: ChatTemplate::from_gguf(&gguf).expect("the model has a template"),
            prompts: Prompts::new(),
            sender,
            events,
        };
        ours.prefill(32);
        ours
    }

    fn submit(&self, key: u64, work: Work) -> Ticket {
        let request = Request { salt: 0, dedup_key: None, key, model: self.source.clone(), work };
        self.engine.submit(request, Reply::new(self.sender.clone()))
    }

    /// A chat of so many tokens, template included.
    fn prompt(&mut self, tokens: usize) -> String {
        let Ours { prompts, template, tokenizer, .. } = self;
        prompts.text(tokens, |text| {
            template.encode_prompt(tokenizer, text).expect("the prompt can be encoded").len()
        })
    }

    /// Tokens a second of one prefill, from its beginning to the first token.
    pub(crate) fn prefill(&mut self, tokens: usize) -> f64 {
        let prompt = self.prompt(tokens);
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
        let prompts: Vec<String> = (0..requests).map(|_| self.prompt(prompt_tokens)).collect();
        // The first ones to generate do so while the prompts of others are computed.
        let tickets: Vec<Ticket> = (0..)
            .zip(prompts)
            .map(|(key, prompt)| {
                let (max_tokens, constraint) = (4 * steps, constraint.cloned());
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
                EventKind::Done(_) => panic!("an answer ended before the time did"),
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
        prompt_lookup: PromptLookup::Off,
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
