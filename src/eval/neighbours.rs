//! Nearest neighbours in feature space, and what is made of them. Distances are Euclidean; all pairs are looked at, a block at a
//! time by a matrix product in f32, and what decides is taken again in f64.

use super::Features;
use crate::cpu::gemm::{Epilogue, Matrix, gemm, pack_cols};
use crate::tensor::PANEL;
use crate::{Error, Result};
use rayon::prelude::*;

/// The usual k of precision, recall, density and coverage: as Naeem et al. advise.
pub const NEIGHBOURS: usize = 5;

/// Images of a block: 512 × 2048 distances are 4 MiB.
const QUERIES: usize = 512;
const CENTRES: usize = 2048;

/// Squared distances in f32 this close to a bound, in parts of the norms, are taken again in f64.
const DOUBT: f32 = 1e-4;

/// The distances from each query to its `k` nearest centres, rising: `[n, k]`.
pub fn nearest(queries: &Features, centres: &Features, k: usize) -> Result<Vec<f64>> {
    k_nearest(queries, centres, k, false)
}

/// The same within one set, an image not being its own neighbour.
pub fn nearest_others(set: &Features, k: usize) -> Result<Vec<f64>> {
    k_nearest(set, set, k, true)
}

fn k_nearest(queries: &Features, centres: &Features, k: usize, others: bool) -> Result<Vec<f64>> {
    queries.expect_same_dim(centres)?;
    let there = centres.n() - others as usize;
    if k == 0 || there < k {
        return Err(Error::invalid("images", format!("{k} nearest neighbours need more than the {there} there are")));
    }
    // Squared distance in f32 and number of the k nearest so far, rising.
    let mut best = vec![(f32::INFINITY, 0usize); queries.n() * k];
    scan(queries, centres, &mut best, |query, first, squares, _, best| {
        for (i, d) in squares.iter().enumerate() {
            if *d < best[k - 1].0 && !(others && first + i == query) {
                let at = best.partition_point(|(b, _)| b <= d);
                best[at..].rotate_right(1);
                best[at] = (*d, first + i);
            }
        }
    });
    let mut distances: Vec<f64> = best
        .par_chunks(k)
        .enumerate()
        .flat_map_iter(|(query, best)| best.iter().map(move |(_, i)| distance(queries.row(query), centres.row(*i))))
        .collect();
    distances.par_chunks_mut(k).for_each(|d| d.sort_by(f64::total_cmp));
    Ok(distances)
}

/// For each query the number of centres in whose ball it lies; `radii` has one for each centre.
fn balls_around(queries: &Features, centres: &Features, radii: &[f64]) -> Result<Vec<usize>> {
    queries.expect_same_dim(centres)?;
    let mut counts = vec![0usize; queries.n()];
    scan(queries, centres, &mut counts, |query, first, squares, doubts, count| {
        for ((i, d), doubt) in (first..).zip(squares).zip(doubts) {
            let square = (radii[i] * radii[i]) as f32;
            let inside = if (d - square).abs() > *doubt {
                *d < square
            } else {
                distance(queries.row(query), centres.row(i)) <= radii[i]
            };
            count[0] += inside as usize;
        }
    });
    Ok(counts)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>().sqrt()
}

