//! Panels of 16 outputs: the one layout of repacked weights, for all instruction sets.
//!
//! Blocks of 16 rows lie interleaved by four bytes, so that a vector holds four inputs of each output and lanes
//! are outputs. A panel is the quants of all its blocks, then what else its blocks have ("meta"): scales, and
//! minima. Nothing is rounded or computed but Q8_0's quants, which are stored plus 128.

/// Outputs in a panel.
pub(crate) const PANEL: usize = 16;

/// A block format that has kernels of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub(crate) enum Format {
    Q8_0,
    Q4_0,
    Q4_K,
    Q6_K,
}

impl Format {
    /// Inputs in a block.
    pub(crate) fn block(self) -> usize {
        match self {
            Format::Q8_0 | Format::Q4_0 => 32,
            Format::Q4_K | Format::Q6_K => 256,
        }
    }

    /// Bytes of one row's block in ggml's layout.
    pub(super) fn source_bytes(self) -> usize {
        match self {
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_K => 144,
            Format::Q6_K => 210,
        }
    }

    /// Bytes of quants of a panel's block.
    pub(super) fn quant_bytes(self) -> usize {
        match self {
            Format::Q8_0 => 512,
            Format::Q4_0 => 256,
            Format::Q4_K => 2048,
            Format::Q6_K => 3072,
        }
    }

    /// The other bytes of a panel's block.
    pub(super) fn meta_bytes(self) -> usize {
        match self {
            Format::Q8_0 | Format::Q4_0 => 32,
            Format::Q4_K => 320,
            Format::Q6_K => 288,
        }
    }

    /// Bytes of a panel of `blocks` blocks, whole cache lines.
    pub(super) fn panel_bytes(self, blocks: usize) -> usize {
        (blocks * (self.quant_bytes() + self.meta_bytes())).next_multiple_of(64)
    }

    /// Puts the block `source` of output `lane` into a panel's block.
    pub(super) fn pack(self, source: &[u8], lane: usize, quants: &mut [u8], meta: &mut [u8]) {
        match self {
            Format::Q8_0 => {
                words(&source[2..], lane, quants, 0x80);
                meta[2 * lane..][..2].copy_from_slice(&source[..2]);
            }
            Format::Q4_0 => {
                words(&source[2..], lane, quants, 0);
                meta[2 * lane..][..2].copy_from_slice(&source[..2]);
            }
            Format::Q4_K => {
                words(&source[16..], lane, quants, 0);
                meta[2 * lane..][..2].copy_from_slice(&source[..2]);
                meta[32 + 2 * lane..][..2].copy_from_slice(&source[2..4]);
                for part in 0..8 {
                    let (scale, min) = scale_and_min(&source[4..16], part);
                    meta[64 + part * PANEL + lane] = scale;
                    meta[192 + part / 2 * 2 * PANEL + 2 * lane + part % 2] = min;
                }
            }
            Format::Q6_K => {
                for half in 0..2 {
                    let quants = &mut quants[half * 1536..];
                    words(&source[half * 64..][..64], lane, quants, 0);
                    words(&source[128 + half * 32..][..32], lane, &mut quants[1024..], 0);
                }
                meta[2 * lane..][..2].copy_from_slice(&source[208..210]);
                for part in 0..16 {
                    meta[32 + part * PANEL + lane] = source[192 + part];
                }
            }
        }
    }

    /// The integer that input `k` of a panel's block has for output `lane`, with the offset taken off.
    pub(super) fn weight(self, quants: &[u8], k: usize, lane: usize) -> i32 {
        let byte = |word: usize| i32::from(quants[word * 64 + lane * 4 + k % 4]);
        match self {
            Format::Q8_0 => byte(k / 4) - 128,
            Format::Q4_0 => (byte(k % 16 / 4) >> (k / 16 * 4) & 15) - 8,
            Format::Q4_K => byte(k / 64 * 8 + k % 32 / 4) >> (k / 32 % 2 * 4) & 15,
            Format::Q6_K => {
                let (half, quarter, word) = (k / 128 * 24, k / 32 % 4, k % 32 / 4);
                let low = byte(half + quarter % 2 * 8 + word) >> (quarter / 2 * 4) & 15;
                let high = byte(half + 16 + word) >> (quarter * 2) & 3;
                (high << 4 | low) - 32
            }
        }
    }
}

/// Copies four bytes at a time into a lane.
fn words(source: &[u8], lane: usize, quants: &mut [u8], flip: u8) {
    for (word, quants) in source.as_chunks::<4>().0.iter().zip(quants.as_chunks_mut::<64>().0) {
        quants[lane * 4..][..4].copy_from_slice(&word.map(|byte| byte ^ flip));
    }
}

/// The 6-bit scale and minimum of part `part` of a Q4_K block, from its 12 bytes of them.
fn scale_and_min(bytes: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let (low, high) = (bytes[part + 4], part - 4);
        (low & 15 | bytes[high] >> 6 << 4, low >> 4 | bytes[high + 4] >> 6 << 4)
    }
}
