//! The background processes: a launcher for the server, a worker for each database that has the extension,
//! and a process for the engine alone where no worker can run it.

mod audit;
mod awaiting;
mod cache_writer;
mod claims;
mod database;
mod download;
mod due;
mod engine_link;
mod eviction;
mod filter_keeper;
mod in_flight;
mod launcher;
mod lifecycle;
mod outcomes;
mod prepare;
mod protocol;
mod recount;
mod usage;
mod vectorizer;

use crate::pg::bgworker::{EntryPoints, entry_point};

/// The names of the functions by which PostgreSQL enters the processes.
pub(crate) const ENTRY_POINTS: EntryPoints = EntryPoints {
    launcher: LAUNCHER,
    worker: WORKER,
    engine: ENGINE,
    download: DOWNLOAD,
    vectorizer: VECTORIZER,
};

entry_point!(
    /// Entry point of the launcher.
    LAUNCHER = steadytext_launcher_main => |_| launcher::run()
);
entry_point!(
    /// Entry point of a process that only runs the engine.
    ENGINE = steadytext_engine_main => |_| lifecycle::run_engine()
);
entry_point!(
    /// Entry point of a process that downloads a model; the argument is the index of its entry.
    DOWNLOAD = steadytext_download_main => |index| download::run(index)
);
entry_point!(
    /// Entry point of the processes that work for a database's vectorizers; the argument is the index of its
    /// slot and its pace.
    VECTORIZER = steadytext_vectorizer_main => |slot| vectorizer::run(slot)
);
entry_point!(
    /// Entry point of a database's worker; the argument is the index of its slot.
    WORKER = steadytext_worker_main => |slot| lifecycle::run(slot)
);
