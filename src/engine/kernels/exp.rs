//! The exponential function of the engine.
//!
//! The system's `expf` differs between C libraries, but bytes must not.

/// log2(e).
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Adding and subtracting 1.5 · 2^23 rounds to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts: the high one has few enough bits that n · LN_2_HIGH is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// e^x to about one unit in the last place; 0 below -87.3, infinite above 88, NaN for NaN.
///
/// Polynomial of Cephes' expf, after reduction to |r| <= ln(2) / 2.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.3, 88.02);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let value = p.mul_add(r * r, r) + 1.0;
    // 2^n from the integer that the rounding left in the low bits of `shifted`.
    let scale = f32::from_bits(
        (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32).wrapping_add(127).wrapping_shl(23) as u32,
    );
    let result = value * scale;
    let result = if x < -87.3 { 0.0 } else { result };
    if x > 88.02 { f32::INFINITY } else { result }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_the_f64_function_to_two_units() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let reference = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - reference).abs() / reference;
            assert!(error < 2.4e-7, "exp({x}) is off by {error}");
            x += 0.003_7;
        }
    }

    #[test]
    fn edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
