//! The background processes: a launcher for the server, and a worker for each database that has the extension.

mod database;
mod entry;
mod flight;
mod launcher;
mod models;
mod protocol;
mod request;
mod seat;

use crate::pg::bgworker::entry_point;

entry_point!(
    /// Entry point of the launcher.
    steadytext_launcher_main => |_| launcher::run()
);
entry_point!(
    /// Entry point of a database's worker; the argument is the index of its slot.
    steadytext_worker_main => |slot| entry::run(slot)
);
