//! Rows of which only the largest values are kept.

use super::norm::fold;

multiversion! {
    /// `x = max(x - cutoff, 0)`, where the cutoff is the row's mean plus `deviations` of its standard
    /// deviations: for a normal distribution, that keeps a fixed share of the values without sorting them.
    pub(crate) fn keep_largest(x: &mut [f32], deviations: f32) = keep_largest_body
}

#[inline(always)]
fn keep_largest_body(x: &mut [f32], deviations: f32) {
    let mean = sum(x, |value| value) / x.len() as f32;
    // The variance is that of a sample; in rows as long as those of models the difference does not matter.
    let variance = sum(x, |value| (value - mean) * (value - mean)) / (x.len() as f32 - 1.0);
    let cutoff = deviations.mul_add(variance.sqrt(), mean);
    for x in x {
        let above = *x - cutoff;
        // A comparison, so that NaN stays NaN.
        *x = if above <= 0.0 { 0.0 } else { above };
    }
}

/// The sum of `of` over the values, in the lanes of [`sum_of_squares`](super::norm::sum_of_squares).
#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += of(*value));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, value)| *lane += of(*value));
    fold(&mut lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    #[test]
    fn what_is_kept_agrees_with_f64_and_is_the_same_everywhere() {
        let x: Vec<f32> = (0..301).map(|i| ((i * 7919) % 2003) as f32 / 700.0 - 1.3).collect();
        let (mut wide, mut portable) = (x.clone(), x.clone());
        keep_largest(Instructions::Avx2, &mut wide, 1.25);
        keep_largest_body(&mut portable, 1.25);
        assert_eq!(wide, portable);
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 301.0;
        let variance = x.iter().map(|x| (f64::from(*x) - mean) * (f64::from(*x) - mean)).sum::<f64>() / 300.0;
        for (x, got) in x.iter().zip(&wide) {
            let expected = (f64::from(*x) - mean - 1.25 * libm::sqrt(variance)).max(0.0);
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} instead of {expected}");
        }
        let kept = wide.iter().filter(|x| **x > 0.0).count();
        assert!((20..60).contains(&kept), "{kept}");
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0, bad, 2.0];
            keep_largest(Instructions::Avx2, &mut x, 1.0);
            assert!(x.iter().any(|x| x.is_nan()));
        }
    }
}
