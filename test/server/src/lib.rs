//! Throwaway PostgreSQL clusters for the tests that need a whole server: kill it, restart it, promote it.
//!
//! [`Cluster`] is a server of its own, in a directory of its own, reached through a Unix socket of its own;
//! [`Session`] is a connection with the words that the tests of pg_steadytext speak; [`chaos`] is the storm;
//! [`definitions`] is about vectorizers and enrichments.
//!
//! Invariant: nothing is left behind. A cluster goes when its value is dropped, also by a panic, and a
//! guardian process ([`run_directory`]) removes what is left when the test process itself is killed.
//!
//! The harness panics where it cannot go on: that is how a test fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness of tests: a panic is how a test fails"
)]

pub mod chaos;
mod cluster;
pub mod definitions;
mod fixtures;
mod footprint;
mod life;
mod migration;
mod models;
mod process;
mod program;
mod proxy;
mod requests;
mod run_directory;
mod session;
mod standby;
mod upgrade;
mod wait;
mod worker_elsewhere;

pub use cluster::{Cluster, Options};
pub use fixtures::{audited_with_slow_model, sleepy, with_automatic_models, with_session};
pub use footprint::{Footprint, slope};
pub use life::Shutdown;
pub use migration::{
    MEMBERS, Migration, OtherVersion, default_version, install_script, opening_statement, released_versions,
};
pub use models::{
    BrokenModel, broken_models, copied_model, encoders, endless_text, slow_model, write_decoder,
    write_encoder, write_model, write_reranker,
};
pub use process::{Signal, children_of, is_alive, signal};
pub use proxy::Proxy;
pub use requests::{AUDIT, Request, audited_users, begins_to_wait, litter};
pub use run_directory::run_directory;
pub use session::{Address, Session, message_of, sqlstate_of};
pub use wait::{PATIENCE, eventually, promptly, wait_until};
pub use worker_elsewhere::{WorkerElsewhere, served_elsewhere, worker_program};

/// Objects by which a user who may create in a schema tries to be run with the rights of another role:
/// operators, functions and types in schema public, each of which notes in `public.caught` which role runs
/// it. The script wants two temporary tables: `script (body text)` and `own_functions (name text, arguments
/// text[])`.
pub const TRAPS: &str = include_str!("traps.sql");
