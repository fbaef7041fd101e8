//! Micro-benchmarks of the kernels: `cargo bench -p steadytext-engine --bench kernels [-- FILTER]`.
//!
//! Matrices are 1,024 → 3,072, the feed-forward shape of a 0.6B model, and stay in the third cache. Products
//! are those of two threads, everything else is one thread's. Instruction sets that the processor lacks are
//! left out.

#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use steadytext_engine::kernel_bench as kernels;
use steadytext_engine::{Instructions, KvCacheType};

const INPUTS: usize = 1024;
const OUTPUTS: usize = 3072;
const THREADS: usize = 2;

/// Multiply-adds a second, by type, rows and instructions.
fn products(criterion: &mut Criterion) {
    for format in kernels::FORMATS {
        let mut group = criterion.benchmark_group(format!("product/{format}"));
        for rows in [1, 4, 16, 128] {
            group.throughput(Throughput::Elements((INPUTS * OUTPUTS * rows) as u64));
            for instructions in [Instructions::Avx2, Instructions::Avx512] {
                let size = (INPUTS, OUTPUTS);
                let run = || kernels::product(format, size, rows, THREADS, instructions);
                let Some(mut run) = instructions.present().then(run).flatten() else { continue };
                let id = BenchmarkId::new(format!("{instructions:?}"), rows);
                group.bench_function(id, |bencher| bencher.iter(&mut run));
            }
        }
        group.finish();
    }
}

/// Values a second.
fn quantization(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantize");
    group.throughput(Throughput::Elements((16 * INPUTS) as u64));
    for block in [32, 256] {
        let Some(mut run) = kernels::quantize(block, INPUTS, 16) else { continue };
        group.bench_function(BenchmarkId::from_parameter(block), |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

/// Multiply-adds a second of 16 query heads over 8 key-value heads of 128.
fn attention(criterion: &mut Criterion) {
    for kind in KvCacheType::ALL {
        let mut group = criterion.benchmark_group(format!("attention/{kind}"));
        for (positions, rows) in [(127, 1), (1023, 1), (4095, 1), (0, 128), (1024, 128)] {
            group.throughput(Throughput::Elements((2 * 16 * 128 * rows * (positions + rows)) as u64));
            let Some(mut run) = kernels::attention((16, 8, 128), positions, rows, kind, 1) else { continue };
            let id = BenchmarkId::new(format!("{rows} rows after"), positions);
            group.bench_function(id, |bencher| bencher.iter(&mut run));
        }
        group.finish();
    }
}

/// Values a second.
fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row");
    group.throughput(Throughput::Elements(INPUTS as u64));
    let mut run = kernels::rms_norm(INPUTS);
    group.bench_function("rms_norm", |bencher| bencher.iter(&mut run));
    group.throughput(Throughput::Elements(16 * 128));
    let mut run = kernels::rope(16, 128, false);
    group.bench_function("rope", |bencher| bencher.iter(&mut run));
    let mut run = kernels::rope(16, 128, true);
    group.bench_function("rope with angles", |bencher| bencher.iter(&mut run));
    group.throughput(Throughput::Elements(OUTPUTS as u64));
    let mut run = kernels::swiglu(OUTPUTS);
    group.bench_function("swiglu", |bencher| bencher.iter(&mut run));
    group.finish();
}

/// Jobs a second, by threads.
fn jobs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("job");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in [2, 4, 8, 16, 32, 64].into_iter().filter(|threads| *threads <= processors) {
        let Some(mut run) = kernels::job(threads) else { continue };
        group.bench_function(BenchmarkId::from_parameter(threads), |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20);
    targets = products, quantization, attention, rows, jobs
}
criterion_main!(all);
