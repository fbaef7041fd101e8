//! The cache files of SteadyText for Python: SQLite files whose values are Python pickles.
//!
//! [`file::Reader`] yields what a file holds as entries of steadytext_cache, [`file::Writer`] makes a file
//! that SteadyText reads. [`pickle`] knows the two kinds of values, [`key`] how a key is written.
//!
//! Invariant: nothing of PostgreSQL here, and nothing that a file says is executed or believed. Its lengths
//! are checked before anything is kept, and what is no entry is refused by name.

mod base64;
pub mod file;
pub mod key;
pub mod pickle;
#[cfg(test)]
mod random;
