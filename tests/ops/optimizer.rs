use crate::harness::{Case, Tensor, f32s, noise, relative};
use langevin::Device;
use langevin::graph::Graph;
use langevin::ops::{GradNorm, Optimizer, OptimizerKind, power_ema_decay, power_ema_gamma};
use langevin::schedule::{Buffers, Options, Program, Rows, Schedule, Session};
use langevin::tensor::TensorType;

/// The published algorithms, literally, in f64.
fn reference(kind: OptimizerKind, emas: usize, i: &[Tensor]) -> Vec<Tensor> {
    let h = &i[4 + emas].data;
    let (lr, b1, b2, eps, decay, t, scale, max_norm) = (h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]);
    let norm = i[5 + emas].data[0];
    let mut out: Vec<Tensor> = [0, 2, 3].into_iter().chain(4..4 + emas).map(|k| i[k].clone()).collect();
    if !norm.is_finite() {
        return out;
    }
    let clip = if max_norm > 0.0 { (max_norm / (scale * norm + 1e-6)).min(1.0) } else { 1.0 };
    for k in 0..i[0].data.len() {
        let mut p = i[0].data[k];
        let mut g = i[1].data[k] * scale * clip;
        if kind == OptimizerKind::AdamW {
            p -= lr * decay * p;
        } else {
            g += decay * p;
        }
        let m = b1 * i[2].data[k] + (1.0 - b1) * g;
        let v = b2 * i[3].data[k] + (1.0 - b2) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - b1.powf(t)), v / (1.0 - b2.powf(t)));
        if kind == OptimizerKind::RAdam {
            let limit = 2.0 / (1.0 - b2) - 1.0;
            let rho = limit - 2.0 * t * b2.powf(t) / (1.0 - b2.powf(t));
            if rho > 5.0 {
                let r = ((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho)).sqrt();
                p -= lr * m_hat * r * (1.0 - b2.powf(t)).sqrt() / (v.sqrt() + eps);
            } else {
                p -= lr * m_hat;
            }
        } else {
            p -= lr * m_hat / (v_hat.sqrt() + eps);
        }
        (out[0].data[k], out[1].data[k], out[2].data[k]) = (p, m, v);
        for e in 0..emas {
            let a = out[3 + e].data[k];
            out[3 + e].data[k] = a + (1.0 - h[8 + e]) * (p - a);
        }
    }
    out
}

const KINDS: [OptimizerKind; 3] = [OptimizerKind::AdamW, OptimizerKind::Adam, OptimizerKind::RAdam];

#[test]
fn one_step_from_any_state() {
    for kind in KINDS {
        for emas in 0..=Optimizer::MAX_EMAS {
            for n in [1, 15, 16, 50, 20_000] {
                for (step, max_norm) in [(1.0, 0.0), (3.0, 0.5), (700.0, 1e9)] {
                    let hyper: Vec<f64> =
                        [1e-2, 0.9, 0.99, 1e-3, 0.1, step, 0.5, max_norm, 0.9, 0.5, 0.99, 0.0][..8 + emas].to_vec();
                    let mut inputs = vec![f32s(&[n], 1), f32s(&[n], 2), f32s(&[n], 3), f32s(&[n], 4).map(f64::abs)];
                    inputs.extend((0..emas).map(|e| f32s(&[n], 5 + e as u64)));
                    let mut h = f32s(&[8 + emas], 1);
                    h.data = hyper.iter().map(|v| *v as f32 as f64).collect();
                    inputs.extend([h, f32s(&[1], 1).map(|_| 3.0)]);
                    let op = Optimizer { kind, emas };
                    let case =
                        Case::new(format!("{op:?} {n} {step} {max_norm}"), op, inputs, |i| reference(kind, emas, i));
                    Case { bound: 1e-6, ..case }.forward_only().check();
                }
            }
        }
    }
}

/// A schedule that updates buffers in place, its hyperparameters from the rows.
struct Training {
    session: Session,
    emas: usize,
}

const STATE: [&str; 5] = ["params", "grads", "m", "v", "ema0"];

fn training(kind: OptimizerKind, n: usize, rows: Vec<f32>) -> Training {
    let emas = 1;
    let mut g = Graph::new();
    let state = STATE.map(|name| g.input(name, TensorType::f32([n])));
    let hyper = g.input("hyper", TensorType::f32([9]));
    let norm = g.apply(GradNorm, &[state[1]]).unwrap();
    let inputs = [&state[..], &[hyper, norm]].concat();
    let outs = g.apply_all(Optimizer { kind, emas }, &inputs).unwrap();
    let mut buffers = Buffers::new();
    for name in STATE {
        buffers.declare(name, TensorType::f32([n]));
    }
    let row = buffers.declare("hyper", TensorType::f32([9]));
    for (name, v) in ["params", "m", "v", "ema0"].into_iter().zip(outs) {
        g.output(format!("{name}'"), v);
    }
    let ids = buffers.clone();
    let bind = |name: &str| ids.find(name.trim_end_matches('\''));
    let program =
        Program::compile("update", &g, Device::Cpu.target(), &mut buffers, bind, Options { guard: 64 }).unwrap();
    assert!(program.commands.iter().all(|c| c.op != "copy"), "the optimiser must write its buffers directly");
    let mut schedule = Schedule::new("training", buffers);
    schedule.add(program);
    schedule.rows = Rows { columns: 9, data: rows };
    schedule.row = Some(row);
    Training { session: Session::new(Device::Cpu, schedule).unwrap(), emas }
}

