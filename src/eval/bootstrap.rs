//! Confidence intervals by resampling (Efron 1979).

use crate::Result;
use crate::cpu::philox;
use rayon::prelude::*;

/// The Philox stream of resampled indices.
const STREAM: u32 = 1 << 18;

/// A value and its 95 % interval, if one was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub interval: Option<[f64; 2]>,
}

/// Resamples images with replacement.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// 0 gives no intervals.
    pub resamples: usize,
    pub seed: u64,
}

impl Bootstrap {
    /// A statistic of `n` images, told which images to take it over, with its 95 % interval.
    ///
    /// The interval reaches from the 2.5th to the 97.5th percentile of the resampled values, moved so that their mean is the value.
    /// A resample repeats images, which adds to a Fréchet distance what a smaller set would add; without the move the
    /// interval could leave out the value itself. Resampling a mean adds nothing, and moves nothing.
    pub fn estimate(&self, n: usize, statistic: impl Fn(&[usize]) -> Result<f64> + Sync) -> Result<Estimate> {
        let all: Vec<usize> = (0..n).collect();
        let value = statistic(&all)?;
        if self.resamples == 0 {
            return Ok(Estimate { value, interval: None });
        }
        let resampled = |number: usize| statistic(&self.draw(number as u32, n));
        let mut values: Vec<f64> = (0..self.resamples).into_par_iter().map(resampled).collect::<Result<_>>()?;
        values.sort_by(f64::total_cmp);
        let shift = value - values.iter().sum::<f64>() / values.len() as f64;
        let interval = [0.025, 0.975].map(|q| quantile(&values, q) + shift);
        Ok(Estimate { value, interval: Some(interval) })
    }

    /// The mean of one number for each image.
    pub fn mean(&self, each: &[f64]) -> Result<Estimate> {
        self.estimate(each.len(), |rows| Ok(rows.iter().map(|i| each[*i]).sum::<f64>() / rows.len() as f64))
    }

    /// `n` numbers of `0..n`.
    fn draw(&self, resample: u32, n: usize) -> Vec<usize> {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let per_block = 4 * philox::LANES;
        let mut rows: Vec<usize> = (0..n.div_ceil(per_block))
            .flat_map(|b| philox::block(key, (b * philox::LANES) as u32, [resample, STREAM, 0]).into_iter().flatten())
            .map(|word| ((word as u64 * n as u64) >> 32) as usize)
            .collect();
        rows.truncate(n);
        rows
    }
}

/// The q-th quantile, q in 0..=1, of sorted numbers, linear between them.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
