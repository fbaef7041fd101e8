//! Panels of 16 outputs: the one layout of packed weights, for all instruction sets.
//!
//! Blocks of 16 rows are interleaved by four bytes, so that a vector holds four inputs of each output, and
//! lanes are outputs. A panel is its blocks one after the other, each of them quants and then all other
//! values ("meta": scales and minima): one stream of memory, which is read up to twice as fast as two. No
//! value is rounded: quants keep their bits (Q8_0's are stored plus 128), sub-scales that ggml packs into odd
//! bits get a byte each. Floating-point weights are 16 values, one of each output, for each input.

use super::ternary::{Ternary, as_q3_k};

/// Outputs in a panel.
pub(crate) const PANEL: usize = 16;

/// The values of the 4-bit quants of IQ4_NL and IQ4_XS.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The values of MXFP4's 4-bit quants, doubled: a sign, two bits of exponent and one of mantissa ([OCP
/// Microscaling
/// Formats](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)).
pub(super) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two for the 8-bit exponent of an MXFP4 block, because [`E2M1`] is doubled. The two
/// smallest are subnormal.
pub(super) fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { u32::from(exponent - 1) << 23 })
}

/// A format of weights that has panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
#[repr(u8)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    IQ4_NL,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_XS,
    MXFP4,
    TQ1_0,
    TQ2_0,
}

impl Format {
    /// The format whose panels hold its weights, and whose kernels compute with them.
    pub(super) fn of_panels(self) -> Format {
        match self {
            Format::TQ1_0 | Format::TQ2_0 => Format::Q3_K,
            other => other,
        }
    }

    /// Inputs in a block; 1 for floating-point values.
    pub(crate) fn block(self) -> usize {
        self.sizes().0
    }

    /// Bytes of one row's block in ggml's layout.
    pub(crate) fn source_bytes(self) -> usize {
        self.sizes().1
    }

    /// Bytes of quants of a panel's block.
    pub(super) fn quant_bytes(self) -> usize {
        self.sizes().2
    }

    /// The other bytes of a panel's block.
    pub(super) fn meta_bytes(self) -> usize {
        self.sizes().3
    }

    /// Inputs in a block, its bytes in ggml's layout, bytes of quants and of meta of a panel's block.
    const fn sizes(self) -> (usize, usize, usize, usize) {
        match self {
            Format::F32 => (1, 4, 64, 0),
            Format::F16 | Format::BF16 => (1, 2, 32, 0),
            Format::Q8_0 => (32, 34, 512, 32),
            Format::Q4_0 | Format::IQ4_NL => (32, 18, 256, 32),
            Format::MXFP4 => (32, 17, 256, 16),
            Format::Q4_1 => (32, 20, 256, 64),
            Format::Q5_0 => (32, 22, 320, 32),
            Format::Q5_1 => (32, 24, 320, 64),
            Format::Q2_K => (256, 84, 1024, 320),
            Format::Q3_K => (256, 110, 1536, 288),
            Format::Q4_K => (256, 144, 2048, 320),
            Format::Q5_K => (256, 176, 2560, 320),
            Format::Q6_K => (256, 210, 3072, 288),
            Format::IQ4_XS => (256, 136, 2048, 160),
            Format::TQ1_0 => (256, 54, 1536, 288),
            Format::TQ2_0 => (256, 66, 1536, 288),
        }
    }

    /// Bytes of a panel of `blocks` blocks, whole cache lines.
    pub(super) fn panel_bytes(self, blocks: usize) -> usize {
        (blocks * self.block_bytes()).next_multiple_of(64)
    }

    /// Bytes from a panel's block to the next.
    pub(super) fn block_bytes(self) -> usize {
        self.quant_bytes() + self.meta_bytes()
    }

