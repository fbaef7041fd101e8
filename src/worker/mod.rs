//! The background processes: a launcher for the server, and a worker for each database that has the extension.

mod database;
mod flight;
mod launcher;
mod models;
mod protocol;
mod request;
mod seat;

use pgrx::prelude::*;

/// Entry point of the launcher.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "PostgreSQL finds a worker's entry point by its symbol")]
pub extern "C-unwind" fn steadytext_launcher_main(_arg: pg_sys::Datum) {
    launcher::run()
}

/// Entry point of a database's worker; the argument is the index of its slot.
#[pg_guard]
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "PostgreSQL finds a worker's entry point by its symbol")]
pub extern "C-unwind" fn steadytext_worker_main(arg: pg_sys::Datum) {
    database::run(arg.value())
}
