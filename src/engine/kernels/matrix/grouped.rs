//! Products in which each group of rows has its own matrix, as in a mixture of experts.
//!
//! All groups are one job of the pool. A panel is read once for each [`ROW_BLOCK`] of the rows that chose its
//! expert.

use std::ops::Range;

use super::{
    Activations, CacheLine, Disjoint, FETCH_WORTH, Input, Instructions, Make, PRODUCTS_WORTH, Packed, Pool,
    ROW_BLOCK, UNPACK_ROWS, WORK, each_row, quantize,
};

/// A matrix and the rows that are multiplied with it.
struct GroupedProduct<'a> {
    matrix: &'a Packed,
    rows: Range<usize>,
    y: &'a Disjoint<'a, f32>,
    /// The end of its items in the job.
    end: usize,
}

/// For each of `matrices` and its `y`: `y = x · Wᵀ`, where the rows `groups[g]` of `x` are multiplied with
/// part `g` of the matrix, all of whose parts have one size. All matrices have the same inputs. Where `make`
/// is given, it makes each row of `x` first, as in [`super::products`]. Rows of no group get nothing.
pub(crate) fn grouped_products(
    matrices: &[&[Packed]],
    groups: &[Range<usize>],
    x: &mut [f32],
    mut make: Option<Make<'_>>,
    ys: &mut [&mut [f32]],
    scratch: &mut Activations,
    pool: &Pool,
) {
    assert_eq!(matrices.len(), ys.len());
    assert!(groups.windows(2).all(|pair| pair[0].end <= pair[1].start), "groups that overlap");
    let instructions = pool.instructions();
    scratch.work.resize(pool.threads() * WORK, CacheLine([0; 64]));
    for block in [32, 256, 1] {
        let mut members: Vec<(&[Packed], Disjoint<'_, f32>)> = Vec::new();
        for (parts, y) in matrices.iter().zip(&mut *ys) {
            let Some(first) = parts.first().filter(|part| part.format.block() == block) else { continue };
            let rows = x.len() / first.inputs;
            assert!(x.len() == rows * first.inputs && y.len() == rows * first.outputs);
            assert!(parts.len() == groups.len() && groups.iter().all(|group| group.end <= rows));
            let like = |part: &Packed| (part.format, part.inputs, part.outputs);
            assert!(parts.iter().all(|part| like(part) == like(first)));
            members.push((parts, Disjoint::new(y)));
        }
        let Some(inputs) = members.first().and_then(|(parts, _)| Some(parts.first()?.inputs)) else {
            continue;
        };
        assert!(members.iter().all(|(parts, _)| parts.iter().all(|part| part.inputs == inputs)));
        let mut work = std::mem::take(&mut scratch.work);
        let make = make.take();
        let input = if block == 1 {
            if let Some(make) = make {
                each_row(x, inputs, pool, &make);
            }
            Input::Floats(x)
        } else {
            let widen = members.iter().any(|(parts, _)| instructions.widens(parts[0].format));
            let wide = widen && groups.iter().any(|group| group.len() >= UNPACK_ROWS);
            quantize(instructions, x, make, inputs, block, wide, scratch, pool);
            Input::Quantized(scratch)
        };
        let mut end = 0;
        let mut shares = Vec::new();
        for (group, rows) in groups.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            for (parts, y) in &members {
                let matrix = &parts[group];
                end += rows.len().div_ceil(ROW_BLOCK) * matrix.panels();
                shares.push(GroupedProduct { matrix, rows: rows.clone(), y, end });
            }
        }
        run(&shares, end, input, instructions, &mut work, pool);
        scratch.work = work;
    }
}

/// Multiplies all shares: each item is a panel with some of the rows.
fn run(
    shares: &[GroupedProduct<'_>],
    items: usize,
    x: Input<'_>,
    instructions: Instructions,
    work: &mut [CacheLine],
    pool: &Pool,
) {
    let work = Disjoint::new(work);
    let products = |share: &GroupedProduct<'_>| {
        share.matrix.inputs * share.matrix.outputs * share.rows.len().max(FETCH_WORTH)
    };
    let worth = shares.iter().map(products).sum::<usize>().div_ceil(PRODUCTS_WORTH);
    // As many claims of shares as for products of dense matrices.
    let grain = (items / (worth.min(pool.threads()).max(1) * 8)).clamp(1, 8);
    pool.ranges(items, grain, worth, &|worker, range| {
        // SAFETY: each thread has a worker number of its own.
        let work = unsafe { work.range(worker * WORK..(worker + 1) * WORK) };
        let mut index = shares.partition_point(|share| share.end <= range.start);
        for item in range {
            index += usize::from(shares[index].end <= item);
            let GroupedProduct { matrix, rows, y, end } = &shares[index];
            let (panels, left) = (matrix.panels(), end - item);
            // The last items are the last block of rows.
            let (row_block, panel) = ((left - 1) / panels, panels - 1 - (left - 1) % panels);
            let row_block = rows.len().div_ceil(ROW_BLOCK) - 1 - row_block;
            let start = rows.start + row_block * ROW_BLOCK;
            let rows = start..rows.end.min(start + ROW_BLOCK);
            // SAFETY: groups do not overlap, and each output of each row is computed by one thread.
            unsafe { matrix.multiply(panel, x, rows, instructions, work, y) };
        }
    });
}
