//! The kernel lab: ops with the shapes of networks, checked, counted and timed; kernels that stand in for others.

use langevin::device::ptx::parameter_bytes;
use langevin::graph::{Kernel, Scalar, Target};
use langevin::lab::{cases, check, count, models, time};
use langevin::tensor::DType;
use langevin::{Device, Error};
use std::process::{Command, Output};

fn langevin(line: &str) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_langevin")).args(line.split(' ')).output();
    output.expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every network gives shapes, for inference and for training, and each of them once.
#[test]
fn networks_give_shapes() {
    for (model, _) in models() {
        for training in [false, true] {
            let found = cases(model, 2, training).unwrap_or_else(|e| panic!("{model}: {e}"));
            assert!(found.len() > 3, "{model} gives {} cases", found.len());
            let mut words: Vec<String> = found.iter().map(|c| format!("{:?} {:?}", c.op, c.io)).collect();
            words.sort();
            words.dedup();
            assert_eq!(words.len(), found.len(), "{model} gives a case twice");
        }
    }
    let sd15 = cases("sd15", 1, false).unwrap();
    let attention: Vec<String> = sd15.iter().filter(|c| c.op.name() == "attention").map(|c| c.shapes()).collect();
    assert!(attention.iter().any(|s| s.contains("4096")), "{attention:?}");
    assert!(matches!(cases("sd16", 1, false), Err(Error::Invalid { .. })));
}

/// Every op of every network, small batches and large, has launches that a GPU takes: grid, block, shared memory, sizes of 32 bits.
#[test]
fn launches_are_within_a_gpus_limits() {
    for (model, _) in models() {
        for (batch, training) in [(1, false), (64, false), (8, true)] {
            for case in cases(model, batch, training).unwrap() {
                for compute in [(8, 0), (9, 0)] {
                    let target = Device::ptx(compute).target();
                    for launch in case.op.lower(&case.io, &target).unwrap_or_else(|e| panic!("{model}: {e}")) {
                        let what = format!("{model}, {}: {:?}", case.shapes(), launch.kernel);
                        let (Kernel::Ptx(ptx), Target::Cuda(limits)) = (&launch.kernel, target) else {
                            panic!("{what}")
                        };
                        let [x, y, z] = launch.grid;
                        assert!(
                            x > 0 && x < 1 << 31 && y > 0 && y < 1 << 16 && z > 0 && z < 1 << 16,
                            "{what}: {:?}",
                            launch.grid
                        );
                        assert!(
                            (1..=1024).contains(&launch.block.iter().product::<u32>()),
                            "{what}: {:?}",
                            launch.block
                        );
                        assert!(ptx.shared_bytes <= limits.shared_bytes, "{what}: {} bytes", ptx.shared_bytes);
                        let fits = |s: &Scalar| !matches!(s, Scalar::Int(n) if u32::try_from(*n).is_err());
                        assert!(launch.scalars.iter().all(fits), "{what}: {:?}", launch.scalars);
                        let declared =
                            parameter_bytes(ptx.file.text, &ptx.entry).unwrap_or_else(|| panic!("{what}: no entry"));
                        let given = [vec![8; launch.args.len()], vec![4; launch.scalars.len()]].concat();
                        assert_eq!(given, declared, "{what}");
                    }
                }
            }
        }
    }
}

/// All ops of the tiny networks' training steps agree with the processor's on the ptx device, in every type that they take.
#[test]
fn kernels_of_tiny_networks_are_right() {
    let device = Device::ptx((8, 0));
    for model in ["tiny-unet", "tiny-dit"] {
        for training in [false, true] {
            for case in cases(model, 1, training).unwrap() {
                for dtype in [DType::F32, DType::F16, DType::Bf16] {
                    let what = format!("{} in {dtype}, {}", case.op.name(), case.shapes());
                    let Some(parity) = check(&case, &device, dtype).unwrap_or_else(|e| panic!("{what}: {e}")) else {
                        assert_ne!(dtype, DType::F32, "{what} is not checked");
                        continue;
                    };
                    assert!(parity.holds(), "{what}: {parity:?}");
                }
            }
        }
    }
}

