//! llama.cpp in a process of its own: `bench/peer/llama_cpp_peer.py`, one line to it, one line from it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The process; it ends when this is dropped.
pub(crate) struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(python: &Path) -> Peer {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/llama_cpp_peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", python.display()));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Peer { child, input, output }
    }

    /// Sends a command and returns the number that comes back.
    fn ask(&mut self, command: &str) -> f64 {
        let input = self.input.as_mut().expect("its input is a pipe");
        writeln!(input, "{command}").and_then(|()| input.flush()).expect("the peer reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the peer writes");
        match line.trim().strip_prefix("ok ").and_then(|number| number.parse().ok()) {
            Some(number) => number,
            None => panic!("llama.cpp, {command}: {line}"),
        }
    }

    /// Loads a model, in place of the one before.
    pub(crate) fn open(&mut self, path: &Path, threads: usize) {
        self.ask(&format!("open {threads} {}", path.display()));
    }

    /// Milliseconds until the first token of a short prompt.
    pub(crate) fn load_ms(&mut self, path: &Path, threads: usize) -> f64 {
        self.ask(&format!("load {threads} {}", path.display()))
    }

    /// Tokens a second.
    pub(crate) fn prefill(&mut self, tokens: usize) -> f64 {
        self.ask(&format!("prefill {tokens}"))
    }

    /// Tokens a second of all requests together.
    pub(crate) fn decode(&mut self, requests: usize, prompt_tokens: usize, steps: usize) -> f64 {
        self.ask(&format!("decode {requests} {prompt_tokens} {steps}"))
    }

    /// Texts a second.
    pub(crate) fn embed(&mut self, texts: usize, tokens: usize) -> f64 {
        self.ask(&format!("embed {texts} {tokens}"))
    }

    /// Peak resident memory in megabytes.
    pub(crate) fn peak_mb(&mut self) -> f64 {
        self.ask("peak")
    }

    /// Logits after every token (little-endian i32 in the file) go to `out` as little-endian f32.
    pub(crate) fn logits(&mut self, tokens: &Path, out: &Path) {
        self.ask(&format!("logits {} {}", tokens.display(), out.display()));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input is the end of its work.
        self.input = None;
        let _ = self.child.wait();
    }
}