impl Training {
    fn get(&mut self, name: &str) -> Vec<f64> {
        let id = self.session.schedule().buffers.find(name).unwrap();
        self.session.read::<f32>(id).unwrap().iter().map(|v| *v as f64).collect()
    }

    fn set(&mut self, name: &str, data: &[f64]) {
        let id = self.session.schedule().buffers.find(name).unwrap();
        self.session.write(id, &data.iter().map(|v| *v as f32).collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn many_steps_in_place_with_clipping() {
    let (n, steps) = (20_003, 12);
    for kind in KINDS {
        let hyper = |t: usize| {
            let clip = if t.is_multiple_of(3) { 0.0 } else { 0.7 };
            [1e-2 / t as f32, 0.9, 0.95, 1e-4, 0.05, t as f32, 0.25, clip, power_ema_decay(t as u64, 6.94) as f32]
        };
        let mut t = training(kind, n, (1..=steps).flat_map(hyper).collect());
        let mut state: Vec<Tensor> = STATE.iter().map(|_| Tensor::zeros([n])).collect();
        state[0] = Tensor::new([n], noise(n, 1));
        t.set("params", &state[0].data);
        for step in 1..=steps {
            let grads = noise(n, 100 + step as u64);
            t.set("grads", &grads);
            t.session.load_row(step - 1).unwrap();
            t.session.run_program(0).unwrap();
            let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
            state[1] = Tensor::new([n], grads);
            let row = Tensor::new([9], hyper(step).iter().map(|v| *v as f64).collect());
            let inputs = [&state[..], &[row, Tensor::new([1], vec![norm])]].concat();
            let out = reference(kind, t.emas, &inputs);
            for (to, out) in [0, 2, 3, 4].into_iter().zip(out) {
                state[to] = out;
            }
            for (name, expected) in STATE.iter().zip(&state) {
                let err = relative(&t.get(name), &expected.data);
                assert!(err < 2e-6, "{kind:?} step {step}: {name} is off by {err:.1e}");
            }
        }
        // The first decay is zero: the average starts as a copy of the parameters.
        assert_eq!(power_ema_decay(1, 6.94), 0.0);
        // A gradient that is not finite leaves everything as it is.
        let before: Vec<Vec<f64>> = STATE.iter().map(|s| t.get(s)).collect();
        let mut grads = before[1].clone();
        grads[n / 2] = f64::NAN;
        t.set("grads", &grads);
        t.session.run_program(0).unwrap();
        for (k, name) in STATE.iter().enumerate().filter(|(k, _)| *k != 1) {
            assert_eq!(t.get(name), before[k], "{name}");
        }
    }
}

#[test]
fn a_step_is_left_out_where_outputs_are_elsewhere_too() {
    for n in [5, 20_000] {
        let hyper = f32s(&[9], 1);
        let inputs = (0..5).map(|k| f32s(&[n], k)).chain([hyper, f32s(&[1], 1).map(|_| f64::INFINITY)]).collect();
        let op = Optimizer { kind: OptimizerKind::Adam, emas: 1 };
        Case::new("no update", op, inputs, |i| reference(OptimizerKind::Adam, 1, i)).forward_only().check();
    }
}

#[test]
fn grad_norm() {
    for n in [1, 17, 65_536, 300_001] {
        let case = Case::new(format!("grad_norm {n}"), GradNorm, vec![f32s(&[n], 1)], |i| {
            vec![Tensor::new([1], vec![i[0].data.iter().map(|v| v * v).sum::<f64>().sqrt()])]
        });
        Case { bound: 3e-7, ..case }.forward_only().check();
    }
}

#[test]
fn power_function_averages() {
    // Karras et al. 2024, section 3.1: σ_rel of 0.05 and 0.10 are γ of 16.97 and 6.94.
    assert!((power_ema_gamma(0.05).unwrap() - 16.97).abs() < 0.005);
    assert!((power_ema_gamma(0.10).unwrap() - 6.94).abs() < 0.005);
    assert!(power_ema_gamma(0.5).is_err() && power_ema_gamma(0.0).is_err() && power_ema_gamma(f64::NAN).is_err());
    // The average of t^γ weights, by its definition.
    let (gamma, mut average, mut weights) = (6.94, 0.0, 0.0);
    let mut running = 0.0;
    for t in 1..=50u64 {
        let x = (t as f64 * 0.37).sin();
        let b = power_ema_decay(t, gamma);
        running = b * running + (1.0 - b) * x;
        let w = (t as f64).powf(gamma + 1.0) - (t as f64 - 1.0).powf(gamma + 1.0);
        average += w * x;
        weights += w;
    }
    assert!((running - average / weights).abs() < 1e-12);
}
