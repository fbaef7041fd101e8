//! An endpoint on this machine that speaks OpenAI's protocol as far as workers need it, and makes mistakes
//! when told to.
//!
//! Its answers follow from the questions: a text is `echo: ` and the last message, a choice is the first one,
//! a vector says how many bytes its text has, a score how many words of the query the document has.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};

/// A mistake that the endpoint makes once, when it is asked.
#[derive(Debug, Clone)]
pub enum Mistake {
    /// Answers with a status, perhaps a header, and a body.
    Status(u16, Option<(&'static str, &'static str)>, String),
    /// Answers with this instead of what belongs there.
    Body(String),
    /// Closes the connection without an answer.
    Cut,
    /// Closes it in the middle of the answer.
    CutBody,
    /// Says nothing until it is [released](LocalEndpoint::release) or the connection is closed.
    Hold,
    /// Sends bytes without end.
    Endless,
}

/// A call that was made.
#[derive(Debug, Clone)]
pub struct Called {
    /// The path of the address.
    pub path: String,
    /// The header Authorization.
    pub authorization: Option<String>,
    /// The body.
    pub body: Json,
}

#[derive(Debug, Default)]
struct State {
    mistakes: VecDeque<Mistake>,
    texts: VecDeque<String>,
    key: Option<String>,
    refused: Option<String>,
    called: Vec<Called>,
    held: usize,
    releases: usize,
    closed: usize,
    at_once: usize,
    most_at_once: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    port: u16,
}

/// An endpoint on this machine; it serves until the process ends.
#[derive(Debug, Clone)]
pub struct LocalEndpoint(Arc<Shared>);

impl LocalEndpoint {
    /// Starts one.
    pub fn start() -> std::io::Result<LocalEndpoint> {
        LocalEndpoint::start_at(0)
    }

