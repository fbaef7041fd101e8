//! One database: claims, hands over, stores, keeps leases; and goes on when the connection is lost.
//!
//! Invariant: a row is held by a lease with an attempt. A lost connection changes nothing of that: when it is
//! made again, the leases are extended, and rows that somebody else has taken meanwhile are abandoned.

mod choosing;
mod claiming;
mod keeping;
mod storing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select, unbounded};
use postgres::Client;
use steadytext_engine::{Engine, Event};

use self::storing::UnstoredRow;
use crate::connect::{self, DatabaseTarget};
use crate::endpoints::{Endpoint, EndpointEvent};
use crate::in_flight::RowsInFlight;
use crate::log::{self, Severity};
use crate::models::{ModelDirectory, Registered};
use crate::protocol::{self, ClaimFilter};
use crate::shared::{ServedDatabase, SharedState};
use crate::turn_error::TurnError;

/// Pauses before a lost connection is made again: the first, and the longest.
const CONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Failures one after the other, beyond which a worker that is to end by itself does so.
const MAX_FAILURES: usize = 8;
/// Models that are named where nothing was claimed.
const MAX_NAMED: usize = 20;
/// Interval at which the worker says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The thread's own.
struct DatabaseThread<'a> {
    shared: &'a SharedState,
    database: &'a ServedDatabase,
    name: String,
    number: usize,
    target: DatabaseTarget,
    events: (Sender<Event>, Receiver<Event>),
    /// Events of endpoints.
    endpoint_events: (Sender<EndpointEvent>, Receiver<EndpointEvent>),
    /// The events that have ended a wait.
    first_event: Option<Event>,
    first_endpoint_event: Option<EndpointEvent>,
    engine: Option<Arc<Engine>>,
    in_flight: RowsInFlight,
    outcomes: VecDeque<UnstoredRow>,
    models: ModelDirectory,
    registered: Vec<Registered>,
    /// The sets of models and types that may be claimed, and the index of the next one to claim from.
    sets: Vec<ClaimedSet>,
    next_set: usize,
    /// The same sets, in the form that heartbeats report.
    claims: Vec<ClaimFilter>,
    /// The complaints about these sets that were logged last.
    complaints: Vec<String>,
    has_looked: bool,
    /// The last look has failed: what is wrong is said once, and the worker is not ready, until one succeeds.
    looks_in_vain: bool,
    last_role: Option<u32>,
    /// The request that must run alone, or is to.
    alone: Alone,
    extend_at: Instant,
    poll_at: Instant,
    heartbeat_at: Instant,
    has_claimed: bool,
    stop_at: Option<Instant>,
    last_error: Option<String>,
}

/// Requests that are claimed together.
struct ClaimedSet {
    models: Vec<String>,
    /// `None`: all types.
    types: Option<Vec<String>>,
    /// `None`: the engine answers them.
    endpoint: Option<Arc<Endpoint>>,
    /// The last claim has brought less than there was room for.
    is_claimed_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    No,
    /// The row is claimed as soon as nothing else runs.
    Wanted,
    Runs,
}

/// Serves a database until the program is told to stop, or nothing is left to do. False: it could not be
/// served.
pub(crate) fn serve(number: usize, shared: &SharedState, wakes: &Receiver<()>) -> bool {
    let database = &shared.databases[number];
    let target = match DatabaseTarget::read(&shared.options.database_urls[number]) {
        Ok(target) => target,
        Err(error) => {
            log::say(Severity::Error, None, &error.to_string());
            return false;
        }
    };
    let name = connect::describe(&target.config);
    let _ = database.name.set(name.clone());
    let now = Instant::now();
    let mut server = DatabaseThread {
        shared,
        database,
        name,
        number,
        target,
        events: unbounded(),
        endpoint_events: unbounded(),
        first_event: None,
        first_endpoint_event: None,
        engine: None,
        in_flight: RowsInFlight::default(),
        outcomes: VecDeque::new(),
        models: ModelDirectory::new(&shared.options.model_dir, shared.options.models.as_deref()),
        registered: Vec::new(),
        sets: Vec::new(),
        next_set: 0,
        claims: Vec::new(),
        complaints: Vec::new(),
        has_looked: false,
        looks_in_vain: false,
        last_role: None,
        alone: Alone::No,
        extend_at: now,
        poll_at: now,
        heartbeat_at: now,
        has_claimed: false,
        stop_at: None,
        last_error: None,
    };
    server.run(wakes)
}

