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
        let (size, meta_size) = (format.quant_bytes(), format.meta_bytes());
        let (quants, meta) = panel.split_at(self.inputs / format.block() * size);
        for (block, out) in out.chunks_exact_mut(format.block()).enumerate() {
            let meta = &meta[block * meta_size..][..meta_size];
            format.dequantize(&quants[block * size..][..size], meta, index % PANEL, out);
        }
    }
}
