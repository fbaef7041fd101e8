//! Everything that touches PostgreSQL's C side: the rest of the extension calls safe functions of this
//! module.
//!
//! Invariant: no other module contains `unsafe` code.
#![allow(unsafe_code, reason = "the one module that calls PostgreSQL's C functions")]

pub(crate) mod access_counters;
pub(crate) mod activity;
pub(crate) mod after_commit;
pub(crate) mod backtrace;
pub(crate) mod bgworker;
pub(crate) mod cache_filter;
pub(crate) mod cache_queue;
pub(crate) mod cache_table;
pub(crate) mod catalog;
pub(crate) mod catalog_cache;
pub(crate) mod changed_row;
pub(crate) mod claim_floors;
mod column_types;
pub(crate) mod cursor;
pub(crate) mod database_settings;
mod denied;
pub(crate) mod ended_counts;
pub(crate) mod engine_leader;
pub(crate) mod engine_page;
pub(crate) mod error;
pub(crate) mod exchange_dir;
pub(crate) mod expression;
pub(crate) mod files;
pub(crate) mod group_state;
pub(crate) mod guc;
pub(crate) mod hooks;
mod index_walk;
pub(crate) mod interrupts;
pub(crate) mod jsonb;
mod kept_checks;
pub(crate) mod kept_prompts;
mod key_text;
pub(crate) mod listen;
pub(crate) mod memory;
pub(crate) mod model_checksums;
pub(crate) mod noted_keys;
mod own_context;
pub(crate) mod pending;
pub(crate) mod predecessor_variables;
pub(crate) mod privilege;
#[cfg(not(feature = "noop-engine"))]
pub(crate) mod program;
pub(crate) mod pulls;
pub(crate) mod rate_counters;
pub(crate) mod rate_limits;
pub(crate) mod refusals;
pub(crate) mod request_log;
pub(crate) mod request_statistics;
pub(crate) mod restore;
pub(crate) mod role;
mod row_insert;
pub(crate) mod set_aside;
pub(crate) mod shmem;
mod sliding_window;
pub(crate) mod slots;
pub(crate) mod spi;
mod termination;
pub(crate) mod transaction;
pub(crate) mod tuple;
mod varlena;
pub(crate) mod waiters;

/// The parts of shared memory.
static PARTS: [&dyn shmem::AnyPart; 14] = [
    &shmem::SHARED,
    &engine_leader::LEADER,
    &waiters::TABLE,
    &activity::TABLE,
    &access_counters::TABLE,
    &cache_queue::QUEUE,
    &pending::TABLE,
    &model_checksums::TABLE,
    &pulls::TABLE,
    &engine_page::PAGE,
    &request_statistics::TABLE,
    &rate_counters::TABLE,
    &refusals::TABLE,
    &cache_filter::TABLE,
];

/// Asks for the shared memory. Only while shared_preload_libraries is processed.
pub(crate) fn install_shared_memory() {
    shmem::install(&PARTS);
}
