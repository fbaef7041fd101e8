//! Start, stop and crash of a cluster's server.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::process::{Signal, children_of, is_alive, signal};
use crate::program::{limited_program, server_program};
use crate::wait::{PATIENCE, eventually};

/// The mode in which the server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits for clients to leave.
    Smart,
    /// Ends clients' sessions.
    Fast,
    /// Ends at once; recovery at the next start.
    Immediate,
}

impl Shutdown {
    fn signal(self) -> Signal {
        match self {
            Shutdown::Smart => Signal::TERM,
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        }
    }
}

impl Cluster {
    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(problem) = self.try_start() {
            panic!("the server did not start: {problem}\n{}", self.log_tail());
        }
    }

    /// Starts the server; says why it did not come up.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.postmaster.is_none(), "the server runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .map_err(|error| error.to_string())?;
        let _ = std::fs::remove_file(self.data().join("postmaster.pid.old"));
        let mut program = match self.open_files {
            None => server_program("postgres"),
            Some(most) => limited_program("postgres", most),
        };
        let mut child = program
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| error.to_string())?;
        let process = child.id() as i32;
        let ended = eventually(PATIENCE, || match child.try_wait() {
            Ok(None) => self.is_ready(process).then_some(None),
            ended => Some(Some(ended)),
        });
        self.postmaster = Some(child);
        match ended {
            Some(None) => Ok(()),
            Some(Some(ended)) => {
                self.postmaster = None;
                Err(format!("it ended at once: {ended:?}"))
            }
            None => {
                self.kill_postmaster();
                Err(format!("not ready after {} s", PATIENCE.as_secs()))
            }
        }
    }

    /// The last line of postmaster.pid is the server's word on its state.
    fn is_ready(&self, process: i32) -> bool {
        let Ok(text) = std::fs::read_to_string(self.data().join("postmaster.pid")) else { return false };
        let mut lines = text.lines();
        lines.next().is_some_and(|line| line.trim() == process.to_string())
            && lines.nth(6).is_some_and(|state| state.trim() == "ready")
    }

    /// Process id of the postmaster.
    #[track_caller]
    pub fn postmaster_pid(&self) -> i32 {
        self.postmaster.as_ref().expect("the server runs").id() as i32
    }

    /// Stops the server and says how long that took; panics when it does not stop.
    #[track_caller]
    pub fn stop(&mut self, how: Shutdown) -> Duration {
        let begun = Instant::now();
        signal(self.postmaster_pid(), how.signal());
        assert!(self.wait_for_end(PATIENCE), "{how:?} shutdown did not end:\n{}", self.log_tail());
        begun.elapsed()
    }

    /// Fast shutdown and start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Shutdown::Fast);
        self.start();
    }

    /// SIGHUP: reads the configuration again.
    pub fn reload(&self) {
        signal(self.postmaster_pid(), Signal::HUP);
    }

    /// SIGKILL to the postmaster alone; returns when its children have noticed and gone.
    #[track_caller]
    pub fn kill_postmaster(&mut self) {
        let postmaster = self.postmaster_pid();
        let children = children_of(postmaster);
        signal(postmaster, Signal::KILL);
        self.wait_for_end(PATIENCE);
        let gone = eventually(PATIENCE, || children.iter().all(|child| !is_alive(*child)).then_some(()));
        assert!(gone.is_some(), "some of {children:?} outlive the postmaster:\n{}", self.log_tail());
    }

    /// Signals a process of the server that takes the whole server through recovery; returns when it is ready
    /// again.
    #[track_caller]
    pub fn crash(&self, process: i32, how: Signal) {
        let from = self.log().len();
        assert!(signal(process, how), "process {process} has gone");
        self.wait_for_log(from, "database system is ready to accept connections");
    }

    /// Whether the postmaster ended within `patience`.
    fn wait_for_end(&mut self, patience: Duration) -> bool {
        let Some(child) = self.postmaster.as_mut() else { return true };
        let ended = eventually(patience, || matches!(child.try_wait(), Ok(Some(_)) | Err(_)).then_some(()));
        if ended.is_some() {
            self.postmaster = None;
        }
        ended.is_some()
    }

    /// Never panics: it runs while a test is failing.
    pub(crate) fn destroy(&mut self) {
        if let Some(child) = &self.postmaster {
            let postmaster = child.id() as i32;
            let children = children_of(postmaster);
            signal(postmaster, Signal::QUIT);
            if !self.wait_for_end(Duration::from_secs(20)) {
                signal(postmaster, Signal::KILL);
                children.iter().for_each(|child| _ = signal(*child, Signal::KILL));
                self.wait_for_end(Duration::from_secs(5));
            }
        }
        let _ = std::fs::remove_dir_all(self.directory());
    }
}
