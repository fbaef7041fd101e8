//! The engine at the limit of open files.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use steadytext_engine::socket::{Client, FromEngine, Server, ServerLimits};
use steadytext_engine::{Config, Embed, Engine, Event, EventKind, ModelSource, Reply, Request, Work};

use crate::{PATIENCE, alone};

fn embed() -> Request {
    let work = Work::Embed(Embed::passage("hello"));
    Request { key: 1, model: ModelSource::Builtin, salt: 0, dedup_key: None, work }
}

fn answered(client: &mut Client) {
    client.submit(&embed()).unwrap();
    let begun = Instant::now();
    loop {
        match client.flush().and_then(|()| client.receive()).unwrap() {
            Some(FromEngine::Event(Event { kind: EventKind::Done(_), .. })) => return,
            Some(FromEngine::Event(Event { kind: EventKind::Failed(error), .. })) => panic!("{error}"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(begun.elapsed() < PATIENCE, "nothing arrives");
    }
}

#[test]
fn at_the_limit_of_open_files_newcomers_are_refused_at_once_and_the_connected_are_served() {
    // The limit is that of the process, so the test has one to itself.
    alone(
        "descriptors::at_the_limit_of_open_files_newcomers_are_refused_at_once_and_the_connected_are_served",
        refuse_at_the_limit,
    );
}

fn refuse_at_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let engine = Arc::new(Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap());
    let (sender, events) = crossbeam_channel::unbounded();
    engine.submit(embed(), Reply::new(sender));
    while !matches!(events.recv_timeout(PATIENCE).unwrap().kind, EventKind::Done(_)) {}
    let server = Server::start_with(&path, Arc::clone(&engine), ServerLimits::of(4096)).unwrap();
    let mut connected = Client::connect(&path).unwrap();
    answered(&mut connected);
    // Sockets made in advance, to connect when the process may open no more files.
    let newcomers: Vec<_> = (0..20)
        .map(|_| rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap())
        .collect();
    let before = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let highest = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok()).max();
    // Unused descriptors below the limit are filled first.
    let filling: Vec<_> =
        (0..highest.unwrap()).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
    let lowest_free = filling.iter().map(|file| std::os::fd::AsRawFd::as_raw_fd(file) as u64 + 1).max();
    setrlimit(Resource::Nofile, Rlimit { current: lowest_free, maximum: before.maximum }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err(), "there is no descriptor left");
    let mut told = Vec::new();
    for newcomer in newcomers {
        rustix::net::connect(&newcomer, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let mut said = Vec::new();
        let stream = UnixStream::from(newcomer);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A connection of which nothing was read may end with a reset.
        let _ = (&stream).read_to_end(&mut said);
        assert!(said.len() > 4, "it was told nothing: {said:?}");
        // The numbers of the message and of the reason.
        assert_eq!(said[4..6], [3, 0], "{said:?}");
        // Closing it would make room.
        told.push(stream);
    }
    // It is counted after the client was told.
    let begun = Instant::now();
    while server.refused() < 20 {
        assert!(begun.elapsed() < PATIENCE, "{} were refused", server.refused());
        std::thread::yield_now();
    }
    answered(&mut connected);
    setrlimit(Resource::Nofile, before).unwrap();
    answered(&mut Client::connect(&path).unwrap());
    assert_eq!(server.refused(), 20);
}
