//! The SQL-callable functions that are written in Rust, one file per noun. Most of the API is SQL and lives in
//! `sql/`, where these functions are declared too: symbol `<function>_wrapper`.

mod audit;
mod cache;
mod cache_admin;
mod call;
mod cancel;
mod connection;
mod constrained;
mod enqueue;
mod exchange;
mod on_error;
mod protocol;
mod refuse;
mod request;
mod rerank;
mod result;
mod role_id;
mod status;
mod sync;
mod tables;
mod trouble;
