//! Matrix products with weights of any type, repacked into panels of 16 outputs.
//!
//! Invariant: the bytes of an output are those of [`portable`] on every instruction set, whatever other rows
//! are computed and however the work is divided among threads: a block is summed exactly in integers, blocks
//! are added in ascending order, and the inputs of an output are never split between threads. Floating-point
//! weights are multiplied with the unquantized activations, input by input in ascending order.
#![allow(unsafe_code, reason = "threads write disjoint ranges; calling code compiled for detected features")]

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dequantize;
mod dispatch;
mod float;
mod grouped;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod reference;
mod storage;
mod ternary;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use activations::Activations;
pub(crate) use grouped::grouped_products;
pub(crate) use layout::{Format, PANEL};
pub(crate) use storage::{fingerprint, pack, panel_size};

use super::disjoint::Disjoint;
use super::instructions::Instructions;
use super::pool::Pool;
use storage::{CacheLine, CacheLines};

/// Rows whose activations stay in the cache while panels pass by.
const ROW_BLOCK: usize = 128;
/// Fewest rows for which unpacking weights into memory first pays.
const UNPACK_ROWS: usize = 20;
/// Blocks of 256 that are unpacked at a time, to bytes; or as much memory of wider quants.
const STRETCH: usize = 4;
/// Rows that are multiplied with unpacked weights while some of the next weights are fetched. Otherwise twice
/// as many: no kernel computes more together.
const FETCH_ROWS: usize = 8;

/// Lines of a thread's working memory: unpacked quants, then sums.
const WORK: usize = STRETCH * 64 + ROW_BLOCK;

/// Multiply-adds of a share of the pool's work: about two microseconds.
const PRODUCTS_WORTH: usize = 200_000;
/// Rows that a weight can be multiplied with in the time of fetching it.
const FETCH_WORTH: usize = 4;
/// Values of rows in a share of work that makes and quantizes them.
const VALUES_WORTH: usize = 4096;

fn bytes(lines: &[CacheLine]) -> &[u8] {
    // SAFETY: a line is 64 bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 64) }
}

fn bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
    // SAFETY: a line is 64 bytes without padding, and any bytes make one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}

fn sums_mut(lines: &mut [CacheLine]) -> &mut [[f32; PANEL]] {
    // SAFETY: a line is as large as 16 f32 and aligned for them, and any bytes make one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len()) }
}

/// A matrix in panels. Clones share them.
#[derive(Clone)]
pub(crate) struct Packed {
    /// The format of the panels, which differs from that of the file for some.
    format: Format,
    inputs: usize,
    outputs: usize,
    lines: CacheLines,
}

/// The activations that weights are multiplied with.
#[derive(Clone, Copy)]
enum Input<'a> {
    /// Rows of values.
    Floats(&'a [f32]),
    /// Rows of blocks of 8-bit integers.
    Quantized(&'a Activations),
}

/// Some blocks of a panel, some rows of activations and their sums.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "some of it serves the x86 kernels only"))]
struct BlockTile<'a> {
    /// In the panel's form, or unpacked.
    quants: &'a [u8],
    /// Bytes from a block's quants to the next.
    quant_stride: usize,
    unpacked: bool,
    meta: &'a [u8],
    /// Bytes from a block's meta to the next.
    meta_stride: usize,
    blocks: usize,
    /// Activations of the first row and those after it.
    x: &'a [i8],
    /// The same in 16 bits where these exist.
    wide: &'a [i16],
    x_stride: usize,
    scales: &'a [f32],
    scale_stride: usize,
    x_sums: &'a [i32],
    x_sum_stride: usize,
    /// Whether the weights were not used just before, so that they may have to come from memory.
    fresh: bool,
    /// One for each row, in a [`CacheLine`] of its own.
    sums: &'a mut [[f32; PANEL]],
}

