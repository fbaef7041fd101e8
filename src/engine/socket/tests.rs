//! The client and the server against each other, and each against a misbehaving peer.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::frame::{Incoming, Outgoing};
use super::{Client, FromEngine, MAX_MESSAGE_BYTES, Server, ServerLimits};
use crate::{
    Config, Embed, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Request, Sampling,
    Standing, Work,
};

/// No test takes longer unless it hangs, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(300);

struct Served {
    directory: tempfile::TempDir,
    engine: Arc<Engine>,
    server: Server,
}

fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let engine = Arc::new(Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap());
    // Nobody is closed for having nothing to ask, however slow the machine is.
    let long = Duration::from_secs(3600);
    let limits = ServerLimits { idle: long, silent: long, ..ServerLimits::of(1024) };
    let path = directory.path().join("socket");
    let server = Server::start_with(&path, Arc::clone(&engine), limits).unwrap();
    Served { directory, engine, server }
}

impl Served {
    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }
}

fn embed(key: u64, text: &str) -> Request {
    let work = Work::Embed(Embed::passage(text));
    Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work }
}

fn generate(key: u64, prompt: &str, max_tokens: usize) -> Request {
    let sampling = Sampling::default();
    let how =
        Generate { prompt: prompt.to_owned(), max_tokens, sampling, stop: Vec::new(), ..Generate::default() };
    Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work: Work::Generate(how) }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The next message, waiting for it.
fn receive(client: &mut Client) -> std::io::Result<FromEngine> {
    let begun = Instant::now();
    loop {
        client.flush()?;
        if let Some(message) = client.receive()? {
            return Ok(message);
        }
        assert!(begun.elapsed() < PATIENCE, "nothing arrives");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The last event of request `key`.
fn last(client: &mut Client, key: u64) -> EventKind {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "no last event");
        match receive(client).unwrap() {
            FromEngine::Event(Event { key: of, kind, .. })
                if of == key && matches!(kind, EventKind::Done(_) | EventKind::Failed(_)) =>
            {
                return kind;
            }
            _ => {}
        }
    }
}

#[test]
fn an_answer_over_the_socket_is_the_one_over_the_channel_and_each_client_has_its_own_keys() {
    let served = served();
    let (mut first, mut second) = (served.client(), served.client());
    first.submit(&embed(1, "hello")).unwrap();
    second.submit(&embed(1, "something else")).unwrap();
    let (sender, events) = crossbeam_channel::unbounded();
    served.engine.submit(embed(1, "hello"), crate::Reply::new(sender));
    let direct =
        std::iter::from_fn(|| events.recv_timeout(PATIENCE).ok()).find_map(|event| match event.kind {
            EventKind::Done(output) => Some(output),
            _ => None,
        });
    let EventKind::Done(one) = last(&mut first, 1) else { panic!("no answer") };
    let EventKind::Done(other) = last(&mut second, 1) else { panic!("no answer") };
    assert_eq!(Some(&one), direct.as_ref());
    assert_ne!(one, other);
    assert_eq!(served.server.unfinished(), 0);
}

#[test]
fn text_comes_in_pieces_that_add_up_and_models_are_listed() {
    let served = served();
    let mut client = served.client();
    client.submit(&generate(7, "Once upon a time", 64)).unwrap();
    let mut pieces = String::new();
    loop {
        match receive(&mut client).unwrap() {
            FromEngine::Event(Event { key: 7, kind: EventKind::Progress { text, .. }, .. }) => {
                pieces.push_str(&text);
            }
            FromEngine::Event(Event { key: 7, kind: EventKind::Done(Output::Text { text, .. }), .. }) => {
                assert!(text.starts_with(&pieces), "{pieces:?} {text:?}");
                break;
            }
            FromEngine::Event(Event { kind: EventKind::Failed(error), .. }) => panic!("{error}"),
            _ => {}
        }
    }
    client.ask_for_models().unwrap();
    let FromEngine::Models(models) = receive(&mut client).unwrap() else { panic!("no list") };
    assert_eq!(models, served.engine.loaded_models());
    assert_eq!(models.len(), 1);
}

#[test]
fn a_cancelled_request_fails_as_cancelled() {
    let served = served();
    let mut client = served.client();
    client.submit(&generate(3, "a long story", 4000)).unwrap();
    client.cancel(3).unwrap();
    client.cancel(4).unwrap();
    assert!(matches!(last(&mut client, 3), EventKind::Failed(Error::Cancelled)));
}

#[test]
fn a_client_that_goes_takes_its_requests_with_it() {
    let served = served();
    let mut gone = served.client();
    for key in 0..200 {
        gone.submit(&generate(key, "a long story", 4000)).unwrap();
    }
    wait_until("all requests have arrived", || served.server.unfinished() == 200);
    drop(gone);
    wait_until("all requests have gone", || served.server.unfinished() == 0);
    assert!(served.server.idle_for() < PATIENCE);
    let mut next = served.client();
    next.submit(&embed(1, "hello")).unwrap();
    assert!(matches!(last(&mut next, 1), EventKind::Done(_)));
}

