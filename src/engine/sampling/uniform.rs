//! Uniform numbers from a counter.

/// The uniform number in [0, 1) for a seed and a position.
///
/// With SplitMix64's finaliser `mix` (Steele, Lea and Flood 2014; `z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z
/// ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31`) and g = 0x9e3779b97f4a7c15, all modulo 2^64, it is
/// `mix(mix(seed + g) + g · (position + 1))`, whose upper 53 bits are divided by 2^53. There is no state, so
/// any position can be drawn at any time, on any machine.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(STEP));
    let bits = mix(key.wrapping_add(STEP.wrapping_mul(position.wrapping_add(1))));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn numbers_never_change() {
        // Results of one seed must survive upgrades, so these are fixed for ever.
        for (seed, position, bits) in [
            (0, 0, 0x3fe4_e0db_a5e9_a32f),
            (0, 1, 0x3fe6_7054_60be_8829),
            (42, 0, 0x3fd5_f87e_ae99_441c),
            (42, 32_767, 0x3fd2_8b3a_419b_88e4),
            (u64::MAX, 12_345, 0x3fc2_91ad_9135_a27c),
            (7, 1 << 63, 0x3fdf_913a_e79d_6e1a),
            (1 << 63, 1, 0x3fd7_06a3_3912_d55e),
        ] {
            assert_eq!(uniform(seed, position).to_bits(), bits, "{seed} {position}");
        }
        let mean: f64 = (0..10_000).map(|position| uniform(42, position)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01);
        assert!((0..10_000).all(|position| (0.0..1.0).contains(&uniform(7, position))));
    }
}
