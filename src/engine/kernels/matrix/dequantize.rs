//! Rows of weights as f32, such as a token's embedding, from panels or from a file's layout.
//!
//! Invariant: the values are those of ggml's own dequantization, to the bit.

use super::layout::{Format, PANEL, half_of_power};

/// Bytes of the largest quants and of the largest meta of a panel's block.
const QUANTS: usize = 3072;
const META: usize = 320;

impl Format {
    /// Widens the block of one output in a panel.
    pub(super) fn dequantize(self, quants: &[u8], meta: &[u8], lane: usize, out: &mut [f32]) {
        match self {
            Format::F32 => {
                out[0] = f32::from_bits(u32::from_le_bytes([0, 1, 2, 3].map(|i| quants[4 * lane + i])));
            }
            Format::F16 => out[0] = half(quants, 2 * lane),
            Format::BF16 => {
                let bits = u16::from_le_bytes([quants[2 * lane], quants[2 * lane + 1]]);
                out[0] = f32::from_bits(u32::from(bits) << 16);
            }
            _ => self.dequantize_block(quants, meta, lane, out),
        }
    }

    fn dequantize_block(self, quants: &[u8], meta: &[u8], lane: usize, out: &mut [f32]) {
        let mut unpacked = [0; 256 * PANEL];
        self.unpack(quants, &mut unpacked);
        let unpacked = unpacked.as_chunks::<64>().0;
        let weight = |k: usize| f32::from(unpacked[k / 4][lane * 4 + k % 4]);
        let byte = |at: usize| meta[at + lane];
        let d = if self == Format::MXFP4 { half_of_power(byte(0)) } else { half(meta, 2 * lane) };
        // Scale and offset of an input: its value is scale · weight + offset.
        let factors = |k: usize| match self {
            Format::F32 | Format::F16 | Format::BF16 => unreachable!("floating-point weights have no scales"),
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::MXFP4 => (d, None),
            Format::Q4_1 | Format::Q5_1 => (d, Some(half(meta, 32 + 2 * lane))),
            Format::Q2_K => {
                let byte = byte(64 + k / 16 * PANEL);
                let min = half(meta, 32 + 2 * lane) * f32::from(byte >> 4);
                (d * f32::from(byte & 15), Some(-min))
            }
            Format::Q4_K | Format::Q5_K => {
                let part = k / 32;
                let min = meta[192 + part / 2 * 2 * PANEL + 2 * lane + part % 2];
                let min = half(meta, 32 + 2 * lane) * f32::from(min);
                (d * f32::from(byte(64 + part * PANEL)), Some(-min))
            }
            Format::Q3_K | Format::TQ1_0 | Format::TQ2_0 | Format::Q6_K => {
                (d * f32::from(byte(32 + k / 16 * PANEL) as i8), None)
            }
            Format::IQ4_XS => (d * f32::from(byte(32 + k / 32 * PANEL) as i8), None),
        };
        for (k, out) in out.iter_mut().enumerate() {
            *out = match factors(k) {
                (scale, None) => scale * weight(k),
                (scale, Some(offset)) => scale * weight(k) + offset,
            };
        }
    }

    /// Widens a row of `out.len()` values in ggml's layout, whole blocks.
    pub(crate) fn dequantize_row(self, row: &[u8], out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.block()));
        assert!(row.len() == out.len() / self.block() * self.source_bytes());
        let (mut quants, mut meta) = ([0; QUANTS], [0; META]);
        let blocks = row.chunks_exact(self.source_bytes()).zip(out.chunks_exact_mut(self.block()));
        for (source, out) in blocks {
            self.pack(source, 0, &mut quants, &mut meta);
            self.dequantize(&quants, &meta, 0, out);
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32_const()
}
