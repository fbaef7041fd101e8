//! The gate of the feed-forward block.

use super::exp::exp;

multiversion! {
    /// `gate = silu(gate) · up`, where silu(x) = x / (1 + e^-x).
    pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) = swiglu_body
}

multiversion! {
    /// `x += y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body
}

#[inline(always)]
fn swiglu_body(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        *gate = x / (1.0 + exp(-x)) * up;
    }
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