    /// Starts one at a port.
    pub fn start_at(port: u16) -> std::io::Result<LocalEndpoint> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), port });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // The client may be gone.
                std::thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        Ok(LocalEndpoint(shared))
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.0.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// Makes the next calls go wrong, one after the other.
    pub fn mistake(&self, mistakes: impl IntoIterator<Item = Mistake>) {
        self.state().mistakes.extend(mistakes);
    }

    /// Sets the next texts, one after the other.
    pub fn say(&self, texts: &[&str]) {
        self.state().texts.extend(texts.iter().map(ToString::to_string));
    }

    /// Answers only calls that have this key.
    pub fn require_key(&self, key: &str) {
        self.state().key = Some(key.to_owned());
    }

    /// Refuses whatever has this text in it, and says so with the text and the key.
    pub fn refuse(&self, text: &str) {
        self.state().refused = Some(text.to_owned());
    }

    /// The calls up to now.
    pub fn called(&self) -> Vec<Called> {
        self.state().called.clone()
    }

    /// Most calls that there were at a time.
    pub fn most_at_once(&self) -> usize {
        self.state().most_at_once
    }

    /// Calls that are held just now.
    pub fn held(&self) -> usize {
        self.state().held
    }

    /// Held calls whose connection was closed by the client.
    pub fn closed(&self) -> usize {
        self.state().closed
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

    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
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
            let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").to_owned();
            let body = serde_json::from_slice(&body).unwrap_or(Json::Null);
            let called = Called { path, authorization: header("authorization"), body };
            {
                let mut state = self.state();
                state.called.push(called.clone());
                state.at_once += 1;
                state.most_at_once = state.most_at_once.max(state.at_once);
            }
            let is_open = self.answer(&called, stream);
            self.state().at_once -= 1;
            if !is_open? {
                return Ok(());
            }
        }
    }

    /// Whether the connection stays open.
    fn answer(&self, called: &Called, stream: &TcpStream) -> std::io::Result<bool> {
        let send = |bytes: &[u8]| { stream }.write_all(bytes);
        let say = |status: u16, header: String, body: &str| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{header}\r\n");
            send(head.as_bytes()).and_then(|()| send(body.as_bytes())).map(|()| true)
        };
        let (mistake, key, refused) = {
            let mut state = self.state();
            (state.mistakes.pop_front(), state.key.clone(), state.refused.clone())
        };
        match mistake {
            Some(Mistake::Status(status, header, body)) => {
                let header = header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
                return say(status, header, &body);
            }
            Some(Mistake::Body(body)) => return say(200, String::new(), &body),
            Some(Mistake::Cut) => return Ok(false),
            Some(Mistake::CutBody) => {
                send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"choices\"")?;
                return Ok(false);
            }
            Some(Mistake::Endless) => {
                send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
                loop {
                    send(chunk.as_bytes())?;
                }
            }
            Some(Mistake::Hold) if !self.hold(stream)? => return Ok(false),
            Some(Mistake::Hold) | None => {}
        }
        if key.as_ref().is_some_and(|key| called.authorization != Some(format!("Bearer {key}"))) {
            return say(401, String::new(), "{\"error\": {\"message\": \"Incorrect API key provided\"}}");
        }
        if let Some(refused) = refused.filter(|refused| called.body.to_string().contains(refused)) {
            let message = format!("cannot take {refused}\nwith key {}", key.unwrap_or_default());
            return say(400, String::new(), &json!({ "error": { "message": message } }).to_string());
        }
        match self.made(called) {
            Some(body) => say(200, "Content-Type: application/json\r\n".to_owned(), &body.to_string()),
            None => say(404, String::new(), "{\"detail\": \"Not Found\"}"),
        }
    }

    fn made(&self, called: &Called) -> Option<Json> {
        let body = &called.body;
        let texts = |field: &str| -> Vec<String> {
            let texts = body[field].as_array().into_iter().flatten();
            texts.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
        };
        match called.path.as_str() {
            "/v1/chat/completions" | "/v1/completions" => {
                let prompt = match body["messages"].as_array() {
                    Some(messages) => messages.last()?["content"].as_str()?.to_owned(),
                    None => body["prompt"].as_str()?.to_owned(),
                };
                let choice = body["structured_outputs"]["choice"].get(0).or(body["guided_choice"].get(0));
                let told = self.state().texts.pop_front();
                let text = told.or_else(|| choice.and_then(Json::as_str).map(str::to_owned));
                let text = text.unwrap_or_else(|| format!("echo: {prompt}"));
                let content = if body["messages"].is_array() {
                    json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" })
                } else {
                    json!({ "index": 0, "text": text, "finish_reason": "stop" })
                };
                Some(json!({
                    "object": "chat.completion", "choices": [content],
                    "usage": {
                        "prompt_tokens": words(&prompt), "completion_tokens": words(&text),
                        "prompt_tokens_details": { "cached_tokens": 1 },
                    },
                }))
            }
            // The last one first: the index says which is whose.
            "/v1/embeddings" => {
                let data = texts("input").into_iter().enumerate().rev().map(|(index, text)| {
                    json!({ "object": "embedding", "index": index, "embedding": [text.len(), 2, 3, 6] })
                });
                Some(json!({ "data": data.collect::<Vec<_>>(), "usage": { "prompt_tokens": 7 } }))
            }
            "/v1/rerank" => {
                let query = body["query"].as_str()?.to_owned();
                let results = texts("documents").into_iter().enumerate().rev().map(|(index, document)| {
                    json!({ "index": index, "relevance_score": score(&query, &document) })
                });
                Some(json!({ "results": results.collect::<Vec<_>>() }))
            }
            "/rerank" => {
                let query = body["query"].as_str()?.to_owned();
                let results =
                    texts("texts").into_iter().enumerate().rev().map(
                        |(index, document)| json!({ "index": index, "score": score(&query, &document) }),
                    );
                Some(results.collect())
            }
            _ => None,
        }
    }

    /// Whether the client is still there in the end.
    fn hold(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let mut state = self.state();
        state.held += 1;
        let releases = state.releases;
        drop(state);
        self.changed.notify_all();
        stream.set_read_timeout(Some(Duration::from_millis(10)))?;
        let is_there = loop {
            if self.state().releases != releases {
                break true;
            }
            // The client sends no more before it has an answer.
            if matches!(stream.peek(&mut [0]), Ok(0)) {
                break false;
            }
        };
        stream.set_read_timeout(None)?;
        let mut state = self.state();
        state.held -= 1;
        state.closed += usize::from(!is_there);
        Ok(is_there)
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn score(query: &str, document: &str) -> f64 {
    let wanted: Vec<&str> = query.split_whitespace().collect();
    let found = wanted.iter().filter(|word| document.contains(**word)).count();
    found as f64 / wanted.len().max(1) as f64
}
