//! The worker's way to the engine.
//!
//! There is one engine per server. The first worker that finds no leader becomes it and runs the engine's
//! threads in its own process ([`channel`]), or starts a program that does ([`apart`]); the others reach it
//! through its socket ([`socket`]). When the leader goes, another worker takes its place, and every worker
//! hands the requests that had not come back to the new engine: same request, same bytes.
//!
//! A program that crashes may do so again, by the same request. So its requests are not handed on by every
//! worker, but given to [`take_suspects`]. When all workers have the same program, the leader counts its
//! crashes where they see them, before another one takes connections.
//!
//! Invariant: a link never calls PostgreSQL, and its threads are started with every signal blocked.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, PgSqlErrorCode};
use steadytext_engine::memory::is_exhausted;
use steadytext_engine::{Event, Request, Standing, Ticket};

use crate::pg::engine_leader;
use crate::pg::error::PgError;
use crate::pg::guc::{self, EngineSettings};
use crate::pg::interrupts::{self, WaitFd};

#[cfg(not(feature = "noop-engine"))]
mod apart;
#[cfg(not(feature = "noop-engine"))]
mod channel;
#[cfg(not(feature = "noop-engine"))]
mod failures;
#[cfg(feature = "noop-engine")]
mod noop;
#[cfg(not(feature = "noop-engine"))]
mod socket;
#[cfg(not(feature = "noop-engine"))]
mod terms;

/// Interval at which a worker without an engine looks for one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The longest pause before a program that keeps ending is started again; the first one is [`LOOK_AGAIN`],
/// each twice as long as the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A program that has run for so long does not keep ending.
const CALM: Duration = Duration::from_secs(60);

/// A request on its way to the engine.
pub(super) struct EngineSubmission {
    pub(super) request: Request,
    /// The role for which it is, and its priority.
    pub(super) standing: Standing,
    /// Cancels it.
    pub(super) ticket: Ticket,
}

/// An engine, as the worker sees it.
trait EngineLink {
    /// Hands over a request; everything else arrives as events.
    fn submit(&mut self, job: EngineSubmission);
    /// Takes in what has come, hands over what could not be handed over before, and makes the descriptor
    /// ready to wait for more. False: the engine has gone.
    fn exchange(&mut self) -> bool;
    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<Event>;
    /// Becomes ready when an event arrives.
    fn wait_fd(&self) -> Option<WaitFd>;
    /// The number of requests that it is worth having claimed at once.
    fn capacity(&self) -> usize;
    /// Names and sizes in MB of the loaded models.
    fn models(&mut self) -> Vec<(String, u64)>;
    /// The time for which other processes have asked nothing.
    fn idle_for(&self) -> Duration;
    /// The failure since the last look that is to be in the log.
    fn failure(&mut self) -> Option<PgError> {
        None
    }
    /// The time until it is to be looked at, whether or not anything comes from it.
    fn look_again(&self) -> Option<Duration> {
        None
    }
    /// Whether it has gone without saying so on its descriptor.
    fn is_over(&self) -> bool {
        false
    }
    /// The fate of the engine, once it has gone.
    fn fate(&self) -> Fate {
        Fate::Left
    }
    /// Ends it; what was submitted and has not come back.
    fn leave(self: Box<Self>) -> Vec<EngineSubmission>;
}

/// The fate of an engine.
enum Fate {
    /// The engine goes in order, or is another process's.
    Left,
    /// The engine was the program of this process, and has ended. `crashed`: perhaps by what it was doing.
    Fallen { crashed: bool },
}

