//! Limits of connections: their number, their time, and refusals.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Caller, Client, ConnectionRefusal, FromEngine, Server, ServerLimits};
use crate::{Config, Embed, Engine, Event, EventKind, ModelSource, Reply, Request, Work};

/// No test takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

struct Served {
    directory: tempfile::TempDir,
    engine: Arc<Engine>,
    server: Server,
}

/// A server with room for `connections`, which closes nobody by itself.
fn served(connections: usize, change: impl FnOnce(ServerLimits) -> ServerLimits) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let engine = Arc::new(Engine::start(Config { threads: 1, nice: 0, ..Config::default() }).unwrap());
    let limits = change(ServerLimits {
        connections,
        per_role: connections,
        per_process: connections,
        newcomers: 4,
        idle: LONG,
        silent: LONG,
    });
    let path = directory.path().join("socket");
    let server = Server::start_with(&path, Arc::clone(&engine), limits).unwrap();
    Served { directory, engine, server }
}

impl Served {
    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn client(&self, role: u32, process: u32) -> Client {
        Client::connect_as(&self.path(), Caller { role, process, lasting: false }).unwrap()
    }

    /// A client whose request the server has taken.
    fn busy(&self, role: u32, process: u32) -> Client {
        let before = self.server.unfinished();
        let mut client = self.client(role, process);
        client.submit(&embed()).unwrap();
        wait_for("its request is taken", || self.server.unfinished() > before);
        client
    }

    /// Keeps the engine from finishing anything until what is returned is dropped.
    fn hold(&self) -> crossbeam_channel::Sender<()> {
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let (arrived, at_gate) = crossbeam_channel::unbounded();
        let (sender, events) = crossbeam_channel::unbounded();
        // The function is called as long as somebody could receive.
        let notify = move || {
            let _ = &events;
            let _ = arrived.send(());
            let _ = gate.recv();
        };
        self.engine.submit(embed(), Reply::with_notify(sender, Arc::new(notify)));
        at_gate.recv_timeout(PATIENCE).unwrap();
        go
    }
}

fn embed() -> Request {
    let work = Work::Embed(Embed::passage("hello"));
    Request { key: 1, model: ModelSource::Builtin, salt: 0, dedup_key: None, work }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The outcome of a client's only request.
#[derive(Debug, PartialEq)]
enum End {
    Answered,
    Refused(ConnectionRefusal),
    Closed,
}

fn end(client: &mut Client) -> End {
    let begun = Instant::now();
    loop {
        match client.flush().and_then(|()| client.receive()) {
            Ok(Some(FromEngine::Event(Event { kind: EventKind::Done(_), .. }))) => return End::Answered,
            Ok(Some(FromEngine::Event(Event { kind: EventKind::Failed(error), .. }))) => panic!("{error}"),
            Ok(Some(FromEngine::Refused(refusal))) => return End::Refused(refusal),
            Ok(Some(FromEngine::Event(_) | FromEngine::Models(_) | FromEngine::State(_))) => {}
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return End::Closed,
        }
        assert!(begun.elapsed() < PATIENCE, "nothing arrives");
    }
}

#[test]
fn an_idle_connection_is_closed_and_one_with_a_request_or_that_is_to_last_is_not() {
    let served = served(8, |limits| ServerLimits { idle: Duration::from_millis(20), ..limits });
    let lasting = Caller { role: 1, process: 1, lasting: true };
    let mut lasting = Client::connect_as(&served.path(), lasting).unwrap();
    let gate = served.hold();
    let mut busy = served.busy(1, 1);
    let mut idle = served.client(1, 2);
    assert_eq!(end(&mut idle), End::Closed);
    drop(gate);
    assert_eq!(end(&mut busy), End::Answered);
    assert_eq!(end(&mut busy), End::Closed, "as soon as it has nothing more to ask");
    lasting.submit(&embed()).unwrap();
    assert_eq!(end(&mut lasting), End::Answered);
}

#[test]
fn whoever_needs_a_connection_gets_that_of_the_one_that_was_idle_for_the_longest_time() {
    let served = served(3, |limits| limits);
    let mut clients: Vec<Client> = (0..3).map(|process| served.client(1, process)).collect();
    for client in &mut clients {
        client.submit(&embed()).unwrap();
        assert_eq!(end(client), End::Answered);
    }
    for process in 3..9 {
        let mut next = served.client(1, process);
        next.submit(&embed()).unwrap();
        assert_eq!(end(&mut next), End::Answered);
        assert_eq!(end(&mut clients.remove(0)), End::Closed);
        clients.push(next);
    }
    assert_eq!(served.server.refused(), 0);
}

#[test]
fn where_all_are_in_use_one_more_is_refused_at_once_and_the_others_go_on() {
    let served = served(3, |limits| limits);
    let gate = served.hold();
    let mut busy: Vec<Client> = (0..3).map(|process| served.busy(process, process)).collect();
    for attempt in 0..10 {
        let mut late = served.client(9, 9);
        // It may have been refused before it can say what it wants.
        late.submit(&embed()).unwrap();
        assert_eq!(end(&mut late), End::Refused(ConnectionRefusal::Full { connections: 3 }));
        assert_eq!(end(&mut late), End::Closed);
        assert_eq!(served.server.refused(), attempt + 1);
    }
    assert_eq!(served.server.unfinished(), 3);
    drop(gate);
    busy.iter_mut().for_each(|client| assert_eq!(end(client), End::Answered));
    let mut next = served.client(9, 9);
    next.submit(&embed()).unwrap();
    assert_eq!(end(&mut next), End::Answered);
}

#[test]
fn a_role_and_a_process_get_their_share_and_leave_the_rest_to_others() {
    let served = served(8, |limits| ServerLimits { per_role: 3, per_process: 2, ..limits });
    let gate = served.hold();
    let mut busy = vec![served.busy(1, 1), served.busy(1, 1)];
    let refused = |role, process| {
        let mut late = served.client(role, process);
        late.submit(&embed()).unwrap();
        end(&mut late)
    };
    assert_eq!(refused(1, 1), End::Refused(ConnectionRefusal::Process { share: 2 }));
    busy.push(served.busy(1, 2));
    assert_eq!(refused(1, 3), End::Refused(ConnectionRefusal::Role { share: 3 }));
    busy.push(served.busy(2, 4));
    drop(gate);
    busy.iter_mut().for_each(|client| assert_eq!(end(client), End::Answered));
}

#[test]
fn who_says_nothing_keeps_nobody_out() {
    let served = served(8, |limits| ServerLimits { silent: Duration::from_millis(20), ..limits });
    // As many as may be silent at a time, and more.
    let silent: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(served.path()).unwrap()).collect();
    let mut client = served.client(1, 1);
    client.submit(&embed()).unwrap();
    assert_eq!(end(&mut client), End::Answered);
    drop(silent);
}
