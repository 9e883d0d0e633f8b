//! What passes over graphs leave of them, and that it computes the same.

use langevin::Device;
use langevin::graph::{Graph, Origin, Value};
use langevin::ops::{
    Activate, Activation, Affine, Binary, Epilogue, Gate, Geglu, LayerNorm, Linear, Random, RandomKind, Reshape, Slice,
    TimestepEmbedding, TransposeWeight,
};
use langevin::passes::fuse::{Purpose, fuse};
use langevin::passes::hoist::hoist;
use langevin::passes::invariant::split;
use langevin::passes::once::once;
use langevin::passes::turned::turned_before;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session};
use langevin::tensor::TensorType;
use std::collections::HashMap;

fn names(graph: &Graph) -> Vec<&'static str> {
    graph.nodes().iter().map(|n| n.op.name()).collect()
}

/// The outputs of a graph whose inputs hold numbers that depend on their names, and how many launches made them.
fn run(graph: &Graph) -> (Vec<Vec<f32>>, usize) {
    let mut buffers = Buffers::new();
    for (value, name) in graph.inputs() {
        buffers.declare(name, graph.ty(value).clone());
    }
    let outputs: Vec<_> =
        graph.outputs().iter().map(|(name, value)| buffers.declare(name, graph.ty(*value).clone())).collect();
    let places = buffers.clone();
    let options = Options { guard: 64 };
    let program =
        Program::compile("test", graph, Device::Cpu.target(), &mut buffers, |n| places.find(n), options).unwrap();
    let launches = program.commands.len();
    let mut schedule = Schedule::new("test", buffers);
    schedule.add(program);
    let mut session = Session::new(Device::Cpu, schedule).unwrap().poisoned();
    for (value, name) in graph.inputs() {
        let number = |i: usize| ((i * 37 + name.len() * 11) % 101) as f32 / 50.0 - 1.0;
        let data: Vec<f32> = (0..graph.ty(value).stored()).map(number).collect();
        session.write(places.find(name).unwrap(), &data).unwrap();
    }
    session.run_program(0).unwrap();
    (outputs.into_iter().map(|id| session.read::<f32>(id).unwrap()).collect(), launches)
}

#[test]
fn a_gate_goes_into_the_product_before_it() {
    let gated = |epilogue: Epilogue| {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([2, 3, 8]));
        let weight = g.input("weight", TensorType::panels([8, 16]));
        let bias = g.input("the bias", TensorType::f32([16]));
        let [gate, residual] =
            [[2, 1, 16], [2, 3, 16]].map(|shape| g.input(format!("{shape:?}"), TensorType::f32(shape)));
        let gate = g.apply(Reshape(vec![2, 16]), &[gate]).unwrap();
        let h = g.apply(Linear(epilogue), &[x, weight, bias]).unwrap();
        let y = g.apply(Gate, &[h, gate, residual]).unwrap();
        g.output("y", y);
        g
    };
    let g = gated(Epilogue { activation: Activation::Silu, ..Epilogue::bias() });
    let (fused, log) = fuse(&g, Purpose::Inference).unwrap();
    assert_eq!((names(&fused), log.len()), (vec!["reshape", "linear"], 1));
    let ((expected, _), (got, _)) = (run(&g), run(&fused));
    assert!(expected[0].iter().zip(&got[0]).all(|(e, g)| (e - g).abs() < 1e-5), "{expected:?} {got:?}");
    // Its gradient would need the product.
    assert_eq!(names(&fuse(&g, Purpose::Training).unwrap().0), ["reshape", "linear", "gate"]);
    // Another factor stands before the gate.
    let scaled = gated(Epilogue { scale: 0.5, ..Epilogue::bias() });
    assert_eq!(names(&fuse(&scaled, Purpose::Inference).unwrap().0), ["reshape", "linear", "gate"]);
}