impl DatabaseThread<'_> {
    fn run(&mut self, wakes: &Receiver<()>) -> bool {
        let mut client: Option<Client> = None;
        let mut pause = CONNECT_PAUSES.0;
        let mut failures = 0;
        loop {
            if self.is_over(client.is_some()) {
                self.database.is_ready.store(false, Release);
                self.say_goodbye(client.as_mut());
                return self.say_what_was_done();
            }
            let turn = match &mut client {
                Some(client) => self.turn(client),
                None => self.connect().map(|connected| {
                    client = Some(connected);
                    true
                }),
            };
            match turn {
                Ok(is_busy) => {
                    if !self.looks_in_vain {
                        self.database.is_ready.store(true, Release);
                        self.last_error = None;
                        (pause, failures) = (CONNECT_PAUSES.0, 0);
                    }
                    if !is_busy {
                        self.wait(wakes, self.next_due());
                    }
                }
                Err(TurnError::Fatal(message)) => {
                    self.database.is_ready.store(false, Release);
                    self.say(Severity::Error, &message);
                    return false;
                }
                Err(error) => {
                    self.database.is_ready.store(false, Release);
                    let ends_by_itself = self.shared.options.once || self.shared.options.drain;
                    let holds_nothing = self.in_flight.len() == 0 && self.outcomes.is_empty();
                    if ends_by_itself && error.lasts() && holds_nothing {
                        self.say(Severity::Error, &error.to_string());
                        return false;
                    }
                    self.note(&error);
                    let is_unexpected = matches!(error, TurnError::Unexpected(_));
                    if client.as_ref().is_some_and(|client| client.is_closed() || is_unexpected) {
                        client = None;
                    }
                    failures += 1;
                    if ends_by_itself && failures > MAX_FAILURES {
                        self.say(Severity::Error, &format!("given up after {failures} attempts: {error}"));
                        return false;
                    }
                    // Leases of what is held are extended all the same.
                    let until = Instant::now() + pause;
                    self.wait(wakes, if client.is_some() { until.min(self.extend_at) } else { until });
                    pause = (pause * 2).min(CONNECT_PAUSES.1);
                }
            }
        }
    }

    fn say(&self, level: Severity, message: &str) {
        log::say(level, Some(&self.name), message);
    }

    /// Says what a program has done that ends by itself. False: there is nothing that it could have done.
    fn say_what_was_done(&self) -> bool {
        let options = &self.shared.options;
        if self.shared.stopping() > 0 || !(options.once || options.drain) {
            return true;
        }
        let claimed = self.database.claimed.load(Relaxed);
        if claimed > 0 {
            self.say(
                Severity::Info,
                &match claimed {
                    1 => "done: 1 request was claimed".to_owned(),
                    _ => format!("done: {claimed} requests were claimed"),
                },
            );
            return true;
        }
        if self.sets.is_empty() {
            self.say(
                Severity::Error,
                "nothing was claimed: there is no model on this machine that could be served",
            );
            return false;
        }
        let models = self.sets.iter().flat_map(|set| &set.models);
        let mut names: Vec<&str> = models.take(MAX_NAMED).map(String::as_str).collect();
        if self.sets.iter().map(|set| set.models.len()).sum::<usize>() > MAX_NAMED {
            names.push("…");
        }
        let types = options.types.as_ref().map_or_else(|| "all".to_owned(), |types| types.join(", "));
        self.say(
            Severity::Info,
            &format!(
                "nothing was claimed: no request waits for models {} (types: {types})",
                names.join(", ")
            ),
        );
        true
    }

    /// Says what is wrong, once.
    fn note(&mut self, error: &TurnError) {
        let message = error.to_string();
        if self.last_error.as_ref() != Some(&message) {
            self.say(Severity::Warning, &message);
            self.last_error = Some(message);
        }
    }

    fn connect(&mut self) -> Result<Client, TurnError> {
        let mut client = self.target.connect()?;
        let terms = protocol::terms(&mut client)?;
        self.engine = match self.shared.engine.on(terms, &self.shared.options) {
            Ok(engine) => Some(engine),
            Err(error) => return Err(TurnError::Fatal(error.to_string())),
        };
        self.database.connections.fetch_add(1, Relaxed);
        self.say(Severity::Info, &format!("connected as worker {}", self.shared.worker));
        // Whether what is held is still ours is the first thing to know.
        let now = Instant::now();
        (self.extend_at, self.poll_at, self.heartbeat_at) = (now, now, now);
        Ok(client)
    }

    /// Whether there is nothing left to do.
    fn is_over(&mut self, is_connected: bool) -> bool {
        let signals = self.shared.stopping();
        let is_idle = self.in_flight.len() == 0 && self.outcomes.is_empty();
        if signals > 0 {
            let now = Instant::now();
            let stop_at = *self.stop_at.get_or_insert(now + self.shared.options.grace);
            let is_late = signals > 1 || now >= stop_at;
            // Where there is no connection, leases give back what is left.
            return is_idle || (is_late && !is_connected);
        }
        let options = &self.shared.options;
        // Requests that an endpoint which rests cannot take now are left to the next run.
        let is_out = |set: &ClaimedSet| {
            set.is_claimed_out || set.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_resting())
        };
        let is_drained =
            options.drain && self.has_looked && self.sets.iter().all(is_out) && self.alone == Alone::No;
        let is_once = options.once && (self.has_claimed || (self.has_looked && self.sets.is_empty()));
        is_idle && (is_once || is_drained)
    }

    /// Does what there is to do. True: there may be more.
    fn turn(&mut self, client: &mut Client) -> Result<bool, TurnError> {
        let now = Instant::now();
        self.take_events();
        self.store(client)?;
        if self.shared.stopping() > 0 {
            self.stop(client)?;
        }
        if now >= self.extend_at {
            self.extend(client)?;
        }
        if now >= self.poll_at {
            self.poll_at = now + self.shared.options.poll_interval;
            self.looks_in_vain = true;
            protocol::tidy(client)?;
            self.registered = protocol::models(client)?;
            self.choose_sets();
            for set in &self.sets {
                let outlook = protocol::outlook(client, &set.models, set.types.as_deref())?;
                let can_take = set.endpoint.as_ref().is_none_or(|endpoint| !endpoint.is_resting());
                if outlook.alone_due && can_take && self.alone == Alone::No {
                    self.alone = Alone::Wanted;
                }
                if let Some(due_in_s) = outlook.due_in_s
                    && let Ok(due_in) = Duration::try_from_secs_f64(due_in_s)
                {
                    self.poll_at = self.poll_at.min(now + due_in.max(Duration::from_millis(50)));
                }
            }
            (self.has_looked, self.looks_in_vain) = (true, false);
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + HEARTBEAT;
            self.heartbeat(client)?;
        }
        let is_claiming = self.shared.stopping() == 0 && self.claim(client)?;
        let is_fetching = self.fetch(client)?;
        let Some(engine) = &self.engine else { return Ok(is_claiming) };
        if engine.is_gone() {
            let held = self.in_flight.held();
            self.give_back(client, &held)?;
            return Err(TurnError::Fatal("the engine has ended".to_owned()));
        }
        self.in_flight.hand_over(engine, &self.events.0, &self.endpoint_events.0);
        Ok(is_claiming || is_fetching)
    }

    /// The time at which there is something to do without being told.
    fn next_due(&self) -> Instant {
        let mut due = self.poll_at.min(self.extend_at).min(self.heartbeat_at);
        if let Some(stop_at) = self.stop_at {
            due = due.min(stop_at);
        }
        self.outcomes.iter().fold(due, |due, outcome| due.min(outcome.at))
    }

    /// Waits for an event, for somebody who wakes it, or until a moment.
    fn wait(&mut self, wakes: &Receiver<()>, until: Instant) {
        let patience = until.saturating_duration_since(Instant::now());
        // Many may have been heard of since the last look.
        let heard = |server: &mut Self| {
            wakes.try_iter().for_each(drop);
            server.sets.iter_mut().for_each(|set| set.is_claimed_out = false);
        };
        if !wakes.is_empty() {
            return heard(self);
        }
        let is_flying = self.in_flight.len() > 0;
        // An event is taken in by the next turn, and while there is no connection there is none: until then
        // the others stay where they are.
        let is_first = self.first_event.is_none() && self.first_endpoint_event.is_none();
        let events = if is_flying && is_first { self.events.1.clone() } else { never() };
        let endpoint_events = if is_flying && is_first { self.endpoint_events.1.clone() } else { never() };
        select! {
            recv(wakes) -> _ => heard(self),
            recv(events) -> event => self.first_event = event.ok(),
            recv(endpoint_events) -> event => self.first_endpoint_event = event.ok(),
            default(patience) => {}
        }
    }
}
