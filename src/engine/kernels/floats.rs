//! Memory for activations.
#![allow(unsafe_code, reason = "a slice of floats over cache lines")]

use std::ops::{Deref, DerefMut};

use crate::memory::fallible;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct FloatLine([f32; 16]);

/// Values that begin at a cache line, so that the 16 outputs of a panel touch one line and not two.
#[derive(Default)]
pub(crate) struct Floats {
    lines: Vec<FloatLine>,
    length: usize,
}

impl Floats {
    /// A buffer of so many zeros; None where the system has no memory for it.
    pub(crate) fn zeros(length: usize) -> Option<Floats> {
        let mut lines = Vec::new();
        fallible(|| lines.try_reserve_exact(length.div_ceil(16))).ok()?;
        lines.resize(length.div_ceil(16), FloatLine([0.0; 16]));
        Some(Floats { lines, length })
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the lines hold at least `length` floats, one after the other.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::Floats;

    #[test]
    fn they_are_zeros_and_begin_with_a_line() {
        for length in [0, 1, 16, 1000] {
            let mut floats = Floats::zeros(length).unwrap();
            assert!(floats.len() == length && floats.iter().all(|x| *x == 0.0));
            assert!(floats.as_ptr().addr().is_multiple_of(64));
            floats.fill(1.0);
        }
    }
}