/// A feed-forward of Stable Diffusion.
#[test]
fn a_linear_layer_and_what_its_halves_make_are_one_op() {
    let gated = |epilogue: Epilogue, twice: bool| {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([2, 3, 8]));
        let weight = g.input("weight", TensorType::panels([8, 20]));
        let mut inputs = vec![x, weight];
        inputs.extend(epilogue.bias.then(|| g.input("the bias", TensorType::f32([20]))));
        let h = g.apply(Linear(epilogue), &inputs).unwrap();
        let y = g.apply(Geglu, &[h]).unwrap();
        g.output("y", y);
        if twice {
            g.output("h", h);
        }
        g
    };
    for epilogue in [Epilogue::default(), Epilogue::bias()] {
        let g = gated(epilogue, false);
        let (fused, log) = fuse(&g, Purpose::Inference).unwrap();
        assert_eq!((names(&fused), log.len()), (vec!["linear_geglu"], 1));
        let ((expected, _), (got, _)) = (run(&g), run(&fused));
        assert!(expected[0].iter().zip(&got[0]).all(|(e, g)| (e - g).abs() < 1e-5), "{expected:?} {got:?}");
        // Its gradient would need the product.
        assert_eq!(names(&fuse(&g, Purpose::Training).unwrap().0), ["linear", "geglu"]);
        // Someone else reads the product.
        assert_eq!(names(&fuse(&gated(epilogue, true), Purpose::Inference).unwrap().0), ["linear", "geglu"]);
    }
    // Something stands between.
    for epilogue in
        [Epilogue { scale: 0.5, ..Epilogue::bias() }, Epilogue { activation: Activation::Silu, ..Epilogue::bias() }]
    {
        assert_eq!(names(&fuse(&gated(epilogue, false), Purpose::Inference).unwrap().0), ["linear", "geglu"]);
    }
}

/// What a fused op takes where it is several launches is what the ops before were to take: its input need not be there any more when it makes its output.
#[test]
fn ops_in_one_take_no_more_memory() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1, 64, 64]));
    let weight = g.input("weight", TensorType::panels([64, 256]));
    let x = g.apply(Affine::scale(2.0), &[x]).unwrap();
    let h = g.apply(Linear(Epilogue::default()), &[x, weight]).unwrap();
    let y = g.apply(Geglu, &[h]).unwrap();
    let y = g.apply(Affine::scale(2.0), &[y]).unwrap();
    g.output("y", y);
    let peak = |graph: &Graph| {
        let mut buffers = Buffers::new();
        for (value, name) in graph.inputs() {
            buffers.declare(name, graph.ty(value).clone());
        }
        for (name, value) in graph.outputs() {
            buffers.declare(name, graph.ty(*value).clone());
        }
        let places = buffers.clone();
        let find = |name: &str| places.find(name);
        // With guards no memory is lent that an output is written to later.
        let options = Options { guard: 64 };
        Program::compile("test", graph, Device::Cpu.target(), &mut buffers, find, options).unwrap().peak
    };
    let (fused, _) = fuse(&g, Purpose::Inference).unwrap();
    assert_eq!(names(&fused), ["affine", "linear_geglu", "affine"]);
    assert!(peak(&g) > 0 && peak(&fused) == peak(&g), "{} {}", peak(&g), peak(&fused));
}

/// A block of DiT: a modulation in parts, a norm and a product that take some of them.
#[test]
fn columns_are_read_where_they_lie() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 3, 8]));
    let rows = g.input("rows", TensorType::f32([2, 40]));
    let weight = g.input("weight", TensorType::panels([8, 8]));
    let parts: Vec<_> = (0..5).map(|i| g.apply(Slice { axis: 1, start: 8 * i, len: 8 }, &[rows]).unwrap()).collect();
    let norm = LayerNorm { eps: 1e-6, affine: false, modulate: true, first: [0; 2] };
    let h = g.apply(norm, &[x, parts[1], parts[4]]).unwrap();
    let h = g.apply(Linear(Epilogue::default()), &[h, weight]).unwrap();
    let y = g.apply(Gate, &[h, parts[3], x]).unwrap();
    // One part has two readers, and stays.
    let z = g.apply(norm, &[y, parts[0], parts[2]]).unwrap();
    g.output("z", z);
    g.output("part", parts[2]);
    let (fused, _) = fuse(&g, Purpose::Inference).unwrap();
    assert_eq!(names(&fused), ["slice", "slice", "layer_norm", "linear", "layer_norm"]);
    let ((expected, _), (got, _)) = (run(&g), run(&fused));
    for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
        assert!((expected - got).abs() < 1e-5, "{expected} {got}");
    }
    assert!(names(&fuse(&g, Purpose::Training).unwrap().0).ends_with(&["layer_norm", "linear", "gate", "layer_norm"]));
}

