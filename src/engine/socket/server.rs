//! The serving end: one thread that accepts connections, hands their requests to the engine, and sends them
//! its events.
//!
//! It never waits for a client. A client without requests is disconnected after a while, or at once when
//! somebody else needs the connection, and reconnects by itself when it needs to.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::acceptor::{Accepted, Acceptor};
use super::connection::{ClientConnection, ClientRequest};
use super::limits::{Caller, ConnectionRefusal, ServerLimits};
use super::state::{Board, ServerState};
use super::{FromEngine, ToEngine};
use crate::panic::{self, catch};
use crate::{Engine, Error, Event, EventKind, Notifier, Reply, Request, Standing, Ticket};

/// Most requests that a connection may have submitted and not got back.
const MAX_REQUESTS: usize = 1024;

/// Connections whose messages take no more are not closed for want of memory.
const SMALL_BYTES: u64 = 1 << 20;

/// Serves an engine at a path. Dropping it closes all connections, which cancels what came from them, and
/// removes the path.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    load: Arc<ServerTraffic>,
    notify: Notify,
    thread: Option<JoinHandle<()>>,
}

/// The traffic of a server.
#[derive(Debug)]
struct ServerTraffic {
    begun: Instant,
    unfinished: AtomicUsize,
    /// Time at which the last request began or ended, in milliseconds from `begun`.
    last_ms: AtomicU64,
    /// Connections that were refused.
    refused: AtomicU64,
}

impl ServerTraffic {
    fn note(&self, unfinished: usize) {
        self.last_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.unfinished.store(unfinished, Ordering::Relaxed);
    }

    fn idle_for(&self) -> Duration {
        if self.unfinished.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }
}

/// Notifies the thread of the socket.
struct Notify(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notify")
    }
}

impl Server {
    /// Listens at `path`, in the place of whatever is there. Only processes of the same user can connect.
    ///
    /// # Errors
    /// The system's.
    pub fn start(path: &Path, engine: Arc<Engine>) -> io::Result<Server> {
        Server::start_with(path, engine, ServerLimits::of_this_process())
    }

    /// As [`Server::start`], for an engine whose figures go to `board`: clients that watch are told of them.
    ///
    /// # Errors
    /// The system's.
    pub fn start_watched(path: &Path, engine: Arc<Engine>, board: Arc<Board>) -> io::Result<Server> {
        Server::begin(path, engine, ServerLimits::of_this_process(), board)
    }

    /// As [`Server::start`], with limits of one's own.
    ///
    /// # Errors
    /// The system's.
    pub fn start_with(path: &Path, engine: Arc<Engine>, limits: ServerLimits) -> io::Result<Server> {
        Server::begin(path, engine, limits, Arc::default())
    }

