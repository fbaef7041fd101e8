//! An endpoint at work: its waiting jobs, the threads that call it, and when it is left alone.
//!
//! Each thread makes one call at a time: of a text, or of as many vectors or scores as fit into one call. A
//! call that fails for a passing reason is tried again after a pause that grows; a batch that the endpoint
//! refuses or breaks off at is halved, so that a text suffers for nothing but itself. An endpoint that takes
//! nothing is left alone for a while, by all threads and by the claims, and is then tried with one call: jobs
//! that it could not take meanwhile are given back and lose no retry.
//!
//! Invariant: every job gets one last word. A job whose ticket is cancelled gets it soon: a call that nobody
//! waits for is cut off.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use steadytext_engine::{Error, Generate, Output, Ticket, Work};
use ureq::Agent;

use super::client::{self, CallFailure};
use super::endpoint_answers::{EndpointAnswer, EndpointUsage, Refused, refusal};
use super::settings::{Api, ApiKey, EndpointSettings};
use super::waiting::{EndpointCall, EndpointEventKind, EndpointJob, EndpointState, give_back};
use super::{kinds, texts, vectors};
use crate::Error as ProgramError;
use crate::log::{self, Severity};

/// Stack of a thread: answers are checked on it, and documents may be deep.
const STACK_BYTES: usize = 64 << 20;
/// Pauses before a call is tried again, and for which an endpoint is left alone: the first, and the longest.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
const RESTS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// The longest that is waited because an endpoint asks for it, with requests in hand; and at all.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Time for which an endpoint is left alone that does not know the key.
const DENIED_REST: Duration = Duration::from_secs(10);

/// A model behind an endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    settings: EndpointSettings,
    types: Vec<&'static str>,
    state: Mutex<EndpointState>,
    changed: Condvar,
    /// Calls that were made, and those that came to nothing.
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
}

