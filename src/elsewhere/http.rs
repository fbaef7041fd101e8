//! Whether the worker lives and is ready, and its figures, over HTTP.
//!
//! Invariant: who asks gets one answer, has a second to ask and reads nothing but numbers and names of
//! databases and models.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::Error;
use crate::endpoints::Endpoint;
use crate::shared::{ServedDatabase, SharedState};

const PATIENCE: Duration = Duration::from_secs(1);
const MAX_QUESTION_BYTES: usize = 4096;

/// Answers from now on.
///
/// # Errors
///
/// [`Error::Listen`].
pub(crate) fn serve(address: &str, shared: Arc<SharedState>) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let thread = std::thread::Builder::new().name("http".to_owned());
    let work = move || {
        for stream in listener.incoming() {
            match stream {
                // A client that goes away before its answer is not told anything.
                Ok(stream) => drop(answer(stream, &shared)),
                // No more files can be opened just now.
                Err(_) => std::thread::sleep(PATIENCE),
            }
        }
    };
    thread.spawn(work).map(|_| ()).map_err(Error::Thread)
}

fn answer(mut stream: TcpStream, shared: &SharedState) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut question = Vec::new();
    let mut buffer = [0; 1024];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") && question.len() < MAX_QUESTION_BYTES {
        match stream.read(&mut buffer)? {
            0 => break,
            count => question.extend_from_slice(&buffer[..count]),
        }
    }
    let line = String::from_utf8_lossy(&question);
    let mut words = line.split_ascii_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/health/live")) => ("200 OK", "alive\n".to_owned()),
        (Some("GET"), Some("/health/ready")) => match unready(shared) {
            names if names.is_empty() => ("200 OK", "ready\n".to_owned()),
            names => ("503 Service Unavailable", format!("not ready: {}\n", names.join(", "))),
        },
        (Some("GET"), Some("/metrics")) => ("200 OK", metrics(shared)),
        _ => ("404 Not Found", "not found\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn name(database: &ServedDatabase) -> &str {
    database.name.get().map_or("", String::as_str)
}

fn unready(shared: &SharedState) -> Vec<&str> {
    if shared.stopping() > 0 {
        return vec!["stopping"];
    }
    let unready = shared.databases.iter().filter(|database| !database.is_ready.load(Ordering::Acquire));
    unready.map(name).collect()
}

/// The format of Prometheus.
fn metrics(shared: &SharedState) -> String {
    type Counter = fn(&ServedDatabase) -> &AtomicU64;
    const COUNTERS: [(&str, &str, Counter); 6] = [
        ("claimed", "Requests that were claimed", |database| &database.claimed),
        ("completed", "Requests that have ended with an answer", |database| &database.completed),
        ("failed", "Requests that have ended without one, or are tried again", |database| &database.failed),
        ("given_back", "Requests that were given back", |database| &database.given_back),
        ("lost", "Requests that were cancelled or taken by another worker", |database| &database.lost),
        ("connections", "Connections that were made", |database| &database.connections),
    ];
    let mut text = String::new();
    let label = |database: &ServedDatabase| name(database).replace(['"', '\\', '\n'], "_");
    for (what, help, of) in COUNTERS {
        let _ = writeln!(
            text,
            "# HELP steadytext_worker_{what}_total {help}\n# TYPE steadytext_worker_{what}_total counter"
        );
        for database in &shared.databases {
            let count = of(database).load(Ordering::Relaxed);
            let _ =
                writeln!(text, "steadytext_worker_{what}_total{{database=\"{}\"}} {count}", label(database));
        }
    }
    let _ = writeln!(
        text,
        "# HELP steadytext_worker_held Requests that are held\n# TYPE steadytext_worker_held gauge"
    );
    for database in &shared.databases {
        let held: &AtomicUsize = &database.held;
        let count = held.load(Ordering::Relaxed);
        let _ = writeln!(text, "steadytext_worker_held{{database=\"{}\"}} {count}", label(database));
    }
    type OfEndpoint = fn(&Endpoint) -> u64;
    const OF_ENDPOINTS: [(&str, &str, &str, OfEndpoint); 3] = [
        ("calls_total", "counter", "Calls of the endpoint of a model", |endpoint| {
            endpoint.calls.load(Ordering::Relaxed)
        }),
        ("failures_total", "counter", "Those that came to nothing", |endpoint| {
            endpoint.failures.load(Ordering::Relaxed)
        }),
        ("resting", "gauge", "Whether the endpoint is left alone just now", |endpoint| {
            u64::from(endpoint.is_resting())
        }),
    ];
    for (what, kind, help, of) in OF_ENDPOINTS.iter().filter(|_| !shared.endpoints.is_empty()) {
        let name = format!("steadytext_worker_endpoint_{what}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for endpoint in &shared.endpoints {
            let model = endpoint.name().replace(['"', '\\', '\n'], "_");
            let _ = writeln!(text, "{name}{{model=\"{model}\"}} {}", of(endpoint));
        }
    }
    text
}

/// Asks a worker whether it is ready.
///
/// # Errors
///
/// [`Error::NotReady`].
pub(crate) fn check(address: &str) -> Result<(), Error> {
    let not_ready = |why: String| Error::NotReady { address: address.to_owned(), why };
    let of_io = |error: std::io::Error| not_ready(format!(": {error}"));
    let place = address.to_socket_addrs().map_err(of_io)?.next();
    let place = place.ok_or_else(|| not_ready(": it is no address".to_owned()))?;
    let mut stream = TcpStream::connect_timeout(&place, PATIENCE).map_err(of_io)?;
    stream.set_read_timeout(Some(PATIENCE * 2)).map_err(of_io)?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n").map_err(of_io)?;
    let mut said = String::new();
    stream.take(MAX_QUESTION_BYTES as u64).read_to_string(&mut said).map_err(of_io)?;
    if said.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    Err(not_ready(said.lines().last().map(|line| format!(": {line}")).unwrap_or_default()))
}