    fn begin(
        path: &Path,
        engine: Arc<Engine>,
        limits: ServerLimits,
        board: Arc<Board>,
    ) -> io::Result<Server> {
        let listener = listen(path)?;
        let notifier = Notifier::new()?;
        let (stop, notify) = (Arc::default(), notifier.handle());
        board.wakes(Arc::clone(&notify));
        let load = Arc::new(ServerTraffic {
            begun: Instant::now(),
            unfinished: AtomicUsize::new(0),
            last_ms: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let (sender, events) = crossbeam_channel::unbounded();
        let serving = ServerThread {
            acceptor: Acceptor::new(listener),
            limits,
            engine,
            reply: Reply::with_notify(sender, Arc::clone(&notify)),
            notifier,
            events,
            stop: Arc::clone(&stop),
            load: Arc::clone(&load),
            board,
            connections: HashMap::new(),
            origins: HashMap::new(),
            last_key: 0,
        };
        let thread = std::thread::Builder::new().name("st-socket".to_owned()).spawn(move || {
            panic::mark_thread();
            serving.run();
        })?;
        Ok(Server { path: path.to_owned(), stop, load, notify: Notify(notify), thread: Some(thread) })
    }

    /// The number of requests that have come through it and not ended.
    pub fn unfinished(&self) -> usize {
        self.load.unfinished.load(Ordering::Relaxed)
    }

    /// The number of connections that were refused since it was started.
    pub fn refused(&self) -> u64 {
        self.load.refused.load(Ordering::Relaxed)
    }

    /// The time since the last request that came through it has ended; zero while one has not.
    pub fn idle_for(&self) -> Duration {
        self.load.idle_for()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        (self.notify.0)();
        if let Some(thread) = self.thread.take() {
            // The thread catches every panic, so there is no error to pass on.
            let _ = thread.join();
        }
        // Somebody may have cleaned up.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket that nobody else can connect to at any moment: it gets its name after its mode.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// The thread's state.
struct ServerThread {
    acceptor: Acceptor,
    limits: ServerLimits,
    engine: Arc<Engine>,
    reply: Reply,
    notifier: Notifier,
    events: Receiver<Event>,
    stop: Arc<AtomicBool>,
    load: Arc<ServerTraffic>,
    board: Arc<Board>,
    /// The connections, by a number that is never used again.
    connections: HashMap<u64, ClientConnection>,
    /// The engine's key of a request, to its connection and the key that its client gave it.
    origins: HashMap<u64, (u64, u64)>,
    last_key: u64,
}

impl ServerThread {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            if catch(|| self.turn()).is_err() {
                // The turn that failed may have left any connection half served.
                self.close_all();
            }
        }
        self.close_all();
    }

    /// Waits until something happens, and deals with it.
    fn turn(&mut self) {
        let ready = self.wait();
        self.notifier.reset();
        let mut broken = Vec::new();
        for number in ready {
            if self.read(number).is_err() {
                broken.push(number);
            }
        }
        while let Ok(event) = self.events.try_recv() {
            if let Err(number) = self.pass_on(event) {
                broken.push(number);
            }
        }
        self.send_all(&mut broken);
        // Bytes that are sent by now are in nobody's way.
        self.notify_watchers(&mut broken);
        self.send_all(&mut broken);
        let overdue = |(number, connection): (&u64, &ClientConnection)| {
            connection.patience(&self.limits).is_some_and(|left| left.is_zero()).then_some(*number)
        };
        broken.extend(self.connections.iter().filter_map(overdue));
        broken.into_iter().for_each(|number| self.close(number));
        self.count_memory();
        self.accept();
    }

    /// Sends what is to be sent, as far as that goes without waiting.
    fn send_all(&mut self, broken: &mut Vec<u64>) {
        for (number, connection) in &mut self.connections {
            if connection.outgoing.len() > 0 && connection.outgoing.flush(&connection.stream).is_err() {
                broken.push(*number);
            }
        }
    }

    fn state(&self) -> ServerState {
        ServerState {
            figures: self.board.figures(),
            panics: self.engine.statistics().panics,
            refused: self.load.refused.load(Ordering::Relaxed),
            idle_ms: self.load.idle_for().as_millis() as u64,
            pulse: self.engine.pulse(),
        }
    }

    /// Sends the engine's state to the clients that watch it. A client that has not read the previous message
    /// gets none in between, but the latest one when there is room for it again.
    fn notify_watchers(&mut self, broken: &mut Vec<u64>) {
        let has_changed = self.board.has_changed();
        let state = self.state();
        for (number, connection) in self.connections.iter_mut().filter(|(_, connection)| connection.watches) {
            connection.is_behind |= has_changed;
            if connection.is_behind && connection.outgoing.len() == 0 {
                connection.is_behind = false;
                if connection.send(&FromEngine::State(state)).is_err() {
                    broken.push(*number);
                }
            }
        }
    }

    /// The number of connections whose clients have not introduced themselves.
    fn newcomers(&self) -> usize {
        self.connections.values().filter(|connection| connection.caller.is_none()).count()
    }

    /// The time until there is something to do although nothing has happened.
    fn patience(&self) -> Option<Timespec> {
        let waits = self.connections.values().filter_map(|connection| connection.patience(&self.limits));
        let left = waits.chain(self.acceptor.shut_for()).min()?;
        // The rest of a nanosecond's rounding is no reason to look twice.
        Timespec::try_from(left + Duration::from_millis(1)).ok()
    }

    /// Sleeps until there is something to do; returns the connections that can be read.
    fn wait(&self) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(self.connections.len());
        let mut waits = Vec::with_capacity(self.connections.len() + 2);
        for (number, connection) in &self.connections {
            let writing = if connection.outgoing.len() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            numbers.push(*number);
            waits.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN | writing));
        }
        waits.push(PollFd::from_borrowed_fd(self.notifier.as_fd(), PollFlags::IN));
        let acceptor = self.acceptor.fd().filter(|_| self.newcomers() < self.limits.newcomers);
        waits.extend(acceptor.map(|acceptor| PollFd::from_borrowed_fd(acceptor, PollFlags::IN)));
        if poll(&mut waits, self.patience().as_ref()).is_err() {
            return Vec::new();
        }
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        numbers
            .into_iter()
            .zip(&waits)
            .filter(|(_, wait)| wait.revents().intersects(readable))
            .map(|(number, _)| number)
            .collect()
    }

    /// Accepts clients that want to connect. Each says in its first message who it is.
    fn accept(&mut self) {
        let mut newcomers = self.newcomers();
        while newcomers < self.limits.newcomers && self.acceptor.fd().is_some() {
            match self.acceptor.next(ConnectionRefusal::Full { connections: self.connections.len() }) {
                Accepted::Someone(stream) => {
                    newcomers += 1;
                    self.last_key += 1;
                    self.connections.insert(self.last_key, ClientConnection::new(stream));
                }
                Accepted::Refused => self.note_refusal(),
                Accepted::Nobody => return,
            }
        }
    }

    fn note_refusal(&self) {
        self.load.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Learns who a newcomer is: it gets a connection, in the place of an idle one where none is left, or is
    /// refused.
    fn welcome(&mut self, number: u64, caller: Caller) -> io::Result<()> {
        let outcome = self.make_room(caller);
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if connection.caller.is_some() {
            return Err(ErrorKind::InvalidData.into());
        }
        if let Err(refusal) = outcome {
            connection.refuse(refusal);
            self.note_refusal();
            return Err(ErrorKind::ConnectionRefused.into());
        }
        connection.caller = Some(caller);
        Ok(())
    }

    fn make_room(&mut self, caller: Caller) -> Result<(), ConnectionRefusal> {
        if caller.lasting {
            return Ok(());
        }
        let ServerLimits { connections, per_role, per_process, .. } = self.limits;
        let same_process = |other: &Caller| other.process == caller.process;
        let same_role = |other: &Caller| other.role == caller.role;
        if !self.leaves_room(per_process, &same_process) {
            return Err(ConnectionRefusal::Process { share: per_process });
        }
        if !self.leaves_room(per_role, &same_role) {
            return Err(ConnectionRefusal::Role { share: per_role });
        }
        if !self.leaves_room(connections, &|_| true) {
            return Err(ConnectionRefusal::Full { connections });
        }
        Ok(())
    }

    /// Whether there are fewer than so many connections of such callers, if need be after the one was closed
    /// that had nothing to do for the longest time.
    fn leaves_room(&mut self, most: usize, which: &dyn Fn(&Caller) -> bool) -> bool {
        let of_them = |connection: &ClientConnection| {
            connection.caller.is_some_and(|caller| !caller.lasting && which(&caller))
        };
        let those = || self.connections.iter().filter(|(_, connection)| of_them(connection));
        if those().count() < most {
            return true;
        }
        let idle = those().filter(|(_, connection)| connection.is_idle());
        let Some(oldest) = idle.min_by_key(|(_, connection)| connection.since()).map(|(number, _)| *number)
        else {
            return false;
        };
        self.close(oldest);
        true
    }

    /// Takes in what a client has sent.
    fn read(&mut self, number: u64) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let open = connection.incoming.read(&connection.stream)?;
        while let Some(connection) = self.connections.get_mut(&number)
            && let Some(message) = connection.incoming.next::<ToEngine<'static>>()?
        {
            // Nobody is served before it has said who it is.
            if connection.caller.is_none() && !matches!(message, ToEngine::Hello(_)) {
                return Err(ErrorKind::InvalidData.into());
            }
            match message {
                ToEngine::Hello(caller) => self.welcome(number, caller)?,
                ToEngine::Submit(request, standing) => self.submit(number, request.into_owned(), standing)?,
                ToEngine::Read { key } => {
                    if connection.has_read(key) {
                        self.engine.wake();
                    }
                }
                ToEngine::Cancel { key } => {
                    if let Some(submitted) = connection.requests.get(&key) {
                        submitted.ticket.cancel();
                        self.engine.wake();
                    }
                }
                ToEngine::ListModels => {
                    connection.send(&FromEngine::Models(self.engine.loaded_models()))?;
                }
                ToEngine::Watch => {
                    connection.watches = true;
                    let state = self.state();
                    self.connections
                        .get_mut(&number)
                        .map_or(Ok(()), |it| it.send(&FromEngine::State(state)))?;
                }
            }
        }
        if open { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn submit(&mut self, number: u64, mut request: Request, standing: Standing) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let key = request.key;
        if connection.requests.contains_key(&key) {
            return Err(ErrorKind::InvalidData.into());
        }
        if connection.requests.len() >= MAX_REQUESTS {
            return connection.fail(key, Error::QueueFull { capacity: MAX_REQUESTS });
        }
        self.last_key += 1;
        request.key = self.last_key;
        // Before the engine has it: its events may come at once.
        let ticket = Ticket::new();
        connection.requests.insert(key, ClientRequest::new(request.key, ticket.clone(), standing));
        self.origins.insert(request.key, (number, key));
        self.load.note(self.origins.len());
        self.engine.submit_as(request, standing, self.reply.clone(), ticket);
        Ok(())
    }

    /// Sends an event to whom it belongs; the number of the connection if that breaks.
    fn pass_on(&mut self, event: Event) -> Result<(), u64> {
        let last = matches!(event.kind, EventKind::Done(_) | EventKind::Failed(_));
        // The engine's end is not the request's: its owner looks for the next engine.
        let stopped = matches!(event.kind, EventKind::Failed(Error::Stopped));
        let origin =
            if last { self.origins.remove(&event.key) } else { self.origins.get(&event.key).copied() };
        // Where the origin is not known, the client has gone.
        let Some((number, key)) = origin else { return Ok(()) };
        if last {
            self.load.note(self.origins.len());
        }
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if last {
            connection.ended(key);
        }
        if stopped {
            return Err(number);
        }
        match connection.pass_on(Event { key, ..event }) {
            // An answer that is too long for the socket.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                connection.fail(key, Error::InvalidRequest(error.to_string())).map_err(|_| number)
            }
            sent => sent.map_err(|_| number),
        }
    }

    /// Counts what messages take that are on their way; where there is no room for them, the connection with
    /// the most of them ends.
    fn count_memory(&mut self) {
        let bytes = self.connections.values().map(ClientConnection::memory).sum();
        if self.engine.note_buffers(bytes) {
            return;
        }
        let most = self.connections.iter().max_by_key(|(_, connection)| connection.memory());
        let greatest =
            most.filter(|(_, connection)| connection.memory() > SMALL_BYTES).map(|(number, _)| *number);
        if let Some(number) = greatest {
            self.close(number);
        }
    }

    /// Ends a connection and what came from it.
    fn close(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        let had_requests = !connection.requests.is_empty();
        for submitted in connection.requests.into_values() {
            self.origins.remove(&submitted.key);
            submitted.ticket.cancel();
        }
        // All requests may have been paused for this client's sake, and the engine must look at them again.
        if had_requests {
            self.engine.wake();
        }
        self.load.note(self.origins.len());
    }

    fn close_all(&mut self) {
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.close(number));
    }
}