    /// Whether `bytes` is long enough for the quants of `blocks` blocks of a panel, each in its place.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn holds(self, bytes: &[u8], blocks: usize) -> bool {
        blocks == 0 || bytes.len() >= (blocks - 1) * self.block_bytes() + self.quant_bytes()
    }

    /// Puts the block `source` of output `lane` into a panel's block.
    pub(super) fn pack(self, source: &[u8], lane: usize, quants: &mut [u8], meta: &mut [u8]) {
        // Copies the f16 at `from` to the row of halves at `to`.
        let mut half = |from: usize, to: usize| {
            meta[to + 2 * lane..][..2].copy_from_slice(&source[from..from + 2]);
        };
        match self {
            Format::F32 => quants[4 * lane..][..4].copy_from_slice(source),
            Format::F16 | Format::BF16 => quants[2 * lane..][..2].copy_from_slice(source),
            Format::Q8_0 => {
                half(0, 0);
                words(&source[2..], lane, quants, 0x80);
            }
            Format::Q4_0 | Format::IQ4_NL => {
                half(0, 0);
                words(&source[2..], lane, quants, 0);
            }
            Format::MXFP4 => {
                meta[lane] = source[0];
                words(&source[1..], lane, quants, 0);
            }
            Format::Q4_1 => {
                half(0, 0);
                half(2, 32);
                words(&source[4..], lane, quants, 0);
            }
            Format::Q5_0 => {
                half(0, 0);
                words(&source[6..], lane, quants, 0);
                fifth_bits(&source[2..6], &mut quants[256 + 4 * lane..]);
            }
            Format::Q5_1 => {
                half(0, 0);
                half(2, 32);
                words(&source[8..], lane, quants, 0);
                fifth_bits(&source[4..8], &mut quants[256 + 4 * lane..]);
            }
            Format::Q2_K => {
                half(80, 0);
                half(82, 32);
                words(&source[16..80], lane, quants, 0);
                for part in 0..16 {
                    // A scale and a minimum of 4 bits each.
                    meta[64 + part * PANEL + lane] = source[part];
                }
            }
            Format::Q3_K => {
                half(108, 0);
                words(&source[32..96], lane, quants, 0);
                words(&source[..32], lane, &mut quants[1024..], 0);
                for part in 0..16 {
                    let low = source[96 + part % 8] >> (part / 8 * 4) & 15;
                    let high = source[104 + part % 4] >> (part / 4 * 2) & 3;
                    meta[32 + part * PANEL + lane] = (low | high << 4).wrapping_sub(32);
                }
            }
            Format::TQ1_0 => {
                Format::Q3_K.pack(&as_q3_k(Ternary::FiveToAByte, source), lane, quants, meta);
            }
            Format::TQ2_0 => {
                Format::Q3_K.pack(&as_q3_k(Ternary::TwoBits, source), lane, quants, meta);
            }
            Format::Q4_K | Format::Q5_K => {
                half(0, 0);
                half(2, 32);
                for part in 0..8 {
                    let (scale, min) = scale_and_min(&source[4..16], part);
                    meta[64 + part * PANEL + lane] = scale;
                    meta[192 + part / 2 * 2 * PANEL + 2 * lane + part % 2] = min;
                }
                if self == Format::Q4_K {
                    words(&source[16..], lane, quants, 0);
                } else {
                    words(&source[48..], lane, quants, 0);
                    words(&source[16..48], lane, &mut quants[2048..], 0);
                }
            }
            Format::Q6_K => {
                half(208, 0);
                for half in 0..2 {
                    let quants = &mut quants[half * 1536..];
                    words(&source[half * 64..][..64], lane, quants, 0);
                    words(&source[128 + half * 32..][..32], lane, &mut quants[1024..], 0);
                }
                for part in 0..16 {
                    meta[32 + part * PANEL + lane] = source[192 + part];
                }
            }
            Format::IQ4_XS => {
                half(0, 0);
                words(&source[8..], lane, quants, 0);
                let high = u16::from_le_bytes([source[2], source[3]]);
                for part in 0..8 {
                    let low = source[4 + part / 2] >> (part % 2 * 4) & 15;
                    let high = (high >> (part * 2)) as u8 & 3;
                    meta[32 + part * PANEL + lane] = (low | high << 4).wrapping_sub(32);
                }
            }
        }
    }

    /// Fills a panel from up to 16 rows of `blocks` blocks in ggml's layout.
    pub(super) fn pack_panel(self, rows: &[u8], blocks: usize, panel: &mut [u8]) {
        let source_bytes = self.source_bytes();
        for (block, panel) in panel.chunks_exact_mut(self.block_bytes()).take(blocks).enumerate() {
            let (quants, meta) = panel.split_at_mut(self.quant_bytes());
            for (lane, row) in rows.chunks_exact(blocks * source_bytes).enumerate() {
                self.pack(&row[block * source_bytes..][..source_bytes], lane, quants, meta);
            }
        }
    }

    /// The integers of the quants of a panel's block, without offsets: 4 inputs of each output after the
    /// other. Not for floating-point formats.
    pub(super) fn unpack(self, quants: &[u8], out: &mut [i8]) {
        let source = quants.as_chunks::<64>().0;
        for (word, out) in out[..self.block() * PANEL].as_chunks_mut::<64>().0.iter_mut().enumerate() {
            let (part, in_part) = (word / 8, word % 8);
            match self {
                Format::F32 | Format::F16 | Format::BF16 => {
                    unreachable!("floating-point weights are no integers")
                }
                Format::Q8_0 => each(out, &source[word], |byte| (byte ^ 0x80) as i8),
                Format::Q4_0 => {
                    let shift = word / 4 * 4;
                    each(out, &source[word % 4], |byte| (byte >> shift & 15) as i8 - 8);
                }
                Format::Q4_1 => {
                    let shift = word / 4 * 4;
                    each(out, &source[word % 4], |byte| (byte >> shift & 15) as i8);
                }
                Format::Q5_0 | Format::Q5_1 => {
                    let (shift, offset) = (word / 4 * 4, if self == Format::Q5_0 { 16 } else { 0 });
                    both(out, &source[word % 4], &source[4], |low, high| {
                        (low >> shift & 15 | (high >> word & 1) << 4) as i8 - offset
                    });
                }
                Format::IQ4_NL => {
                    let shift = word / 4 * 4;
                    each(out, &source[word % 4], |byte| IQ4[usize::from(byte >> shift & 15)]);
                }
                Format::MXFP4 => {
                    let shift = word / 4 * 4;
                    each(out, &source[word % 4], |byte| E2M1[usize::from(byte >> shift & 15)]);
                }
                Format::IQ4_XS => {
                    let shift = in_part / 4 * 4;
                    let source = &source[part * 4 + in_part % 4];
                    each(out, source, |byte| IQ4[usize::from(byte >> shift & 15)]);
                }
                Format::Q2_K => {
                    let shift = part % 4 * 2;
                    each(out, &source[part / 4 * 8 + in_part], |byte| (byte >> shift & 3) as i8);
                }
                Format::Q3_K | Format::TQ1_0 | Format::TQ2_0 => {
                    let shift = part % 4 * 2;
                    both(out, &source[part / 4 * 8 + in_part], &source[16 + in_part], |low, high| {
                        (low >> shift & 3 | (high >> part & 1) << 2) as i8 - 4
                    });
                }
                Format::Q4_K => {
                    let shift = part % 2 * 4;
                    each(out, &source[part / 2 * 8 + in_part], |byte| (byte >> shift & 15) as i8);
                }
                Format::Q5_K => {
                    let shift = part % 2 * 4;
                    both(out, &source[part / 2 * 8 + in_part], &source[32 + in_part], |low, high| {
                        (low >> shift & 15 | (high >> part & 1) << 4) as i8
                    });
                }
                Format::Q6_K => {
                    let (half, quarter) = (part / 4 * 24, part % 4);
                    let (low, high) =
                        (&source[half + quarter % 2 * 8 + in_part], &source[half + 16 + in_part]);
                    both(out, low, high, |low, high| {
                        (low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4) as i8 - 32
                    });
                }
            }
        }
    }
}

