//! The builtin model: a small real model compiled into the library, so that demonstrations, tests and
//! machines without a network need no download. What it can and cannot do stands in its README.

use crate::Error;
use crate::gguf::Gguf;

/// The name that stands for a path in messages.
pub const NAME: &str = "builtin";

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
