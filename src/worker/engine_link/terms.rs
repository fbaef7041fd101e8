//! The parameters that an engine is started with, wherever it runs.

use pgrx::{PgLogLevel, PgSqlErrorCode};
use steadytext_engine::memory::Machine;

use crate::pg::error::PgError;
use crate::pg::guc::EngineSettings;
use crate::pg::memory::shared_buffers;

/// Requests claimed beyond those that run, so that the engine need not wait for the next claim.
const CLAIMED_AHEAD: usize = 16;
/// As long as this file is there, the engine panics at [`fault_place`].
pub(super) const FAULT: &str = "pg_stat_tmp/pg_steadytext.fault";

/// The number of requests that a worker claims at once.
pub(super) fn capacity(settings: &EngineSettings) -> usize {
    settings.max_running + CLAIMED_AHEAD
}

/// The place at which the server's environment wants the engine to panic, for tests of what happens then.
pub(super) fn fault_place() -> Option<String> {
    std::env::var("STEADYTEXT_TEST_FAULT").ok()
}

/// The memory that an engine may take, and what that was computed from.
pub(super) struct Allowance {
    /// 0: no limit, where nothing is known.
    pub(super) limit_mb: u64,
    why: String,
}

impl Allowance {
    /// The allowance with these settings, on this machine.
    pub(super) fn of(settings: &EngineSettings) -> Allowance {
        let machine = Machine::read();
        let shared = shared_buffers();
        let (limit_mb, why) = match (settings.memory_limit_mb, machine.engine_bytes(shared)) {
            (0, Some(bytes)) => {
                let available_mb = machine.available_bytes().unwrap_or(0) >> 20;
                let whose = match &machine.group {
                    Some((limit, group)) if Some(*limit) == machine.available_bytes() => {
                        format!("the limit of the control group \"{}\"", group.display())
                    }
                    _ => "the machine's memory".to_owned(),
                };
                let why = format!(
                    "four fifths of {available_mb} MB ({whose}), less {} MB of shared_buffers",
                    shared >> 20
                );
                (bytes >> 20, why)
            }
            (0, None) => (0, String::new()),
            (set, _) => (set, "pg_steadytext.memory_limit_mb".to_owned()),
        };
        Allowance { limit_mb, why }
    }

    /// Says it in the log.
    pub(super) fn report(&self) {
        let Allowance { limit_mb, why } = self;
        let message = match limit_mb {
            0 => "pg_steadytext's engine may take any amount of memory: the machine's cannot be told"
                .to_owned(),
            limit_mb => format!("pg_steadytext's engine may take {limit_mb} MB of memory: {why}"),
        };
        PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message).report(PgLogLevel::LOG);
    }
}
