//! Matrix products with Q8_0 weights, as they lie in the file.
//!
//! A block is an f16 scale and 32 signed bytes. Activations are quantized to the same with an f32 scale
//! ([`quantize`]). The products of a block are summed exactly in i32, converted once and added to the output's
//! sum by a fused multiply-add; blocks in ascending order. So all versions give the same bytes.
//!
//! Eight weight rows are a panel, whose sums are the lanes of one register.
#![allow(unsafe_code, reason = "SIMD intrinsics; threads write disjoint ranges of the output")]

use super::pool::{Disjoint, Pool};
use super::quantized::Scratch;

/// Values of a block.
const BLOCK: usize = 32;
/// Bytes of a block of weights.
const BLOCK_BYTES: usize = 34;
/// Weight rows of a panel.
const PANEL: usize = 8;
/// Blocks of a row that are multiplied before the next activation row: their scales are widened once.
const STRETCH: usize = 128;

multiversion! {
    /// Quantizes a row: inverse scale 127 / amax (0 if amax < 2^-100), rounded to even, clamped to ±127; the
    /// scale is amax / 127.
    fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32]) = quantize_body
}

#[inline(always)]
fn quantize_body(x: &[f32], values: &mut [i8], scales: &mut [f32]) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
    for ((x, values), scale) in blocks.zip(scales) {
        let mut lanes = [0.0f32; 16];
        for half in x.as_chunks::<16>().0 {
            for (lane, x) in lanes.iter_mut().zip(half) {
                *lane = lane.max(x.abs());
            }
        }
        let amax = lanes.iter().copied().fold(0.0, f32::max);
        // 2^-100
        let inverse = if amax < f32::from_bits(27 << 23) { 0.0 } else { 127.0 / amax };
        *scale = amax / 127.0;
        for (value, x) in values.iter_mut().zip(x) {
            *value = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i32 as i8;
        }
    }
}

/// `y = x · Wᵀ` for the rows of `x`, `inputs` values each; `y` gets `outputs` values for each.
pub(crate) fn product(
    bytes: &[u8],
    (inputs, outputs): (usize, usize),
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
    pool: &Pool,
) {
    let blocks = inputs / BLOCK;
    let row_bytes = blocks * BLOCK_BYTES;
    let rows = x.len() / inputs;
    assert!(
        inputs == blocks * BLOCK
            && bytes.len() == row_bytes * outputs
            && x.len() == rows * inputs
            && y.len() == rows * outputs
    );
    let (values, scales) = scratch.bytes_and_scales(rows * inputs, rows * blocks);
    {
        let (values, scales) = (Disjoint::new(values), Disjoint::new(scales));
        pool.ranges(rows, 4, &|_, range| {
            for row in range {
                // SAFETY: each row is quantized by one thread.
                let values = unsafe { values.range(row * inputs..(row + 1) * inputs) };
                // SAFETY: as above.
                let scales = unsafe { scales.range(row * blocks..(row + 1) * blocks) };
                quantize(&x[row * inputs..(row + 1) * inputs], values, scales);
            }
        });
    }
    let (values, scales): (&[i8], &[f32]) = (values, scales);
    let kernel = kernel();
    let y = Disjoint::new(y);
    let grain = outputs.div_ceil(pool.threads() * 8).next_multiple_of(PANEL).min(128);
    pool.ranges(outputs, grain, &|_, range| {
        let mut weight_scales = [[0.0f32; PANEL]; STRETCH];
        for first in range.clone().step_by(PANEL) {
            let panel = first..range.end.min(first + PANEL);
            for start in (0..blocks).step_by(STRETCH) {
                let stretch = start..blocks.min(start + STRETCH);
                let weights = &bytes[panel.start * row_bytes + start * BLOCK_BYTES..panel.end * row_bytes];
                let weight_scales = &mut weight_scales[..stretch.len()];
                widen_scales(weights, row_bytes, panel.len(), weight_scales);
                for row in 0..rows {
                    // SAFETY: each output of each row is computed by one thread.
                    let y = unsafe { y.range(row * outputs + panel.start..row * outputs + panel.end) };
                    let mut sums = [0.0; PANEL];
                    if start > 0 {
                        sums[..y.len()].copy_from_slice(y);
                    }
                    let part = Part {
                        weights,
                        row_bytes,
                        weight_scales,
                        values: &values[row * inputs + start * BLOCK..row * inputs + stretch.end * BLOCK],
                        scales: &scales[row * blocks + start..row * blocks + stretch.end],
                    };
                    if y.len() == PANEL {
                        kernel(&part, &mut sums);
                    } else {
                        portable(&part, &mut sums[..y.len()]);
                    }
                    y.copy_from_slice(&sums[..y.len()]);
                }
            }
        }
    });
}

/// Some blocks of a panel and of an activation row.
struct Part<'a> {
    /// The panel's rows, `row_bytes` apart, each beginning with the first of the blocks.
    weights: &'a [u8],
    row_bytes: usize,
    /// Scales of the weights, by block and row.
    weight_scales: &'a [[f32; PANEL]],
    /// The activations, 32 for each block.
    values: &'a [i8],
    /// Their scales.
    scales: &'a [f32],
}