impl Endpoint {
    /// Starts its threads, which end with the program.
    ///
    /// # Errors
    ///
    /// [`ProgramError::Usage`] for certificates and keys that cannot be used; [`ProgramError::Thread`].
    pub(crate) fn start(settings: EndpointSettings) -> Result<Arc<Endpoint>, ProgramError> {
        let wrong = |why| ProgramError::Usage(format!("model \"{}\" of the endpoints: {why}", settings.name));
        client::agent(&settings).map_err(wrong)?;
        let key = settings.key_file.as_deref().map(ApiKey::read).transpose().map_err(wrong)?;
        let state = EndpointState { key, next_rest: RESTS.0, ..EndpointState::default() };
        let endpoint = Arc::new(Endpoint {
            types: kinds::of(&settings),
            settings,
            state: Mutex::new(state),
            changed: Condvar::new(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        for number in 0..endpoint.settings.concurrency {
            let endpoint = Arc::clone(&endpoint);
            let thread = std::thread::Builder::new().name("endpoint".to_owned()).stack_size(STACK_BYTES);
            thread.spawn(move || endpoint.work(number)).map_err(ProgramError::Thread)?;
        }
        Ok(endpoint)
    }

    /// The model's name in requests.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Its base URL.
    pub(crate) fn address(&self) -> &str {
        &self.settings.base_url
    }

    /// The types of requests that it can answer.
    pub(crate) fn types(&self) -> &[&'static str] {
        &self.types
    }

    /// Whether it is left alone just now.
    pub(crate) fn is_resting(&self) -> bool {
        self.state().is_resting(Instant::now())
    }

    /// The number of requests that a database may hold for it: as many as keep it busy, one where it is
    /// doubtful, and none while it rests.
    pub(crate) fn most_held(&self) -> usize {
        let state = self.state();
        if state.is_resting(Instant::now()) {
            0
        } else if state.is_doubtful {
            1
        } else {
            2 * self.settings.concurrency * self.batch()
        }
    }

    /// Adds work.
    pub(crate) fn submit(&self, jobs: Vec<EndpointJob>) {
        self.state().jobs.extend(jobs);
        self.changed.notify_all();
    }

    /// Looks what is not waited for any more: jobs whose tickets are cancelled.
    pub(crate) fn look_after_cancelled(&self) {
        let mut state = self.state();
        state.drop_cancelled();
        for call in state.under_way.values_mut() {
            if !call.is_cut && call.tickets.iter().all(Ticket::is_cancelled) {
                call.is_cut = true;
                call.agent.clone().shutdown();
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, EndpointState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Texts of a call.
    fn batch(&self) -> usize {
        if matches!(self.settings.api, Api::Embeddings | Api::Rerank) { self.settings.batch } else { 1 }
    }

    /// A thread.
    fn work(&self, number: usize) {
        loop {
            let Ok(agent) = client::agent(&self.settings) else {
                // The certificates have gone since the start.
                std::thread::sleep(RESTS.1);
                continue;
            };
            // An agent is used until one of its calls is cut off, after which it makes none any more.
            let mut is_cut = false;
            while !is_cut {
                let jobs = self.next(number, &agent);
                jobs.iter().for_each(|job| job.say(EndpointEventKind::Began));
                self.run(&agent, jobs, Tries { made: 0, until: Instant::now() + self.patience() });
                is_cut = self.state().under_way.remove(&number).is_none_or(|call| call.is_cut);
                self.changed.notify_all();
            }
        }
    }

    /// Waits for jobs that go into one call.
    fn next(&self, number: usize, agent: &Agent) -> Vec<EndpointJob> {
        let mut state = self.state();
        loop {
            state.drop_cancelled();
            let now = Instant::now();
            let is_free = !state.is_doubtful || state.under_way.is_empty();
            if !state.is_resting(now) && is_free && !state.jobs.is_empty() {
                let jobs = state.take(self.batch());
                let tickets = jobs.iter().map(|job| job.ticket.clone()).collect();
                state.under_way.insert(number, EndpointCall { agent: agent.clone(), tickets, is_cut: false });
                return jobs;
            }
            let rest = state.rest_until.and_then(|until| until.checked_duration_since(now));
            state = match rest.filter(|_| !state.jobs.is_empty()) {
                Some(rest) => {
                    let waited = self.changed.wait_timeout(state, rest + Duration::from_millis(1));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Time limit of all tries of some jobs, halves of halves included.
    fn patience(&self) -> Duration {
        (self.settings.timeout + RETRY_PAUSES.1) * (self.settings.retries + 1)
    }

    /// Does jobs, and sends the outcome of each. Some tries may have been made.
    fn run(&self, agent: &Agent, jobs: Vec<EndpointJob>, mut tries: Tries) {
        let (jobs, call) = match self.question(jobs) {
            (_, None) => return,
            (jobs, Some(call)) => (jobs, call),
        };
        loop {
            if tries.made > 0 && Instant::now() > tries.until {
                return self.give_up(&jobs, "the endpoint has not answered in time, several times");
            }
            if jobs.iter().all(|job| job.ticket.is_cancelled()) {
                return jobs.iter().for_each(|job| job.say(EndpointEventKind::Failed(Error::Cancelled)));
            }
            let failed = match self.ask(agent, &jobs, &call) {
                Ok(answers) => {
                    self.went_well();
                    return jobs.iter().zip(answers).for_each(|(job, answer)| job.say(event_of(answer)));
                }
                Err(failed) => failed,
            };
            if jobs.iter().all(|job| job.ticket.is_cancelled()) {
                continue;
            }
            self.failures.fetch_add(1, Relaxed);
            let is_last = tries.made >= self.settings.retries;
            tries.made += 1;
            match failed {
                CallFailure::Request(message) if jobs.len() == 1 => {
                    self.went_well();
                    let message = self.named(&message);
                    return jobs.iter().for_each(|job| {
                        job.say(EndpointEventKind::Refused(refusal(message.clone(), "22023", false)));
                    });
                }
                // One of them is refused, and it was no try of the others.
                CallFailure::Request(_) => {
                    return self.halve(agent, jobs, Tries { made: tries.made - 1, ..tries });
                }
                CallFailure::Busy(message, after) => {
                    let rest = self.rest(&message, after);
                    if is_last || rest > LONGEST_WAIT || !self.pause(rest, &jobs) {
                        return give_back(&jobs);
                    }
                }
                CallFailure::Denied(message) => {
                    self.rest(&message, Some(DENIED_REST));
                    self.read_key();
                    return give_back(&jobs);
                }
                CallFailure::Broken(message) if is_last => return self.give_up(&jobs, &message),
                CallFailure::Broken(message) => {
                    self.say(&message);
                    let pause = RETRY_PAUSES.0 * 2_u32.pow(tries.made.min(8) - 1);
                    self.pause(shaken(pause.min(RETRY_PAUSES.1)), &jobs);
                    if jobs.len() > 1 {
                        return self.halve(agent, jobs, tries);
                    }
                }
            }
        }
    }

    /// The queue tries them again later.
    fn give_up(&self, jobs: &[EndpointJob], why: &str) {
        let message = self.named(why);
        jobs.iter()
            .for_each(|job| job.say(EndpointEventKind::Refused(refusal(message.clone(), "58030", true))));
    }

    fn halve(&self, agent: &Agent, mut jobs: Vec<EndpointJob>, tries: Tries) {
        let others = jobs.split_off(jobs.len() / 2);
        self.run(agent, jobs, tries);
        self.run(agent, others, tries);
    }

    fn went_well(&self) {
        let mut state = self.state();
        // Another call was turned away since this one has begun.
        if state.is_resting(Instant::now()) {
            return;
        }
        if state.is_doubtful {
            log::say(Severity::Info, None, &self.named("the endpoint answers again"));
        }
        (state.is_doubtful, state.rest_until, state.next_rest, state.said) = (false, None, RESTS.0, None);
        drop(state);
        self.changed.notify_all();
    }

    /// Leaves it alone for as long as it asks, or a little longer each time. For how long.
    fn rest(&self, why: &str, asked: Option<Duration>) -> Duration {
        self.say(why);
        let mut state = self.state();
        let now = Instant::now();
        // Calls that were under way together are turned away together, and that counts once.
        let left = state.rest_until.and_then(|until| until.checked_duration_since(now));
        let own = left.filter(|left| !left.is_zero()).unwrap_or_else(|| shaken(state.next_rest));
        if left.is_none() {
            state.next_rest = (state.next_rest * 2).min(RESTS.1);
        }
        // An endpoint may ask for no pause at all; the own one grows all the same.
        let rest = asked.map_or(own, |asked| asked.min(LONGEST_REST).max(own)).max(left.unwrap_or_default());
        state.is_doubtful = true;
        state.rest_until = Some(now + rest);
        // No job is held up for that long.
        if asked.is_some_and(|asked| asked >= DENIED_REST) {
            give_back(std::mem::take(&mut state.jobs).make_contiguous());
        }
        rest
    }

    /// Waits while anybody waits for these jobs. Whether anybody does.
    fn pause(&self, pause: Duration, jobs: &[EndpointJob]) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state();
        loop {
            if jobs.iter().all(|job| job.ticket.is_cancelled()) {
                return false;
            }
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return true;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The file may have another one by now.
    fn read_key(&self) {
        if let Some(Ok(key)) = self.settings.key_file.as_deref().map(ApiKey::read) {
            self.state().key = Some(key);
        }
    }

    /// Says what is wrong, once.
    fn say(&self, what: &str) {
        let mut state = self.state();
        if state.said.as_deref() != Some(what) {
            state.said = Some(what.to_owned());
            log::say(Severity::Warning, None, &self.named(what));
        }
    }

    fn named(&self, what: &str) -> String {
        format!("model \"{}\": {what}", self.settings.name)
    }

    /// The jobs of one call with the question to ask. Jobs that need not be asked, or cannot be, get their
    /// answers here.
    fn question(&self, jobs: Vec<EndpointJob>) -> (Vec<EndpointJob>, Option<CallQuestion>) {
        let settings = &self.settings;
        let mut asked: Vec<EndpointJob> = Vec::with_capacity(jobs.len());
        let mut inputs: Vec<String> = Vec::new();
        let mut question = None;
        for job in jobs {
            let made = match (&job.work, settings.api) {
                (Work::Generate(how), Api::Chat | Api::Completions) => {
                    texts::question(settings, how).map(|made| {
                        question = Some(CallQuestion::Text(Box::new((how.clone(), made))));
                    })
                }
                (Work::Likelihoods(how), Api::Chat) => match texts::choice(how) {
                    Ok(None) => {
                        let output = texts::likelihoods(how, None);
                        job.say(event_of(EndpointAnswer {
                            outcome: Ok(output),
                            usage: EndpointUsage::default(),
                        }));
                        continue;
                    }
                    Ok(Some(choice)) => texts::question(settings, &choice).map(|made| {
                        question = Some(CallQuestion::Text(Box::new((choice, made))));
                    }),
                    Err(refused) => Err(refused),
                },
                (Work::Embed(how), Api::Embeddings) => vectors::text(how).map(|text| inputs.push(text)),
                (Work::Rerank(_), Api::Rerank) => {
                    question = Some(CallQuestion::Ranking);
                    Ok(())
                }
                _ => Err(Refused::unsupported("requests of this kind")),
            };
            match made {
                Ok(()) => asked.push(job),
                Err(Refused::Engine(error)) => job.say(EndpointEventKind::Failed(error)),
                Err(Refused::Unsupported(message)) => {
                    job.say(EndpointEventKind::Refused(refusal(self.named(&message), "0A000", false)));
                }
            }
        }
        if !inputs.is_empty() {
            question = Some(CallQuestion::Vectors(inputs));
        }
        let question = question.filter(|_| !asked.is_empty());
        (asked, question)
    }

    /// Makes the call, and reads what came.
    fn ask(
        &self,
        agent: &Agent,
        jobs: &[EndpointJob],
        question: &CallQuestion,
    ) -> Result<Vec<EndpointAnswer>, CallFailure> {
        let settings = &self.settings;
        let key = self.state().key.clone();
        let call = |path: &str, body: Map<String, Value>| {
            self.calls.fetch_add(1, Relaxed);
            client::call(agent, settings, key.as_ref(), path, body)
        };
        match question {
            CallQuestion::Text(question) => {
                let (how, made) = &**question;
                let bytes = call(texts::path(settings.api), made.body.clone())?;
                let mut answer = texts::answer(how, made, &bytes)?;
                if let Some(EndpointJob { work: Work::Likelihoods(how), .. }) = jobs.first() {
                    answer.outcome = answer.outcome.map(|output| match output {
                        Output::Text { text, .. } => texts::likelihoods(how, Some(&text)),
                        other => other,
                    });
                }
                Ok(vec![answer])
            }
            CallQuestion::Vectors(inputs) => {
                let bytes = call("/embeddings", vectors::embeddings(settings, inputs.clone()))?;
                let hows = jobs.iter().filter_map(|job| match &job.work {
                    Work::Embed(how) => Some(how),
                    _ => None,
                });
                vectors::embedded(&hows.collect::<Vec<_>>(), &bytes)
            }
            CallQuestion::Ranking => {
                let hows = jobs.iter().filter_map(|job| match &job.work {
                    Work::Rerank(how) => Some(how),
                    _ => None,
                });
                let hows: Vec<_> = hows.collect();
                let bytes = call(vectors::rerank_path(), vectors::rerank(settings, &hows))?;
                vectors::ranked(settings, &hows, &bytes)
            }
        }
    }
}

/// The number of tries that were made of something, and the time until which it may be tried again.
#[derive(Debug, Clone, Copy)]
struct Tries {
    made: u32,
    until: Instant,
}

/// The question of a call.
enum CallQuestion {
    Text(Box<(Generate, texts::CallBody)>),
    Vectors(Vec<String>),
    Ranking,
}

fn event_of(EndpointAnswer { outcome, usage }: EndpointAnswer) -> EndpointEventKind {
    match outcome {
        Ok(output) => EndpointEventKind::Done {
            output,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
        },
        Err(error) => EndpointEventKind::Failed(error),
    }
}

/// A pause of a half to all of this, so that those who were turned away together do not come back together.
fn shaken(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(pause) >> 11;
    pause.mul_f64(0.5 + random as f64 / (1_u64 << 53) as f64 / 2.0)
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests;