#[inline(always)]
fn each(out: &mut [i8; 64], source: &[u8; 64], value: impl Fn(u8) -> i8) {
    for (out, byte) in out.iter_mut().zip(source) {
        *out = value(*byte);
    }
}

#[inline(always)]
fn both(out: &mut [i8; 64], low: &[u8; 64], high: &[u8; 64], value: impl Fn(u8, u8) -> i8) {
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = value(*low, *high);
    }
}

/// Copies four bytes at a time into a lane.
fn words(source: &[u8], lane: usize, quants: &mut [u8], flip: u8) {
    for (word, quants) in source.as_chunks::<4>().0.iter().zip(quants.as_chunks_mut::<64>().0) {
        quants[lane * 4..][..4].copy_from_slice(&word.map(|byte| byte ^ flip));
    }
}

/// The fifth bits of 32 quants in the order of their use: bit w of byte i is that of input 4 · w + i.
fn fifth_bits(source: &[u8], target: &mut [u8]) {
    for (i, target) in target[..4].iter_mut().enumerate() {
        *target = (0..8).map(|word| (source[word / 2] >> (word % 2 * 4 + i) & 1) << word).sum();
    }
}

/// The 6-bit scale and minimum of part `part` of a Q4_K or Q5_K block, from its 12 bytes of them.
fn scale_and_min(bytes: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let (low, high) = (bytes[part + 4], part - 4);
        (low & 15 | bytes[high] >> 6 << 4, low >> 4 | bytes[high + 4] >> 6 << 4)
    }
}