/// This process's link, and what is kept while it has none.
#[derive(Default)]
struct Connector {
    link: Option<Box<dyn EngineLink>>,
    /// Requests that wait for the next engine.
    unassigned: Vec<EngineSubmission>,
    /// Requests that an engine had which has gone.
    left: Vec<EngineSubmission>,
    /// Number of crashes of programs when the link was made.
    crashes: u64,
    /// Keys of requests that a program had which has crashed.
    suspects: Vec<u64>,
    /// Time at which the link was made.
    since: Option<Instant>,
    /// Number of times in a row that a program of this process has ended soon.
    falls: u32,
    /// The settings that the engine of this process was started with.
    settings: Option<EngineSettings>,
    look_at: Option<Instant>,
}

thread_local! {
    /// Here rather than in the worker's frame, because a FATAL error ends the process without unwinding it,
    /// and the engine's threads must stop before the process leaves shared memory.
    static CONNECTOR: RefCell<Connector> = RefCell::default();
}

/// Sees to it that there is an engine, if there can be one now: starts it, or connects to it. Each turn of
/// the loop.
///
/// # Errors
///
/// The engine's, when it cannot start; or what has gone wrong with it, although it goes on.
pub(super) fn ensure_engine() -> Result<(), PgError> {
    if is_exhausted() {
        // Whatever a thread was doing when the system had no more memory cannot go on.
        PgError::new(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "pg_steadytext's engine has no memory left")
            .hint("Lower pg_steadytext.memory_limit_mb, so that the engine refuses what does not fit.")
            .report(PgLogLevel::FATAL);
    }
    CONNECTOR.with_borrow_mut(Connector::ensure_engine)
}

/// Takes in what has come from the engine, and tells it what was cancelled.
pub(super) fn exchange() {
    // `ensure_engine` finds by itself that the engine has gone.
    with(|link| link.exchange());
}

/// Stops the engine, if it runs in this process, and makes room for another leader. Requests in flight are
/// forgotten.
pub(super) fn leave() {
    // Taken out first: dropping joins threads. A borrow in progress means that the process ends inside one of
    // the calls above or below; its threads end with it.
    let connector = CONNECTOR.with(|connector| {
        connector.try_borrow_mut().ok().map(|mut connector| std::mem::take(&mut *connector))
    });
    if is_exhausted() {
        // A thread of its engine is held up for good: it ends with the process.
        std::mem::forget(connector);
    } else {
        drop(connector);
    }
    engine_leader::step_down();
}

/// Hands over a request.
pub(super) fn submit(job: EngineSubmission) {
    CONNECTOR.with_borrow_mut(|connector| match &mut connector.link {
        Some(link) => link.submit(job),
        None => connector.unassigned.push(job),
    });
}

/// The next event, if there is one.
pub(super) fn next_event() -> Option<Event> {
    with(|link| link.next_event()).flatten()
}

/// Keys of requests that an engine had which has crashed: perhaps by one of them. No more events of them
/// come.
pub(super) fn take_suspects() -> Vec<u64> {
    CONNECTOR.with_borrow_mut(|connector| std::mem::take(&mut connector.suspects))
}

/// Becomes ready when an event arrives.
pub(super) fn wait_fd() -> Option<WaitFd> {
    with(|link| link.wait_fd()).flatten()
}

/// The number of requests that it is worth having claimed at once; 0 while there is no engine.
pub(super) fn capacity() -> usize {
    with(|link| link.capacity()).unwrap_or(0)
}

/// Names and sizes in MB of the loaded models.
pub(super) fn models() -> Vec<(String, u64)> {
    with(|link| link.models()).unwrap_or_default()
}

/// The time for which other processes have asked the engine of this one for nothing.
pub(super) fn idle_for() -> Duration {
    with(|link| link.idle_for()).unwrap_or_default()
}

/// The time that the worker may sleep.
pub(super) fn pause() -> Duration {
    const LONG: Duration = Duration::from_secs(3600);
    CONNECTOR.with_borrow(|connector| {
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        match &connector.link {
            Some(link) if link.is_over() => Duration::ZERO,
            Some(link) => link.look_again().unwrap_or(LONG),
            None => connector.look_at.map_or(LOOK_AGAIN, until),
        }
    })
}