impl BlockTile<'_> {
    /// Panics if a slice is too short for the rows and blocks, or sums are not aligned.
    #[cfg(target_arch = "x86_64")]
    fn check(&self, format: Format) {
        let rows = self.sums.len();
        if rows == 0 || self.blocks == 0 {
            return;
        }
        let quants = if self.unpacked { self.quant_stride } else { format.quant_bytes() };
        let x_sums = if format.block() == 32 { activations::SUMS_32 } else { activations::SUMS_256 };
        assert!(self.sums.as_ptr().cast::<CacheLine>().is_aligned());
        assert!(self.quants.len() >= (self.blocks - 1) * self.quant_stride + quants);
        assert!(self.meta.len() >= (self.blocks - 1) * self.meta_stride + format.meta_bytes());
        assert!(self.x.len() >= (rows - 1) * self.x_stride + self.blocks * format.block());
        assert!(self.scales.len() >= (rows - 1) * self.scale_stride + self.blocks);
        assert!(self.x_sums.len() >= (rows - 1) * self.x_sum_stride + self.blocks * x_sums);
    }
}

impl Packed {
    fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Computes the outputs of one panel for some rows and puts them into `y`, which has a row of the
    /// matrix's outputs for each.
    ///
    /// # Safety
    /// No other thread has these outputs.
    unsafe fn multiply(
        &self,
        panel: usize,
        x: Input<'_>,
        rows: Range<usize>,
        instructions: Instructions,
        work: &mut [CacheLine],
        y: &Disjoint<'_, f32>,
    ) {
        let panel_lines = self.format.panel_bytes(self.inputs / self.format.block()) / 64;
        let bytes = bytes(&self.lines[panel * panel_lines..][..panel_lines]);
        let (unpacked, sums) = work.split_at_mut(STRETCH * 64);
        let sums = &mut sums_mut(sums)[..rows.len()];
        sums.fill([0.0; PANEL]);
        match x {
            Input::Floats(x) => {
                let x = &x[rows.start * self.inputs..rows.end * self.inputs];
                let mut tile = float::FloatTile { panel: bytes, inputs: self.inputs, x, sums };
                float::multiply(self.format, &mut tile, instructions);
            }
            Input::Quantized(x) => {
                let output = |row| y.address(row * self.outputs + panel * PANEL).cast();
                self.multiply_blocks(bytes, x, rows.clone(), instructions, unpacked, sums, &output);
            }
        }
        let width = PANEL.min(self.outputs - panel * PANEL);
        for (row, sums) in rows.zip(&*sums) {
            let start = row * self.outputs + panel * PANEL;
            // SAFETY: the caller's promise.
            let y = unsafe { y.range(start..start + width) };
            match y.as_mut_array::<PANEL>() {
                // The usual case, and a few instructions.
                Some(y) => *y = *sums,
                None => y.copy_from_slice(&sums[..width]),
            }
        }
    }

