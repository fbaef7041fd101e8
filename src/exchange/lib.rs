//! The cache files of SteadyText for Python: SQLite files whose values are Python pickles.
//!
//! [`file::Reader`] yields the contents of a file as entries of steadytext_cache, [`file::Writer`] makes a
//! file that SteadyText reads. [`pickle`] knows the two kinds of values, [`key`] how a key is written.
//!
//! Invariant: nothing of PostgreSQL here, and nothing in a file is executed or trusted. Its lengths are
//! checked before anything is kept, and a row that is no entry is refused with the reason.

mod base64;
pub mod file;
pub mod key;
pub mod pickle;
#[cfg(test)]
mod random;
