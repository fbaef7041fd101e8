//! `steadytext-engine serve`: its output to the process that starts it, its figures for clients that watch
//! it, and its exit status.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use steadytext_engine::process::{BUILD, FAILED_STATUS, READY};
use steadytext_engine::socket::{Client, FromEngine, ServerState};
use steadytext_engine::{Embed, Event, EventKind, ModelSource, Output, Request, Work};
use tempfile::TempDir;

/// No step takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn start(socket: &Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_steadytext-engine"))
        .arg("serve")
        .arg(socket)
        .args(["--threads", "1", "--nice", "0"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its first line.
fn first_word(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn embed(key: u64) -> Request {
    let work = Work::Embed(Embed::passage("a text"));
    Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work }
}

/// The next message for which `wanted` returns a value.
fn wait_for<T>(client: &mut Client, mut wanted: impl FnMut(FromEngine) -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE);
        match client.flush().and_then(|()| client.receive()).unwrap() {
            None => std::thread::sleep(Duration::from_millis(1)),
            Some(message) => {
                if let Some(found) = wanted(message) {
                    return found;
                }
            }
        }
    }
}

#[test]
fn it_serves_tells_its_figures_and_ends_with_its_input() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    let mut child = start(&socket, &["--build", BUILD, "--memory-limit-mb", "500"]);
    assert_eq!(first_word(&mut child), READY);
    let mut client = Client::connect(&socket).unwrap();
    client.watch().unwrap();
    let state = |message| match message {
        FromEngine::State(state) => Some(state),
        _ => None,
    };
    let before: ServerState = wait_for(&mut client, state);
    assert!(before.figures.is_none_or(|figures| figures.models == 0), "{before:?}");
    assert_eq!((before.panics, before.refused), (0, 0));
    client.submit(&embed(7)).unwrap();
    let (mut done, mut told) = (false, None);
    wait_for(&mut client, |message| {
        match message {
            FromEngine::Event(Event { key: 7, kind: EventKind::Done(Output::Embedding(_)), .. }) => {
                done = true
            }
            FromEngine::State(ServerState { figures: Some(figures), .. }) => told = Some(figures),
            _ => {}
        }
        // The last figures come when there is nothing more to do.
        told.filter(|told| done && told.running == 0 && told.statistics.passes > 0)
    });
    let figures = told.unwrap();
    assert!(figures.models == 1 && figures.limit_bytes == 500 << 20, "{figures:?}");
    // A client that does not watch gets no figures.
    let mut other = Client::connect(&socket).unwrap();
    other.submit(&embed(8)).unwrap();
    wait_for(&mut other, |message| match message {
        FromEngine::Event(Event { kind: EventKind::Done(_), .. }) => Some(()),
        FromEngine::State(_) => panic!("nobody has asked"),
        _ => None,
    });
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}

#[test]
fn it_says_why_it_cannot_serve() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("socket");
    for (socket, build, expected) in [
        (
            &*socket,
            "0.0.1/1",
            format!("refused: the program is of build {BUILD}, and the server's library of 0.0.1/1"),
        ),
        (&*directory.path().join("not/there"), BUILD, "refused: could not read or write: ".to_owned()),
    ] {
        let mut child = start(socket, &["--build", build]);
        let said = first_word(&mut child);
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(!socket.exists());
    }
}

#[test]
fn where_its_engine_has_failed_for_good_it_ends_and_says_so_by_its_status() {
    let directory = TempDir::new().unwrap();
    let (socket, file) = (directory.path().join("socket"), directory.path().join("fault"));
    let mut child = start(&socket, &["--fault", &format!("turn:{}", file.display())]);
    assert_eq!(first_word(&mut child), READY);
    let mut client = Client::connect(&socket).unwrap();
    std::fs::write(&file, "").unwrap();
    client.submit(&embed(1)).unwrap();
    let begun = Instant::now();
    let mut ended = false;
    while !ended {
        assert!(begun.elapsed() < PATIENCE);
        match client.flush().and_then(|()| client.receive()) {
            // The request that had begun fails, and no other is answered.
            Ok(Some(FromEngine::Event(Event { kind: EventKind::Done(_), .. }))) => panic!("nothing works"),
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => ended = true,
        }
    }
    // Its standard input is still open.
    let _input = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(FAILED_STATUS));
}
