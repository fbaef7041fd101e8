//! Python pickles of the two kinds of values that SteadyText caches: texts, and vectors of floats.
//!
//! A pickle is a program for a stack machine, and in Python's hands it can call anything. The machine here
//! ([`reader`]) has only the instructions that these values need, and its "calls" ([`numpy`]) are a closed
//! list of constructors that are understood, not run: those of numpy's arrays and their types.
//!
//! Invariant: reading costs memory in proportion to the pickle at most, never recurses, and everything that
//! is not understood is refused, naming the instruction.

mod numpy;
mod opcode;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::read;
pub use writer::{write_text, write_vector};

/// Dimensions of a vector at most: as many as pgvector stores.
pub const MAX_DIMENSIONS: usize = 16_000;
/// Bytes of a text at most.
pub const MAX_TEXT_BYTES: usize = 32 << 20;

/// A cached value.
#[derive(Debug, Clone, PartialEq)]
pub enum PickleValue {
    /// A generated text.
    Text(String),
    /// An embedding; every number is finite.
    Vector(Vec<f32>),
}

/// The reason why a pickle was refused. The texts in it are not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The pickle ends in the middle of an instruction.
    #[error("the pickle ends in the middle of instruction {opcode} at byte {at}")]
    Truncated {
        /// The instruction that needs more bytes.
        opcode: &'static str,
        /// The byte at which it begins.
        at: usize,
    },
    /// The pickle ends without STOP.
    #[error("the pickle ends without STOP")]
    Unfinished,
    /// The pickle goes on after STOP.
    #[error("the pickle goes on after STOP at byte {at}")]
    Trailing {
        /// The first byte after STOP.
        at: usize,
    },
    /// An instruction that texts and vectors do not need.
    #[error("the pickle uses instruction {opcode} at byte {at}, which texts and vectors do not need")]
    Opcode {
        /// Its name in Python's pickletools.
        opcode: &'static str,
        /// The byte at which it is.
        at: usize,
    },
    /// A byte that is no instruction.
    #[error("the pickle contains byte 0x{byte:02x} at {at}, which is no instruction")]
    NoOpcode {
        /// The byte.
        byte: u8,
        /// The byte at which it is.
        at: usize,
    },
    /// A protocol other than 2 to 5.
    #[error("the pickle is of protocol {0}; 2 to 5 are known")]
    Protocol(u8),
    /// A class or function other than those of numpy's arrays.
    #[error("the pickle names {name} by {opcode}, which texts and vectors do not need")]
    Global {
        /// Module and name, shortened.
        name: String,
        /// The instruction.
        opcode: &'static str,
    },
    /// An instruction found something else on the stack than it needs.
    #[error("instruction {opcode} of the pickle at byte {at} does not find {expected}")]
    Stack {
        /// The instruction.
        opcode: &'static str,
        /// The byte at which it is.
        at: usize,
        /// The operand that it needs.
        expected: &'static str,
    },
    /// More objects than any value needs.
    #[error("the pickle makes more than {0} objects")]
    TooManyObjects(usize),
    /// Calls that make more than they are given.
    #[error("the pickle makes more data than it contains")]
    TooMuchData,
    /// A text or a name that is not UTF-8, or holds a zero character.
    #[error("the pickle holds a text that PostgreSQL cannot store")]
    InvalidText,
    /// A text that is too long.
    #[error("the pickle holds a text of {0} bytes; {MAX_TEXT_BYTES} are the limit")]
    TextTooLong(usize),
    /// A value that is neither a text nor a vector.
    #[error("the pickle holds {0}, neither a text nor a vector of floats")]
    Kind(&'static str),
    /// A vector without or with too many dimensions.
    #[error("the pickle holds a vector of {0} dimensions; 1 to {MAX_DIMENSIONS} are possible")]
    Dimensions(usize),
    /// A number that is infinite, not a number, or too large for single precision.
    #[error("the pickle holds a vector with a number that is not finite")]
    NotFinite,
    /// A vector of zeros, which is what SteadyText answers in case of an error.
    #[error("the pickle holds a vector of zeros, which stands for an error")]
    Zeros,
}
