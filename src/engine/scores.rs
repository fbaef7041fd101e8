//! Shares and cosines, computed from the numbers of models: the same bytes on every machine.

/// The shares of things whose logarithms these are, up to a constant; they add up to 1. Equal ones of no
/// numbers at all.
pub fn softmax(logarithms: &[f64]) -> Vec<f64> {
    let highest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !highest.is_finite() {
        return vec![1.0 / logarithms.len() as f64; logarithms.len()];
    }
    let mut shares: Vec<f64> = logarithms.iter().map(|value| libm::exp(value - highest)).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

/// The cosine of the angle between two vectors of one length; 0 where one of them has no direction.
pub fn cosine(first: &[f32], second: &[f32]) -> f64 {
    Direction::of(first).cosine(&Direction::of(second))
}

/// A vector with its length, for one that is compared with many.
#[derive(Debug, Clone, Copy)]
pub struct Direction<'a> {
    vector: &'a [f32],
    length: f64,
}

impl<'a> Direction<'a> {
    /// That of a vector.
    pub fn of(vector: &'a [f32]) -> Direction<'a> {
        Direction { vector, length: libm::sqrt(dot(vector, vector)) }
    }

    /// As [`cosine`].
    pub fn cosine(&self, other: &Direction<'_>) -> f64 {
        let cosine = dot(self.vector, other.vector) / (self.length * other.length);
        if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { 0.0 }
    }
}

fn dot(first: &[f32], second: &[f32]) -> f64 {
    first.iter().zip(second).map(|(first, second)| f64::from(*first) * f64::from(*second)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_one_and_do_not_depend_on_a_constant() {
        for logarithms in [&[-1.0, -2.5, -0.5][..], &[-900.0, -901.0], &[700.0, 0.0], &[0.0]] {
            let shares = softmax(logarithms);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
            let higher: Vec<f64> = logarithms.iter().map(|value| value + 3.0).collect();
            assert!(softmax(&higher).iter().zip(&shares).all(|(a, b)| (a - b).abs() < 1e-12));
        }
        assert!((softmax(&[0.0, -libm::log(3.0)])[0] - 0.75).abs() < 1e-12);
        assert_eq!(softmax(&[f64::NAN, f64::NEG_INFINITY]), [0.5, 0.5]);
    }

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        assert!((cosine(&[3.0, 4.0], &[4.0, 3.0]) - 0.96).abs() < 1e-12);
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 5.0]), 0.0);
        assert!((cosine(&[0.5, 0.5], &[-1.0, -1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}