/// Calls `visit(query, first centre, squared distances, their errors' bounds, state)` for every query and block of centres.
/// `states` holds as many for every query; queries go in parallel.
fn scan<S: Send>(
    queries: &Features,
    centres: &Features,
    states: &mut [S],
    visit: impl Fn(usize, usize, &[f32], &[f32], &mut [S]) + Sync,
) {
    let (dim, each) = (queries.dim(), states.len() / queries.n());
    // ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b loses the digits that the norms have and the distance has not: less so around the mean.
    let mean = mean(centres);
    let (queries, centres) = (centred(queries, &mean), centred(centres, &mean));
    let (query_norms, centre_norms) = (squared_norms(&queries, dim), squared_norms(&centres, dim));
    let mut packed = vec![0.0; CENTRES.next_multiple_of(PANEL) * dim];
    let mut products = vec![0.0; QUERIES * CENTRES];
    for (number, centres) in centres.chunks(CENTRES * dim).enumerate() {
        let (first, count) = (number * CENTRES, centres.len() / dim);
        let packed = &mut packed[..count.next_multiple_of(PANEL) * dim];
        pack_cols(centres, dim, count, dim, packed);
        let norms = &centre_norms[first..first + count];
        let blocks = queries.chunks(QUERIES * dim).zip(states.chunks_mut(QUERIES * each));
        for (block, (queries, states)) in blocks.enumerate() {
            let rows = queries.len() / dim;
            let products = &mut products[..rows * count];
            let epilogue = Epilogue { scale: -2.0, ..Epilogue::default() };
            gemm(&Matrix { data: queries, stride: dim }, packed, [rows, count, dim], &epilogue, products);
            let lines = products.par_chunks_mut(count).zip(states.par_chunks_mut(each)).enumerate();
            lines.for_each_init(Vec::new, |doubts: &mut Vec<f32>, (row, (squares, state))| {
                let query = block * QUERIES + row;
                let norm = query_norms[query];
                doubts.clear();
                doubts.extend(norms.iter().map(|n| DOUBT * (n + norm)));
                squares.iter_mut().zip(norms).for_each(|(s, n)| *s += n + norm);
                visit(query, first, squares, doubts, state);
            });
        }
    }
}

fn mean(set: &Features) -> Vec<f32> {
    let mut sum = vec![0.0f64; set.dim()];
    for row in set.data().chunks_exact(set.dim()) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += *v as f64);
    }
    sum.into_iter().map(|s| (s / set.n() as f64) as f32).collect()
}

fn centred(set: &Features, mean: &[f32]) -> Vec<f32> {
    set.data().chunks_exact(set.dim()).flat_map(|row| row.iter().zip(mean).map(|(v, m)| v - m)).collect()
}

fn squared_norms(data: &[f32], dim: usize) -> Vec<f32> {
    data.chunks_exact(dim).map(|row| row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() as f32).collect()
}

/// How two sets cover each other. The value of each is the mean of its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbourhood {
    /// Of each sample: 1 if it lies in the ball of some reference (Kynkäänniemi et al. 2019, equation 2).
    pub precision: Vec<f64>,
    /// Of each reference: 1 if it lies in the ball of some sample.
    pub recall: Vec<f64>,
    /// Of each sample: balls of references that it lies in, over k (Naeem et al. 2020, equation 3). May exceed 1.
    pub density: Vec<f64>,
    /// Of each reference: 1 if its ball holds some sample (equation 4).
    pub coverage: Vec<f64>,
}

/// A ball reaches to its centre's k-th nearest neighbour in its own set; `near` has the distances `[n, k]` of
/// [`nearest_others`] for the references.
pub fn neighbourhood(samples: &Features, references: &Features, near: &[f64]) -> Result<Neighbourhood> {
    let k = near.len() / references.n();
    let last = |near: &[f64]| near.chunks_exact(k).map(|d| d[k - 1]).collect::<Vec<f64>>();
    let reference_radii = last(near);
    let sample_radii = last(&nearest_others(samples, k)?);
    let around = balls_around(samples, references, &reference_radii)?;
    let share = |inside: bool| inside as usize as f64;
    let closest = nearest(references, samples, 1)?;
    Ok(Neighbourhood {
        precision: around.iter().map(|n| share(*n > 0)).collect(),
        density: around.iter().map(|n| *n as f64 / k as f64).collect(),
        recall: balls_around(references, samples, &sample_radii)?.iter().map(|n| share(*n > 0)).collect(),
        coverage: closest.iter().zip(&reference_radii).map(|(d, r)| share(d <= r)).collect(),
    })
}