/// Scales of the weights by block and row. Rows are walked one after the other, as they lie in memory: this is
/// where the panel is fetched.
fn widen_scales(weights: &[u8], row_bytes: usize, rows: usize, scales: &mut [[f32; PANEL]]) {
    for row in 0..rows {
        let mut blocks = weights[row * row_bytes..].chunks_exact(BLOCK_BYTES);
        for scales in scales.chunks_mut(8) {
            let (mut narrow, mut wide) = ([0u16; 8], [0.0f32; 8]);
            for (narrow, block) in narrow.iter_mut().zip(blocks.by_ref().take(scales.len())) {
                *narrow = u16::from_le_bytes([block[0], block[1]]);
            }
            super::half::widen(&narrow, &mut wide);
            for (scales, wide) in scales.iter_mut().zip(wide) {
                scales[row] = wide;
            }
        }
    }
}

/// The version of the panel's kernel for this processor.
fn kernel() -> fn(&Part<'_>, &mut [f32; PANEL]) {
    #[cfg(target_arch = "x86_64")]
    {
        if super::has_avx2() {
            let vnni = std::arch::is_x86_feature_detected!("avx512vnni")
                && std::arch::is_x86_feature_detected!("avx512vl");
            if vnni {
                // SAFETY: the processor has the features that the function is compiled for.
                return |part, sums| unsafe { x86::vnni(part, sums) };
            }
            // SAFETY: as above.
            return |part, sums| unsafe { x86::avx2(part, sums) };
        }
    }
    |part, sums| portable(part, sums)
}

