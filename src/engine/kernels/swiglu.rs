//! Gates of feed-forward, sums and multiples of rows.

use super::exp::exp;

multiversion! {
    /// `gate = silu(gate) · up`, where silu(x) = x / (1 + e^-x).
    pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) = swiglu_body
}

multiversion! {
    /// `x = x · silu(gate)`.
    pub(crate) fn silu_times(x: &mut [f32], gate: &[f32]) = silu_times_body
}

multiversion! {
    /// `gate = gate · sigmoid(1.702 · gate) · (up + 1)` of a gate of at most 7 and an up within ±7, after
    /// their biases are added: the gate of gpt-oss, whose constants are in no file.
    pub(crate) fn clamped_swiglu(gate: &mut [f32], up: &[f32], gate_bias: &[f32], up_bias: &[f32]) = clamped_swiglu_body
}

multiversion! {
    /// `x += y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body
}

multiversion! {
    /// `x += scale · y`.
    pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], scale: f32) = add_scaled_body
}

multiversion! {
    /// `x = scale · x`.
    pub(crate) fn scale(x: &mut [f32], scale: f32) = scale_body
}

#[inline(always)]
fn swiglu_body(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        *gate = x / (1.0 + exp(-x)) * up;
    }
}

/// A bound of the gate and of up, and the slope of the sigmoid.
const LIMIT: f32 = 7.0;
const SLOPE: f32 = 1.702;

#[inline(always)]
#[allow(clippy::manual_clamp, reason = "comparisons, so that a NaN stays one on every instruction set")]
fn clamped_swiglu_body(gate: &mut [f32], up: &[f32], gate_bias: &[f32], up_bias: &[f32]) {
    for (((gate, up), gate_bias), up_bias) in gate.iter_mut().zip(up).zip(gate_bias).zip(up_bias) {
        let (x, y) = (*gate + gate_bias, up + up_bias);
        let x = if x > LIMIT { LIMIT } else { x };
        let y = if y > LIMIT { LIMIT } else { y };
        let y = if y < -LIMIT { -LIMIT } else { y };
        *gate = x / (1.0 + exp(-SLOPE * x)) * (y + 1.0);
    }
}

#[inline(always)]
fn silu_times_body(x: &mut [f32], gate: &[f32]) {
    for (x, gate) in x.iter_mut().zip(gate) {
        *x *= gate / (1.0 + exp(-gate));
    }
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn add_scaled_body(x: &mut [f32], y: &[f32], scale: f32) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = scale.mul_add(*y, *x);
    }
}

#[inline(always)]
fn scale_body(x: &mut [f32], scale: f32) {
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    #[test]
    fn the_wide_version_gives_the_bytes_of_the_portable_one() {
        let up: Vec<f32> = (0..101).map(|i| ((i * 7919) % 2003) as f32 / 70.0 - 13.0).collect();
        let mut wide: Vec<f32> = up.iter().rev().map(|x| x * 9.0).collect();
        let mut portable = wide.clone();
        swiglu(Instructions::Avx2, &mut wide, &up);
        swiglu_body(&mut portable, &up);
        assert_eq!(wide, portable);
        assert_eq!(wide.iter().filter(|x| !x.is_finite()).count(), 0);
    }

    #[test]
    fn a_clamped_gate_is_bounded_and_keeps_what_is_no_number() {
        let up: Vec<f32> = (0..101).map(|i| ((i * 7919) % 2003) as f32 / 70.0 - 13.0).collect();
        let (bias, zeros) = (vec![0.25; 101], vec![0.0; 101]);
        let mut wide: Vec<f32> = up.iter().rev().map(|x| x * 2.0).collect();
        let (gates, mut portable) = (wide.clone(), wide.clone());
        clamped_swiglu(Instructions::Avx2, &mut wide, &up, &bias, &zeros);
        clamped_swiglu_body(&mut portable, &up, &bias, &zeros);
        assert_eq!(wide, portable);
        for ((got, gate), up) in wide.iter().zip(&gates).zip(&up) {
            let (x, y) = (f64::from((gate + 0.25).min(7.0)), f64::from(up.clamp(-7.0, 7.0)));
            let expected = x / (1.0 + libm::exp(-1.702 * x)) * (y + 1.0);
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{gate} {up}: {got} instead of {expected}");
        }
        let mut gate = [f32::NAN, 1.0, f32::INFINITY];
        clamped_swiglu(Instructions::Avx2, &mut gate, &[1.0, f32::NAN, 8.0], &[0.0; 3], &[0.0; 3]);
        assert!(gate[0].is_nan() && gate[1].is_nan() && (gate[2] - 56.0).abs() < 0.01, "{gate:?}");
    }

    #[test]
    fn silu_of_great_numbers_is_0_or_themselves() {
        let mut gate = [-1e30, -100.0, 0.0, 100.0, 1e30];
        swiglu(Instructions::Avx2, &mut gate, &[1.0; 5]);
        assert_eq!(gate, [0.0, 0.0, 0.0, 100.0, 1e30]);
    }
}
