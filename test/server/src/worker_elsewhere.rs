//! The program `steadytext-worker`, which serves a cluster's queue over a connection.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::cluster::{Cluster, Options};
use crate::process::{Signal, signal};
use crate::session::Session;
use crate::wait::wait_until;

/// Variables that would lead it elsewhere than to the throwaway server.
const MISLEADING: [&str; 4] = ["DATABASE_URL", "PGSSLMODE", "PGSSLROOTCERT", "PGPASSFILE"];

/// A worker's process, which ends with the test.
#[derive(Debug)]
pub struct WorkerElsewhere {
    process: Child,
    said: Arc<Mutex<String>>,
    hears: Option<JoinHandle<()>>,
}

impl WorkerElsewhere {
    /// Starts one for database `postgres`, as role `remote`, through the cluster's socket.
    #[track_caller]
    pub fn start(cluster: &Cluster, arguments: &[&str]) -> WorkerElsewhere {
        let url = format!("host={} port=5432 user=remote dbname=postgres", cluster.directory().display());
        WorkerElsewhere::start_at(&url, cluster, arguments)
    }

    /// Starts one for a database URL, with the cluster's models.
    #[track_caller]
    pub fn start_at(url: &str, cluster: &Cluster, arguments: &[&str]) -> WorkerElsewhere {
        WorkerElsewhere::start_with(url, cluster, arguments, &[])
    }

    /// Starts one with variables of the environment.
    #[track_caller]
    pub fn start_with(
        url: &str,
        cluster: &Cluster,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> WorkerElsewhere {
        let program = worker_program();
        let mut command = Command::new(&program);
        command.envs(environment.iter().copied());
        command.arg("--database-url").arg(url).arg("--model-dir").arg(cluster.model_directory());
        command.args(["--poll-interval", "0.1", "--threads", "1"]).args(arguments);
        MISLEADING.iter().for_each(|name| {
            command.env_remove(name);
        });
        // A developer's own files for libpq must not change the test.
        command.env("HOME", cluster.directory()).stderr(Stdio::piped());
        let spawned = command.spawn();
        let mut process = spawned.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = process.stderr.take().expect("it is piped");
        let heard = Arc::clone(&said);
        let hears = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { break };
                heard.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
            }
        });
        WorkerElsewhere { process, said, hears: Some(hears) }
    }

    /// Waits until its engine's thread has not run for a while: it has nothing to compute.
    #[track_caller]
    pub fn rest(&self) {
        const LOOKS: u32 = 100;
        let tasks = format!("/proc/{}/task", self.process.id());
        // Nanoseconds on a processor, and of waiting for one, are the first two numbers.
        let times = || -> Option<String> {
            let is_engine = |folder: &PathBuf| {
                std::fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "st-engine")
            };
            let mut folders = std::fs::read_dir(&tasks).ok()?.flatten().map(|entry| entry.path());
            std::fs::read_to_string(folders.find(is_engine)?.join("schedstat")).ok()
        };
        let (mut last, mut same) = (times(), 0);
        wait_until("the engine rests", || {
            let now = times();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > LOOKS
        });
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, which: Signal) {
        assert!(signal(self.process.id() as i32, which));
    }

    /// Waits for its end; whether it ended well.
    #[track_caller]
    pub fn wait(&mut self) -> bool {
        let mut status = None;
        wait_until("the worker ends", || {
            status = self.process.try_wait().expect("our own child");
            status.is_some()
        });
        // Its last output has been read as well.
        self.hears.take().map(JoinHandle::join);
        status.is_some_and(|status| status.success())
    }

    /// Tells it to stop, and waits for its end; whether it ended well.
    #[track_caller]
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Its output up to now.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for WorkerElsewhere {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Shown where the test fails.
        if std::thread::panicking() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), self.said().as_bytes());
        }
    }
}

/// Built with the tests: `target/release/steadytext-worker`.
pub fn worker_program() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its binary");
    own.parent().and_then(|deps| deps.parent()).expect("target/release/deps").join("steadytext-worker")
}

/// A cluster whose own worker is paused, and a role for workers elsewhere.
#[track_caller]
pub fn served_elsewhere() -> (Cluster, Session) {
    let cluster = Options::new().set("max_prepared_transactions", 2).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run("create role remote login in role steadytext_worker");
    session.pause();
    (cluster, session)
}