/// Whether an engine runs in this process with other settings than those in force.
pub(super) fn has_other_settings() -> bool {
    CONNECTOR.with_borrow(|connector| {
        connector.settings.as_ref().is_some_and(|settings| *settings != guc::engine())
    })
}

fn with<R>(work: impl FnOnce(&mut dyn EngineLink) -> R) -> Option<R> {
    CONNECTOR.with_borrow_mut(|connector| connector.link.as_mut().map(|link| work(link.as_mut())))
}

impl Connector {
    fn ensure_engine(&mut self) -> Result<(), PgError> {
        if let Some(link) = &mut self.link {
            let goes_on = link.exchange();
            let failure = link.failure();
            if goes_on {
                return failure.map_or(Ok(()), Err);
            }
            self.part();
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        self.judge();
        if self.look_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.look_at = Some(Instant::now() + LOOK_AGAIN);
        let crashes = engine_leader::crashes();
        self.link = self.find()?;
        // The engine before that one may have crashed.
        self.judge();
        if let Some(link) = &mut self.link {
            (self.look_at, self.since, self.crashes) = (None, Some(Instant::now()), crashes);
            for job in self.left.drain(..).chain(self.unassigned.drain(..)) {
                link.submit(job);
            }
        }
        Ok(())
    }

    /// Takes leave of an engine that has gone.
    fn part(&mut self) {
        let Some(link) = self.link.take() else { return };
        let fate = link.fate();
        self.left.extend(link.leave());
        match fate {
            // If it was the engine of this process that has gone, the first worker to notice starts the next
            // one.
            Fate::Left => engine_leader::step_down(),
            // This one does, after a while: where others could be faster, they would take no notice of how
            // often it was.
            Fate::Fallen { crashed } => {
                engine_leader::note_exit(crashed);
                if self.since.is_some_and(|since| since.elapsed() >= CALM) {
                    self.falls = 0;
                }
                let pause = LOOK_AGAIN * 2_u32.pow(self.falls.min(16));
                self.look_at = Some(Instant::now() + pause.min(LONGEST_PAUSE));
                self.falls += 1;
            }
        }
    }

    /// If the engine has crashed, the requests that it had become suspects.
    fn judge(&mut self) {
        if !self.left.is_empty() && engine_leader::crashes() != self.crashes {
            self.suspects.extend(self.left.drain(..).map(|job| job.request.key));
        }
    }

    #[cfg(not(feature = "noop-engine"))]
    fn find(&mut self) -> Result<Option<Box<dyn EngineLink>>, PgError> {
        if engine_leader::leads() || engine_leader::try_lead() {
            interrupts::before_exit(leave);
            let settings = guc::engine();
            let started = start(&settings);
            if started.is_err() {
                engine_leader::step_down();
            }
            self.settings = Some(settings);
            return started.map(Some);
        }
        // There may be no leader just now, between the last one and the next.
        let connected = socket::SocketLink::connect().ok();
        Ok(connected.map(|link| Box::new(link) as Box<dyn EngineLink>))
    }

    #[cfg(feature = "noop-engine")]
    fn find(&mut self) -> Result<Option<Box<dyn EngineLink>>, PgError> {
        interrupts::before_exit(leave);
        Ok(Some(Box::new(noop::NoopLink::default())))
    }
}

/// Starts the engine of this process, where the settings want it.
#[cfg(not(feature = "noop-engine"))]
fn start(settings: &EngineSettings) -> Result<Box<dyn EngineLink>, PgError> {
    match settings.process {
        guc::EngineProcess::Worker => {
            let link = channel::ChannelLink::start(settings)?;
            engine_leader::open(None);
            Ok(Box::new(link))
        }
        // The connection is open when the program says that it takes some.
        guc::EngineProcess::Separate => Ok(Box::new(apart::ApartLink::start(settings))),
    }
}
