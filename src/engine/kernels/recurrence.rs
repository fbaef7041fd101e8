//! Layers with a memory of fixed size for a sequence, which each position overwrites.
//!
//! A state is a layer's memory of all positions up to some place. It is computed position by position in
//! ascending order, and in parts that do not depend on each other, so its bytes depend neither on how the
//! rows were cut into passes nor on threads.
//!
//! A sequence has the state behind its last row, which is updated in place. Rows that are guesses update a
//! second one, so that they can be taken back. Where a block of positions ends that has room for it, the
//! state is copied into the block: [`crate::model`] resumes from there when it has to go further back, or
//! when another sequence begins alike.
#![allow(unsafe_code, reason = "threads write disjoint parts of a state")]

use std::ops::Range;

use super::rows::Rows;
use super::tile::TILE;

/// The place of a layer's state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StatePlace {
    /// Its beginning in [`super::rows::RecurrentStates`], in f32 values.
    pub(crate) running: usize,
    /// Its beginning in each block, in f16 values, two of which hold the bits of an f32.
    pub(crate) block: usize,
}

impl StatePlace {
    /// The place of the state so many values behind this one.
    pub(crate) fn behind(self, values: usize) -> StatePlace {
        StatePlace { running: self.running + values, block: self.block + 2 * values }
    }
}

/// Calls `step` for each row of a sequence in ascending order, with the part of the layer's state that `step`
/// computes. Copies that part into each block that ends with a row and has room for it.
///
/// # Safety
/// While it runs, no other thread may use this part of the state.
pub(crate) unsafe fn each_position(
    rows: &Rows<'_>,
    place: StatePlace,
    part: Range<usize>,
    mut step: impl FnMut(usize, &mut [f32]),
) {
    let Some(running) = &rows.running else { unreachable!("the model has layers that keep a state") };
    let range = place.running + part.start..place.running + part.end;
    for row in 0..rows.rows {
        // SAFETY: the caller's promise; the two states are not the same memory.
        let state = unsafe {
            if row < running.certain {
                running.now.range(range.clone())
            } else {
                let ahead = running.ahead.range(range.clone());
                if row == running.certain {
                    ahead.copy_from_slice(running.now.range(range.clone()));
                }
                ahead
            }
        };
        step(row, state);
        let position = rows.position + row;
        if position % TILE == TILE - 1 {
            let block = &rows.open[position / TILE - rows.done.len()];
            let (start, end) = (place.block + 2 * part.start, place.block + 2 * part.end);
            if end <= block.len() {
                // SAFETY: as above.
                store(state, unsafe { block.range(start..end) });
            }
        }
    }
}

/// Writes the bits of values into pairs of others.
pub(crate) fn store(values: &[f32], halves: &mut [u16]) {
    for (value, halves) in values.iter().zip(halves.as_chunks_mut::<2>().0) {
        let bits = value.to_bits();
        *halves = [bits as u16, (bits >> 16) as u16];
    }
}

/// Reads what [`store`] has written.
pub(crate) fn load(halves: &[u16], values: &mut [f32]) {
    for ([low, high], value) in halves.as_chunks::<2>().0.iter().zip(values) {
        *value = f32::from_bits(u32::from(*low) | u32::from(*high) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::{load, store};

    #[test]
    fn what_is_stored_is_loaded_bit_by_bit() {
        let values = [0.0, -0.0, 1.5, -1e-42, f32::INFINITY, f32::from_bits(0x7fc1_2345)];
        let (mut halves, mut loaded) = ([0; 12], [0.0; 6]);
        store(&values, &mut halves);
        load(&halves, &mut loaded);
        assert_eq!(values.map(f32::to_bits), loaded.map(f32::to_bits));
    }
}
