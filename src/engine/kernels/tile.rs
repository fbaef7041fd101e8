//! Storage of the keys and values of a tile: 64 positions of one key-value head.
//!
//! `f16` has keys `[dim][64]`, whose lanes are positions, then values `[64][dim]`, whose lanes are elements.
//! `q8_0` has the same in bytes, whose blocks of 32 elements of a position share a scale: keys, values,
//! scales of the keys `[blocks][64]`, scales of the values `[blocks][64]`, the scales f16. A block's largest
//! magnitude is 127 times its scale, as in ggml's type of the same name.
//!
//! Invariant: a stored element is read as an f32 that is exactly scale · quant, so that attention is the same
//! chain of operations for both types, on every instruction set.
#![allow(unsafe_code, reason = "bytes in memory that is made of 16-bit values")]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::half::{narrow, narrow_one, widen, widen_one};
use super::instructions::Instructions;

/// Positions in a tile.
pub(crate) const TILE: usize = 64;

/// Elements that share a scale.
pub(super) const BLOCK: usize = 32;
/// Adding 1.5 · 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The types in which keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum KvCacheType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit integers, of which 32 share a scale: about half the memory. Results differ a little from those
    /// with [`KvCacheType::F16`], but are as reproducible.
    Q8_0,
}

impl KvCacheType {
    /// All types.
    pub const ALL: [KvCacheType; 2] = [KvCacheType::F16, KvCacheType::Q8_0];

    /// 16-bit values that a tile of heads of `dim` elements takes.
    pub(crate) fn tile_len(self, dim: usize) -> usize {
        match self {
            KvCacheType::F16 => 2 * TILE * dim,
            KvCacheType::Q8_0 => TILE * dim + 2 * TILE * dim.div_ceil(BLOCK),
        }
    }

    /// Puts the key and the value of a position into its place.
    pub(super) fn store(
        self,
        instructions: Instructions,
        tile: &mut [u16],
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let dim = key.len();
        match self {
            KvCacheType::F16 => {
                let (keys, values) = tile.split_at_mut(dim * TILE);
                let values = &mut values[slot * dim..(slot + 1) * dim];
                // The value's place first holds the converted key, which is spread from there.
                narrow(instructions, key, values);
                for (keys, key) in keys.as_chunks_mut::<TILE>().0.iter_mut().zip(&*values) {
                    keys[slot] = *key;
                }
                narrow(instructions, value, values);
            }
            KvCacheType::Q8_0 => {
                let QuantizedMut { keys, values, key_scales, value_scales } = QuantizedMut::of(tile, dim);
                let values = &mut values[slot * dim..(slot + 1) * dim];
                quantize(instructions, key, values, slot, key_scales);
                for (keys, key) in keys.as_chunks_mut::<TILE>().0.iter_mut().zip(&*values) {
                    keys[slot] = *key;
                }
                quantize(instructions, value, values, slot, value_scales);
            }
        }
    }

    /// Reads a tile: keys `[dim][64]` and values `[64][dim]`.
    pub(super) fn read(self, instructions: Instructions, tile: &[u16], keys: &mut [f32], values: &mut [f32]) {
        let dim = keys.len() / TILE;
        match self {
            KvCacheType::F16 => {
                widen(instructions, &tile[..keys.len()], keys);
                widen(instructions, &tile[keys.len()..], values);
            }
            KvCacheType::Q8_0 => {
                let stored = Quantized::of(tile, dim);
                for (d, (keys, quants)) in keys
                    .as_chunks_mut::<TILE>()
                    .0
                    .iter_mut()
                    .zip(stored.keys.as_chunks::<TILE>().0)
                    .enumerate()
                {
                    let scales = &stored.key_scales[d / BLOCK * TILE..][..TILE];
                    for ((key, quant), scale) in keys.iter_mut().zip(quants).zip(scales) {
                        *key = f32::from(*quant) * widen_one(*scale);
                    }
                }
                for slot in 0..TILE {
                    let values = &mut values[slot * dim..(slot + 1) * dim];
                    let quants = &stored.values[slot * dim..(slot + 1) * dim];
                    for (block, (values, quants)) in
                        values.chunks_mut(BLOCK).zip(quants.chunks(BLOCK)).enumerate()
                    {
                        let scale = widen_one(stored.value_scales[block * TILE + slot]);
                        for (value, quant) in values.iter_mut().zip(quants) {
                            *value = f32::from(*quant) * scale;
                        }
                    }
                }
            }
        }
    }

