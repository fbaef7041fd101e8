//! The builtin model: a small real model compiled into the library, so that demonstrations, tests and
//! machines without a network need no download. What it can and cannot do stands in its README.

use crate::Error;
use crate::gguf::Gguf;

/// The name that stands for a path in messages.
pub const NAME: &str = "builtin";

/// SHA-256 of its file.
pub const SHA256: [u8; 32] = [
    0xb8, 0x04, 0x6f, 0x6b, 0xca, 0x89, 0x25, 0xdf, 0x00, 0x9c, 0xca, 0xeb, 0x99, 0xb8, 0x1d, 0xef, 0x2c,
    0xd8, 0x2d, 0xb6, 0x1b, 0x56, 0x44, 0xdb, 0x1e, 0xbc, 0xa1, 0x0b, 0xd9, 0x3e, 0x38, 0xf9,
];

/// Tensors must lie at multiples of their alignment in memory, as they do in a mapped file.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("builtin.gguf"));

/// The model file.
///
/// # Errors
/// None in a sound build; those of [`Gguf::from_static`] otherwise.
pub fn gguf() -> Result<Gguf, Error> {
    Gguf::from_static(NAME, &MODEL.0)
}