/// The embedding of time and class, and what follows on it.
#[test]
fn an_activation_behind_a_sum_goes_into_the_product_if_rows_are_samples() {
    for shape in [&[3, 8][..], &[3, 2, 8]] {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32(shape));
        let weight = g.input("weight", TensorType::panels([8, 8]));
        let other = g.input("other", TensorType::f32(shape));
        let h = g.apply(Linear(Epilogue::default()), &[x, weight]).unwrap();
        let h = g.apply(Binary::Add, &[h, other]).unwrap();
        let h = g.apply(Activate(Activation::Silu), &[h]).unwrap();
        g.output("y", h);
        let (fused, _) = fuse(&g, Purpose::Inference).unwrap();
        let wanted = if shape.len() == 2 { vec!["linear"] } else { vec!["linear", "activation"] };
        assert_eq!(names(&fused), wanted);
        let ((expected, _), (got, _)) = (run(&g), run(&fused));
        for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
            assert!((expected - got).abs() < 1e-5, "{expected} {got}");
        }
        assert_eq!(names(&fuse(&g, Purpose::Training).unwrap().0), ["linear", "activation"]);
    }
}

/// With what follows it in every network but DiT: an activation of its own before the blocks' layers.
#[test]
fn the_layers_of_a_time_are_one_op() {
    let embedding = TimestepEmbedding { dim: 6, flip_sin_to_cos: true, freq_shift: 0.0, max_period: 100.0, scale: 1.0 };
    for last in [Activation::Identity, Activation::Silu] {
        let mut g = Graph::new();
        let t = g.input("t", TensorType::f32([3]));
        let mut h = g.apply(embedding, &[t]).unwrap();
        for (i, (n, activation)) in [(6, Activation::Silu), (8, last)].into_iter().enumerate() {
            let weight = g.input(format!("weight{i}"), TensorType::panels([n, 8]));
            let bias = g.input(format!("bias{i}"), TensorType::f32([8]));
            h = g.apply(Linear(Epilogue::bias()), &[h, weight, bias]).unwrap();
            if activation != Activation::Identity {
                h = g.apply(Activate(activation), &[h]).unwrap();
            }
        }
        // Two blocks read it.
        for block in 0..2 {
            let y = g.apply(Affine::scale(2.0), &[h]).unwrap();
            g.output(format!("y{block}"), y);
        }
        let (fused, _) = fuse(&g, Purpose::Inference).unwrap();
        assert_eq!(names(&fused), ["timestep_mlp", "affine", "affine"]);
        let ((expected, _), (got, _)) = (run(&g), run(&fused));
        for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
            assert!((expected - got).abs() < 1e-5, "{expected} {got}");
        }
    }
}

#[test]
fn a_factor_behind_a_sum_goes_into_it_or_with_it_into_a_product() {
    let scaled_sum = |of_product: bool, shift: f32| {
        let mut g = Graph::new();
        let [a, b] = ["a", "b"].map(|name| g.input(name, TensorType::f32([2, 3, 8])));
        let weight = g.input("weight", TensorType::panels([8, 8]));
        let a = if of_product { g.apply(Linear(Epilogue::default()), &[a, weight]).unwrap() } else { a };
        let sum = g.apply(Binary::Add, &[b, a]).unwrap();
        let y = g.apply(Affine { scale: 0.7, shift }, &[sum]).unwrap();
        g.output("y", y);
        g
    };
    for (of_product, shift, wanted) in
        [(false, 0.0, vec!["add"]), (true, 0.0, vec!["linear"]), (false, 0.5, vec!["add", "affine"])]
    {
        let g = scaled_sum(of_product, shift);
        for purpose in [Purpose::Inference, Purpose::Training] {
            let (fused, _) = fuse(&g, purpose).unwrap();
            assert_eq!(names(&fused), wanted);
            let ((expected, _), (got, _)) = (run(&g), run(&fused));
            assert!(expected[0].iter().zip(&got[0]).all(|(e, g)| (e - g).abs() < 1e-5), "{expected:?} {got:?}");
        }
    }
}

#[test]
fn weights_that_may_be_are_transposed_before() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 24]));
    let [a, b] = ["a", "b"].map(|name| g.parameter(name, TensorType::panels([8, 24])));
    for (i, w) in [a, b, a].into_iter().enumerate() {
        let turned = g.apply(TransposeWeight { taps: 1 }, &[w]).unwrap();
        let y = g.apply(Linear(Epilogue::default()), &[x, turned]).unwrap();
        g.output(format!("y{i}"), y);
    }
    let (before, turned) = turned_before(&g, &|name| name == "a").unwrap();
    assert_eq!(names(&before), ["linear", "transpose_weight", "linear", "linear"]);
    let [turned] = &turned[..] else { panic!("{turned:?}") };
    assert_eq!((turned.of.as_str(), turned.taps, &turned.ty), ("a", 1, &TensorType::panels([24, 8])));
    let read = |i: usize| before.nodes()[i].inputs[1];
    assert_eq!(
        before.parameters().find(|(v, _)| *v == read(0)).map(|(_, name)| name.to_string()),
        Some(turned.name.clone())
    );
    assert_eq!(read(0), read(3));
    let (same, none) = turned_before(&g, &|_| false).unwrap();
    assert_eq!((names(&same), none), (names(&g), vec![]));
}