    /// Clears the positions from `slot` on.
    pub(crate) fn clear(self, tile: &mut [u16], dim: usize, slot: usize) {
        let from_slot =
            |lanes: &mut [u16]| lanes.chunks_exact_mut(TILE).for_each(|lanes| lanes[slot..].fill(0));
        match self {
            KvCacheType::F16 => {
                let (keys, values) = tile.split_at_mut(dim * TILE);
                from_slot(keys);
                values[slot * dim..].fill(0);
            }
            KvCacheType::Q8_0 => {
                let QuantizedMut { keys, values, key_scales, value_scales } = QuantizedMut::of(tile, dim);
                keys.chunks_exact_mut(TILE).for_each(|keys| keys[slot..].fill(0));
                values[slot * dim..].fill(0);
                from_slot(key_scales);
                from_slot(value_scales);
            }
        }
    }
}

impl fmt::Display for KvCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvCacheType::F16 => "f16",
            KvCacheType::Q8_0 => "q8_0",
        })
    }
}

impl FromStr for KvCacheType {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        KvCacheType::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or(())
    }
}

/// The parts of a tile of `q8_0`.
#[derive(Clone, Copy)]
pub(super) struct Quantized<'a> {
    /// `[dim][64]`.
    pub(super) keys: &'a [i8],
    /// `[64][dim]`.
    pub(super) values: &'a [i8],
    /// `[blocks][64]` each.
    pub(super) key_scales: &'a [u16],
    pub(super) value_scales: &'a [u16],
}

/// The parts of a tile of `q8_0`, to be written.
struct QuantizedMut<'a> {
    keys: &'a mut [i8],
    values: &'a mut [i8],
    key_scales: &'a mut [u16],
    value_scales: &'a mut [u16],
}

impl<'a> Quantized<'a> {
    /// The parts of a tile of heads of `dim` elements.
    pub(super) fn of(tile: &'a [u16], dim: usize) -> Quantized<'a> {
        let (quants, scales) = tile.split_at(TILE * dim);
        // SAFETY: the same memory, as twice as many bytes; any byte is an i8.
        let quants = unsafe { std::slice::from_raw_parts(quants.as_ptr().cast(), 2 * quants.len()) };
        let (keys, values) = quants.split_at(TILE * dim);
        let (key_scales, value_scales) = scales.split_at(TILE * dim.div_ceil(BLOCK));
        Quantized { keys, values, key_scales, value_scales }
    }
}

impl<'a> QuantizedMut<'a> {
    fn of(tile: &'a mut [u16], dim: usize) -> QuantizedMut<'a> {
        let (quants, scales) = tile.split_at_mut(TILE * dim);
        // SAFETY: the same memory, borrowed once, as twice as many bytes; any two bytes are a u16.
        let quants = unsafe { std::slice::from_raw_parts_mut(quants.as_mut_ptr().cast(), 2 * quants.len()) };
        let (keys, values) = quants.split_at_mut(TILE * dim);
        let (key_scales, value_scales) = scales.split_at_mut(TILE * dim.div_ceil(BLOCK));
        QuantizedMut { keys, values, key_scales, value_scales }
    }
}

multiversion! {
    /// Quantizes the elements of a position in blocks; the scale of block `b` goes to `scales[b][slot]`.
    fn quantize(x: &[f32], quants: &mut [i8], slot: usize, scales: &mut [u16]) = quantize_body
}

#[inline(always)]
#[allow(clippy::manual_clamp, reason = "unlike clamp this makes a NaN a number; the scale keeps it")]
fn quantize_body(x: &[f32], quants: &mut [i8], slot: usize, scales: &mut [u16]) {
    let blocks = x.chunks(BLOCK).zip(quants.chunks_mut(BLOCK)).zip(scales.chunks_exact_mut(TILE));
    for ((x, quants), scales) in blocks {
        // The bits are compared as integers, so that a NaN counts as larger than all numbers and is not lost.
        let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
        let stored = narrow_one(f32::from_bits(largest) / 127.0);
        // The inverse is that of the scale as it is stored. A scale that is not finite stays so, whatever the
        // quants are.
        let scale = widen_one(stored);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (quant, x) in quants.iter_mut().zip(x) {
            let rounded = (x * inverse).max(-127.0).min(127.0) + ROUND;
            *quant = rounded.to_bits() as i8;
        }
        scales[slot] = stored;
    }
}
