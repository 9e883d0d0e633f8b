//! The ops that share tokens out among experts.

use crate::harness::{Case, Tensor, f32s, i32s, panels};
use langevin::graph::Graph;
use langevin::ops::{
    CombineTokens, DispatchTokens, ExpertLinear, ExpertLinearWeightGrad, GroupByExpert, Route, Routing,
};
use langevin::tensor::TensorType;

fn order(scores: &[f64], routing: Routing) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| match routing {
        Routing::Top => scores[*b].partial_cmp(&scores[*a]).unwrap(),
        Routing::Bottom => scores[*a].partial_cmp(&scores[*b]).unwrap(),
    });
    order
}

fn route_reference(op: Route, logits: &Tensor) -> Vec<Tensor> {
    let [tokens, count] = logits.shape[..] else { panic!() };
    let (mut weights, mut experts) = (vec![], vec![]);
    for row in logits.data.chunks_exact(count) {
        let sum: f64 = row.iter().map(|l| l.exp()).sum();
        let best = &order(row, op.routing)[..op.chosen];
        let scores: Vec<f64> = best.iter().map(|e| row[*e].exp() / sum).collect();
        let divisor = if op.normalize { scores.iter().sum() } else { 1.0 };
        weights.extend(scores.iter().map(|s| s / divisor));
        experts.extend(best.iter().map(|e| *e as f64));
    }
    vec![Tensor::new([tokens, op.chosen], weights), Tensor::new([tokens, op.chosen], experts)]
}

#[test]
fn route() {
    for (tokens, count, chosen) in [(1, 1, 1), (5, 8, 2), (3, 3, 3), (67, 13, 4), (3, 71, 5)] {
        for (routing, normalize) in [(Routing::Top, false), (Routing::Bottom, false), (Routing::Bottom, true)] {
            let op = Route { chosen, routing, normalize };
            // Far enough from each other that a finite difference changes no choice.
            let mut logits = f32s(&[tokens, count], 1).map(|v| 0.01 * v);
            logits.data.iter_mut().enumerate().for_each(|(i, v)| *v += ((i * 7 + i / count * 3) % count) as f64 * 0.25);
            Case::new(format!("{op:?} of {tokens}x{count}"), op, vec![logits.map(|v| v)], |i| {
                route_reference(op, &i[0])
            })
            .check();
        }
    }
}

#[test]
fn of_equal_scores_the_first_counts() {
    for routing in [Routing::Top, Routing::Bottom] {
        let op = Route { chosen: 3, routing, normalize: false };
        let logits = f32s(&[200, 9], 1).map(|v| (v * 2.0).round() / 2.0);
        Case::new(format!("ties {routing:?}"), op, vec![logits], |i| route_reference(op, &i[0])).forward_only().check();
        let equal = f32s(&[2, 9], 1).map(|_| 0.5);
        Case::new("all equal", op, vec![equal], |_| {
            let first = Tensor::new([2, 3], [0.0, 1.0, 2.0].repeat(2));
            vec![Tensor::new([2, 3], vec![1.0 / 9.0; 6]), first]
        })
        .forward_only()
        .check();
    }
}

/// Experts of pairs: spread, all to the last, all to the first, none to the lower half.
fn choices(pairs: usize, experts: usize) -> Vec<Vec<i32>> {
    let spread = (0..pairs).map(|i| ((i * 7 + i / 3) % experts) as i32).collect();
    let last = vec![experts as i32 - 1; pairs];
    let first = vec![0; pairs];
    let upper = (0..pairs).map(|i| (experts / 2 + i % (experts - experts / 2)) as i32).collect();
    vec![spread, last, first, upper]
}

/// Order, places, offsets.
fn group(experts: &[i32], count: usize) -> [Vec<i32>; 3] {
    let mut order: Vec<i32> = (0..experts.len() as i32).collect();
    order.sort_by_key(|pair| experts[*pair as usize]);
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, pair)| places[*pair as usize] = place as i32);
    let offsets = (0..=count as i32).map(|e| experts.iter().filter(|x| **x < e).count() as i32).collect();
    [order, places, offsets]
}

