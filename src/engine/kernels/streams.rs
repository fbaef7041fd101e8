//! The residual streams of a row where there are several, of which each block computes one and predicts and
//! corrects the others ([alternating updates, Baykal et al. 2023](https://arxiv.org/abs/2301.13310)).
//!
//! The streams of a row lie one after the other; the first of them is the one that blocks compute.

use super::gelu::tanh_of;
use super::norm::{dot_body, sum_of_squares_body};

/// Streams of a row.
pub(crate) const STREAMS: usize = 4;

multiversion! {
    /// The outputs of the router for `x`: the hyperbolic tangents of its products with the rows of `router`
    /// `[STREAMS, x.len()]`, divided by the root mean square of `x` and by its length. The weights of the
    /// norm of `x` are among those of the router.
    pub(crate) fn route(x: &[f32], router: &[f32], epsilon: f32) -> [f32; STREAMS] = route_body
}

multiversion! {
    /// `streams[j] += Σ coefficient[j][i] · streams[i]`, where the coefficients are the products of `matrix`
    /// `[STREAMS², STREAMS]` with the router's outputs.
    pub(crate) fn predict(streams: &mut [f32], matrix: &[f32], routed: &[f32; STREAMS]) = predict_body
}

multiversion! {
    /// `streams[j] += (1 + coefficient[j]) · (x - streams[0])`, where the coefficients are the products of
    /// `matrix` `[STREAMS, STREAMS]` with the router's outputs.
    pub(crate) fn correct(streams: &mut [f32], x: &[f32], matrix: &[f32], routed: &[f32; STREAMS]) = correct_body
}

#[inline(always)]
fn route_body(x: &[f32], router: &[f32], epsilon: f32) -> [f32; STREAMS] {
    let width = x.len() as f32;
    let scale = 1.0 / (sum_of_squares_body(x) / width + epsilon).sqrt();
    let mut routed = [0.0; STREAMS];
    for (routed, router) in routed.iter_mut().zip(router.chunks_exact(x.len())) {
        *routed = tanh_of(dot_body(x, router) * scale / width);
    }
    routed
}

#[inline(always)]
fn predict_body(streams: &mut [f32], matrix: &[f32], routed: &[f32; STREAMS]) {
    let mut coefficients = [[0.0; STREAMS]; STREAMS];
    for (row, matrix) in coefficients.iter_mut().zip(matrix.chunks_exact(STREAMS * STREAMS)) {
        *row = products(matrix, routed);
    }
    let [first, second, third, fourth] = parts(streams);
    for (((a, b), c), d) in first.iter_mut().zip(second).zip(third).zip(fourth) {
        let before = [*a, *b, *c, *d];
        let mut after = before;
        for (after, row) in after.iter_mut().zip(&coefficients) {
            for (coefficient, before) in row.iter().zip(&before) {
                *after = coefficient.mul_add(*before, *after);
            }
        }
        [*a, *b, *c, *d] = after;
    }
}

#[inline(always)]
fn correct_body(streams: &mut [f32], x: &[f32], matrix: &[f32], routed: &[f32; STREAMS]) {
    let coefficients = products(matrix, routed).map(|coefficient| 1.0 + coefficient);
    let [first, second, third, fourth] = parts(streams);
    for ((((a, b), c), d), x) in first.iter_mut().zip(second).zip(third).zip(fourth).zip(x) {
        let innovation = x - *a;
        for (stream, coefficient) in [a, b, c, d].into_iter().zip(&coefficients) {
            *stream = coefficient.mul_add(innovation, *stream);
        }
    }
}

/// The products of some rows of STREAMS values with the router's outputs.
#[inline(always)]
fn products(matrix: &[f32], routed: &[f32; STREAMS]) -> [f32; STREAMS] {
    let mut sums = [0.0f32; STREAMS];
    for (sum, row) in sums.iter_mut().zip(matrix.chunks_exact(STREAMS)) {
        for (weight, routed) in row.iter().zip(routed) {
            *sum = weight.mul_add(*routed, *sum);
        }
    }
    sums
}

/// Each stream of a row.
#[inline(always)]
fn parts(streams: &mut [f32]) -> [&mut [f32]; STREAMS] {
    let width = streams.len() / STREAMS;
    let (first, rest) = streams.split_at_mut(width);
    let (second, rest) = rest.split_at_mut(width);
    let (third, fourth) = rest.split_at_mut(width);
    [first, second, third, fourth]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    const WIDTH: usize = 37;

    fn values(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 2003) as f32 / 700.0 - 1.3).collect()
    }

    #[test]
    fn streams_agree_with_f64_and_are_the_same_everywhere() {
        let (before, x) = (values(STREAMS * WIDTH, 7919), values(WIDTH, 613));
        let router: Vec<f32> = values(STREAMS * WIDTH, 331).iter().map(|x| x * 9.0).collect();
        let (large, small) = (values(64, 1201), values(16, 97));
        let wide = Instructions::Avx2;
        let routed = route(wide, &x, &router, 1e-6);
        assert_eq!(routed, route_body(&x, &router, 1e-6));
        let size = libm::sqrt(x.iter().map(|x| f64::from(x * x)).sum::<f64>() / WIDTH as f64 + 1e-6);
        for (routed, row) in routed.iter().zip(router.chunks_exact(WIDTH)) {
            let dot: f64 = x.iter().zip(row).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            let expected = libm::tanh(dot / size / WIDTH as f64);
            assert!((f64::from(*routed) - expected).abs() < 1e-5, "{routed} instead of {expected}");
        }

        let product = |row: usize, matrix: &[f32]| -> f64 {
            (0..STREAMS).map(|i| f64::from(matrix[row * STREAMS + i]) * f64::from(routed[i])).sum()
        };
        let at = |stream: usize, index: usize| f64::from(before[stream * WIDTH + index]);
        let (mut streams, mut portable) = (before.clone(), before.clone());
        predict(wide, &mut streams, &large, &routed);
        predict_body(&mut portable, &large, &routed);
        assert_eq!(streams, portable);
        for stream in 0..STREAMS {
            for index in 0..WIDTH {
                let others = (0..STREAMS).map(|i| product(stream * STREAMS + i, &large) * at(i, index));
                let expected = at(stream, index) + others.sum::<f64>();
                let got = f64::from(streams[stream * WIDTH + index]);
                assert!((got - expected).abs() < 1e-5, "{stream} {index}: {got} instead of {expected}");
            }
        }

        let (mut streams, mut portable) = (before.clone(), before.clone());
        correct(wide, &mut streams, &x, &small, &routed);
        correct_body(&mut portable, &x, &small, &routed);
        assert_eq!(streams, portable);
        for stream in 0..STREAMS {
            for index in 0..WIDTH {
                let innovation = f64::from(x[index]) - at(0, index);
                let expected = at(stream, index) + (1.0 + product(stream, &small)) * innovation;
                let got = f64::from(streams[stream * WIDTH + index]);
                assert!((got - expected).abs() < 1e-5, "{stream} {index}: {got} instead of {expected}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut x = values(WIDTH, 613);
        x[3] = f32::NAN;
        assert!(route_body(&x, &values(STREAMS * WIDTH, 331), 1e-6).iter().all(|routed| routed.is_nan()));
    }
}
