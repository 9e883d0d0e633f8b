//! Whole networks, one forward pass of one sample: the cases of `langevin bench`. `cargo bench --bench networks`

use criterion::{Criterion, criterion_group, criterion_main};
use langevin::Device;
use langevin::bench::session;
use langevin::methods::forward::Backward;
use std::time::Duration;

fn networks(c: &mut Criterion) {
    let mut group = c.benchmark_group("networks");
    for case in ["unet", "dit"] {
        let mut session = session(case, 1, Backward::default(), Device::auto()).expect(case);
        group.bench_function(case, |b| b.iter(|| session.run(&mut |_, _| Ok(()))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = networks
}
criterion_main!(benches);
