//! Normalisation of rows: by their root mean square, or by mean and deviation.

use super::instructions::Instructions;

multiversion! {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight`; false if the row holds a value that is not finite (or
    /// so large that its square is not).
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> bool = rms_norm_body
}

multiversion! {
    /// [`rms_norm`] of each `weight.len()` values of `x`, in place.
    pub(crate) fn rms_norm_heads(x: &mut [f32], weight: &[f32], epsilon: f32) -> bool = rms_norm_heads_body
}

multiversion! {
    /// The sum of squares: element i in lane i mod 16, the lanes folded 8-4-2-1.
    pub(crate) fn sum_of_squares(x: &[f32]) -> f32 = sum_of_squares_body
}

multiversion! {
    /// The dot product of two vectors of one length, in the lanes of [`sum_of_squares`].
    pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 = dot_body
}

#[inline(always)]
pub(super) fn dot_body(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((xs, x), (ys, y)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in xs.iter().zip(ys) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane = x.mul_add(*y, *lane);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
        *lane = x.mul_add(*y, *lane);
    }
    fold(&mut lanes)
}

multiversion! {
    /// `x = (x - mean(x)) / sqrt(variance(x) + epsilon) · weight + bias`; false if the row holds a value that
    /// is not finite (or so large that its square is not). Sums are those of [`sum_of_squares`].
    pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) -> bool = layer_norm_body
}

/// Scales to length 1; a zero vector stays zero.
pub(crate) fn normalise(instructions: Instructions, mut vector: Vec<f32>) -> Vec<f32> {
    let length = sum_of_squares(instructions, &vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    vector
}

#[inline(always)]
fn layer_norm_body(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) -> bool {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, value)| *lane += value);
    let mean = fold(&mut lanes) / x.len() as f32;
    x.iter_mut().for_each(|x| *x -= mean);
    let sum = sum_of_squares_body(x);
    let scale = 1.0 / (sum / x.len() as f32 + epsilon).sqrt();
    for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x * scale).mul_add(*weight, *bias);
    }
    sum.is_finite()
}

#[inline(always)]
pub(super) fn sum_of_squares_body(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = value.mul_add(*value, *lane);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = value.mul_add(*value, *lane);
    }
    fold(&mut lanes)
}

/// Folds 16 lanes into their sum, upper half onto lower half.
#[inline(always)]
pub(crate) fn fold(lanes: &mut [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> bool {
    let sum = sum_of_squares_body(x);
    let scale = 1.0 / (sum / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
    sum.is_finite()
}

#[inline(always)]
fn rms_norm_heads_body(x: &mut [f32], weight: &[f32], epsilon: f32) -> bool {
    let mut finite = true;
    for head in x.chunks_exact_mut(weight.len()) {
        let sum = sum_of_squares_body(head);
        let scale = 1.0 / (sum / head.len() as f32 + epsilon).sqrt();
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
        finite &= sum.is_finite();
    }
    finite
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wide_version_gives_the_bytes_of_the_portable_one() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 7919) % 2003) as f32 / 700.0 - 1.3).collect();
        let weight: Vec<f32> = (0..77).map(|i| 1.0 + (i % 5) as f32 / 7.0).collect();
        let (mut wide, mut portable) = (vec![0.0; 77], vec![0.0; 77]);
        assert!(rms_norm(Instructions::Avx2, &x, &weight, 1e-6, &mut wide));
        assert!(rms_norm_body(&x, &weight, 1e-6, &mut portable));
        assert_eq!(wide, portable);
        assert_eq!(dot(Instructions::Avx2, &x, &weight), dot_body(&x, &weight));
        assert_eq!(dot(Instructions::Avx2, &x, &x), sum_of_squares(Instructions::Avx2, &x));
        let (mut wide, mut portable) = (x.clone(), x);
        assert!(rms_norm_heads(Instructions::Avx2, &mut wide, &weight[..11], 1e-6));
        assert!(rms_norm_heads_body(&mut portable, &weight[..11], 1e-6));
        assert_eq!(wide, portable);
    }

    #[test]
    fn layer_norm_agrees_with_f64_and_is_the_same_everywhere() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 7919) % 2003) as f32 / 700.0 + 5.0).collect();
        let weight: Vec<f32> = (0..77).map(|i| 1.0 + (i % 5) as f32 / 7.0).collect();
        let bias: Vec<f32> = (0..77).map(|i| (i % 3) as f32 - 1.0).collect();
        let (mut wide, mut portable) = (x.clone(), x.clone());
        assert!(layer_norm(Instructions::Avx2, &mut wide, &weight, &bias, 1e-12));
        assert!(layer_norm_body(&mut portable, &weight, &bias, 1e-12));
        assert_eq!(wide, portable);
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 77.0;
        let variance = x.iter().map(|x| (f64::from(*x) - mean) * (f64::from(*x) - mean)).sum::<f64>() / 77.0;
        for i in 0..77 {
            let expected = (f64::from(x[i]) - mean) / libm::sqrt(variance + 1e-12) * f64::from(weight[i])
                + f64::from(bias[i]);
            assert!((f64::from(wide[i]) - expected).abs() < 1e-5, "{i}: {} for {expected}", wide[i]);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_noticed() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut out = [0.0; 3];
            assert!(!rms_norm(Instructions::Avx2, &[1.0, bad, 2.0], &[1.0; 3], 1e-6, &mut out));
            assert!(!layer_norm(Instructions::Avx2, &mut [1.0, bad, 2.0], &[1.0; 3], &[0.0; 3], 1e-6));
        }
    }
}
