//! The highest of many values, for greedy choices.

/// Values that are compared at once.
const LANES: usize = 32;

multiversion! {
    /// The index of the highest value, the lowest of equals. `None` if a value is infinite or NaN, or there
    /// is none.
    pub(crate) fn highest(values: &[f32]) -> Option<usize> = highest_body
}

#[inline(always)]
fn highest_body(values: &[f32]) -> Option<usize> {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (mut checks, mut highest) = ([0.0; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            // Infinities and NaN turn into NaN, everything else into 0.
            checks[lane] += chunk[lane] * 0.0;
            highest[lane] = if chunk[lane] > highest[lane] { chunk[lane] } else { highest[lane] };
        }
    }
    let mut check: f32 = checks.iter().sum();
    let mut best = f32::NEG_INFINITY;
    for value in rest {
        check += value * 0.0;
        best = if *value > best { *value } else { best };
    }
    for value in highest {
        best = if value > best { value } else { best };
    }
    if check != 0.0 {
        return None;
    }
    let is_best = |chunk: &[f32; LANES]| {
        let mut found = false;
        for value in chunk {
            found |= *value == best;
        }
        found
    };
    let start = chunks.iter().position(is_best).unwrap_or(chunks.len()) * LANES;
    values[start..].iter().position(|value| *value == best).map(|index| start + index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::instructions::Instructions;

    #[test]
    fn the_highest_is_the_first_of_equals_wherever_it_is() {
        for length in [1, 2, 31, 32, 33, 64, 100, 151] {
            for at in 0..length {
                let mut values: Vec<f32> = (0..length).map(|i| -((i * 7919 % 101) as f32) - 0.5).collect();
                values[at] = 0.0;
                assert_eq!(highest(Instructions::Avx2, &values), Some(at));
                if at + 1 < length {
                    values[length - 1] = -0.0;
                    assert_eq!(
                        highest(Instructions::Avx2, &values),
                        Some(at),
                        "-0 is no less than 0, and no more"
                    );
                }
                assert_eq!(highest_body(&values), highest(Instructions::Avx2, &values));
                for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = values.clone();
                    values[at] = wrong;
                    assert_eq!(highest(Instructions::Avx2, &values), None, "{wrong} at {at}");
                }
            }
        }
        assert_eq!(highest(Instructions::Avx2, &[]), None);
    }
}
