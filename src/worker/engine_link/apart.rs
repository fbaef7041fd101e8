//! The engine runs in a program of its own, which this process starts, watches and ends.
//!
//! Everybody reaches it through its socket, this process as well. A crash of it is nothing that the server
//! notices.
//!
//! Invariant: the program has ended, or was killed, before another engine is started.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use steadytext_engine::process::{BUILD, READY, REFUSED};
use steadytext_engine::socket::ServerState;
use steadytext_engine::watchdog::Watchdog;
use steadytext_engine::{BackendChoice, Event};

use super::failures::{ProgramEnd, Reported};
use super::socket::SocketLink;
use super::terms::{Allowance, FAULT, fault_place};
use super::{EngineLink, EngineSubmission, Fate};
use crate::pg::error::PgError;
use crate::pg::guc::{self, EngineSettings};
use crate::pg::interrupts::WaitFd;
use crate::pg::program::{Program, beside_server};
use crate::pg::{engine_leader, engine_page};

/// The program.
const NAME: &str = "steadytext-engine";
/// Time after the end of a connection within which a program that has ended is known to have.
const GRACE: Duration = Duration::from_millis(50);
/// Most times that a connection is made anew to a program that has not ended.
const MOST_RECONNECTIONS: u32 = 8;
/// Interval at which its state is asked for, beside the occasions on which it tells it.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// A program with an engine, and a connection to it once it takes some.
pub(super) struct ApartLink {
    /// `None` where it could not be started.
    program: Option<Program>,
    path: PathBuf,
    link: Option<SocketLink>,
    /// Requests that were handed over before there was a connection.
    early: Vec<EngineSubmission>,
    reconnections: u32,
    state: ServerState,
    state_at: Instant,
    asked_at: Option<Instant>,
    watchdog: Watchdog,
    reported: Reported,
    allowance: Allowance,
    end: Option<ProgramEnd>,
    end_reported: bool,
}

impl ApartLink {
    /// Starts the program. Where that fails, it is as if it had ended at once.
    pub(super) fn start(settings: &EngineSettings) -> Self {
        let path = beside_server(NAME);
        let allowance = Allowance::of(settings);
        let program = Program::start(&path, &arguments(settings, &allowance));
        let end = program.as_ref().err().map(|error| ProgramEnd::Refused(Some(error.to_string())));
        ApartLink {
            program: program.ok(),
            path,
            link: None,
            early: Vec::new(),
            reconnections: 0,
            state: ServerState::default(),
            state_at: Instant::now(),
            asked_at: None,
            watchdog: Watchdog::default(),
            reported: Reported::default(),
            allowance,
            end,
            end_reported: false,
        }
    }

    /// Looks whether it takes connections by now.
    fn begin(&mut self) -> io::Result<()> {
        let Some(program) = &mut self.program else { return Err(ErrorKind::NotFound.into()) };
        let Some(line) = program.read_line()? else { return Ok(()) };
        if line != READY {
            let why = line.strip_prefix(REFUSED).unwrap_or(&line);
            self.end = Some(ProgramEnd::Refused(Some(why.to_owned())));
            return Err(ErrorKind::ConnectionRefused.into());
        }
        self.connect()?;
        self.allowance.report();
        engine_leader::open(self.program.as_ref().map(Program::pid));
        let early = std::mem::take(&mut self.early);
        early.into_iter().for_each(|job| self.submit(job));
        Ok(())
    }

    fn connect(&mut self) -> io::Result<()> {
        let mut link = SocketLink::connect_at_once()?;
        link.watch();
        if let Some(before) = self.link.take() {
            Box::new(before).leave().into_iter().for_each(|job| link.submit(job));
        }
        self.link = Some(link);
        self.asked_at = Some(Instant::now());
        self.watchdog.ask();
        Ok(())
    }

    /// Writes what the engine has said of itself into shared memory, for everybody who reads it there.
    fn publish(&mut self) {
        let Some(link) = &mut self.link else { return };
        if let Some(state) = link.take_state() {
            (self.state, self.state_at) = (state, Instant::now());
            self.watchdog.observe(state.pulse);
            if let Some(figures) = &state.figures {
                engine_page::publish(figures);
            }
        }
        let is_due = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_INTERVAL);
        // One that does not answer is not asked more often.
        if is_due && !self.watchdog.is_asked() {
            self.asked_at = Some(Instant::now());
            self.watchdog.ask();
            link.watch();
        }
    }

    /// Kills it, if it has given no sign of life for too long. Whether it goes on.
    fn watch_over(&mut self) -> bool {
        let Some(patience) = guc::engine_hang_timeout() else {
            engine_page::note_silence(Duration::ZERO);
            return true;
        };
        let program = &mut self.program;
        let silence = self.watchdog.count(Watchdog::piece(patience), || {
            program.as_mut().map_or(Duration::ZERO, Program::kept_waiting)
        });
        engine_page::note_silence(silence);
        if silence < patience {
            return true;
        }
        // The program may have ended a moment ago.
        let ended = self.program.as_mut().and_then(|program| program.wait(Duration::ZERO));
        self.end = Some(ended.map_or(ProgramEnd::Hung(silence), ProgramEnd::of));
        self.kill();
        false
    }

    /// The connection has ended: with the program, or by itself. Whether it goes on.
    fn recover(&mut self) -> bool {
        if let Some(status) = self.program.as_mut().and_then(|program| program.wait(GRACE)) {
            self.end = Some(ProgramEnd::of(status));
            return false;
        }
        self.reconnections += 1;
        if self.reconnections <= MOST_RECONNECTIONS && self.connect().is_ok() {
            return true;
        }
        self.kill();
        self.end = Some(ProgramEnd::Unknown);
        false
    }

    /// Kills the program, if it has not ended by itself. The status with which it ended, where that is known.
    fn kill(&mut self) -> Option<ExitStatus> {
        self.program.as_mut().and_then(Program::end)
    }
}

