//! TQ1_0 and TQ2_0: weights that are -1, 0 or 1 times the scale of their block of 256 ([Ma et al.
//! 2024](https://arxiv.org/abs/2402.17764)), in ggml's layouts.
//!
//! They are repacked as Q3_K, whose three bits hold them and whose sub-scales are then 1, so that every
//! kernel of Q3_K computes them, with the sums of ggml's own products. Both types can encode other values
//! than these three (TQ2_0 a fourth one), and give the same as ggml.

/// Powers of three, by which the digits of a byte of TQ1_0 are moved to its top.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
/// Bytes of a block of Q3_K: high bits, low bits, sub-scales, scale.
const Q3_K_BYTES: usize = 110;

/// The two types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ternary {
    /// TQ1_0: five digits of three to a byte.
    FiveToAByte,
    /// TQ2_0: two bits each.
    TwoBits,
}

/// The block of Q3_K that has the weights of a block.
pub(super) fn as_q3_k(kind: Ternary, source: &[u8]) -> [u8; Q3_K_BYTES] {
    let mut block = [0; Q3_K_BYTES];
    let (high, rest) = block.split_at_mut(32);
    let (low, rest) = rest.split_at_mut(64);
    let (scales, d) = rest.split_at_mut(12);
    for k in 0..256 {
        // Weights are stored plus 4, and their digits plus 1.
        let value = digit(kind, source, k) + 3;
        low[k / 128 * 32 + k % 32] |= (value & 3) << (k % 128 / 32 * 2);
        high[k % 32] |= (value >> 2) << (k / 32);
    }
    // Six bits each, stored plus 32: the lower four of all first, then the upper two.
    scales[..8].fill(0x11);
    scales[8..].fill(0xaa);
    d.copy_from_slice(&source[source.len() - 2..]);
    block
}

/// The stored digit of weight `k` of a block: its value plus 1.
fn digit(kind: Ternary, source: &[u8], k: usize) -> u8 {
    if kind == Ternary::TwoBits {
        return source[k / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
    }
    // Five digits to a byte, then four.
    let (byte, power) = match k {
        0..160 => (k % 32, k / 32),
        160..240 => (32 + k % 16, (k - 160) / 16),
        _ => (48 + k % 4, (k - 240) / 4),
    };
    let digits = source[byte].wrapping_mul(POWERS[power]);
    ((u16::from(digits) * 3) >> 8) as u8
}
