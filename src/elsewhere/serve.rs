//! One database: claims, hands over, stores, keeps leases; and goes on when the connection is lost.
//!
//! Invariant: what is held is held by a lease with an attempt. A lost connection changes nothing of that: when it is made again,
//! the leases are extended, and what somebody else has taken meanwhile is let go.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select, unbounded};
use postgres::error::SqlState;
use postgres::{Client, Config};
use steadytext_engine::errand::{self, Prepared, Refusal, Report};
use steadytext_engine::{Engine, Event, Standing};

use crate::connect;
use crate::flight::{Again, Flight, is_of_the_engine};
use crate::log::{self, Level};
use crate::models::{Models, Registered};
use crate::protocol::{self, Claimed, Heartbeat, Held, Stored, Wanted};
use crate::shared::{Database, Shared};

/// Results that are stored at once, and their bytes.
const MAX_STORED: usize = 64;
const MAX_STORED_BYTES: usize = 8 << 20;
/// How soon what could not be stored is tried again: first, and in the end.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How soon a lost connection is made again: first, and in the end.
const CONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Failures one after the other, beyond which a worker that is to end by itself does so.
const MAX_FAILURES: usize = 8;
/// How often the worker says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How a request has ended that is not stored yet.
enum Ending {
    Report { bytes: Vec<u8>, is_answer: bool, again: Again },
    Refused(Refusal),
}

struct Outcome {
    held: Held,
    ending: Ending,
    at: Instant,
    pause: Duration,
}

/// The thread's own.
struct Server<'a> {
    shared: &'a Shared,
    database: &'a Database,
    name: String,
    number: usize,
    config: Config,
    events: (Sender<Event>, Receiver<Event>),
    /// The one that has ended a wait.
    first_event: Option<Event>,
    engine: Option<Arc<Engine>>,
    flight: Flight,
    outcomes: VecDeque<Outcome>,
    models: Models,
    registered: Vec<Registered>,
    last_role: Option<u32>,
    /// The request that must run alone, or is to.
    alone: Alone,
    extend_at: Instant,
    poll_at: Instant,
    heartbeat_at: Instant,
    is_claimed_out: bool,
    has_claimed: bool,
    stop_at: Option<Instant>,
    last_trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    No,
    /// As soon as nothing else runs.
    Wanted,
    Runs,
}

/// Serves a database until the program is told to stop, or nothing is left to do. False: it could not be served.
pub(crate) fn serve(number: usize, shared: &Shared, wakes: &Receiver<()>) -> bool {
    let database = &shared.databases[number];
    let config = match connect::config(&shared.options.database_urls[number]) {
        Ok(config) => config,
        Err(error) => {
            log::say(Level::Error, None, &error.to_string());
            return false;
        }
    };
    let name = connect::describe(&config);
    let _ = database.name.set(name.clone());
    let now = Instant::now();
    let mut server = Server {
        shared,
        database,
        name,
        number,
        config,
        events: unbounded(),
        first_event: None,
        engine: None,
        flight: Flight::default(),
        outcomes: VecDeque::new(),
        models: Models::new(&shared.options.model_dir, shared.options.models.as_deref()),
        registered: Vec::new(),
        last_role: None,
        alone: Alone::No,
        extend_at: now,
        poll_at: now,
        heartbeat_at: now,
        is_claimed_out: false,
        has_claimed: false,
        stop_at: None,
        last_trouble: None,
    };
    server.run(wakes)
}

/// What ends a turn.
enum Trouble {
    /// Of the database, or the way to it.
    Database(postgres::Error),
    /// There is no going on.
    Fatal(String),
}

impl From<postgres::Error> for Trouble {
    fn from(error: postgres::Error) -> Trouble {
        Trouble::Database(error)
    }
}