impl EngineLink for ApartLink {
    fn submit(&mut self, job: EngineSubmission) {
        match &mut self.link {
            Some(link) => link.submit(job),
            None => self.early.push(job),
        }
    }

    fn exchange(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let Some(link) = &mut self.link else {
            let begun = self.begin();
            if begun.is_err() {
                let status = self.program.as_mut().and_then(|program| program.wait(GRACE));
                let how = status.or_else(|| self.kill());
                let how = how.map(|status| format!("it ended at once ({status})"));
                self.end.get_or_insert(ProgramEnd::Refused(how));
            }
            return begun.is_ok() && (self.link.is_some() || self.watch_over());
        };
        let goes_on = link.exchange();
        self.publish();
        if goes_on { self.watch_over() } else { self.recover() }
    }

    fn next_event(&mut self) -> Option<Event> {
        self.link.as_mut()?.next_event()
    }

    fn wait_fd(&self) -> Option<WaitFd> {
        match &self.link {
            Some(link) => link.wait_fd(),
            None => self.program.as_ref().map(Program::wait_fd),
        }
    }

    fn capacity(&self) -> usize {
        self.link.as_ref().map_or(0, SocketLink::capacity)
    }

    fn models(&mut self) -> Vec<(String, u64)> {
        self.link.as_mut().map(SocketLink::models).unwrap_or_default()
    }

    /// The idle time that the engine has reported last, and the time since then.
    fn idle_for(&self) -> Duration {
        match (&self.link, self.state.idle_ms) {
            (None, _) | (_, 0) => Duration::ZERO,
            (Some(_), idle_ms) => Duration::from_millis(idle_ms) + self.state_at.elapsed(),
        }
    }

    fn failure(&mut self) -> Option<PgError> {
        let failure = self.reported.news(self.state.panics, self.state.refused);
        match &self.end {
            Some(end) if !std::mem::replace(&mut self.end_reported, true) => {
                let pid = self.program.as_ref().map_or(0, Program::pid);
                Some(end.report(&self.path.display().to_string(), pid))
            }
            _ => failure,
        }
    }

    fn look_again(&self) -> Option<Duration> {
        guc::engine_hang_timeout().map(Watchdog::piece)
    }

    fn is_over(&self) -> bool {
        self.end.is_some()
    }

    fn fate(&self) -> Fate {
        match &self.end {
            None => Fate::Left,
            Some(end) => Fate::Fallen { crashed: end.is_crash() },
        }
    }

    fn leave(mut self: Box<Self>) -> Vec<EngineSubmission> {
        let mut requests = std::mem::take(&mut self.early);
        requests.extend(self.link.take().map(|link| Box::new(link).leave()).unwrap_or_default());
        requests
    }
}

impl Drop for ApartLink {
    fn drop(&mut self) {
        // A worker that loses the connection looks for the next engine, and not for this one.
        engine_leader::close();
        self.link = None;
        self.program = None;
        // Nobody listens there any more.
        let _ = std::fs::remove_file(engine_leader::SOCKET);
    }
}

/// The arguments of the program.
fn arguments(settings: &EngineSettings, allowance: &Allowance) -> Vec<String> {
    let backend = match settings.backend {
        BackendChoice::Auto => "auto",
        BackendChoice::Native => "native",
        BackendChoice::Candle => "candle",
    };
    let mut arguments = vec!["serve".to_owned(), engine_leader::SOCKET.to_owned()];
    let mut say = |option: &str, value: &dyn ToString| {
        arguments.extend([format!("--{option}"), value.to_string()]);
    };
    say("build", &BUILD);
    say("threads", &settings.threads);
    say("nice", &settings.nice);
    say("max-running", &settings.max_running);
    say("context", &settings.context_length);
    say("kv-cache-mb", &settings.kv_cache_mb);
    say("kv-cache-type", &settings.kv_cache_type);
    say("backend", &backend);
    say("memory-limit-mb", &allowance.limit_mb);
    say("idle-timeout", &settings.model_idle_timeout.map_or(0.0, |timeout| timeout.as_secs_f64()));
    if let Some(place) = fault_place() {
        say("fault", &format!("{place}:{FAULT}"));
    }
    arguments
}
