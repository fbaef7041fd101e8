//! Storage of panels: cache lines in a part of a mapping, and the code that fills them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::layout::{Format, PANEL};
use super::{Packed, bytes, bytes_mut};
use crate::mapping::Mapping;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct CacheLine(pub(super) [u8; 64]);

/// Whole cache lines of a mapping.
#[derive(Clone)]
pub(super) struct CacheLines {
    mapping: Arc<Mapping>,
    /// Their offset in the mapping.
    start: usize,
    count: usize,
}

impl CacheLines {
    /// `bytes` of the mapping; None where they are not whole lines, or beyond its end.
    fn new(mapping: Arc<Mapping>, bytes: Range<usize>) -> Option<CacheLines> {
        let part = mapping.get(bytes.clone())?;
        let whole = part.as_ptr().cast::<CacheLine>().is_aligned() && part.len().is_multiple_of(64);
        whole.then(|| CacheLines { mapping, start: bytes.start, count: bytes.len() / 64 })
    }

    /// Some of these lines.
    fn part(&self, lines: Range<usize>) -> CacheLines {
        assert!(lines.start <= lines.end && lines.end <= self.count);
        CacheLines {
            mapping: Arc::clone(&self.mapping),
            start: self.start + lines.start * 64,
            count: lines.len(),
        }
    }
}

impl Deref for CacheLines {
    type Target = [CacheLine];

    fn deref(&self) -> &[CacheLine] {
        // SAFETY: `new` has checked bounds and alignment; a mapping stays where it is, is read-only, and any
        // bytes make a line.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(self.start).cast(), self.count) }
    }
}

impl Packed {
    /// Existing panels, from byte `start` of a mapping on; None where they would not be aligned or would
    /// reach beyond its end.
    pub(crate) fn stored(
        format: Format,
        inputs: usize,
        outputs: usize,
        mapping: Arc<Mapping>,
        start: usize,
    ) -> Option<Packed> {
        let end = start.checked_add(Packed::size(format, inputs, outputs))?;
        let format = format.of_panels();
        Some(Packed { format, inputs, outputs, lines: CacheLines::new(mapping, start..end)? })
    }

    /// Repacks `outputs` rows of `inputs` values, which `source` must hold exactly, into memory of their own.
    ///
    /// # Errors
    /// An error if there is not enough memory.
    pub(crate) fn new(
        format: Format,
        source: &[u8],
        inputs: usize,
        outputs: usize,
    ) -> std::io::Result<Packed> {
        use crate::mapping::Blank;
        let size = Packed::size(format, inputs, outputs);
        assert!(source.len() == outputs * (inputs / format.block()) * format.source_bytes());
        let mut memory = Blank::new(size)?;
        pack(format, source, inputs, &mut memory.bytes_mut()[..size]);
        let mapping = Arc::new(memory.finish()?);
        Packed::stored(format, inputs, outputs, mapping, 0)
            .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    /// The panel with output `index` as a matrix of its own, and the output's number in it.
    pub(crate) fn panel_of(&self, index: usize) -> (Packed, usize) {
        let (panel, size) = (index / PANEL, panel_size(self.format, self.inputs));
        let first = panel * PANEL;
        assert!(index < self.outputs, "output {index} of {}", self.outputs);
        let lines = self.lines.part(panel * size / 64..(panel + 1) * size / 64);
        (Packed { outputs: PANEL.min(self.outputs - first), lines, ..self.clone() }, index - first)
    }

    /// Some of its panels as a matrix of their own: `outputs` begins with a panel, and ends with one or with
    /// the last output.
    pub(crate) fn part(&self, outputs: Range<usize>) -> Packed {
        let Range { start, end } = outputs;
        assert!(start.is_multiple_of(PANEL) && start <= end);
        assert!(end.is_multiple_of(PANEL) && end < self.outputs || end == self.outputs);
        let lines = panel_size(self.format, self.inputs) / 64;
        let lines = self.lines.part(start / PANEL * lines..end.div_ceil(PANEL) * lines);
        Packed { outputs: end - start, lines, ..self.clone() }
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes that the panels of a matrix take.
    pub(crate) fn size(format: Format, inputs: usize, outputs: usize) -> usize {
        panel_size(format, inputs) * outputs.div_ceil(PANEL)
    }
}

/// Bytes of one panel of a matrix with `inputs` inputs.
pub(crate) fn panel_size(format: Format, inputs: usize) -> usize {
    format.panel_bytes(inputs / format.block())
}

/// Fills `target`, which holds zeros, with the panels of some rows of `inputs` values.
pub(crate) fn pack(format: Format, rows: &[u8], inputs: usize, target: &mut [u8]) {
    let blocks = inputs / format.block();
    let row_bytes = blocks * format.source_bytes();
    let size = format.panel_bytes(blocks);
    assert!(inputs.is_multiple_of(format.block()) && rows.len().is_multiple_of(row_bytes.max(1)));
    assert!(target.len() == (rows.len() / row_bytes.max(1)).div_ceil(PANEL) * size);
    let rows = rows.chunks(PANEL * row_bytes.max(1));
    for (panel, rows) in target.chunks_exact_mut(size.max(1)).zip(rows) {
        format.pack_panel(rows, blocks, panel);
    }
}

/// A number that changes when the layout of a format's panels does: the checksum of a small matrix in it,
/// whose content differs by format.
pub(crate) fn fingerprint(format: Format) -> u32 {
    let (inputs, outputs) = (3 * format.block(), PANEL + 1);
    let mut state = u32::from(format as u8);
    let mut source = vec![0; outputs * 3 * format.source_bytes()];
    for byte in &mut source {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let mut lines = vec![CacheLine([0; 64]); Packed::size(format, inputs, outputs) / 64];
    let panels = bytes_mut(&mut lines);
    pack(format, &source, inputs, panels);
    crc32fast::hash(panels)
}

impl Packed {
    /// Dequantizes row `index`: all weights of one output, such as a token's embedding from a head that is
    /// tied to the embedding. The values are those of the row in the model's file, to the bit.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.outputs && out.len() == self.inputs);
        let format = self.format;
        let lines = panel_size(format, self.inputs) / 64;
        let panel = bytes(&self.lines[index / PANEL * lines..][..lines]);
        let blocks = panel.chunks_exact(format.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(format.block())) {
            let (quants, meta) = block.split_at(format.quant_bytes());
            format.dequantize(quants, meta, index % PANEL, out);
        }
    }
}
