//! The SQL-callable functions that are written in Rust, one file per noun. Most of the API is SQL and lives
//! in `sql/`, where these functions are declared too: symbol `<function>_wrapper`.

mod answers;
mod arrays;
mod audit;
mod batch;
mod cache_admin;
mod cache_lookup;
mod call;
mod cancel;
mod chat;
mod checked;
mod classified;
mod connection;
mod constrained;
mod context;
mod counted;
mod default_models;
mod details;
mod diagnose;
mod elsewhere;
mod enqueue;
mod enrichments;
#[cfg(feature = "exchange")]
mod exchange;
#[cfg(not(feature = "exchange"))]
#[path = "exchange/absent.rs"]
mod exchange;
mod foreign_answers;
mod groups;
mod insert_trigger;
mod model_removal;
mod models;
mod plain_verbs;
mod poison_rows;
mod prompt;
mod pull;
mod queue_protocol;
mod rate_limits;
mod refuse;
mod rerank;
mod result;
mod role_id;
mod statistics;
mod status;
mod summarize;
mod sync;
mod tables;
mod tokens;
mod vectorizers;
mod verbs;
mod verify;