#[test]
fn what_is_made_again_is_made_once() {
    let mut g = Graph::new();
    let t = g.input("t", TensorType::f32([3]));
    let embedding =
        TimestepEmbedding { dim: 6, flip_sin_to_cos: false, freq_shift: 0.0, max_period: 100.0, scale: 1.0 };
    for (i, scale) in [2.0, 2.0, 3.0].into_iter().enumerate() {
        let e = g.apply(embedding, &[t]).unwrap();
        let e = g.apply(Activate(Activation::Silu), &[e]).unwrap();
        let e = g.apply(Affine::scale(scale), &[e]).unwrap();
        g.output(format!("y{i}"), e);
    }
    let shared = once(&g).unwrap();
    assert_eq!(names(&shared), ["timestep_embedding", "activation", "affine", "affine"]);
    assert_eq!(run(&g).0, run(&shared).0);
}

#[test]
fn what_is_small_goes_first() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 64, 8]));
    let t = g.input("t", TensorType::f32([2, 8]));
    let large = g.apply(Activate(Activation::Relu), &[x]).unwrap();
    let small = g.apply(Affine::scale(2.0), &[t]).unwrap();
    let gated = g.apply(Gate, &[large, small, x]).unwrap();
    let small = g.apply(Activate(Activation::Silu), &[small]).unwrap();
    let y = g.apply(Gate, &[gated, small, large]).unwrap();
    g.output("y", y);
    let sorted = hoist(&g).unwrap();
    assert_eq!(names(&sorted), ["affine", "activation", "activation", "gate", "gate"]);
    assert_eq!(run(&g).0, run(&sorted).0);
}

#[test]
fn random_numbers_are_drawn_again() {
    let mut g = Graph::new();
    let (seeds, draw) = (g.input("seeds", TensorType::i32([2, 2])), g.input("draw", TensorType::f32([1])));
    let noise = Random { kind: RandomKind::Normal, shape: vec![2, 4], stream: 0 };
    for name in ["a", "b"] {
        let y = g.apply(noise.clone(), &[seeds, draw]).unwrap();
        g.output(name, y);
    }
    assert_eq!(names(&once(&g).unwrap()).len(), 2);
}

/// y = the middle third of the numbers of x along an axis, twice; once more, as an output of its own.
fn middle(shape: &[usize], axis: usize) -> Graph {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32(shape));
    let x = g.apply(Affine::scale(3.0), &[x]).unwrap();
    let len = shape[axis] / 3;
    let part = g.apply(Slice { axis, start: len, len }, &[x]).unwrap();
    let y = g.apply(Affine::scale(2.0), &[part]).unwrap();
    g.output("y", y);
    g.output("part", part);
    let last = g.apply(Slice { axis, start: 2 * len, len }, &[x]).unwrap();
    let last = g.apply(Activate(Activation::Relu), &[last]).unwrap();
    let all = g.apply(Binary::Add, &[last, part]).unwrap();
    g.output("sum", all);
    g
}

