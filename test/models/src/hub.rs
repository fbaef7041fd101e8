//! A hub that serves files on this machine, in the protocol of huggingface.co as far as downloads need it,
//! and makes mistakes when told to.
//!
//! It has two addresses. At that of the hub are the lists of repositories and small files; for large ones it
//! sends whoever asks to the other, as the real one does with its stores.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// Bytes that are sent at once.
const CHUNK: usize = 64 << 10;
/// The pause after a single byte.
const DRIP: Duration = Duration::from_millis(2);

/// A fault of the hub, which happens once, when the file is asked for.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Closes the connection after so many bytes.
    Cut(u64),
    /// Sends so many bytes, and no more until it is [released](LocalHub::release).
    Hold(u64),
    /// Answers with a status and perhaps a header.
    Status(u16, Option<(&'static str, &'static str)>),
    /// Sends other bytes of the same length.
    Spoil,
    /// Says that the file is longer than it was announced.
    Longer,
    /// Sends the whole file, whatever was asked for.
    IgnoreRange,
    /// Sends the client elsewhere.
    Redirect(String),
    /// Sends single bytes with pauses between them, so many of them, before the rest.
    Drip(usize),
}

/// A request to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `hub` or `store`.
    pub place: &'static str,
    /// The path of the address.
    pub path: String,
    /// The header Range.
    pub range: Option<String>,
    /// The header If-Range.
    pub if_range: Option<String>,
    /// The header Authorization.
    pub authorization: Option<String>,
    /// The status that was answered.
    pub status: u16,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Arc<Vec<u8>>),
    File(PathBuf, u64),
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, size) => *size,
        }
    }
}

#[derive(Debug, Clone)]
struct Stored {
    content: Content,
    sha256: String,
    is_large: bool,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, BTreeMap<String, Stored>>,
    /// Fields of the list of a repository beside those that are always there.
    details: HashMap<String, Json>,
    token: Option<String>,
    faults: HashMap<String, VecDeque<Fault>>,
    /// Part of every ETag: another one stands for another version.
    version: u32,
    /// The sizes and checksums of large files are kept from those who ask.
    is_silent: bool,
    /// Files are sent from their beginning, whatever was asked for.
    ignores_ranges: bool,
    held: usize,
    releases: usize,
    asked: Vec<Asked>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes in a second over all connections; 0: as fast as it goes.
    rate: AtomicU64,
    hub: u16,
    store: u16,
}

/// A hub on this machine; it serves until the process ends.
#[derive(Debug, Clone)]
pub struct LocalHub(Arc<Shared>);

