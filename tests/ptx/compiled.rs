//! Kernels that NVRTC compiled, against f64 references.

use super::support::{BLOCK_SUM, MATMUL, MIXED, MMA, SAXPY, SOFTMAX, bytes, floats_at, launch, noise, words};
use half::{bf16, f16};
use langevin::ptx::{Counters, Failure, FaultKind, Launch, Memory};

#[test]
fn saxpy() {
    let (n, x) = (1000, noise(1000));
    let mut memory = Memory::new();
    let [px, py] = ["x", "y"].map(|name| memory.allocate_with(name, bytes(&x)).unwrap());
    let arguments = Launch::new([8, 1, 1], [128, 1, 1]).argument(n).argument(3f32).argument(px).argument(py);
    let counters = launch(SAXPY, "saxpy", &mut memory, &arguments).unwrap();
    for (y, x) in floats_at(&memory, py).iter().zip(&x) {
        assert_eq!(*y, 3f32.mul_add(*x, *x));
    }
    assert_eq!(counters.flops, 2 * n as u64);
    assert_eq!(counters.loads.bytes, 8 * n as u64);
    assert_eq!(counters.loads.distinct_bytes, 8 * n as u64);
    assert_eq!(counters.stores.distinct_bytes, 4 * n as u64);
    // 1000 floats are 125 sectors.
    assert_eq!((counters.loads.sectors, counters.loads.least_sectors), (250, 250));
    assert_eq!(counters.divergent_branches, 1);
}

#[test]
fn block_sum() {
    let (n, x) = (5000, noise(5000));
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let out = memory.allocate("out", 12).unwrap();
    let arguments = Launch::new([3, 1, 1], [256, 1, 1]).argument(n).argument(px).argument(out);
    launch(BLOCK_SUM, "block_sum", &mut memory, &arguments).unwrap();
    for (block, sum) in floats_at(&memory, out).iter().enumerate() {
        let expected: f64 = (0..5000).filter(|i| i / 256 % 3 == block).map(|i| f64::from(x[i])).sum();
        assert!((f64::from(*sum) - expected).abs() < 1e-4, "{sum} {expected}");
    }
}

/// Two matrices of 48 × 48 and their product through the kernel.
fn matmul(text: &str) -> Result<(f64, Counters), Failure> {
    let n = 48usize;
    let a = noise(2 * n * n);
    let (a, b) = a.split_at(n * n);
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytes(a)).unwrap();
    let pb = memory.allocate_with("b", bytes(b)).unwrap();
    let pc = memory.allocate("c", 4 * n * n).unwrap();
    let arguments = Launch::new([3, 3, 1], [16, 16, 1]).argument(n as u32).argument(pa).argument(pb).argument(pc);
    let counters = launch(text, "matmul_tiled", &mut memory, &arguments)?;
    let c = floats_at(&memory, pc);
    let exact = |i: usize, j: usize| (0..n).map(|k| f64::from(a[i * n + k]) * f64::from(b[k * n + j])).sum::<f64>();
    let errors = (0..n * n).map(|i| (f64::from(c[i]) - exact(i / n, i % n)).abs());
    Ok((errors.fold(0.0, f64::max), counters))
}

#[test]
fn matmul_in_tiles() {
    let (error, counters) = matmul(MATMUL).unwrap();
    assert!(error < 1e-5, "{error}");
    assert_eq!(counters.flops, 2 * 48 * 48 * 48);
    assert_eq!(counters.bank_conflicts, 0);
}

#[test]
fn a_missing_barrier_is_found() {
    // Each of the two barriers in the loop, taken out.
    let barriers: Vec<usize> = MATMUL.match_indices("bar.sync").map(|m| m.0).collect();
    assert_eq!(barriers.len(), 2);
    let kinds = barriers.iter().map(|at| {
        let broken = format!("{}//{}", &MATMUL[..*at], &MATMUL[*at..]);
        match matmul(&broken) {
            Err(Failure::Fault(fault)) => fault.kind,
            other => panic!("{other:?}"),
        }
    });
    let kinds: Vec<FaultKind> = kinds.collect();
    // Without the first, a warp reads what others write; without the second it writes what they still read.
    assert!(matches!(kinds[0], FaultKind::Race { here: "reads", there: "wrote", .. }), "{}", kinds[0]);
    assert!(matches!(kinds[1], FaultKind::Race { here: "writes", there: "read", .. }), "{}", kinds[1]);
}