#[test]
fn a_server_that_stops_closes_its_connections_and_removes_its_path() {
    let Served { directory, engine, server } = served();
    let path = directory.path().join("socket");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = Client::connect(&path).unwrap();
    client.submit(&generate(1, "a long story", 4000)).unwrap();
    drop(server);
    let error = loop {
        match receive(&mut client) {
            Ok(FromEngine::Event(event)) => assert!(!matches!(event.kind, EventKind::Failed(_)), "{event:?}"),
            Ok(FromEngine::Models(_) | FromEngine::Refused(_) | FromEngine::State(_)) => {
                panic!("nobody asked")
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset));
    assert!(!path.exists());
    assert_eq!(Client::connect(&path).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    // The socket that a killed server leaves behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(Client::connect(&path).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let server = Server::start(&path, engine).unwrap();
    let mut client = Client::connect(&path).unwrap();
    client.submit(&embed(1, "hello")).unwrap();
    assert!(matches!(last(&mut client, 1), EventKind::Done(_)));
    drop(server);
}

#[test]
fn errors_cross_with_their_kind_and_every_word() {
    // A path need not be UTF-8.
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(b"/a/\xffb.gguf"));
    let errors = [
        Error::ModelFile { path: path.clone(), source: Arc::new(std::io::Error::from_raw_os_error(13)) },
        Error::ModelFile { path: path.clone(), source: Arc::new(std::io::Error::other("odd")) },
        Error::LostModel { path: path.clone() },
        Error::CorruptModel { path: path.clone(), reason: "key \"a\"".to_owned() },
        Error::UnsupportedModel { path: path.clone(), reason: "b".to_owned(), hint: Some("c".to_owned()) },
        Error::Template { path, reason: "c".to_owned() },
        Error::PromptTooLong { prompt_tokens: 9, context_length: 8 },
        Error::UnknownTask { hint: "Name one of its tasks: g.".to_owned() },
        Error::InvalidRequest("d".to_owned()),
        Error::OutOfMemory { what: "e".to_owned(), needed_mb: 5, limit_mb: Some(4) },
        Error::OutOfMemory { what: "e".to_owned(), needed_mb: 5, limit_mb: None },
        Error::QueueFull { capacity: 3 },
        Error::NonFinite { position: 1 },
        Error::InvalidText { position: 2 },
        Error::Cancelled,
        Error::Stopped,
        Error::Panicked("f".to_owned()),
    ];
    let (near, far) = UnixStream::pair().unwrap();
    let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
    for error in errors {
        outgoing.push(&error).unwrap();
        outgoing.flush(&near).unwrap();
        incoming.read(&far).unwrap();
        let crossed: Error = incoming.next().unwrap().unwrap();
        assert_eq!(format!("{error:?}"), format!("{crossed:?}"));
        assert_eq!(error.to_string(), crossed.to_string());
        let source = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
        assert_eq!(source(&error), source(&crossed));
    }
}

#[test]
fn a_message_that_is_too_long_is_refused_where_it_is_made_and_where_it_arrives() {
    let served = served();
    let mut client = served.client();
    let long = embed(1, &"x".repeat(MAX_MESSAGE_BYTES));
    assert_eq!(client.submit(&long).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    client.submit(&embed(2, "short")).unwrap();
    assert!(matches!(last(&mut client, 2), EventKind::Done(_)));
    let mut hostile = UnixStream::connect(served.path()).unwrap();
    hostile.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(is_cut_off(&mut hostile));
}

/// Whether the server closes the connection, which it must do at once or when it has seen everything.
fn is_cut_off(stream: &mut UnixStream) -> bool {
    let mut waits = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    let patience = Timespec { tv_sec: 300, tv_nsec: 0 };
    poll(&mut waits, Some(&patience)).unwrap();
    !waits[0].revents().is_empty() && matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))
}

#[test]
fn what_is_no_message_ends_its_connection_and_nothing_else() {
    let served = served();
    let mut bystander = served.client();
    let mut request = Vec::new();
    let valid = {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut outgoing = Outgoing::default();
        outgoing
            .push(&super::ToEngine::Submit(
                std::borrow::Cow::Owned(generate(1, "a story", 4)),
                Standing::default(),
            ))
            .unwrap();
        outgoing.flush(&near).unwrap();
        drop(near);
        far.read_to_end(&mut request).unwrap();
        request
    };
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for round in 0..300 {
        let mut bytes = valid.clone();
        match round % 3 {
            // Noise inside a frame.
            0 => (0..1 + random() % 8).for_each(|_| {
                let at = 4 + random() % (bytes.len() - 4);
                bytes[at] = random() as u8;
            }),
            // Noise of a right length.
            1 => bytes[4..].iter_mut().for_each(|byte| *byte = random() as u8),
            // A length that counts more than there is, cut off.
            _ => bytes.truncate(1 + random() % (bytes.len() - 1)),
        }
        let mut stream = UnixStream::connect(served.path()).unwrap();
        // The server may have cut it off already.
        let _ = stream.write_all(&bytes);
    }
    // A message inside which a length promises more than there is.
    let mut stream = UnixStream::connect(served.path()).unwrap();
    stream.write_all(&[12, 0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
    assert!(is_cut_off(&mut stream));
    bystander.submit(&embed(1, "hello")).unwrap();
    assert!(matches!(last(&mut bystander, 1), EventKind::Done(_)));
}
