//! The serving end: one thread that accepts connections, hands their requests to the engine, and sends them its events.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, poll};

use super::frame::{Incoming, Outgoing};
use super::{FromEngine, ToEngine};
use crate::panic::{self, catch};
use crate::{Bell, Engine, Error, Event, EventKind, Reply, Request, Ticket};

/// Most connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// Most requests that a connection may have submitted and not got back.
const MAX_REQUESTS: usize = 1024;
/// A client that lets more than this wait for it is cut off.
const MAX_UNSENT_BYTES: usize = 64 << 20;
/// How long to wait where the system has no more descriptors.
const NO_DESCRIPTORS: Duration = Duration::from_millis(50);

/// Serves an engine at a path. Dropping it closes all connections, which cancels what came from them, and removes the path.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    load: Arc<Load>,
    ring: Ring,
    thread: Option<JoinHandle<()>>,
}

/// What comes through a server.
#[derive(Debug)]
struct Load {
    begun: Instant,
    unfinished: AtomicUsize,
    /// When the last one began or ended, in milliseconds from `begun`.
    last_ms: AtomicU64,
}

impl Load {
    fn note(&self, unfinished: usize) {
        self.last_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.unfinished.store(unfinished, Ordering::Relaxed);
    }
}

/// Rings the thread's bell.
struct Ring(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Server {
    /// Listens at `path`, in the place of whatever is there. Only processes of the same user can connect.
    ///
    /// # Errors
    /// The system's.
    pub fn start(path: &Path, engine: Arc<Engine>) -> io::Result<Server> {
        let listener = listen(path)?;
        let bell = Bell::new()?;
        let (stop, ring) = (Arc::default(), bell.ringer());
        let load =
            Load { begun: Instant::now(), unfinished: AtomicUsize::new(0), last_ms: AtomicU64::new(0) };
        let load = Arc::new(load);
        let (sender, events) = crossbeam_channel::unbounded();
        let serving = Serving {
            listener,
            engine,
            reply: Reply::with_bell(sender, Arc::clone(&ring)),
            bell,
            events,
            stop: Arc::clone(&stop),
            load: Arc::clone(&load),
            connections: HashMap::new(),
            origins: HashMap::new(),
            last_key: 0,
        };
        let thread = std::thread::Builder::new().name("st-socket".to_owned()).spawn(move || {
            panic::mark_thread();
            serving.run();
        })?;
        Ok(Server { path: path.to_owned(), stop, load, ring: Ring(ring), thread: Some(thread) })
    }

    /// How many requests have come through it and not ended.
    pub fn unfinished(&self) -> usize {
        self.load.unfinished.load(Ordering::Relaxed)
    }

    /// For how long none has come through it.
    pub fn idle_for(&self) -> Duration {
        if self.unfinished() > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.load.last_ms.load(Ordering::Relaxed));
        self.load.begun.elapsed().saturating_sub(last)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        (self.ring.0)();
        if let Some(thread) = self.thread.take() {
            // It catches every panic, so there is no error to pass on.
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
struct Serving {
    listener: UnixListener,
    engine: Arc<Engine>,
    reply: Reply,
    bell: Bell,
    events: Receiver<Event>,
    stop: Arc<AtomicBool>,
    load: Arc<Load>,
    /// By a number that is never used again.
    connections: HashMap<u64, Connection>,
    /// The engine's key of a request, to its connection and the key that its client gave it.
    origins: HashMap<u64, (u64, u64)>,
    last_key: u64,
}

/// One client.
struct Connection {
    stream: UnixStream,
    incoming: Incoming,
    outgoing: Outgoing,
    /// By the client's keys: the engine's key and the ticket.
    requests: HashMap<u64, (u64, Ticket)>,
}

impl Connection {
    fn send(&mut self, message: &FromEngine) -> io::Result<()> {
        self.outgoing.push(message)?;
        if self.outgoing.len() > MAX_UNSENT_BYTES {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn fail(&mut self, key: u64, error: Error) -> io::Result<()> {
        self.send(&FromEngine::Event(Event { key, kind: EventKind::Failed(error) }))
    }
}

impl Serving {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            if catch(|| self.turn()).is_err() {
                // Whatever was half done was done for one of them.
                self.close_all();
            }
        }
        self.close_all();
    }

    /// Waits until something happens, and deals with it.
    fn turn(&mut self) {
        let ready = self.wait();
        self.bell.silence();
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
        for (number, connection) in &mut self.connections {
            if connection.outgoing.len() > 0 && connection.outgoing.flush(&connection.stream).is_err() {
                broken.push(*number);
            }
        }
        broken.into_iter().for_each(|number| self.close(number));
        self.accept();
    }

    /// Sleeps until there is something to do; returns the connections that can be read.
    fn wait(&self) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(self.connections.len());
        let mut waits = Vec::with_capacity(self.connections.len() + 2);
        waits.push(PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN));
        waits.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        for (number, connection) in &self.connections {
            let writing = if connection.outgoing.len() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            numbers.push(*number);
            waits.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN | writing));
        }
        if poll(&mut waits, None).is_err() {
            return Vec::new();
        }
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let connections = numbers.into_iter().zip(&waits[2..]);
        connections
            .filter(|(_, wait)| wait.revents().intersects(readable))
            .map(|(number, _)| number)
            .collect()
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                // Closed at once: the client is told that nobody serves it.
                Ok(_) if self.connections.len() >= MAX_CONNECTIONS => {}
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.last_key += 1;
                        self.connections.insert(
                            self.last_key,
                            Connection {
                                stream,
                                incoming: Incoming::default(),
                                outgoing: Outgoing::default(),
                                requests: HashMap::new(),
                            },
                        );
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return std::thread::sleep(NO_DESCRIPTORS),
            }
        }
    }

    /// Takes in what a client has sent.
    fn read(&mut self, number: u64) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let open = connection.incoming.read(&connection.stream)?;
        while let Some(connection) = self.connections.get_mut(&number)
            && let Some(message) = connection.incoming.next::<ToEngine<'static>>()?
        {
            match message {
                ToEngine::Submit(request) => self.submit(number, request.into_owned())?,
                ToEngine::Cancel { key } => {
                    if let Some((_, ticket)) = connection.requests.get(&key) {
                        ticket.cancel();
                    }
                }
                ToEngine::ListModels => {
                    connection.send(&FromEngine::Models(self.engine.loaded_models()))?;
                }
            }
        }
        if open { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    fn submit(&mut self, number: u64, mut request: Request) -> io::Result<()> {
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
        connection.requests.insert(key, (request.key, ticket.clone()));
        self.origins.insert(request.key, (number, key));
        self.load.note(self.origins.len());
        self.engine.submit_with(request, self.reply.clone(), ticket);
        Ok(())
    }

    /// Sends an event to whom it belongs; the number of the connection if that breaks.
    fn pass_on(&mut self, event: Event) -> Result<(), u64> {
        let last = matches!(event.kind, EventKind::Done(_) | EventKind::Failed(_));
        let origin =
            if last { self.origins.remove(&event.key) } else { self.origins.get(&event.key).copied() };
        // None: the client has gone.
        let Some((number, key)) = origin else { return Ok(()) };
        if last {
            self.load.note(self.origins.len());
        }
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if last {
            connection.requests.remove(&key);
        }
        match connection.send(&FromEngine::Event(Event { key, kind: event.kind })) {
            // An answer that is too long for the socket.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                connection.fail(key, Error::InvalidRequest(error.to_string())).map_err(|_| number)
            }
            sent => sent.map_err(|_| number),
        }
    }

    /// Ends a connection and what came from it.
    fn close(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        for (key, ticket) in connection.requests.into_values() {
            self.origins.remove(&key);
            ticket.cancel();
        }
        self.load.note(self.origins.len());
    }

    fn close_all(&mut self) {
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.close(number));
    }
}