/// On the ptx device kernels are counted, elsewhere they are timed.
#[test]
fn kernels_are_counted_and_timed() {
    let all = cases("tiny-dit", 1, false).unwrap();
    let case = all.iter().find(|c| c.op.name() == "activation").unwrap();
    let counted = count(case, &Device::ptx((8, 0)), DType::F32).unwrap().unwrap();
    assert_eq!(counted.len(), 1);
    assert!(counted[0].0.contains("activation_f32") && counted[0].1.issued() > 0, "{counted:?}");
    // 48 numbers are read once and written once.
    assert_eq!((counted[0].1.loads.distinct_bytes, counted[0].1.stores.distinct_bytes), (192, 192));
    assert!(matches!(count(case, &Device::Cpu, DType::F32), Err(Error::Unsupported { .. })));
    let timing = time(case, &Device::Cpu, DType::F32, 3).unwrap().unwrap();
    assert!(timing.ms_min > 0.0 && timing.ms_min <= timing.ms_median && timing.copy_gbps > 0.0);
    assert!(time(case, &Device::Cpu, DType::Bf16, 1).unwrap().is_none());
}

/// A kernel in the place of another one is run, and if it is wrong it is found out.
#[test]
fn kernels_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.ptx");
    let line = format!("kernels check activation --dtype f32 --replace activation={}", file.display());
    let own = include_str!("../kernels/ptx/sm_80/activation.ptx");
    let fails = |words: &[&str]| {
        let output = langevin(&line);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        words.iter().for_each(|word| assert!(text(&output.stderr).contains(word), "{word}: {}", text(&output.stderr)));
    };
    fails(&["mine.ptx"]);
    std::fs::write(&file, own).unwrap();
    let output = langevin(&line);
    assert!(output.status.success() && text(&output.stdout).starts_with("ok"), "{output:?}");

    // Every 1.0 becomes 1.5: also that of the sigmoid's denominator.
    let wrong = own.replace("0f3F800000", "0f3FC00000");
    assert_ne!(wrong, own);
    std::fs::write(&file, wrong).unwrap();
    fails(&["activation in f32", "element", "output 0"]);
    std::fs::write(&file, own.replace(".version 8.0", ".version 9.9")).unwrap();
    fails(&["activation", "PTX 9.9 is newer"]);
    std::fs::write(&file, own.replace(".target sm_80", ".target sm_999")).unwrap();
    fails(&["sm_999"]);
    std::fs::write(&file, own.replace("activation_f32", "activation_f64")).unwrap();
    fails(&["no entry `activation_f32`"]);
    std::fs::write(&file, include_str!("../kernels/ptx/sm_80/binary.ptx").replace("add_f32", "activation_f32"))
        .unwrap();
    fails(&["`activation_f32` takes 5 arguments", "4 were given"]);
    let wide = own.replace(".u32 activation_f32_param_2", ".u64 activation_f32_param_2");
    assert_ne!(wide, own);
    std::fs::write(&file, wide).unwrap();
    fails(&["activation_f32_param_2", "takes 8"]);
    std::fs::write(&file, "this is no PTX").unwrap();
    fails(&["line 1"]);

    for (option, words) in [
        ("activation", "KERNEL=FILE"),
        ("activation=kernel.cu", ".ptx nor in .wgsl"),
        ("actvation=kernels/ptx/sm_80/activation.ptx", "nothing that ran has a kernel `actvation`"),
    ] {
        let output = langevin(&format!("kernels check activation --dtype f32 --replace {option}"));
        assert!(text(&output.stderr).contains(words), "{option}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{option}");
    }
}

#[test]
fn the_lab_has_a_command_line() {
    let output = langevin("kernels list attention --model sd15");
    assert!(output.status.success() && text(&output.stdout).contains("4096"), "{output:?}");
    let output = langevin("kernels bench activation --dtype f32 --json");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["launches"][0]["counters"]["issued"].as_u64().unwrap() > 0, "{json}");
    let output = langevin("kernels bench activation --dtype f32 --device cpu --runs 1");
    assert!(text(&output.stdout).contains("of copy"), "{output:?}");
    for (line, word) in [
        ("kernels check nothing", "no op or kernel"),
        ("kernels check --model sd16", "sd16"),
        ("kernels check --batch 0", "--batch"),
        ("kernels check --dtype f64", "f64"),
        ("kernels check --device abacus", "abacus"),
    ] {
        let output = langevin(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(text(&output.stderr).contains(word), "{line}: {}", text(&output.stderr));
    }
}
