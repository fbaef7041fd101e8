//! pg_steadytext: text generation and embeddings inside PostgreSQL.
//!
//! SQL functions enqueue requests; a background worker claims them, runs a model in its own process and
//! stores the results. This file only wires the parts together: `api` is what SQL calls, `worker` the
//! processes, `pg` everything that touches PostgreSQL's C side, and the crate `steadytext-engine` the
//! inference.

#![cfg_attr(
    any(feature = "noop-engine", not(feature = "exchange"), not(feature = "hub")),
    allow(dead_code, reason = "a build without a feature does without what serves only that feature")
)]

mod api;
mod cache;
mod pg;
mod registry;
mod request;
mod worker;

use pgrx::prelude::*;
use steadytext_engine::memory::Allocator;

/// The allocator of all Rust code, in every process of the server.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

::pgrx::pg_module_magic!();

/// Called when a process loads the library; in the postmaster, when it processes shared_preload_libraries.
#[pg_guard]
extern "C-unwind" fn _PG_init() {
    pg::backtrace::suppress();
    if pg::catalog::binary_upgrade() {
        return;
    }
    pg::memory::install();
    pg::after_commit::install();
    if pg::catalog::preloading() {
        pg::guc::define();
        pg::guc::on_model_set(registry::warn_of_setting);
        pg::install_shared_memory();
        pg::hooks::install();
        pg::bgworker::register_launcher(worker::ENTRY_POINTS);
    }
}
