//! Kernels of all instruction sets against the portable definition, that against scalar products from ggml's
//! layouts, and those against candle.

use std::sync::Arc;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};

use super::*;

const FORMATS: [Format; 18] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::IQ4_NL,
    Format::Q2_K,
    Format::Q3_K,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_XS,
    Format::MXFP4,
    Format::TQ1_0,
    Format::TQ2_0,
];
const SETS: [Instructions; 4] =
    [Instructions::Portable, Instructions::Neon, Instructions::Avx2, Instructions::Avx512];

/// A stream of random words.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In -1 … 1.
    fn value(&mut self) -> f32 {
        self.word() as f32 / (1u32 << 31) as f32 - 1.0
    }
}

fn pool(threads: usize) -> Pool {
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    Pool::new(threads, Instructions::best(), &start).unwrap()
}

/// The content of random blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    /// Random bytes, scales within 0.1.
    Random,
    /// Random bytes in scales too: infinities, NaN, subnormal numbers.
    Wild,
    /// The same byte everywhere, scales of this value.
    Same(u8, f32),
}

/// Blocks of a matrix. Floating-point weights are within 1, but for `Wild`.
fn blocks(format: Format, inputs: usize, outputs: usize, noise: &mut Noise, fill: Fill) -> Vec<u8> {
    let mut bytes = vec![0; inputs / format.block() * outputs * format.source_bytes()];
    for block in bytes.chunks_exact_mut(format.source_bytes()) {
        block.fill_with(|| if let Fill::Same(byte, _) = fill { byte } else { noise.word() as u8 });
        let value = if let Fill::Same(_, value) = fill { value } else { noise.value() * 0.1 };
        if fill == Fill::Wild {
            continue;
        }
        match format {
            Format::F32 => block.copy_from_slice(&value.to_le_bytes()),
            Format::F16 => block.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Format::BF16 => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            // The scale is an exponent: with `Same`, it is the byte of the block.
            Format::MXFP4 if matches!(fill, Fill::Same(..)) => {}
            Format::MXFP4 => block[0] = 117 + block[0] % 8,
            _ => {
                for at in reference::halves(format) {
                    let value = if let Fill::Same(_, value) = fill { value } else { noise.value() * 0.1 };
                    block[*at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
                }
            }
        }
    }
    bytes
}

/// Products of all rows by the scalar reference.
fn expected(format: Format, source: &[u8], inputs: usize, x: &[f32]) -> Vec<f32> {
    let row_bytes = inputs / format.block() * format.source_bytes();
    let product = |x| source.chunks(row_bytes).map(move |row| reference::product(format, row, x));
    x.chunks(inputs).flat_map(product).collect()
}

fn product(packed: &Packed, x: &[f32], set: Instructions, pool: &Pool) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / packed.inputs * packed.outputs];
    products_with(set, &[packed], &mut x.to_vec(), None, &mut [&mut y], &mut Activations::default(), pool);
    y
}

/// Bits, with all NaNs equal: which of several NaNs is the result of an operation is not defined.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

#[test]
fn all_instructions_give_the_bytes_of_the_scalar_reference() {
    let mut noise = Noise(1);
    let pools = [pool(1), pool(3)];
    for format in FORMATS {
        let block = format.block();
        let blocks_of = |count: usize| if block == 1 { count * 61 } else { count * block };
        for (case, (count, outputs)) in [(1, 1), (2, 16), (3, 17), (6, 70), (9, 47)].into_iter().enumerate() {
            let inputs = blocks_of(count);
            let fill = if case == 3 { Fill::Wild } else { Fill::Random };
            let source = blocks(format, inputs, outputs, &mut noise, fill);
            let packed = Packed::new(format, &source, inputs, outputs).unwrap();
            let x: Vec<f32> = (0..50 * inputs).map(|_| noise.value() * 3.0).collect();
            let whole = expected(format, &source, inputs, &x);
            for set in SETS.into_iter().filter(|set| set.present()) {
                for rows in (1..=33).chain([50]) {
                    let got = product(&packed, &x[..rows * inputs], set, &pools[rows % 2]);
                    assert!(
                        bits(&got) == bits(&whole[..rows * outputs]),
                        "{format:?} {inputs} × {outputs}, {rows} rows, {set:?}"
                    );
                }
            }
        }
    }
}