/// One output after the other.
fn portable(part: &Part<'_>, sums: &mut [f32]) {
    for (row, sum) in sums.iter_mut().enumerate() {
        let weights = &part.weights[row * part.row_bytes..];
        let blocks = part.values.as_chunks::<BLOCK>().0.iter().zip(weights.chunks_exact(BLOCK_BYTES));
        for ((block, (values, weights)), scale) in blocks.enumerate().zip(part.scales) {
            let products = values.iter().zip(&weights[2..]).map(|(a, w)| i32::from(*a) * i32::from(*w as i8));
            let dot: i32 = products.sum();
            *sum = (dot as f32).mul_add(part.weight_scales[block][row] * scale, *sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BLOCK_BYTES, PANEL, Part};

    macro_rules! panel {
        ($name:ident, $features:literal, $dot:path) => {
            /// One panel, whose eight sums are the lanes of a register.
            #[target_feature(enable = $features)]
            pub(super) fn $name(part: &Part<'_>, sums: &mut [f32; PANEL]) {
                let blocks = part.values.len() / BLOCK;
                let last = (PANEL - 1) * part.row_bytes + blocks * BLOCK_BYTES;
                assert!(
                    part.weights.len() >= last
                        && part.weight_scales.len() >= blocks
                        && part.scales.len() >= blocks
                );
                // SAFETY: the array has eight values.
                let mut acc = unsafe { _mm256_loadu_ps(sums.as_ptr()) };
                for block in 0..blocks {
                    // SAFETY: `values` has 32 bytes for each block.
                    let values = unsafe {
                        _mm256_loadu_si256(part.values.as_ptr().add(block * BLOCK).cast::<__m256i>())
                    };
                    // SAFETY: `last` bounds the end of the last row's last block.
                    let weights = unsafe { part.weights.as_ptr().add(block * BLOCK_BYTES + 2) };
                    let dot = |row: usize| {
                        // SAFETY: as above.
                        let weights = unsafe {
                            _mm256_loadu_si256(weights.add(row * part.row_bytes).cast::<__m256i>())
                        };
                        $dot(_mm256_abs_epi8(weights), _mm256_sign_epi8(values, weights))
                    };
                    let low = _mm256_hadd_epi32(
                        _mm256_hadd_epi32(dot(0), dot(1)),
                        _mm256_hadd_epi32(dot(2), dot(3)),
                    );
                    let high = _mm256_hadd_epi32(
                        _mm256_hadd_epi32(dot(4), dot(5)),
                        _mm256_hadd_epi32(dot(6), dot(7)),
                    );
                    let dots = _mm256_add_epi32(
                        _mm256_permute2x128_si256::<0x20>(low, high),
                        _mm256_permute2x128_si256::<0x31>(low, high),
                    );
                    // SAFETY: an array of eight values.
                    let scales = unsafe { _mm256_loadu_ps(part.weight_scales[block].as_ptr()) };
                    let scales = _mm256_mul_ps(scales, _mm256_set1_ps(part.scales[block]));
                    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scales, acc);
                }
                // SAFETY: the array has eight values.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), acc) };
            }
        };
    }

    panel!(avx2, "avx2,fma", dot_avx2);
    panel!(vnni, "avx2,fma,avx512vnni,avx512vl", dot_vnni);

    /// Eight sums of four products. A pair is at most 2 · 128 · 127, which fits 16 bits.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot_avx2(weights: __m256i, values: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(weights, values), _mm256_set1_epi16(1))
    }

    /// The same in one instruction.
    #[target_feature(enable = "avx512vnni,avx512vl")]
    #[inline]
    fn dot_vnni(weights: __m256i, values: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), weights, values)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Weights of every byte value, -128 included, with scales of both signs.
    fn weights(inputs: usize, outputs: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in 0..inputs / BLOCK * outputs {
            let scale = ::half::f16::from_f32(((block * 37) % 101) as f32 / 3000.0 - 0.01);
            bytes.extend(scale.to_le_bytes());
            bytes.extend((0..BLOCK).map(|i| (block * 89 + i * 113 + block * i * 7) as u8));
        }
        bytes
    }

    fn activations(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (((i * 7919) % 2003) as f32 / 1000.0 - 1.0) * if i % 97 == 0 { 20.0 } else { 1.0 })
            .collect()
    }

    fn pool(threads: usize) -> Pool {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        Pool::new(threads, &start).unwrap()
    }

    #[test]
    fn all_versions_rows_and_threads_give_the_same_bytes_and_the_right_ones() {
        // More blocks than a stretch, outputs that are no whole panels.
        let (inputs, outputs, rows) = (4096 + 64, 21, 5);
        let (bytes, x) = (weights(inputs, outputs), activations(inputs * rows));
        let mut scratch = Scratch::default();
        let mut expected = vec![0.0; rows * outputs];
        product(&bytes, (inputs, outputs), &x, &mut expected, &mut scratch, &pool(1));
        let mut again = vec![0.0; rows * outputs];
        product(&bytes, (inputs, outputs), &x, &mut again, &mut scratch, &pool(3));
        assert_eq!(again, expected);
        let blocks = inputs / BLOCK;
        let (mut values, mut scales) = (vec![0; inputs], vec![0.0; blocks]);
        for row in 0..rows {
            let x = &x[row * inputs..(row + 1) * inputs];
            let mut alone = vec![0.0; outputs];
            product(&bytes, (inputs, outputs), x, &mut alone, &mut scratch, &pool(2));
            assert_eq!(alone, expected[row * outputs..(row + 1) * outputs]);
            quantize_body(x, &mut values, &mut scales);
            for output in 0..outputs {
                let weights = &bytes[output * blocks * BLOCK_BYTES..(output + 1) * blocks * BLOCK_BYTES];
                let (mut chain, mut exact, mut size) = (0.0f32, 0.0f64, 0.0f64);
                for (block, weights) in weights.chunks_exact(BLOCK_BYTES).enumerate() {
                    let scale = ::half::f16::from_le_bytes([weights[0], weights[1]]).to_f32();
                    let mut dot = 0;
                    for (i, weight) in weights[2..].iter().enumerate() {
                        dot += i32::from(values[block * BLOCK + i]) * i32::from(*weight as i8);
                        let product =
                            f64::from(*weight as i8) * f64::from(scale) * f64::from(x[block * BLOCK + i]);
                        exact += product;
                        size += product.abs();
                    }
                    chain = (dot as f32).mul_add(scale * scales[block], chain);
                }
                assert_eq!(chain.to_bits(), alone[output].to_bits(), "row {row} output {output}");
                assert!((f64::from(chain) - exact).abs() < 0.002 * size, "{chain} for {exact}");
            }
        }
    }

    #[test]
    fn every_kernel_is_the_portable_one() {
        let inputs = 256;
        let (bytes, x) = (weights(inputs, PANEL), activations(inputs));
        let blocks = inputs / BLOCK;
        let (mut values, mut scales) = (vec![0; inputs], vec![0.0; blocks]);
        quantize(&x, &mut values, &mut scales);
        let mut weight_scales = vec![[0.0; PANEL]; blocks];
        widen_scales(&bytes, blocks * BLOCK_BYTES, PANEL, &mut weight_scales);
        let part = Part {
            weights: &bytes,
            row_bytes: blocks * BLOCK_BYTES,
            weight_scales: &weight_scales,
            values: &values,
            scales: &scales,
        };
        let mut expected = [0.5; PANEL];
        portable(&part, &mut expected);
        let mut got = [0.5; PANEL];
        kernel()(&part, &mut got);
        assert_eq!(got, expected);
        #[cfg(target_arch = "x86_64")]
        if crate::kernels::has_avx2() {
            let mut got = [0.5; PANEL];
            // SAFETY: the processor has the features.
            unsafe { x86::avx2(&part, &mut got) };
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn quantization_rounds_to_even_and_survives_zeros() {
        let mut x = [0.0f32; 64];
        x[..4].copy_from_slice(&[127.0, 0.5, 1.5, -2.5]);
        let (mut values, mut scales) = ([1i8; 64], [0.0; 2]);
        quantize(&x, &mut values, &mut scales);
        assert_eq!(values[..5], [127, 0, 2, -2, 0]);
        assert_eq!(scales, [1.0, 0.0]);
        assert!(values[32..].iter().all(|value| *value == 0));
    }
}
