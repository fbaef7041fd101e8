//! The storm about the engine where it is a program of its own: nobody but its requests may notice its end.

use std::collections::HashSet;
use std::str::FromStr;

use super::disturbance::answers;
use crate::cluster::Cluster;
use crate::process::{Signal, is_alive, signal};
use crate::wait::{PATIENCE, eventually};

/// Rounds in one place before the engine moves to the other.
const ROUNDS: u32 = 3;

/// `pg_steadytext.engine_process`, as the storm goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineProcess {
    /// The engine runs in a worker.
    Worker,
    /// The engine runs in a program of its own.
    Separate,
    /// Some rounds in one, then some in the other.
    Alternate,
}

impl FromStr for EngineProcess {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "worker" => EngineProcess::Worker,
            "separate" => EngineProcess::Separate,
            "alternate" => EngineProcess::Alternate,
            _ => return Err(()),
        })
    }
}

impl EngineProcess {
    /// The value of the setting in a round, the first of which is 1.
    pub(super) fn in_round(self, round: u32) -> &'static str {
        match self {
            EngineProcess::Worker => "worker",
            EngineProcess::Separate => "separate",
            EngineProcess::Alternate if ((round - 1) / ROUNDS).is_multiple_of(2) => "worker",
            EngineProcess::Alternate => "separate",
        }
    }
}

/// The engine's program, if there is one.
const PROGRAM: &str = "select e.pid from steadytext_engine_stat as e
    where e.pid is not null and not exists (select from pg_stat_activity as a where a.pid = e.pid)";
/// Whether there is to be one.
const WANTED: &str = "select current_setting('pg_steadytext.engine_process') = 'separate'";

/// Kills the program of the engine, and waits for an answer of the next one. Whether the server's processes
/// were started anew by that; `None` where the engine is no program. `killed`: processes of which the
/// postmaster may say that they have died, because they were killed before.
pub(super) fn kill(cluster: &Cluster, how: Signal, killed: &HashSet<i32>) -> Option<bool> {
    let mut wanted = true;
    let program: Option<i32> = eventually(PATIENCE, || {
        let mut session = cluster.session("postgres");
        wanted = session.query_one(WANTED, &[]).ok()?.get(0);
        // Between two of them, and where the extension is being dropped, there is none.
        let mut found = || session.query_opt(PROGRAM, &[]).ok().flatten().map(|row| row.get(0));
        if wanted { found().filter(|pid| is_alive(*pid)).map(Some) } else { Some(None) }
    })
    .flatten();
    let before = answers(cluster);
    let from = cluster.log().len();
    let program = program?;
    // More than one may be needed: Rust's programs take the first SIGSEGV for an access to memory, which
    // would come again.
    eventually(PATIENCE, || {
        signal(program, how);
        (!is_alive(program)).then_some(())
    })?;
    let _ = eventually(PATIENCE / 6, || (answers(cluster) > before).then_some(()));
    let log = cluster.log();
    let died =
        log.get(from..).unwrap_or_default().lines().filter(|line| line.contains("was terminated by signal"));
    let died = died.filter_map(|line| line.split_once("(PID ")?.1.split_once(')')?.0.parse::<i32>().ok());
    Some(died.into_iter().any(|pid| !killed.contains(&pid)))
}