/// Sums are largest, and vanish, where all quants and sub-scales are equal and all activations ±127.
#[test]
fn extreme_weights_and_activations_lose_nothing() {
    let mut noise = Noise(5);
    let pool = pool(1);
    let scales = [0.0, -0.0, 65_504.0, -65_504.0, 6e-8, f32::INFINITY, f32::NAN];
    for format in FORMATS {
        let (inputs, outputs, rows) = (512, 18, 13);
        for byte in [0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0, 0xaa, 0x55] {
            for scale in scales {
                let source = blocks(format, inputs, outputs, &mut noise, Fill::Same(byte, scale));
                let packed = Packed::new(format, &source, inputs, outputs).unwrap();
                for signs in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 0.0]] {
                    let x: Vec<f32> = (0..rows * inputs).map(|i| 127.0 * signs[i % 2]).collect();
                    let row = expected(format, &source[..source.len() / outputs], inputs, &x[..inputs])[0];
                    for set in SETS.into_iter().filter(|set| set.present()) {
                        let got = product(&packed, &x, set, &pool);
                        let all = bits(&got).iter().all(|got| *got == bits(&[row])[0]);
                        assert!(all, "{format:?} of {byte:#x} · {scale}, activations {signs:?}, {set:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_beyond_a_row_block_and_several_matrices_change_nothing() {
    let mut noise = Noise(2);
    let pool = pool(3);
    let inputs = 1536;
    let matrices: Vec<Packed> = FORMATS
        .into_iter()
        .map(|format| {
            let source = blocks(format, inputs, 35, &mut noise, Fill::Random);
            Packed::new(format, &source, inputs, 35).unwrap()
        })
        .collect();
    let rows = 2 * ROW_BLOCK + 3;
    let x: Vec<f32> = (0..rows * inputs).map(|_| noise.value()).collect();
    let mut scratch = Activations::default();
    for set in SETS.into_iter().filter(|set| set.present()) {
        let mut ys = vec![vec![f32::NAN; rows * 35]; matrices.len()];
        let mut targets: Vec<&mut [f32]> = ys.iter_mut().map(|y| &mut y[..]).collect();
        products_with(
            set,
            &matrices.iter().collect::<Vec<_>>(),
            &mut x.clone(),
            None,
            &mut targets,
            &mut scratch,
            &pool,
        );
        for row in [0, ROW_BLOCK - 1, ROW_BLOCK, rows - 1] {
            for (matrix, y) in matrices.iter().zip(&ys) {
                let x = &x[row * inputs..(row + 1) * inputs];
                let alone = product(matrix, x, Instructions::Portable, &pool);
                assert!(bits(&alone) == bits(&y[row * 35..(row + 1) * 35]), "row {row}, {set:?}");
            }
        }
    }
}

#[test]
fn groups_of_rows_get_the_bytes_of_their_own_matrices() {
    let mut noise = Noise(11);
    let pool = pool(3);
    let (inputs, outputs, experts) = (512, 32, 5);
    // No row, one, few, more than a row block; rows between groups belong to none.
    let groups = [0..3, 3..3, 4..5, 5..5 + ROW_BLOCK + 9, 150..171];
    let rows = 171;
    for format in FORMATS {
        let source = blocks(format, inputs, outputs * experts, &mut noise, Fill::Random);
        let all = Packed::new(format, &source, inputs, outputs * experts).unwrap();
        let parts: Vec<Packed> =
            (0..experts).map(|expert| all.part(expert * outputs..(expert + 1) * outputs)).collect();
        let x: Vec<f32> = (0..rows * inputs).map(|_| noise.value()).collect();
        let (mut y, mut twin) = (vec![f32::NAN; rows * outputs], vec![f32::NAN; rows * outputs]);
        // Made by the threads: rows of twice the values, halved.
        let mut made: Vec<f32> = x.iter().map(|x| x * 2.0).collect();
        let halve = |_: usize, x: &mut [f32]| x.iter_mut().for_each(|x| *x *= 0.5);
        grouped_products(
            &[&parts, &parts],
            &groups,
            &mut made,
            Some(&halve),
            &mut [&mut y, &mut twin],
            &mut Activations::default(),
            &pool,
        );
        assert!(bits(&y) == bits(&twin) && made == x, "{format:?}");
        for row in 0..rows {
            let y = &y[row * outputs..(row + 1) * outputs];
            match groups.iter().position(|group| group.contains(&row)) {
                Some(expert) => {
                    let x = &x[row * inputs..(row + 1) * inputs];
                    let alone = product(&parts[expert], x, Instructions::Portable, &pool);
                    assert!(bits(y) == bits(&alone), "{format:?}, row {row}");
                }
                None => assert!(y.iter().all(|y| y.is_nan()), "{format:?}, row {row}"),
            }
        }
    }
}

#[test]
fn extreme_activations_do_no_harm_and_are_not_lost() {
    let mut noise = Noise(3);
    let pool = pool(2);
    let special = [
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        1e-30,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1.0,
    ];
    for format in FORMATS {
        let (inputs, outputs) = (512, 20);
        let source = blocks(format, inputs, outputs, &mut noise, Fill::Random);
        let packed = Packed::new(format, &source, inputs, outputs).unwrap();
        for special in special {
            for only in [true, false] {
                let mut x: Vec<f32> =
                    (0..13 * inputs).map(|_| if only { special } else { noise.value() }).collect();
                x[5 * inputs + 77] = special;
                let defined = product(&packed, &x, Instructions::Portable, &pool);
                for set in SETS.into_iter().filter(|set| set.present()) {
                    let got = product(&packed, &x, set, &pool);
                    assert!(bits(&got) == bits(&defined), "{format:?} {special} {set:?}");
                }
                let row = &defined[5 * outputs..6 * outputs];
                if special.is_finite() && special.abs() < 1.0 {
                    assert!(row.iter().all(|value| value.is_finite()), "{format:?} {special}");
                } else if !special.is_finite() {
                    assert!(row.iter().all(|value| !value.is_finite()), "{format:?} {special}");
                }
            }
        }
    }
}

#[test]
fn rounding_is_to_even_and_the_largest_value_is_127() {
    let mut x = [0.0f32; 32];
    x[..7].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]);
    let (mut quants, mut scales, mut sums) = ([0; 32], [0.0], [0; 4]);
    activations::quantize(Instructions::Avx2, 32, &x, &mut quants, &mut scales, &mut sums);
    assert_eq!(quants[..7], [127, 0, 2, 2, 0, -2, -126]);
    assert_eq!((scales[0], sums[3]), (1.0, 127 + 2 + 2 - 2 - 126));
}

/// Candle's quantization of random weights: the bytes, and the dequantized values.
fn by_candle<T: GgmlType>(count: usize) -> (Vec<u8>, Vec<f32>) {
    let mut noise = Noise(4);
    let weights: Vec<f32> = (0..count).map(|_| noise.value()).collect();
    let mut quantized = vec![T::zeros(); count / T::BLCK_SIZE];
    T::from_float(&weights, &mut quantized);
    let mut weights = vec![0.0; count];
    T::to_float(&quantized, &mut weights);
    // SAFETY: candle's blocks have no padding.
    let bytes =
        unsafe { std::slice::from_raw_parts(quantized.as_ptr().cast::<u8>(), size_of_val(&quantized[..])) };
    (bytes.to_vec(), weights)
}

/// The product is that of candle's dequantized weights, up to the rounding of activations to 8 bits.
fn compare_with_candle<T: GgmlType>(format: Format) {
    let mut noise = Noise(6);
    let (inputs, outputs, rows) = (1024, 33, 5);
    let (source, weights) = by_candle::<T>(inputs * outputs);
    let packed = Packed::new(format, &source, inputs, outputs).unwrap();
    // Integers of which one is 127 are their own quants: then only sums are rounded.
    let x: Vec<f32> = (0..rows * inputs)
        .map(|i| if i % 32 == 0 { 127.0 } else { (noise.value() * 126.0).round() })
        .collect();
    let got = product(&packed, &x, Instructions::best(), &pool(2));
    for row in 0..rows {
        for output in 0..outputs {
            let terms = x[row * inputs..(row + 1) * inputs].iter().zip(&weights[output * inputs..]);
            let (mut expected, mut size) = (0.0, 0.0);
            for (x, w) in terms {
                expected += f64::from(*x) * f64::from(*w);
                size += (f64::from(*x) * f64::from(*w)).abs();
            }
            let error = (f64::from(got[row * outputs + output]) - expected).abs() / size;
            assert!(error < 2e-6, "{format:?}, row {row}, output {output}: off by {error}");
        }
    }
}

/// Rows of weights come back as candle's, to the bit.
fn compare_rows<T: GgmlType>(format: Format) {
    let (inputs, outputs) = (1024, 33);
    let (source, weights) = by_candle::<T>(inputs * outputs);
    let mut row = vec![0.0; inputs];
    for (source, expected) in source.chunks(source.len() / outputs).zip(weights.chunks(inputs)) {
        format.dequantize_row(source, &mut row);
        assert!(bits(&row) == bits(expected), "{format:?}");
    }
}

macro_rules! for_candles_formats {
    ($check:ident) => {
        $check::<f32>(Format::F32);
        $check::<half::f16>(Format::F16);
        $check::<half::bf16>(Format::BF16);
        $check::<BlockQ8_0>(Format::Q8_0);
        $check::<BlockQ4_0>(Format::Q4_0);
        $check::<BlockQ4_1>(Format::Q4_1);
        $check::<BlockQ5_0>(Format::Q5_0);
        $check::<BlockQ5_1>(Format::Q5_1);
        $check::<BlockQ2K>(Format::Q2_K);
        $check::<BlockQ3K>(Format::Q3_K);
        $check::<BlockQ4K>(Format::Q4_K);
        $check::<BlockQ5K>(Format::Q5_K);
        $check::<BlockQ6K>(Format::Q6_K);
    };
}

#[test]
fn products_are_those_of_the_dequantized_weights() {
    for_candles_formats!(compare_with_candle);
}

#[test]
fn rows_come_back_as_candles() {
    for_candles_formats!(compare_rows);
}

/// Candle does not have these types: each value is scale · table, by ggml's definition.
#[test]
fn rows_of_tables_come_back_by_them() {
    let mut noise = Noise(7);
    for format in [Format::IQ4_NL, Format::IQ4_XS, Format::MXFP4, Format::TQ1_0, Format::TQ2_0] {
        let source = blocks(format, 512, 9, &mut noise, Fill::Random);
        let mut row = vec![0.0; 512];
        for source in source.chunks(source.len() / 9) {
            format.dequantize_row(source, &mut row);
            let blocks = source.chunks(format.source_bytes()).map(|block| reference::read(format, block));
            let expected = blocks.flat_map(|block| {
                let length = format.block() / block.scales.len();
                let scale = move |k: usize| block.d * block.scales[k / length] as f32;
                block.weights.into_iter().enumerate().map(move |(k, weight)| scale(k) * weight as f32)
            });
            assert!(bits(&row) == bits(&expected.collect::<Vec<_>>()), "{format:?}");
        }
    }
}

#[test]
fn rows_of_panels_are_those_of_the_file() {
    let mut noise = Noise(9);
    for format in FORMATS {
        let (inputs, outputs) = (512, 37);
        let source = blocks(format, inputs, outputs, &mut noise, Fill::Random);
        let packed = Packed::new(format, &source, inputs, outputs).unwrap();
        let (mut expected, mut got) = (vec![0.0; inputs], vec![0.0; inputs]);
        for (index, row) in source.chunks(source.len() / outputs).enumerate() {
            format.dequantize_row(row, &mut expected);
            packed.row(index, &mut got);
            assert!(bits(&got) == bits(&expected), "{format:?}, row {index}");
        }
    }
}

#[test]
fn each_layout_has_a_fingerprint_of_its_own() {
    let mut fingerprints: Vec<u32> = FORMATS.into_iter().map(fingerprint).collect();
    assert_eq!(fingerprints, FORMATS.map(fingerprint), "it is the same each time");
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), FORMATS.len());
}
