//! The data layer on images of CIFAR-10's size: made up here, or with `LANGEVIN_BENCH_DATA` a dataset that langevin reads.
//! `cargo bench --bench data`
//!
//! Elements are images, so Kelem/s are thousands of images a second.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use langevin::data::{Dataset, DatasetOptions, Loader, LoaderConfig, Order};
use std::sync::Arc;
use std::time::Duration;

const BATCH: usize = 64;

fn dataset() -> Dataset {
    match std::env::var_os("LANGEVIN_BENCH_DATA") {
        Some(path) => Dataset::open(path, &DatasetOptions::default()).expect("LANGEVIN_BENCH_DATA"),
        None => Dataset {
            images: (0..10_000 * 3072u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
            n: 10_000,
            height: 32,
            width: 32,
            channels: 3,
            labels: Some((0..10_000).map(|i| i % 10).collect()),
            class_count: 10,
            ..Dataset::default()
        },
    }
}

fn data(c: &mut Criterion) {
    let data = Arc::new(dataset());
    let mut group = c.benchmark_group("data");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, order, flip) in [("plain", Order::Plain, 0.0), ("class-balanced, flips", Order::ClassBalanced, 0.5)] {
        let config = LoaderConfig { batch: BATCH, order, flip, ..LoaderConfig::default() };
        let mut loader = Loader::new(data.clone(), config).expect("a loader");
        group.bench_function(format!("loader, {name}"), |b| {
            b.iter(|| {
                let batch = loader.next().expect("a batch");
                loader.recycle(batch);
            })
        });
    }
    group.throughput(Throughput::Bytes(data.images.len() as u64));
    group.bench_function("fingerprint", |b| b.iter(|| data.fingerprint()));
    if let Some(path) = std::env::var_os("LANGEVIN_BENCH_DATA") {
        group.throughput(Throughput::Elements(data.n as u64));
        let open = || Dataset::open(&path, &DatasetOptions::default()).expect("LANGEVIN_BENCH_DATA");
        group.bench_function("decode", |b| b.iter_batched(|| (), |()| open(), BatchSize::PerIteration));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = data
}
criterion_main!(benches);