impl LocalHub {
    /// Starts one that has nothing.
    pub fn start() -> std::io::Result<LocalHub> {
        let (hub, store) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            rate: AtomicU64::new(0),
            hub: hub.local_addr()?.port(),
            store: store.local_addr()?.port(),
        });
        for (place, listener) in [("hub", hub), ("store", store)] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.serve(place, stream));
                }
            });
        }
        Ok(LocalHub(shared))
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.hub)
    }

    /// The address of its store.
    pub fn store(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    fn put(&self, repository: &str, path: &str, content: Content, sha256: String, is_large: bool) {
        let stored = Stored { content, sha256, is_large };
        self.state().repositories.entry(repository.to_owned()).or_default().insert(path.to_owned(), stored);
    }

    /// Adds a large file, which has a checksum and lies in the store.
    pub fn add(&self, repository: &str, path: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let sha256 = hex(&Sha256::digest(&bytes));
        self.put(repository, path, Content::Bytes(Arc::new(bytes)), sha256, true);
    }

    /// Adds a small file, which lies at the hub and has none.
    pub fn add_small(&self, repository: &str, path: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let sha256 = hex(&Sha256::digest(&bytes));
        self.put(repository, path, Content::Bytes(Arc::new(bytes)), sha256, false);
    }

    /// Adds a file of the disk, a large one if it has a megabyte.
    pub fn add_file(&self, repository: &str, path: &str, file: impl Into<PathBuf>) -> std::io::Result<()> {
        let file = file.into();
        let mut hash = Sha256::new();
        let mut reader = File::open(&file)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        let size = reader.metadata()?.len();
        self.put(repository, path, Content::File(file, size), hex(&hash.finalize()), size >= 1 << 20);
        Ok(())
    }

    /// Takes a file away.
    pub fn remove(&self, repository: &str, path: &str) {
        if let Some(files) = self.state().repositories.get_mut(repository) {
            files.remove(path);
        }
    }

    /// The SHA-256 of a file, in hexadecimal digits.
    pub fn sha256(&self, repository: &str, path: &str) -> String {
        self.state().repositories[repository][path].sha256.clone()
    }

    /// Fields of the list of a repository: `{"gguf": {"total": …}}`.
    pub fn describe(&self, repository: &str, fields: Json) {
        self.state().details.insert(repository.to_owned(), fields);
    }

    /// Answers only requests that have this token.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Makes requests for the bytes of a file, or for the list of a repository (`list`), go wrong, one fault
    /// after the other. Without any left all goes well.
    pub fn fault(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.entry(path.to_owned()).or_default().extend(faults);
    }

    /// Files have other ETags from now on.
    pub fn change_etags(&self) {
        self.state().version += 1;
    }

    /// Sizes and checksums are no longer listed.
    pub fn be_silent(&self) {
        self.state().is_silent = true;
    }

    /// Files are sent from their beginning from now on, whatever is asked for.
    pub fn ignore_ranges(&self) {
        self.state().ignores_ranges = true;
    }

    /// Bytes in a second, over all connections.
    pub fn limit_rate(&self, bytes: u64) {
        self.0.rate.store(bytes, Relaxed);
    }

    /// The requests up to now.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// The number of times that the bytes of a file were asked for.
    pub fn times(&self, path: &str) -> usize {
        let end = format!("/{path}");
        self.asked()
            .iter()
            .filter(|asked| asked.path.ends_with(&end) && matches!(asked.status, 200 | 206))
            .count()
    }

    /// Waits until so many connections are held, for a minute at most. Whether that is so.
    pub fn wait_until_held(&self, connections: usize) -> bool {
        let state = self.state();
        let waiting = self
            .0
            .changed
            .wait_timeout_while(state, Duration::from_secs(300), |state| state.held < connections);
        !waiting.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Lets all go on that are held.
    pub fn release(&self) {
        self.state().releases += 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, place: &'static str, stream: TcpStream) {
        // The client may be gone.
        let _ = self.serve_all(place, &stream);
    }

    fn serve_all(&self, place: &'static str, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let header = |name: &str| {
                lines.iter().skip(1).find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").to_owned();
            let asked = Asked {
                place,
                path: path.split('?').next().unwrap_or_default().to_owned(),
                range: header("range"),
                if_range: header("if-range"),
                authorization: header("authorization"),
                status: 0,
            };
            if !self.answer(asked, stream)? {
                return Ok(());
            }
        }
    }

    /// Whether the connection stays open.
    fn answer(&self, asked: Asked, stream: &TcpStream) -> std::io::Result<bool> {
        let parts: Vec<String> = asked.path.trim_start_matches('/').split('/').map(decoded).collect();
        let words: Vec<&str> = parts.iter().map(String::as_str).collect();
        let say = |status: u16, headers: String, body: &[u8]| {
            self.state().asked.push(Asked { status, ..asked.clone() });
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{headers}\r\n");
            { stream }.write_all(head.as_bytes()).and_then(|()| { stream }.write_all(body)).map(|()| true)
        };
        let denied = self
            .state()
            .token
            .as_ref()
            .is_some_and(|token| asked.authorization != Some(format!("Bearer {token}")));
        if asked.place == "hub" && denied {
            return say(401, "X-Error-Code: RepoNotFound\r\n".to_owned(), b"{}");
        }
        match words[..] {
            ["api", "models", owner, name, "revision", _] => {
                let repository = format!("{owner}/{name}");
                let (fault, list) = {
                    let mut state = self.state();
                    let fault = state.faults.get_mut("list").and_then(VecDeque::pop_front);
                    (
                        fault,
                        state.repositories.get(&repository).map(|files| listing(&state, &repository, files)),
                    )
                };
                match (fault, list) {
                    (Some(Fault::Status(status, header)), _) => say(status, header_line(header), b""),
                    (Some(Fault::Spoil), _) => say(200, String::new(), b"<html>busy</html>"),
                    (Some(Fault::Drip(drips)), Some(list)) => {
                        let body = list.to_string().into_bytes();
                        self.state().asked.push(Asked { status: 200, ..asked.clone() });
                        let head = format!("HTTP/1.1 200 Status\r\nContent-Length: {}\r\n\r\n", body.len());
                        { stream }.write_all(head.as_bytes())?;
                        for byte in body.chunks(1).take(drips) {
                            std::thread::sleep(DRIP);
                            { stream }.write_all(byte)?;
                        }
                        { stream }.write_all(body.get(drips..).unwrap_or_default()).map(|()| true)
                    }
                    (_, Some(list)) => say(200, String::new(), list.to_string().as_bytes()),
                    (_, None) => say(404, "X-Error-Code: RepoNotFound\r\n".to_owned(), b"{}"),
                }
            }
            [owner, name, "resolve", _, ..] => {
                let (repository, path) = (format!("{owner}/{name}"), words[4..].join("/"));
                let (stored, is_silent) = {
                    let state = self.state();
                    let stored =
                        state.repositories.get(&repository).and_then(|files| files.get(&path)).cloned();
                    (stored, state.is_silent)
                };
                match stored {
                    None => say(404, "X-Error-Code: EntryNotFound\r\n".to_owned(), b""),
                    Some(stored) if stored.is_large => {
                        let location =
                            format!("http://127.0.0.1:{}/{repository}/{path}?signature=secret", self.store);
                        let mut headers = format!("Location: {location}\r\n");
                        if !is_silent {
                            let size = stored.content.size();
                            headers +=
                                &format!("X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {size}\r\n", stored.sha256);
                        }
                        say(302, headers, b"")
                    }
                    Some(stored) => self.send(asked, &path, &stored, stream),
                }
            }
            [owner, name, ..] if asked.place == "store" && words.len() > 2 => {
                let path = words[2..].join("/");
                let files = self.state().repositories.get(&format!("{owner}/{name}")).cloned();
                match files.and_then(|files| files.get(&path).cloned()) {
                    Some(stored) => self.send(asked, &path, &stored, stream),
                    None => say(404, String::new(), b""),
                }
            }
            _ => say(404, String::new(), b""),
        }
    }

    fn send(&self, asked: Asked, path: &str, stored: &Stored, stream: &TcpStream) -> std::io::Result<bool> {
        let (fault, etag, ignores_ranges) = {
            let mut state = self.state();
            let fault = state.faults.get_mut(path).and_then(VecDeque::pop_front);
            (fault, format!("\"{}-{}\"", &stored.sha256[..16], state.version), state.ignores_ranges)
        };
        let size = stored.content.size();
        let head = |status: u16, length: u64, headers: String| {
            self.state().asked.push(Asked { status, ..asked.clone() });
            let head = format!(
                "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\nETag: {etag}\r\n{headers}\r\n"
            );
            { stream }.write_all(head.as_bytes())
        };
        match &fault {
            Some(Fault::Status(status, header)) => {
                head(*status, 0, header_line(*header))?;
                return Ok(true);
            }
            Some(Fault::Redirect(target)) => {
                head(302, 0, format!("Location: {target}\r\n"))?;
                return Ok(true);
            }
            _ => {}
        }
        let range = asked
            .range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let same = asked.if_range.as_ref().is_none_or(|known| *known == etag);
        let ignores_ranges = ignores_ranges || matches!(fault, Some(Fault::IgnoreRange));
        let begin: u64 = range.filter(|_| same && !ignores_ranges).unwrap_or(0);
        if begin >= size && begin > 0 {
            head(416, 0, format!("Content-Range: bytes */{size}\r\n"))?;
            return Ok(true);
        }
        let more = u64::from(matches!(fault, Some(Fault::Longer)));
        if begin > 0 {
            let range = format!("Content-Range: bytes {begin}-{}/{size}\r\n", size - 1);
            head(206, size - begin, range)?;
        } else {
            head(200, size + more, String::new())?;
        }
        self.send_bytes(stored, begin, fault.as_ref(), stream)
    }

    fn send_bytes(
        &self,
        stored: &Stored,
        begin: u64,
        fault: Option<&Fault>,
        mut stream: &TcpStream,
    ) -> std::io::Result<bool> {
        let size = stored.content.size();
        let mut file = match &stored.content {
            Content::File(path, _) => Some(File::open(path)?),
            Content::Bytes(_) => None,
        };
        let (mut at, mut sent, mut drips) = (begin, 0u64, 0);
        let mut held = false;
        let started = Instant::now();
        while at < size {
            let mut length = (size - at).min(CHUNK as u64);
            match fault {
                Some(Fault::Cut(after)) if sent >= *after => return Ok(false),
                Some(Fault::Hold(after)) if sent >= *after && !held => {
                    stream.flush()?;
                    self.hold();
                    held = true;
                }
                Some(Fault::Cut(after) | Fault::Hold(after)) if sent < *after => {
                    length = length.min(after - sent)
                }
                Some(Fault::Drip(bytes)) if drips < *bytes => {
                    drips += 1;
                    length = 1;
                    std::thread::sleep(DRIP);
                }
                _ => {}
            }
            let mut bytes = vec![0; length as usize];
            match (&stored.content, &mut file) {
                (Content::Bytes(all), _) => bytes.copy_from_slice(&all[at as usize..][..length as usize]),
                (_, Some(file)) => {
                    file.seek(SeekFrom::Start(at))?;
                    file.read_exact(&mut bytes)?;
                }
                _ => {}
            }
            if matches!(fault, Some(Fault::Spoil)) {
                bytes[0] ^= 1;
            }
            stream.write_all(&bytes)?;
            (at, sent) = (at + length, sent + length);
            let rate = self.rate.load(Relaxed);
            if rate > 0 {
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
        }
        if matches!(fault, Some(Fault::Longer)) {
            stream.write_all(b"!")?;
        }
        Ok(true)
    }

    fn hold(&self) {
        let mut state = self.state();
        state.held += 1;
        let releases = state.releases;
        self.changed.notify_all();
        state = self
            .changed
            .wait_while(state, |state| state.releases == releases)
            .unwrap_or_else(PoisonError::into_inner);
        state.held -= 1;
    }
}

fn header_line(header: Option<(&str, &str)>) -> String {
    header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default()
}

fn listing(state: &State, repository: &str, files: &BTreeMap<String, Stored>) -> Json {
    let siblings: Vec<Json> = files
        .iter()
        .map(|(path, stored)| {
            let blob = &stored.sha256[..40];
            match (state.is_silent, stored.is_large) {
                (true, _) => json!({"rfilename": path}),
                (false, false) => json!({"rfilename": path, "blobId": blob, "size": stored.content.size()}),
                (false, true) => json!({"rfilename": path, "blobId": blob, "size": stored.content.size(),
                    "lfs": {"sha256": stored.sha256, "size": stored.content.size(), "pointerSize": 134}}),
            }
        })
        .collect();
    let mut list =
        json!({"id": repository, "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": siblings});
    if let (Some(list), Some(Json::Object(details))) = (list.as_object_mut(), state.details.get(repository)) {
        list.extend(details.clone());
    }
    list
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
