//! Tests that start PostgreSQL servers of their own. One binary, one module for each subject: linking a
//! binary for each of them took longer than running most of them. `scripts/test.sh server NAME` runs what has
//! NAME in its path.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what was measured")]

mod answers;
mod backtraces;
mod batches;
mod cache;
mod cache_eviction;
mod cache_exchange;
mod cache_races;
mod cancel;
mod chaos;
mod connections;
mod constrained;
mod crash;
mod databases;
mod defaults;
mod definitions;
mod deployment;
mod dump;
mod embeddings;
mod engine_leader;
mod enrichments;
mod errors;
mod escalation;
mod extension;
mod guilty_rows;
mod harness;
mod hostile;
mod idle;
mod limits;
mod locked_rows;
mod many_subtasks;
mod memory;
mod model_choice;
mod model_files;
mod model_names;
mod model_pull;
mod model_restore;
mod models_listed;
mod monitoring;
mod options;
mod owners;
mod priorities;
mod privileges;
mod protocol;
mod queue_limits;
mod rate_limits;
mod refusals;
mod request_texts;
mod search;
mod settings;
mod shutdown;
mod standby;
mod statistics;
mod summaries;
mod sync;
mod transactions;
mod vectorizer_processes;
mod vectorizers;
mod verbs;
mod wake;
mod workers_attacked;
mod workers_elsewhere;
mod workers_tls;
