//! Products of panels with NEON's dot product (ARMv8.2, optional there): a vector is four inputs of 4
//! outputs.
//!
//! `sdot` multiplies signed bytes and adds four products to a 32-bit lane, all exact; the four activations
//! come from a quarter of a vector. Blocks are unpacked into signed bytes first and multiplied with all rows.
#![allow(unsafe_code, reason = "an instruction that has no stable intrinsic, vector loads from arrays")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::BlockTile;
use super::layout::{Format, IQ4, PANEL};
use super::portable::{Dot, multiply_with};

/// Proof that the processor has the dot product.
struct Neon(());

/// Adds the blocks of a tile to its sums.
///
/// # Safety
/// The processor has NEON with the dot product.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply(format: Format, tile: &mut BlockTile<'_>) {
    multiply_with(format, tile, &Neon(()));
}

/// `acc += weights · activations`, the latter from quarter `$quarter` of `$x`.
macro_rules! sdot {
    ($acc:expr, $weights:expr, $x:expr, $quarter:literal) => {
        asm!(
            concat!("sdot {acc:v}.4s, {weights:v}.16b, {x:v}.4b[", $quarter, "]"),
            acc = inout(vreg) $acc,
            weights = in(vreg) $weights,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

impl Dot for Neon {
    #[inline(always)]
    fn dot(&self, weights: &[[i8; 64]], x: &[[i8; 4]]) -> [i32; PANEL] {
        // SAFETY: there is a `Neon`; four words are 256 bytes of weights and 16 of activations.
        unsafe { dot(weights, x) }
    }

    #[inline(always)]
    fn unpack(&self, format: Format, quants: &[u8], out: &mut [i8]) {
        match format {
            // SAFETY: there is a `Neon`.
            Format::IQ4_NL => unsafe { look_up(quants, out, 256) },
            // SAFETY: there is a `Neon`.
            Format::IQ4_XS => unsafe { look_up(quants, out, 2048) },
            other => other.unpack(quants, out),
        }
    }
}

/// # Safety
/// The processor has NEON with the dot product.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot(weights: &[[i8; 64]], x: &[[i8; 4]]) -> [i32; PANEL] {
    let mut acc = [vdupq_n_s32(0); 4];
    let (weights, rest) = weights.as_chunks::<4>();
    debug_assert!(rest.is_empty());
    for (weights, x) in weights.iter().zip(x.as_chunks::<4>().0) {
        // SAFETY: within the arrays: 16 bytes of activations, 16 at each quarter of a word of weights.
        unsafe {
            let x = vld1q_s8(x.as_flattened().as_ptr());
            for (i, acc) in acc.iter_mut().enumerate() {
                let load = |word: usize| vld1q_s8(weights[word].as_ptr().add(i * 16));
                let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                sdot!(*acc, a, x, "0");
                sdot!(*acc, b, x, "1");
                sdot!(*acc, c, x, "2");
                sdot!(*acc, d, x, "3");
            }
        }
    }
    let mut sums = [0; PANEL];
    for (sums, acc) in sums.as_chunks_mut::<4>().0.iter_mut().zip(acc) {
        // SAFETY: an array of 16 bytes.
        unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
    }
    sums
}

/// Looks up the first `count` bytes of 4-bit quants: each 256 bytes are 16 inputs' low and then their high
/// halves.
///
/// # Safety
/// The processor has NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn look_up(quants: &[u8], out: &mut [i8], count: usize) {
    // SAFETY: the table is 16 bytes long.
    let table = unsafe { vld1q_s8(IQ4.as_ptr()) };
    let parts = quants[..count].as_chunks::<256>().0.iter().zip(out.as_chunks_mut::<512>().0);
    for (quants, out) in parts {
        let (low, high) = out.split_at_mut(256);
        let quants = quants.as_chunks::<16>().0.iter();
        let out = low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0);
        for (quants, (low, high)) in quants.zip(out) {
            // SAFETY: arrays of 16 bytes.
            unsafe {
                let quants = vld1q_u8(quants.as_ptr());
                vst1q_s8(low.as_mut_ptr(), vqtbl1q_s8(table, vandq_u8(quants, vdupq_n_u8(15))));
                vst1q_s8(high.as_mut_ptr(), vqtbl1q_s8(table, vshrq_n_u8::<4>(quants)));
            }
        }
    }
}
