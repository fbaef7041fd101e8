//! Single rows of a matrix in panels, dequantized: a token's embedding out of a head that is tied to it.

use super::layout::PANEL;
use super::{Packed, bytes, storage};

impl Packed {
    /// Dequantizes row `index`: the weights of one output, all its inputs. The values are those of the row in the
    /// model's file, to the bit.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.outputs && out.len() == self.inputs);
        let format = self.format;
        let lines = storage::panel_size(format, self.inputs) / 64;
        let panel = bytes(&self.lines[index / PANEL * lines..][..lines]);
        let blocks = panel.chunks_exact(format.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(format.block())) {
            let (quants, meta) = block.split_at(format.quant_bytes());
            format.dequantize(quants, meta, index % PANEL, out);
        }
    }
}