    /// Adds the blocks of a panel to the sums of some rows, which then go to `output`.
    #[allow(clippy::too_many_arguments, reason = "a loop with its working memory")]
    fn multiply_blocks(
        &self,
        panel: &[u8],
        x: &Activations,
        rows: Range<usize>,
        instructions: Instructions,
        unpacked: &mut [CacheLine],
        sums: &mut [[f32; PANEL]],
        output: &dyn Fn(usize) -> *const u8,
    ) {
        let format = self.format;
        let blocks = self.inputs / format.block();
        let block_bytes = format.block_bytes();
        let x_sums = x.sums_per_block();
        let widen = instructions.widens(format);
        let unpack = rows.len() >= UNPACK_ROWS && instructions.unpacks(format) && (x.is_wide() || !widen);
        let unpacked_block = format.block() * PANEL * if widen { 2 } else { 1 };
        let step = if unpack { STRETCH * 4096 / unpacked_block } else { blocks.max(1) };
        for start in (0..blocks).step_by(step) {
            let count = step.min(blocks - start);
            let panel = &panel[start * block_bytes..];
            let (mut quants, mut quant_stride) = (panel, block_bytes);
            if unpack {
                let unpacked = bytes_mut(unpacked);
                instructions.unpack(format, quants, count, unpacked);
                (quants, quant_stride) = (unpacked, unpacked_block);
            }
            // Meanwhile the next weights to be unpacked are fetched from memory, and so is the destination of
            // the outputs, a few lines at a time: the processor's own prefetching ends at a page.
            let group = if unpack { FETCH_ROWS } else { 2 * FETCH_ROWS };
            let lines = (step * block_bytes).div_ceil(64).div_ceil(rows.len().div_ceil(group).max(1));
            let mut next = panel.as_ptr().wrapping_add(count * block_bytes);
            for (row, sums) in rows.clone().step_by(group).zip(sums.chunks_mut(group)) {
                if unpack {
                    fetch(next, lines);
                    next = next.wrapping_add(lines * 64);
                }
                if start + count == blocks {
                    (row..row + sums.len()).for_each(|row| fetch(output(row), 1));
                }
                let mut tile = BlockTile {
                    quants,
                    quant_stride,
                    unpacked: unpack,
                    meta: &panel[format.quant_bytes()..],
                    meta_stride: block_bytes,
                    blocks: count,
                    x: &x.quants[row * x.inputs + start * format.block()..],
                    wide: if x.is_wide() { &x.wide[row * x.inputs + start * format.block()..] } else { &[] },
                    x_stride: x.inputs,
                    scales: &x.scales[row * blocks + start..],
                    scale_stride: blocks,
                    x_sums: &x.sums[(row * blocks + start) * x_sums..],
                    x_sum_stride: blocks * x_sums,
                    fresh: row == rows.start && !unpack,
                    sums,
                };
                instructions.multiply(format, &mut tile);
            }
        }
    }
}

/// Prefetches lines of memory, which may lie beyond the weights.
fn fetch(at: *const u8, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch has no visible effect, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * 64).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, lines);
}

/// Computes row `.0` of an input in place.
pub(crate) type Make<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// `y = x · Wᵀ` for several matrices with one input: `x` has `inputs` values a row, each `y` gets as many
/// rows of its matrix's outputs. Activations are quantized once for all matrices of a block size. Where
/// `make` is given, it makes each row of `x` first, on the thread that quantizes the row and just before it
/// does.
pub(crate) fn products(
    matrices: &[&Packed],
    x: &mut [f32],
    make: Option<Make<'_>>,
    ys: &mut [&mut [f32]],
    scratch: &mut Activations,
    pool: &Pool,
) {
    products_with(pool.instructions(), matrices, x, make, ys, scratch, pool);
}

/// [`products`], with instructions that the processor has.
fn products_with(
    instructions: Instructions,
    matrices: &[&Packed],
    x: &mut [f32],
    mut make: Option<Make<'_>>,
    ys: &mut [&mut [f32]],
    scratch: &mut Activations,
    pool: &Pool,
) {
    assert_eq!(matrices.len(), ys.len());
    scratch.work.resize(pool.threads() * WORK, CacheLine([0; 64]));
    for block in [32, 256, 1] {
        let mut group = Vec::new();
        for (matrix, y) in matrices.iter().zip(&mut *ys) {
            if matrix.format.block() == block {
                let rows = x.len() / matrix.inputs;
                assert!(x.len() == rows * matrix.inputs && y.len() == rows * matrix.outputs);
                group.push((*matrix, Disjoint::new(y)));
            }
        }
        if let Some((first, _)) = group.first() {
            let inputs = first.inputs;
            assert!(group.iter().all(|(matrix, _)| matrix.inputs == inputs));
            let mut work = std::mem::take(&mut scratch.work);
            let make = make.take();
            let input = if block == 1 {
                if let Some(make) = make {
                    each_row(x, inputs, pool, &make);
                }
                Input::Floats(x)
            } else {
                let widen = group.iter().any(|(matrix, _)| instructions.widens(matrix.format));
                let wide = widen && x.len() >= UNPACK_ROWS * inputs;
                quantize(instructions, x, make, inputs, block, wide, scratch, pool);
                Input::Quantized(scratch)
            };
            run(&group, input, x.len() / inputs, instructions, &mut work, pool);
            scratch.work = work;
        }
    }
}

