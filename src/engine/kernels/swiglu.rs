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
    use crate::kernels::matrix::Instructions;

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
    fn silu_of_great_numbers_is_0_or_themselves() {
        let mut gate = [-1e30, -100.0, 0.0, 100.0, 1e30];
        swiglu(Instructions::Avx2, &mut gate, &[1.0; 5]);
        assert_eq!(gate, [0.0, 0.0, 0.0, 100.0, 1e30]);
    }
}
