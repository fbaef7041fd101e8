//! Blocks of weights that are -1, 0 or 1 times a scale.

use crate::Kind;

/// The bytes before the scale of a block of 256 weights.
pub(crate) fn digits(kind: Kind, block: &[f32], scale: f32) -> Vec<u8> {
    let digit = |at: usize| {
        let value = if scale > 0.0 { block[at] / scale } else { 0.0 };
        (value.round().clamp(-1.0, 1.0) + 1.0) as u32
    };
    if kind == Kind::TQ2_0 {
        let byte = |at: usize| {
            let first = at / 32 * 128 + at % 32;
            (0..4).map(|part| digit(first + part * 32) << (2 * part)).sum::<u32>() as u8
        };
        return (0..64).map(byte).collect();
    }
    // Digits of one byte stand so far apart. The number that they are is scaled to the whole range of a byte,
    // and rounded up.
    let byte = |first: usize, apart: usize, count: usize| {
        let number = (0..5)
            .fold(0, |number, part| number * 3 + if part < count { digit(first + part * apart) } else { 0 });
        (number * 256u32).div_ceil(243) as u8
    };
    let wide = (0..32).map(|at| byte(at, 32, 5));
    let narrow = (0..16).map(|at| byte(160 + at, 16, 5));
    let last = (0..4).map(|at| byte(240 + at, 4, 4));
    wide.chain(narrow).chain(last).collect()
}