impl Server<'_> {
    fn run(&mut self, wakes: &Receiver<()>) -> bool {
        let mut client: Option<Client> = None;
        let mut pause = CONNECT_PAUSES.0;
        let mut failures = 0;
        loop {
            if self.is_over(client.is_some()) {
                self.database.is_ready.store(false, Release);
                return true;
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
                    self.database.is_ready.store(true, Release);
                    self.last_trouble = None;
                    (pause, failures) = (CONNECT_PAUSES.0, 0);
                    if !is_busy {
                        self.wait(wakes, self.next_due());
                    }
                }
                Err(Trouble::Fatal(message)) => {
                    self.database.is_ready.store(false, Release);
                    self.say(Level::Error, &message);
                    return false;
                }
                Err(Trouble::Database(error)) => {
                    self.database.is_ready.store(false, Release);
                    self.note(&error);
                    if client.as_ref().is_some_and(Client::is_closed) {
                        client = None;
                    }
                    failures += 1;
                    if (self.shared.options.once || self.shared.options.drain) && failures > MAX_FAILURES {
                        return false;
                    }
                    self.wait(wakes, Instant::now() + pause);
                    pause = (pause * 2).min(CONNECT_PAUSES.1);
                }
            }
        }
    }

    fn say(&self, level: Level, message: &str) {
        log::say(level, Some(&self.name), message);
    }

    /// Says what is wrong, once.
    fn note(&mut self, error: &postgres::Error) {
        let message = match error.as_db_error() {
            Some(said) => match said.hint() {
                Some(hint) => format!("{} ({}): {hint}", said.message(), said.code().code()),
                None => format!("{} ({})", said.message(), said.code().code()),
            },
            None => {
                let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
                format!("{error}{}", cause.unwrap_or_default())
            }
        };
        if self.last_trouble.as_ref() != Some(&message) {
            self.say(Level::Warning, &message);
            self.last_trouble = Some(message);
        }
    }

    fn connect(&mut self) -> Result<Client, Trouble> {
        let mut client = connect::connect(&self.config)?;
        let terms = protocol::terms(&mut client)?;
        self.engine = match self.shared.engine.on(terms, &self.shared.options) {
            Ok(engine) => Some(engine),
            Err(error) => return Err(Trouble::Fatal(error.to_string())),
        };
        self.database.connections.fetch_add(1, Relaxed);
        self.say(Level::Info, &format!("connected as worker {}", self.shared.worker));
        // Whether what is held is still ours is the first thing to know.
        let now = Instant::now();
        (self.extend_at, self.poll_at, self.heartbeat_at) = (now, now, now);
        Ok(client)
    }

    /// Whether there is nothing left to do.
    fn is_over(&mut self, is_connected: bool) -> bool {
        let told = self.shared.stopping();
        let is_idle = self.flight.len() == 0 && self.outcomes.is_empty();
        if told > 0 {
            let now = Instant::now();
            let stop_at = *self.stop_at.get_or_insert(now + self.shared.options.grace);
            let is_late = told > 1 || now >= stop_at;
            // Without a connection, leases give back what is left.
            return is_idle || (is_late && !is_connected);
        }
        let options = &self.shared.options;
        let is_drained = options.drain && self.is_claimed_out && self.alone == Alone::No;
        is_idle && ((options.once && self.has_claimed) || is_drained)
    }

    /// Does what there is to do. True: there may be more.
    fn turn(&mut self, client: &mut Client) -> Result<bool, Trouble> {
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
            self.registered = protocol::models(client)?;
            let names = self.models.names(&self.registered);
            let outlook = protocol::poll(client, &names, self.shared.options.types.as_deref())?;
            if outlook.alone_due && self.alone == Alone::No {
                self.alone = Alone::Wanted;
            }
            if let Some(due_in_s) = outlook.due_in_s
                && let Ok(due_in) = Duration::try_from_secs_f64(due_in_s)
            {
                self.poll_at = self.poll_at.min(now + due_in.max(Duration::from_millis(50)));
            }
            self.is_claimed_out = false;
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + HEARTBEAT;
            self.heartbeat(client)?;
        }
        let is_claiming = self.shared.stopping() == 0 && self.claim(client)?;
        let Some(engine) = &self.engine else { return Ok(is_claiming) };
        if engine.is_gone() {
            let held = self.flight.held();
            self.give_back(client, &held)?;
            return Err(Trouble::Fatal("the engine has ended".to_owned()));
        }
        self.flight.hand_over(engine, &self.events.0);
        Ok(is_claiming)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.first_event.take().or_else(|| self.events.1.try_recv().ok()) {
            let Some(ended) = self.flight.take(event) else { continue };
            if let Some(name) = ended.spoiled {
                self.say(
                    Level::Error,
                    &format!("the file of model \"{name}\" is not the server's: it is served no more"),
                );
                self.models.spoil(&name);
            }
            if is_of_the_engine(&ended.report) {
                // The lease gives it back.
                self.shared.free(1);
                continue;
            }
            let is_answer = ended.report.outputs.is_ok();
            match errand::encode(&ended.report) {
                Ok(bytes) => self.push(ended.held, Ending::Report { bytes, is_answer, again: ended.again }),
                Err(error) => self.push(
                    ended.held,
                    Ending::Refused(Refusal {
                        message: error.to_string(),
                        code: "XX000".to_owned(),
                        retry: false,
                    }),
                ),
            }
        }
        self.database.held.store(self.flight.len(), Relaxed);
    }

    fn push(&mut self, held: Held, ending: Ending) {
        self.outcomes.push_back(Outcome { held, ending, at: Instant::now(), pause: RETRY_PAUSES.0 });
    }

    /// Stores what is due.
    fn store(&mut self, client: &mut Client) -> Result<(), Trouble> {
        loop {
            let now = Instant::now();
            let mut part: Vec<Outcome> = Vec::new();
            let mut bytes = 0;
            let mut kept = VecDeque::new();
            while let Some(outcome) = self.outcomes.pop_front() {
                let length = match &outcome.ending {
                    Ending::Report { bytes, .. } => bytes.len(),
                    Ending::Refused(refusal) => refusal.message.len(),
                };
                let fits = part.is_empty() || bytes + length <= MAX_STORED_BYTES;
                if outcome.at <= now && part.len() < MAX_STORED && fits {
                    bytes += length;
                    part.push(outcome);
                } else {
                    kept.push_back(outcome);
                }
            }
            self.outcomes = kept;
            if part.is_empty() {
                return Ok(());
            }
            let stored = self.send(client, &part);
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => {
                    // One that the server refuses as a whole must not hold up the others, nor the program.
                    let is_lost = client.is_closed();
                    for mut outcome in part {
                        if !is_lost {
                            outcome.at = now + outcome.pause;
                            outcome.pause = (outcome.pause * 2).min(RETRY_PAUSES.1);
                        }
                        self.outcomes.push_back(outcome);
                    }
                    return Err(Trouble::Database(error));
                }
            };
            for mut outcome in part {
                match stored.get(&outcome.held.id) {
                    Some(Stored::Done) => {
                        let counter = match outcome.ending {
                            Ending::Report { is_answer: true, .. } => &self.database.completed,
                            _ => &self.database.failed,
                        };
                        counter.fetch_add(1, Relaxed);
                        self.shared.free(1);
                    }
                    Some(Stored::More(more)) => self.go_on(outcome, more),
                    Some(Stored::Lost) => {
                        self.database.lost.fetch_add(1, Relaxed);
                        self.shared.free(1);
                    }
                    Some(Stored::Locked | Stored::Refused) | None => {
                        outcome.at = Instant::now() + outcome.pause;
                        outcome.pause = (outcome.pause * 2).min(RETRY_PAUSES.1);
                        self.outcomes.push_back(outcome);
                    }
                }
            }
        }
    }

    /// Goes on with the next stage of a request.
    fn go_on(&mut self, outcome: Outcome, more: &[u8]) {
        let Outcome { held, ending, .. } = outcome;
        let Ending::Report { bytes, again, .. } = ending else { return };
        match (errand::decode(more), errand::decode::<Report>(&bytes)) {
            (Ok(Prepared::Errand(errand)), Ok(report)) if !errand.works.is_empty() => {
                self.flight.go_on(held, errand, again, report);
            }
            _ => {
                let message = "the next stage cannot be read".to_owned();
                self.push(held, Ending::Refused(Refusal { message, code: "08P01".to_owned(), retry: false }));
            }
        }
    }

    fn send(
        &self,
        client: &mut Client,
        part: &[Outcome],
    ) -> Result<std::collections::HashMap<i64, Stored>, postgres::Error> {
        let worker = &self.shared.worker;
        let (mut reports, mut refusals) = (Vec::new(), Vec::new());
        for outcome in part {
            match &outcome.ending {
                Ending::Report { bytes, .. } => reports.push((outcome.held, bytes.as_slice())),
                Ending::Refused(refusal) => refusals.push((outcome.held, refusal)),
            }
        }
        let mut stored = std::collections::HashMap::new();
        if !reports.is_empty() {
            stored.extend(protocol::report(client, worker, &reports)?);
        }
        if !refusals.is_empty() {
            stored.extend(protocol::refuse(client, worker, &refusals)?);
        }
        Ok(stored)
    }

    fn extend(&mut self, client: &mut Client) -> Result<(), Trouble> {
        // The server writes nothing for leases of which more than a half is left.
        let lease = Duration::from_secs(u64::try_from(self.shared.options.lease_s).unwrap_or(60));
        self.extend_at = Instant::now() + lease / 4;
        let mut held = self.flight.held();
        held.extend(self.outcomes.iter().map(|outcome| outcome.held));
        if held.is_empty() {
            return Ok(());
        }
        let lost = protocol::extend(client, &self.shared.worker, &held, self.shared.options.lease_s)?;
        let gone = self.flight.abandon(&lost);
        self.database.lost.fetch_add(gone as u64, Relaxed);
        self.shared.free(gone);
        Ok(())
    }

    /// What is done once the program was told to stop.
    fn stop(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let is_late =
            self.shared.stopping() > 1 || self.stop_at.is_some_and(|stop_at| Instant::now() >= stop_at);
        let held = if is_late { self.flight.held() } else { self.flight.not_begun() };
        self.give_back(client, &held)?;
        if is_late {
            // What could not be stored up to now is given back by its lease.
            self.shared.free(self.outcomes.len());
            self.outcomes.clear();
        }
        Ok(())
    }

    fn give_back(&mut self, client: &mut Client, held: &[Held]) -> Result<(), Trouble> {
        if held.is_empty() {
            return Ok(());
        }
        protocol::release(client, &self.shared.worker, held)?;
        let count = self.flight.abandon(held);
        self.shared.free(count);
        self.database.given_back.fetch_add(count as u64, Relaxed);
        Ok(())
    }

    /// Claims what there is room for. True: there may be more.
    fn claim(&mut self, client: &mut Client) -> Result<bool, Trouble> {
        let options = &self.shared.options;
        let is_empty = self.flight.len() == 0 && self.outcomes.is_empty();
        if self.alone == Alone::Runs && is_empty {
            // There may be another one.
            self.alone = Alone::Wanted;
        }
        let is_alone = self.alone == Alone::Wanted;
        let must_wait = match self.alone {
            Alone::No => self.is_claimed_out,
            Alone::Wanted => !is_empty,
            Alone::Runs => true,
        };
        if must_wait || (options.once && self.has_claimed) {
            return Ok(false);
        }
        let limit = self.shared.reserve(if is_alone { 1 } else { options.concurrency });
        if limit == 0 {
            return Ok(false);
        }
        let names = self.models.names(&self.registered);
        let wanted = Wanted {
            worker: &self.shared.worker,
            limit,
            lease_s: options.lease_s,
            after_role: self.last_role,
            alone: is_alone,
            models: &names,
            types: options.types.as_deref(),
        };
        let claimed = protocol::claim(client, wanted);
        let count = claimed.as_ref().map_or(0, Vec::len);
        self.shared.free(limit.saturating_sub(count));
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                let said =
                    error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned());
                return Err(Trouble::Fatal(said));
            }
            Err(error) => return Err(Trouble::Database(error)),
        };
        self.database.claimed.fetch_add(count as u64, Relaxed);
        self.has_claimed |= count > 0 || !is_alone;
        if is_alone {
            self.alone = if count > 0 { Alone::Runs } else { Alone::No };
            self.is_claimed_out = false;
        } else {
            // Until something is heard, or it is time to look again.
            self.is_claimed_out = count < limit;
        }
        self.last_role = claimed.last().map(|claimed| claimed.owner).or(self.last_role);
        for claimed in claimed {
            self.add(claimed);
        }
        Ok(is_alone && count == 0 || !is_alone && count == limit)
    }

    fn add(&mut self, claimed: Claimed) {
        let Claimed { held, owner, priority, prepared } = claimed;
        let prepared = errand::decode(&prepared).unwrap_or_else(|error| {
            Prepared::Refused(Refusal { message: error.to_string(), code: "08P01".to_owned(), retry: true })
        });
        let errand = match prepared {
            Prepared::Errand(errand) if !errand.works.is_empty() => errand,
            Prepared::Errand(_) => {
                let message = "there is nothing to be done".to_owned();
                return self.push(
                    held,
                    Ending::Refused(Refusal { message, code: "XX000".to_owned(), retry: false }),
                );
            }
            Prepared::Refused(refusal) => return self.push(held, Ending::Refused(refusal)),
        };
        match self.models.source(&errand.model) {
            Ok(source) => {
                // Roles of one number in two databases may be two people.
                let mut hasher = DefaultHasher::new();
                (self.number, owner).hash(&mut hasher);
                let salt = hasher.finish();
                let standing =
                    Standing { owner: owner ^ ((self.number as u32) << 24), priority, paced: false };
                self.flight.add(held, errand, source, standing, salt);
            }
            Err(refusal) => self.push(held, Ending::Refused(refusal)),
        }
    }

    fn heartbeat(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let count =
            |counter: &std::sync::atomic::AtomicU64| i64::try_from(counter.load(Relaxed)).unwrap_or(i64::MAX);
        let endpoint = format!("{}/{}", self.shared.host, std::process::id());
        protocol::heartbeat(
            client,
            &Heartbeat {
                worker: &self.shared.worker,
                endpoint: &endpoint,
                status: if self.flight.len() > 0 { "running" } else { "idle" },
                models: &self.shared.engine.models(),
                active: i32::try_from(self.flight.len()).unwrap_or(i32::MAX),
                total: count(&self.database.completed) + count(&self.database.failed),
                errors: count(&self.database.failed),
            },
        )?;
        Ok(())
    }

    /// When there is something to do without being told.
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
            server.is_claimed_out = false;
        };
        if !wakes.is_empty() {
            return heard(self);
        }
        let events = if self.flight.len() > 0 { self.events.1.clone() } else { never() };
        select! {
            recv(wakes) -> _ => heard(self),
            recv(events) -> event => self.first_event = event.ok(),
            default(patience) => {}
        }
    }
}