/// Quantizes rows, which `make` makes first, to bytes and where `wide` to 16 bits as well.
#[allow(clippy::too_many_arguments, reason = "what is done, with what, on which threads")]
pub(crate) fn quantize(
    instructions: Instructions,
    x: &mut [f32],
    make: Option<Make<'_>>,
    inputs: usize,
    block: usize,
    wide: bool,
    target: &mut Activations,
    pool: &Pool,
) {
    let rows = x.len() / inputs;
    target.resize(block, inputs, rows, wide);
    let (blocks, words) = (inputs / block, inputs / block * target.sums_per_block());
    let quants = Disjoint::new(&mut target.quants);
    let wides = Disjoint::new(&mut target.wide);
    let scales = Disjoint::new(&mut target.scales);
    let sums = Disjoint::new(&mut target.sums);
    each_row(x, inputs, pool, &|row, x| {
        if let Some(make) = make {
            make(row, x);
        }
        // SAFETY: each row is quantized by one thread.
        let (quants, scales, sums) = unsafe {
            (
                quants.range(row * inputs..(row + 1) * inputs),
                scales.range(row * blocks..(row + 1) * blocks),
                sums.range(row * words..(row + 1) * words),
            )
        };
        activations::quantize(instructions, block, x, quants, scales, sums);
        if wide {
            // SAFETY: as above.
            activations::widen(instructions, quants, unsafe {
                wides.range(row * inputs..(row + 1) * inputs)
            });
        }
    });
}

/// Calls `work` with each row of `x`.
pub(crate) fn each_row(x: &mut [f32], inputs: usize, pool: &Pool, work: Make<'_>) {
    let (rows, values) = (x.len() / inputs, x.len());
    let x = Disjoint::new(x);
    let work = |range: Range<usize>| {
        for row in range {
            // SAFETY: each row is done by one thread.
            work(row, unsafe { x.range(row * inputs..(row + 1) * inputs) });
        }
    };
    pool.ranges(rows, 4, values / VALUES_WORTH, &|_, range| work(range));
}

/// Multiplies matrices of one block size with the same activations.
fn run(
    group: &[(&Packed, Disjoint<'_, f32>)],
    x: Input<'_>,
    x_rows: usize,
    instructions: Instructions,
    work: &mut [CacheLine],
    pool: &Pool,
) {
    let work = Disjoint::new(work);
    let panels: usize = group.iter().map(|(matrix, _)| matrix.panels()).sum();
    let weights: usize = group.iter().map(|(matrix, _)| matrix.inputs * matrix.outputs).sum();
    let row_blocks = x_rows.div_ceil(ROW_BLOCK);
    let worth = (weights * x_rows.max(FETCH_WORTH)).div_ceil(PRODUCTS_WORTH);
    // About eight claims for each thread, but few panels in each.
    let grain = (panels / (worth.min(pool.threads()) * 8)).clamp(1, 8);
    let claims = panels.div_ceil(grain);
    pool.run(row_blocks * claims, worth, &|worker, item| {
        // SAFETY: each thread has a worker number of its own.
        let work = unsafe { work.range(worker * WORK..(worker + 1) * WORK) };
        let start = item / claims * ROW_BLOCK;
        let rows = start..x_rows.min(start + ROW_BLOCK);
        let first = item % claims * grain;
        for panel in first..panels.min(first + grain) {
            let mut panel = panel;
            let mut members = group.iter();
            let (matrix, y) = loop {
                match members.next() {
                    Some((matrix, _)) if panel >= matrix.panels() => panel -= matrix.panels(),
                    Some((matrix, y)) => break (matrix, y),
                    None => unreachable!("panels are counted over the group"),
                }
            };
            // SAFETY: each output of each row is computed by one thread.
            unsafe { matrix.multiply(panel, x, rows.clone(), instructions, work, y) };
        }
    });
}
