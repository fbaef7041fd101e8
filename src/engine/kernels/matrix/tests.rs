//! Kernels of all instruction sets against the definition, and the definition against candle.

use std::sync::Arc;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ4K, BlockQ6K, BlockQ8_0};

use super::*;

const FORMATS: [Format; 4] = [Format::Q8_0, Format::Q4_0, Format::Q4_K, Format::Q6_K];
const SETS: [Instructions; 3] = [Instructions::Portable, Instructions::Avx2, Instructions::Avx512];

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
    Pool::new(threads, &start).unwrap()
}

/// Random blocks: all bit patterns of quants and sub-scales, with finite scales unless `wild`.
fn blocks(format: Format, inputs: usize, outputs: usize, noise: &mut Noise, wild: bool) -> Vec<u8> {
    let mut bytes = vec![0; inputs / format.block() * outputs * format.source_bytes()];
    for block in bytes.chunks_exact_mut(format.source_bytes()) {
        block.fill_with(|| noise.word() as u8);
        let halves: &[usize] = match format {
            Format::Q8_0 | Format::Q4_0 => &[0],
            Format::Q4_K => &[0, 2],
            Format::Q6_K => &[208],
        };
        for at in halves {
            if !wild {
                let half = half::f16::from_f32(noise.value() * 0.1);
                block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
    bytes
}

fn product(packed: &Packed, x: &[f32], set: Instructions, pool: &Pool) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / packed.inputs * packed.outputs];
    products(&[packed], x, &mut [&mut y], &mut Activations::default(), set, pool);
    y
}

/// Bits, with all NaNs alike: which of several NaNs comes out of an operation is not defined.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

#[test]
fn all_instructions_give_the_defined_bytes() {
    let mut noise = Noise(1);
    let pools = [pool(1), pool(3)];
    for format in FORMATS {
        let block = format.block();
        for (case, (inputs, outputs)) in
            [(block, 1), (block * 2, 16), (block * 3, 17), (block * 6, 70), (block * 9, 47)]
                .into_iter()
                .enumerate()
        {
            let source = blocks(format, inputs, outputs, &mut noise, case == 3);
            let packed = Packed::new(format, &source, inputs, outputs).unwrap();
            let x: Vec<f32> = (0..70 * inputs).map(|_| noise.value() * 3.0).collect();
            let whole = product(&packed, &x, Instructions::Portable, &pools[0]);
            for set in SETS.into_iter().filter(|set| set.present()) {
                for rows in 1..=70 {
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

#[test]
fn rows_beyond_a_row_block_and_several_matrices_change_nothing() {
    let mut noise = Noise(2);
    let pool = pool(3);
    let inputs = 1536;
    let matrices: Vec<Packed> = FORMATS
        .into_iter()
        .map(|format| {
            let source = blocks(format, inputs, 35, &mut noise, false);
            Packed::new(format, &source, inputs, 35).unwrap()
        })
        .collect();
    let rows = 2 * ROW_BLOCK + 3;
    let x: Vec<f32> = (0..rows * inputs).map(|_| noise.value()).collect();
    let mut scratch = Activations::default();
    for set in SETS.into_iter().filter(|set| set.present()) {
        let mut ys = vec![vec![f32::NAN; rows * 35]; matrices.len()];
        let mut targets: Vec<&mut [f32]> = ys.iter_mut().map(|y| &mut y[..]).collect();
        products(&matrices.iter().collect::<Vec<_>>(), &x, &mut targets, &mut scratch, set, &pool);
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
        let source = blocks(format, inputs, outputs, &mut noise, false);
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
    activations::quantize(32, &x, &mut quants, &mut scales, &mut sums);
    assert_eq!(quants[..7], [127, 0, 2, 2, 0, -2, -126]);
    assert_eq!((scales[0], sums[3]), (1.0, 127 + 2 + 2 - 2 - 126));
}

/// The product is that of candle's dequantized weights, up to the rounding of activations to 8 bits.
fn compare_with_candle<T: GgmlType>(format: Format) {
    let mut noise = Noise(4);
    let (inputs, outputs, rows) = (1024, 33, 5);
    let weights: Vec<f32> = (0..inputs * outputs).map(|_| noise.value()).collect();
    let mut quantized = vec![T::zeros(); inputs * outputs / T::BLCK_SIZE];
    T::from_float(&weights, &mut quantized);
    let mut weights = vec![0.0; inputs * outputs];
    T::to_float(&quantized, &mut weights);
    // SAFETY: candle's blocks have no padding.
    let source =
        unsafe { std::slice::from_raw_parts(quantized.as_ptr().cast::<u8>(), size_of_val(&quantized[..])) };
    let packed = Packed::new(format, source, inputs, outputs).unwrap();
    // Whole numbers of which one is 127 are their own quants: then there is no rounding but of sums.
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
            assert!(error < 1e-6, "{format:?}, row {row}, output {output}: off by {error}");
        }
    }
}

#[test]
fn products_are_those_of_the_dequantized_weights() {
    compare_with_candle::<BlockQ8_0>(Format::Q8_0);
    compare_with_candle::<BlockQ4_0>(Format::Q4_0);
    compare_with_candle::<BlockQ4K>(Format::Q4_K);
    compare_with_candle::<BlockQ6K>(Format::Q6_K);
}
