//! A process that only runs the engine, where no worker does: on a standby, or before a database has the extension for all to
//! see. It ends when nobody has needed it for a while.

use std::time::Duration;

use pgrx::prelude::*;

use super::engine_link;
use crate::pg::{self, bgworker, interrupts};

/// How often it looks whether it is needed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long it stays after the last request, where pg_steadytext.model_idle_timeout says nothing else.
const PATIENCE: Duration = Duration::from_secs(600);

/// The process's life.
pub(super) fn run() {
    interrupts::accept_signals();
    bgworker::connect(None);
    loop {
        interrupts::check_between_transactions();
        interrupts::reload_configuration();
        if let Err(error) = engine_link::attend() {
            return error.report(PgLogLevel::WARNING);
        }
        let patience = match pg::guc::engine().model_idle_timeout_s {
            0 => PATIENCE,
            seconds => Duration::from_secs(seconds),
        };
        // Another process was faster, or nobody needs it.
        if !pg::engine_leader::leads()
            || engine_link::idle_for() > patience
            || engine_link::has_other_settings()
        {
            return engine_link::leave();
        }
        interrupts::wait(LOOK_INTERVAL, None);
    }
}
