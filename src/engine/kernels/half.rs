//! Conversion between f32 and f16 (IEEE binary16), which the key-value cache stores.
#![allow(unsafe_code, reason = "F16C intrinsics")]

use ::half::f16;

use super::instructions::Instructions;

/// Rounds one value to nearest, ties to even; beyond 65,504 becomes infinite.
pub(crate) fn narrow_one(value: f32) -> u16 {
    f16::from_f32_const(value).to_bits()
}

/// Rounds a slice as [`narrow_one`] does.
pub(crate) fn narrow(instructions: Instructions, source: &[f32], target: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if instructions.wide() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { narrow_f16c(source, target) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = instructions;
    narrow_portable(source, target);
}

fn narrow_portable(source: &[f32], target: &mut [u16]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = narrow_one(*source);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn narrow_f16c(source: &[f32], target: &mut [u16]) {
    use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_cvtps_ph, _mm256_loadu_ps};
    let (sources, source_rest) = source.as_chunks::<8>();
    let (targets, target_rest) = target.as_chunks_mut::<8>();
    for (source, target) in sources.iter().zip(targets) {
        // SAFETY: the arrays are 32 and 16 bytes long, and neither access needs alignment.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(source.as_ptr()));
            _mm_storeu_si128(target.as_mut_ptr().cast(), half);
        }
    }
    narrow_portable(source_rest, target_rest);
}

/// Widens one value exactly, without branches, so that loops over it are vectorised.
#[inline(always)]
pub(crate) fn widen_one(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    // The exponent is too small by 127 - 15, also for subnormal numbers.
    let finite = f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23);
    let value = if magnitude < 0x7c00 << 13 { finite.to_bits() } else { magnitude | 0x7f80_0000 };
    f32::from_bits(sign | value)
}

/// Widens a slice; exact.
pub(crate) fn widen(instructions: Instructions, source: &[u16], target: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if instructions.wide() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { widen_f16c(source, target) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = instructions;
    widen_portable(source, target);
}

fn widen_portable(source: &[u16], target: &mut [f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = widen_one(*source);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16c(source: &[u16], target: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (sources, source_rest) = source.as_chunks::<8>();
    let (targets, target_rest) = target.as_chunks_mut::<8>();
    for (source, target) in sources.iter().zip(targets) {
        // SAFETY: the arrays are 16 and 32 bytes long, and neither access needs alignment.
        unsafe {
            let wide = _mm256_cvtph_ps(_mm_loadu_si128(source.as_ptr().cast()));
            _mm256_storeu_ps(target.as_mut_ptr(), wide);
        }
    }
    widen_portable(source_rest, target_rest);
}

#[cfg(test)]
mod tests {
    use super::{Instructions, f16, narrow, narrow_one, narrow_portable, widen, widen_portable};

    #[test]
    fn every_f16_survives_and_both_ways_agree() {
        let source: Vec<u16> = (0..=u16::MAX).collect();
        let (mut fast, mut portable) = (vec![0.0; 1 << 16], vec![0.0; 1 << 16]);
        widen(Instructions::Avx2, &source, &mut fast);
        widen_portable(&source, &mut portable);
        for ((bits, fast), portable) in source.iter().zip(&fast).zip(&portable) {
            let expected = f16::from_bits(*bits).to_f32_const();
            if expected.is_nan() {
                assert!(fast.is_nan() && portable.is_nan());
            } else {
                assert_eq!(portable.to_bits(), expected.to_bits());
                assert_eq!(fast.to_bits(), portable.to_bits());
                assert_eq!(narrow_one(*fast), *bits);
            }
        }
    }

    #[test]
    fn ties_go_to_even() {
        // Half way between 1 and the next f16, and half way between that and the one after it.
        assert_eq!(narrow_one(1.0 + 1.0 / 2048.0), narrow_one(1.0));
        assert_eq!(narrow_one(1.0 + 3.0 / 2048.0), narrow_one(1.0 + 2.0 / 1024.0));
        assert_eq!(narrow_one(70_000.0), 0x7c00);
    }

    #[test]
    fn both_ways_narrow_alike() {
        // Every exponent, both signs, and the values at and next to the halves between two f16.
        let source: Vec<f32> = (0..1 << 19)
            .map(|i: u32| f32::from_bits((i << 13) | [0, 1, 0xfff, 0x1000, 0x1001][i as usize % 5]))
            .filter(|value| !value.is_nan())
            .collect();
        let (mut fast, mut portable) = (vec![0; source.len()], vec![0; source.len()]);
        narrow(Instructions::Avx2, &source, &mut fast);
        narrow_portable(&source, &mut portable);
        assert!(fast == portable);
    }
}
