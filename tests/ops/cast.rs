use crate::harness::{f32s, run_graph};
use half::f16;
use langevin::graph::{Graph, Target};
use langevin::ops::{Activate, Activation, Affine, Cast};
use langevin::schedule::{Options, Schedule};
use langevin::tensor::{DType, TensorType};
use langevin::{Device, Error};

/// There and back, on the CPU: exactly what rounding to the nearest gives, in every layout, for stretches of all threads.
#[test]
fn casts_round() {
    let weight = TensorType::panels([5, 19]);
    for ty in [TensorType::f32([7]), TensorType::f32([3, 1 << 14]), weight] {
        let mut g = Graph::new();
        let x = g.input("x", ty.clone());
        let x = g.apply(Affine::scale(1.0), &[x]).unwrap();
        let short = g.apply(Cast(DType::F16), &[x]).unwrap();
        assert_eq!(g.ty(short), &TensorType { dtype: DType::F16, ..ty.clone() });
        let back = g.apply(Cast(DType::F32), &[short]).unwrap();
        g.output("y", back);
        let data = f32s(&ty.shape, 5).map(|v| 100.0 * v).data;
        let schedule = Schedule::once("cast", &g, Target::Cpu, Options::default()).unwrap();
        let mut session = langevin::schedule::Session::new(Device::Cpu, schedule).unwrap();
        let [x, y] = ["x", "y"].map(|name| session.schedule().buffers.find(name).unwrap());
        let stored: Vec<f32> = (0..ty.stored()).map(|i| data[i % data.len()] as f32).collect();
        session.write(x, &stored).unwrap();
        session.run(&mut |_, _| Ok(())).unwrap();
        let rounded: Vec<f32> = stored.iter().map(|v| f16::from_f32(*v).to_f32()).collect();
        assert_eq!(session.read::<f32>(y).unwrap(), rounded);
    }
}

/// What f16 holds exactly is still the same after it went there and back.
#[test]
fn what_f16_holds_is_kept() {
    let data: Vec<f64> =
        [0.0, -1.5, 65504.0, 6.1e-5, 1.0 / 3.0, -2048.0, 7.0].map(|v| f16::from_f64(v).to_f64()).into();
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([7]));
    let short = g.apply(Cast(DType::F16), &[x]).unwrap();
    let back = g.apply(Cast(DType::F32), &[short]).unwrap();
    g.output("y", back);
    assert_eq!(run_graph(&g, &[("x".into(), data.clone())])["y"], data);
}

#[test]
fn other_types_are_refused() {
    let mut g = Graph::new();
    let labels = g.input("labels", TensorType::i32([2]));
    let x = g.input("x", TensorType::f32([2]));
    assert!(matches!(g.apply(Cast(DType::F16), &[labels]), Err(Error::Shape { .. })));
    assert!(matches!(g.apply(Cast(DType::F32), &[x]), Err(Error::Shape { .. })));
    let short = g.apply(Cast(DType::F16), &[x]).unwrap();
    assert!(matches!(g.apply(Cast(DType::Bf16), &[short]), Err(Error::Shape { .. })));
}

/// The CPU device computes in f32: it says so, and what to do.
#[test]
fn the_cpu_device_refuses_f16() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType { dtype: DType::F16, ..TensorType::f32([4]) });
    let y = g.apply(Activate(Activation::Silu), &[x]).unwrap();
    g.output("y", y);
    let refused = Schedule::once("f16", &g, Target::Cpu, Options::default()).unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    for word in ["activation", "f16", "cpu", "as f32"] {
        assert!(refused.to_string().contains(word), "{refused}");
    }
}
