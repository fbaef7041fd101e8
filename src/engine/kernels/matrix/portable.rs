//! The products of panels, defined: other instruction sets give these bytes.
//!
//! Within a block everything is summed exactly in integers and converted once; blocks follow each other in
//! ascending order, each one fused multiply-add (K-quants with minima: two).

use super::Tile;
use super::layout::{Format, PANEL};

/// Adds the blocks of a tile to its sums.
pub(super) fn multiply(format: Format, tile: &mut Tile<'_>) {
    let size = format.block();
    for (row, sums) in tile.sums.iter_mut().enumerate() {
        for block in 0..tile.blocks {
            let quants = &tile.quants[block * format.quant_bytes()..][..format.quant_bytes()];
            let meta = &tile.meta[block * format.meta_bytes()..][..format.meta_bytes()];
            let x = &tile.x[row * tile.x_stride + block * size..][..size];
            let scale = tile.scales[row * tile.scale_stride + block];
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = add_block(format, quants, meta, lane, x, scale, *sum);
            }
        }
    }
}

fn add_block(format: Format, quants: &[u8], meta: &[u8], lane: usize, x: &[i8], scale: f32, sum: f32) -> f32 {
    let half = |at: usize| half::f16::from_le_bytes([meta[at], meta[at + 1]]).to_f32_const();
    // The exact sum over some of the block's inputs.
    let part = |start: usize, length: usize| -> i32 {
        (start..start + length).map(|k| format.weight(quants, k, lane) * i32::from(x[k])).sum()
    };
    let d = half(2 * lane) * scale;
    match format {
        Format::Q8_0 | Format::Q4_0 => (part(0, 32) as f32).mul_add(d, sum),
        Format::Q4_K => {
            let scale_of = |i: usize| i32::from(meta[64 + i * PANEL + lane]);
            let min_of = |i: usize| i32::from(meta[192 + i / 2 * 2 * PANEL + 2 * lane + i % 2]);
            let total: i32 = (0..8).map(|i| scale_of(i) * part(i * 32, 32)).sum();
            let x_sum = |i: usize| x[i * 32..][..32].iter().map(|x| i32::from(*x)).sum::<i32>();
            let minima: i32 = (0..8).map(|i| min_of(i) * x_sum(i)).sum();
            let sum = (total as f32).mul_add(d, sum);
            (-(minima as f32)).mul_add(half(32 + 2 * lane) * scale, sum)
        }
        Format::Q6_K => {
            let scale_of = |i: usize| i32::from(meta[32 + i * PANEL + lane] as i8);
            let total: i32 = (0..16).map(|i| scale_of(i) * part(i * 16, 16)).sum();
            (total as f32).mul_add(d, sum)
        }
    }
}
