//! Memory: the amount that there is ([`Machine`]), the amount that requests take of it (`Ledger`), and the
//! behaviour where there is none left ([`Allocator`]).

mod allocator;
mod ledger;
mod machine;

pub use allocator::{Allocator, exit_at_once, is_exhausted, prepare, set_last_resort};
pub(crate) use allocator::{fallible, try_grow, try_vec, watched};
pub(crate) use ledger::{Ledger, Reservation};
pub use machine::Machine;