#[test]
fn parts_that_lie_together_are_views() {
    for (shape, axis, more) in [
        (&[1, 192][..], 1, 1),
        (&[3, 64], 0, 1),
        (&[1, 1, 6, 32], 2, 1),
        // Between two places where an argument may begin.
        (&[1, 24], 1, 2),
        // Rows of several samples.
        (&[2, 192], 1, 2),
    ] {
        let g = middle(shape, axis);
        let (got, launches) = run(&g);
        // A part that lies within another value is copied to its buffer; one that does not is made there.
        assert_eq!(launches, 4 + more, "{shape:?}");
        let n: usize = shape.iter().product();
        let x: Vec<f32> = (0..n).map(|i| 3.0 * (((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)).collect();
        let (outer, run) = (shape[..axis].iter().product::<usize>(), n / shape[..axis].iter().product::<usize>() / 3);
        let third = |number: usize| -> Vec<f32> {
            (0..outer).flat_map(|o| x[(o * 3 + number) * run..][..run].to_vec()).collect()
        };
        let (part, last) = (third(1), third(2));
        assert_eq!(got[0], part.iter().map(|v| 2.0 * v).collect::<Vec<_>>(), "{shape:?}");
        assert_eq!(got[1], part, "{shape:?}");
        assert_eq!(got[2], last.iter().zip(&part).map(|(l, p)| l.max(0.0) + p).collect::<Vec<_>>(), "{shape:?}");
    }
}

/// An op that may run in place reads a part of a buffer, and its output is another part of it: it may not be written over what is still read.
#[test]
fn parts_of_a_buffer_are_not_written_in_place() {
    let mut buffers = Buffers::new();
    let whole = buffers.declare("x", TensorType::f32([3, 64]));
    buffers.view(whole, "start", 0, TensorType::f32([2, 64])).unwrap();
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([3, 64]));
    let part = g.apply(Slice { axis: 0, start: 1, len: 2 }, &[x]).unwrap();
    let y = g.apply(Affine::scale(2.0), &[part]).unwrap();
    g.output("start", y);
    let names = buffers.clone();
    let program =
        Program::compile("part", &g, Device::Cpu.target(), &mut buffers, |n| names.find(n), Options::default())
            .unwrap();
    for command in &program.commands {
        let [from, to] = [command.args[0], *command.args.last().unwrap()];
        let apart = from.offset + from.bytes <= to.offset || to.offset + to.bytes <= from.offset;
        assert!(from.space != to.space || from == to || apart, "{}: {from:?} over {to:?}", command.op);
    }
}

/// A turn of a loop over x that meets a text: what is made of the text alone, and of parameters, is made before.
#[test]
fn what_no_turn_changes_is_made_before_the_loop() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([6, 8]));
    let text = g.input("text", TensorType::f32([2, 3, 8]));
    let weight = g.input("weight", TensorType::panels([8, 8]));
    let rows = g.apply(Reshape(vec![6, 8]), &[text]).unwrap();
    let key = g.apply(Linear(Epilogue::default()), &[rows, weight]).unwrap();
    let scaled = g.apply(Affine::scale(0.5), &[key]).unwrap();
    // Read by the turn too, as what it is a view of.
    let y = g.apply(Binary::Add, &[x, rows]).unwrap();
    let y = g.apply(Binary::Mul, &[y, scaled]).unwrap();
    let z = g.apply(Binary::Mul, &[y, key]).unwrap();
    g.output("z", z);
    // As large as that, and sixteen times as large.
    let large = g.input("large", TensorType::f32([96, 8]));
    let large = g.apply(Affine::scale(2.0), &[large]).unwrap();
    g.output("large", large);
    let kept = |i: usize| format!("kept {i}");
    let (before, turn) = split(&g, |input| input == "x", kept).unwrap();
    let before = before.unwrap();
    assert_eq!(names(&before), ["reshape", "linear", "affine"]);
    assert_eq!(names(&turn), ["reshape", "add", "mul", "mul", "affine"]);
    let ports = |graph: &Graph| graph.inputs().map(|(_, name)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (ports(&before), ports(&turn)),
        (owned(["text", "weight"]), owned(["x", "text", "large", "kept 0", "kept 1"]))
    );

    // Both one after the other do what the whole does.
    let mut both = Graph::new();
    let mut values: HashMap<String, Value> = HashMap::new();
    for graph in [&before, &turn] {
        for (value, name) in graph.inputs() {
            let port = values.get(name.as_ref()).copied();
            let port = port.unwrap_or_else(|| both.input(name, graph.ty(value).clone()));
            values.insert(name.to_string(), port);
        }
        let bind = |origin: &Origin| match origin {
            Origin::Input(name) => values.get(name.as_ref()).copied(),
            _ => None,
        };
        let map = both.inline(graph, bind).unwrap();
        values.extend(graph.outputs().iter().map(|(name, v)| (name.to_string(), map[v.index()])));
    }
    ["z", "large"].iter().for_each(|name| both.output(name, values[*name]));
    assert_eq!(run(&both).0, run(&g).0);
    // Nothing is made before where all depends on what changes.
    let (before, turn) = split(&g, |_| true, kept).unwrap();
    assert_eq!((before.is_none(), turn.nodes().len()), (true, g.nodes().len()));
}

fn owned<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}