#[test]
fn softmax_of_rows() {
    let (rows, n) = (4usize, 300usize);
    let x: Vec<f16> = noise(rows * n).iter().map(|v| f16::from_f32(8.0 * v)).collect();
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let py = memory.allocate("y", 2 * rows * n).unwrap();
    let arguments = Launch::new([rows as u32, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(py);
    launch(SOFTMAX, "softmax_row", &mut memory, &arguments).unwrap();
    let y: Vec<f16> = bytemuck::pod_collect_to_vec(memory.bytes(py).unwrap().0);
    for row in 0..rows {
        let exps: Vec<f64> = x[row * n..(row + 1) * n].iter().map(|v| v.to_f64().exp()).collect();
        let sum: f64 = exps.iter().sum();
        for (y, e) in y[row * n..].iter().zip(&exps) {
            assert!((y.to_f64() - e / sum).abs() <= 1e-3 * e / sum + 6e-8, "{y} {}", e / sum);
        }
    }
}

#[test]
fn mma_with_bf16() {
    let (m, n, k) = (32usize, 16usize, 80usize);
    let a: Vec<bf16> = noise(m * k).iter().map(|v| bf16::from_f32(*v)).collect();
    let b: Vec<bf16> = noise(k * n).iter().map(|v| bf16::from_f32(*v)).collect();
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytemuck::cast_slice(&a)).unwrap();
    let pb = memory.allocate_with("b", bytemuck::cast_slice(&b)).unwrap();
    let pc = memory.allocate("c", 4 * m * n).unwrap();
    let grid = [(n / 8) as u32, (m / 16) as u32, 1];
    let arguments =
        Launch::new(grid, [32, 1, 1]).argument(n as u32).argument(k as u32).argument(pa).argument(pb).argument(pc);
    let counters = launch(MMA, "mma_bf16", &mut memory, &arguments).unwrap();
    let c = floats_at(&memory, pc);
    for i in 0..m * n {
        let exact: f64 = (0..k).map(|j| a[i / n * k + j].to_f64() * b[j * n + i % n].to_f64()).sum();
        assert!((f64::from(c[i]) - exact).abs() < 1e-4, "{i}: {} {exact}", c[i]);
    }
    assert_eq!(counters.flops, (2 * m * n * k) as u64);
}

#[test]
fn calls_structures_and_reductions() {
    let (n, which, block) = (200usize, 2usize, 128usize);
    let x = noise(4 * n);
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let (py, pz) = (memory.allocate("y", 16 * n).unwrap(), memory.allocate("z", 16 * n).unwrap());
    let sum = memory.allocate_with("sum", &[0; 4]).unwrap();
    let count = memory.allocate_with("count", &[0; 28]).unwrap();
    // float a, int b, and a float4 at a multiple of 16.
    let mut pair = [0u32; 8];
    (pair[0], pair[1]) = (0.5f32.to_bits(), 3);
    pair[4..].copy_from_slice(&[1.0f32, 2.0, 3.0, 4.0].map(f32::to_bits));
    let arguments =
        Launch::new([2, 1, 1], [block as u32, 1, 1]).argument(n as u32).argument(px).argument(py).argument(pz);
    let mut arguments = arguments.argument(sum).argument(count).argument(which as u32).argument(pair);
    arguments.shared_bytes = 64;
    launch(MIXED, "mixed", &mut memory, &arguments).unwrap();
    let (y, z) = (floats_at(&memory, py), words(memory.bytes(pz).unwrap().0));
    let (mut total, mut above, mut positive) = (0f64, 0, 0);
    for i in 0..n {
        let v = &x[4 * i..4 * i + 4];
        let pick: f32 = (0..=which).map(|k| v[0] * ((k * 3 + which) % 7) as f32).sum();
        let horner = (0..which + i % block % 3).fold(0f32, |s, _| s.mul_add(v[1], 1.0));
        let expected = [pick, horner, v[2] * 3.0, v[3] + 1.5 + 6.0 + 2.0];
        for (y, e) in y[4 * i..4 * i + 4].iter().zip(expected) {
            assert!((y - e).abs() < 1e-5, "{i}: {y} {e}");
        }
        assert_eq!(z[4 * i..4 * i + 4], [(i % block) as u32, i as u32, u32::MAX, y[4 * i].to_bits()]);
        total += f64::from(y[4 * i + 3]);
        above += u32::from(y[4 * i] > 0.5);
        positive += u32::from(i < block && y[4 * i + 1] > 1.0);
    }
    assert!((f64::from(floats_at(&memory, sum)[0]) - total).abs() < 1e-2);
    assert_eq!(words(memory.bytes(count).unwrap().0), [above, 96, 5, positive, 0, 1, 5]);
}
