//! The denominator of a softmax over the logits of all tokens.

use super::exp::exp;

/// Values that are added at once.
const LANES: usize = 32;

multiversion! {
    /// The sum of e^(value - `highest`) over all values, in double precision. `highest` is the highest of
    /// them.
    pub(crate) fn sum_of_exps(values: &[f32], highest: f32) -> f64 = sum_of_exps_body
}

#[inline(always)]
fn sum_of_exps_body(values: &[f32], highest: f32) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    // There are as many sums as lanes, which are added in one order whatever the instructions are.
    let mut sums = [0.0_f64; LANES];
    for chunk in chunks {
        let mut weights = [0.0; LANES];
        for (weight, value) in weights.iter_mut().zip(chunk) {
            *weight = exp(*value - highest);
        }
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += f64::from(weight);
        }
    }
    let sum = rest.iter().fold(0.0, |sum, value| sum + f64::from(exp(*value - highest)));
    sums.iter().fold(sum, |all, sum| all + sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    #[test]
    fn the_sum_is_that_of_doubles_and_the_same_with_all_instructions() {
        for length in [1, 31, 32, 33, 1000] {
            let values: Vec<f32> = (0..length).map(|i| (i * 7919 % 101) as f32 / 7.0 - 9.0).collect();
            let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact: f64 = values.iter().map(|value| libm::exp(f64::from(value - highest))).sum();
            let sum = sum_of_exps(Instructions::best(), &values, highest);
            assert!((sum - exact).abs() < 1e-6 * exact, "{sum} is not {exact}");
            assert_eq!(sum.to_bits(), sum_of_exps_body(&values, highest).to_bits());
        }
    }
}
