//! GELU, exact and approximated, and the hyperbolic tangent.

use super::exp::exp;

multiversion! {
    /// `x = (x + bias) · Φ(x + bias)`, where Φ is the distribution function of a normal variable: GELU as in
    /// BERT, not its approximation by a hyperbolic tangent.
    pub(crate) fn gelu(x: &mut [f32], bias: &[f32]) = gelu_body
}

multiversion! {
    /// The same with GELU's approximation by a hyperbolic tangent.
    pub(crate) fn tanh_gelu(x: &mut [f32], bias: &[f32]) = tanh_gelu_body
}

multiversion! {
    /// `gate = gelu(gate) · up` with GELU's approximation by a hyperbolic tangent ([Hendrycks and Gimpel
    /// 2016](https://arxiv.org/abs/1606.08415)), as in the Gemma models.
    pub(crate) fn geglu(gate: &mut [f32], up: &[f32]) = geglu_body
}

multiversion! {
    /// `gate = gelu(gate) · up`, with GELU itself, as in ModernBERT.
    pub(crate) fn exact_geglu(gate: &mut [f32], up: &[f32]) = exact_geglu_body
}

multiversion! {
    /// `x = cap · tanh(x / cap)`.
    pub(crate) fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_body
}

multiversion! {
    /// `x = tanh(x)`.
    pub(crate) fn tanh(x: &mut [f32]) = tanh_body
}

/// 1 / √2.
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// √(2 / π).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

#[inline(always)]
fn gelu_body(x: &mut [f32], bias: &[f32]) {
    for (x, bias) in x.iter_mut().zip(bias) {
        *x = gelu_of(*x + bias);
    }
}

#[inline(always)]
fn exact_geglu_body(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = gelu_of(*gate) * up;
    }
}

#[inline(always)]
fn gelu_of(value: f32) -> f32 {
    // Half of the tail beyond |value|, so that nothing cancels on the negative side.
    let tail = 0.5 * erfc((value * FRAC_1_SQRT_2).abs());
    let inside = if value < 0.0 { tail } else { 1.0 - tail };
    value * inside
}

#[inline(always)]
fn tanh_gelu_body(x: &mut [f32], bias: &[f32]) {
    for (x, bias) in x.iter_mut().zip(bias) {
        *x = tanh_gelu_of(*x + bias);
    }
}

#[inline(always)]
fn geglu_body(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = tanh_gelu_of(*gate) * up;
    }
}

#[inline(always)]
fn tanh_gelu_of(x: f32) -> f32 {
    let inner = SQRT_2_OVER_PI * x * (x * x).mul_add(0.044_715, 1.0);
    0.5 * x * (1.0 + tanh_of(inner))
}

#[inline(always)]
fn soft_cap_body(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * tanh_of(*x / cap));
}

/// 1 - erf(x) for x >= 0, to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let t = 1.0 / x.mul_add(0.327_591_1, 1.0);
    let mut p = 1.061_405_4_f32;
    p = p.mul_add(t, -1.453_152_1);
    p = p.mul_add(t, 1.421_413_8);
    p = p.mul_add(t, -0.284_496_72);
    p = p.mul_add(t, 0.254_829_6);
    p * t * exp(-(x * x))
}

#[inline(always)]
fn tanh_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = tanh_of(*x));
}

/// The hyperbolic tangent of one value.
#[inline(always)]
pub(super) fn tanh_of(x: f32) -> f32 {
    // The exponential is that of the absolute value, so that nothing overflows; the sign comes back at the
    // end.
    let power = exp(-2.0 * x.abs());
    ((1.0 - power) / (1.0 + power)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::{gelu, gelu_body, tanh, tanh_body, tanh_gelu, tanh_gelu_body};
    use crate::kernels::instructions::Instructions;

    fn values() -> Vec<f32> {
        let mut values: Vec<f32> = (-12_000..12_000).map(|i| i as f32 / 1000.0).collect();
        values.extend([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e30, -1e30]);
        values
    }

    #[test]
    fn gelu_agrees_with_the_f64_function() {
        let mut got = values();
        let bias = vec![0.25; got.len()];
        gelu(Instructions::Avx2, &mut got, &bias);
        for (x, got) in values().into_iter().zip(got) {
            let x = f64::from(x + 0.25);
            let expected = x * 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
            let error = (f64::from(got) - expected).abs();
            assert!(error <= 3e-7 * x.abs().max(1.0), "gelu({x}) is off by {error}");
        }
    }

    #[test]
    fn the_approximation_of_gelu_agrees_with_that_in_f64() {
        let mut got = values();
        let bias = vec![0.25; got.len()];
        tanh_gelu(Instructions::Avx2, &mut got, &bias);
        let root = (2.0 / std::f64::consts::PI).sqrt();
        for (x, got) in values().into_iter().zip(got) {
            let x = f64::from(x + 0.25);
            let expected = 0.5 * x * (1.0 + libm::tanh(root * x * (0.044_715 * x).mul_add(x, 1.0)));
            let error = (f64::from(got) - expected).abs();
            assert!(error <= 3e-7 * x.abs().max(1.0), "gelu({x}) is off by {error}");
        }
    }

    #[test]
    fn tanh_agrees_with_the_f64_function() {
        let mut got = values();
        tanh(Instructions::Avx2, &mut got);
        for (x, got) in values().into_iter().zip(got) {
            let error = (f64::from(got) - libm::tanh(f64::from(x))).abs();
            assert!(error < 2e-7, "tanh({x}) is off by {error}");
        }
    }

    #[test]
    fn the_wide_version_gives_the_bytes_of_the_portable_one() {
        let bias: Vec<f32> = values().iter().rev().map(|x| x * 0.1).collect();
        let (mut wide, mut portable) = (values(), values());
        gelu(Instructions::Avx2, &mut wide, &bias);
        gelu_body(&mut portable, &bias);
        assert_eq!(wide, portable);
        let (mut wide, mut portable) = (values(), values());
        tanh_gelu(Instructions::Avx2, &mut wide, &bias);
        tanh_gelu_body(&mut portable, &bias);
        assert_eq!(wide, portable);
        let (mut wide, mut portable) = (values(), values());
        tanh(Instructions::Avx2, &mut wide);
        tanh_body(&mut portable);
        assert_eq!(wide, portable);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [bad];
            gelu(Instructions::Avx2, &mut x, &[0.0]);
            assert!(!x[0].is_finite());
            x = [bad];
            tanh_gelu(Instructions::Avx2, &mut x, &[0.0]);
            assert!(!x[0].is_finite());
        }
        let mut x = [f32::NAN];
        tanh(Instructions::Avx2, &mut x);
        assert!(x[0].is_nan());
    }
}