fn ints(data: &[i32], shape: &[usize]) -> Tensor {
    Tensor::new(shape, data.iter().map(|v| *v as f64).collect())
}

#[test]
fn group_by_expert() {
    for (tokens, chosen, count) in [(1, 1, 1), (5, 2, 8), (300, 3, 7), (1000, 1, 2), (5000, 2, 9)] {
        for experts in choices(tokens * chosen, count) {
            let [order, places, offsets] = group(&experts, count);
            let input = i32s(&[tokens, chosen], &experts);
            Case::new(format!("{tokens}x{chosen} to {count}"), GroupByExpert { experts: count }, vec![input], |_| {
                let all = [ints(&order, &[tokens * chosen]), ints(&places, &[tokens, chosen])];
                all.into_iter().chain([ints(&offsets, &[count + 1])]).collect()
            })
            .forward_only()
            .check();
        }
    }
    // What is no expert goes to the last.
    Case::new("strangers", GroupByExpert { experts: 2 }, vec![i32s(&[4, 1], &[9, 0, -1, 1])], |_| {
        vec![ints(&[1, 0, 2, 3], &[4]), ints(&[1, 0, 2, 3], &[4, 1]), ints(&[0, 1, 4], &[3])]
    })
    .forward_only()
    .check();
}

#[test]
fn tokens_go_and_come_back() {
    for (tokens, chosen, width, count) in [(1, 1, 1, 1), (5, 2, 3, 4), (4, 3, 17, 5), (9, 1, 32, 2)] {
        for experts in choices(tokens * chosen, count) {
            let [order, places, _] = group(&experts, count);
            for weighted in [false, true] {
                let name = format!("{tokens}x{chosen} of {width}, weighted: {weighted}");
                let inputs = |rows: usize| {
                    let mut inputs = vec![f32s(&[rows, width], 1), i32s(&[tokens * chosen], &order)];
                    inputs.push(i32s(&[tokens, chosen], &places));
                    if weighted {
                        inputs.push(f32s(&[tokens, chosen], 2));
                    }
                    inputs
                };
                let weight = |i: &[Tensor], pair: usize| if weighted { i[3].data[pair] } else { 1.0 };
                Case::new(format!("dispatch {name}"), DispatchTokens { weighted }, inputs(tokens), |i| {
                    let of = |pair: i32| {
                        let (pair, i) = (pair as usize, &i);
                        (0..width).map(move |c| weight(i, pair) * i[0].data[pair / chosen * width + c])
                    };
                    vec![Tensor::new([tokens * chosen, width], order.iter().flat_map(|p| of(*p)).collect())]
                })
                .check();
                Case::new(format!("combine {name}"), CombineTokens { weighted }, inputs(tokens * chosen), |i| {
                    let mut y = Tensor::zeros([tokens, width]);
                    for (pair, place) in places.iter().enumerate() {
                        for c in 0..width {
                            y.data[pair / chosen * width + c] +=
                                weight(i, pair) * i[0].data[*place as usize * width + c];
                        }
                    }
                    vec![y]
                })
                .check();
            }
        }
    }
}

/// Rows of each expert.
const GROUPS: [&[i32]; 4] = [&[1], &[3, 0, 5, 2], &[0, 0, 11], &[9, 0]];

fn offsets(groups: &[i32]) -> Vec<i32> {
    let mut sum = 0;
    std::iter::once(0).chain(groups.iter().map(|n| *(sum += n, &sum).1)).collect()
}

/// The slot of the weight that row `r` meets.
fn slot(offsets: &[i32], r: usize, reversed: bool) -> usize {
    let e = (0..offsets.len() - 1).find(|e| (r as i32) < offsets[e + 1]).unwrap();
    if reversed { offsets.len() - 2 - e } else { e }
}

fn linear_reference(i: &[Tensor], at: &[i32], reversed: bool) -> Vec<Tensor> {
    let ([rows, k], n) = ([i[0].shape[0], i[0].shape[1]], i[1].shape[2]);
    let mut y = Tensor::zeros([rows, n]);
    for r in 0..rows {
        let e = slot(at, r, reversed);
        for c in 0..n {
            y.data[r * n + c] = (0..k).map(|l| i[0].data[r * k + l] * i[1].data[(e * k + l) * n + c]).sum();
        }
    }
    vec![y]
}

#[test]
fn expert_linear() {
    for groups in GROUPS {
        let (at, experts) = (offsets(groups), groups.len());
        let rows = *at.last().unwrap() as usize;
        for (k, n) in [(1, 1), (5, 7), (17, 16), (4, 33)] {
            for reversed in [false, true] {
                let inputs = vec![f32s(&[rows, k], 1), panels(&[experts, k, n], 2), i32s(&[experts + 1], &at)];
                Case::new(format!("{groups:?} {k}x{n}"), ExpertLinear { reversed }, inputs, |i| {
                    linear_reference(i, &at, reversed)
                })
                .check();
            }
        }
    }
}

/// More rows than a tile has, on every side of its edges.
#[test]
fn large_expert_linear_and_weight_grad() {
    let groups = [64, 0, 1, 130, 300, 65];
    let (at, experts, k, n) = (offsets(&groups), 6, 70, 130);
    let rows = *at.last().unwrap() as usize;
    let inputs = vec![f32s(&[rows, k], 1), panels(&[experts, k, n], 2), i32s(&[experts + 1], &at)];
    let op = ExpertLinear::default();
    Case::new("large", op, inputs, |i| linear_reference(i, &at, false)).forward_only().check();
    let (shape, reversed) = (vec![experts, k, n], false);
    let inputs = vec![f32s(&[rows, k], 1), f32s(&[rows, n], 2), i32s(&[experts + 1], &at)];
    Case::new("large weight grad", ExpertLinearWeightGrad { shape, reversed }, inputs, |i| {
        let mut w = Tensor::zeros([experts, k, n]);
        for r in 0..rows {
            let e = slot(&at, r, false);
            for l in 0..k {
                for c in 0..n {
                    w.data[(e * k + l) * n + c] += i[0].data[r * k + l] * i[1].data[r * n + c];
                }
            }
        }
        vec![w]
    })
    .forward_only()
    .check();
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut g = Graph::new();
    let f = |g: &mut Graph, shape: &[usize]| g.input(format!("f{shape:?}"), TensorType::f32(shape));
    let i = |g: &mut Graph, shape: &[usize]| g.input(format!("i{shape:?}"), TensorType::i32(shape));
    let logits = f(&mut g, &[4, 3]);
    for chosen in [0, 4] {
        assert!(g.apply_all(Route { chosen, routing: Routing::Top, normalize: false }, &[logits]).is_err());
    }
    let experts = i(&mut g, &[4, 2]);
    assert!(g.apply_all(GroupByExpert { experts: 0 }, &[experts]).is_err());
    let (order, short) = (i(&mut g, &[8]), i(&mut g, &[7]));
    assert!(g.apply(DispatchTokens { weighted: false }, &[logits, order, experts]).is_ok());
    assert!(g.apply(DispatchTokens { weighted: false }, &[logits, short, experts]).is_err());
    assert!(g.apply(CombineTokens { weighted: false }, &[logits, order, experts]).is_err());
    let (weight, one) = (g.input("w", TensorType::panels([7, 3, 5])), i(&mut g, &[1]));
    assert!(g.apply(ExpertLinear::default(), &[logits, weight, order]).is_ok());
    for wrong in [short, one, experts] {
        assert!(g.apply(ExpertLinear::default(), &[logits, weight, wrong]).is_err());
    }
}
