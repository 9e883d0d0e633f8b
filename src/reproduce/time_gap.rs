//! Part `time-gap`: does the gap between an early and a later checkpoint point where the later one has still to go? (Appendix E.1 of
//! the paper.)

use super::cifar::{STRONG, cars_and_horses, train_on};
use super::noise::normals;
use super::plots::{Axes, lines};
use super::report::{Cell, Finding, Picture, Section, Table};
use super::{Event, Part, Request, Watch};
use crate::data::Dataset;
use crate::eval::Bootstrap;
use crate::methods::forward::forward;
use crate::model::Model;
use crate::nn::InputSpec;
use crate::schedule::{BufferId, Options, Session};
use crate::{Device, Error, Result};
use std::path::Path;

/// Standard deviations of the noise, images having values in -1..1.
const SIGMAS: [f64; 11] = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];
/// Images of a level.
const IMAGES: usize = 256;
const BATCH: usize = 64;
const RESAMPLES: usize = 1000;

pub(super) fn run(request: &Request, data: &Path, watch: &mut Watch) -> Result<Section> {
    let run = train_on(request, data, STRONG, watch)?;
    let [early, middle, ..] = request.settings.save_at[..] else {
        return Err(Error::invalid("save_at", "must name two steps, of the weak and of the strong checkpoint"));
    };
    let folders = [run.join(format!("step-{early}")), run.join(format!("step-{middle}")), run];
    let test = request.test.as_deref().unwrap_or(data);
    let images = cars_and_horses(request, test)?;
    let images = images.part(images.n - IMAGES.min(images.n)..images.n)?;
    watch(Event::Begin { what: "checkpoints", steps: (folders.len() * SIGMAS.len()) as u64 })?;
    let mut answers = Vec::new();
    for folder in &folders {
        let mut network = Network::open(&Model::open(folder)?, &images, &request.device)?;
        let mut levels = Vec::new();
        for sigma in SIGMAS {
            levels.push(network.denoise(&images, sigma, request.seed)?);
            watch(Event::Step(1))?;
        }
        answers.push(levels);
    }
    let mut table = Table::new(
        "By standard deviation of the noise.",
        "σ",
        &[("cosine", 3), ("images with a cosine above 0", 3), ("length of the first gap over that of the second", 2)],
    );
    let mut points = Vec::new();
    for (level, sigma) in SIGMAS.into_iter().enumerate() {
        let [weak, strong, ideal] = [0, 1, 2].map(|i| &answers[i][level]);
        let gaps = gaps(weak, strong, ideal, images.image_len());
        let cosine: Cell = Bootstrap { resamples: RESAMPLES, seed: 0 }.mean(&gaps.cosines)?.into();
        let above = gaps.cosines.iter().filter(|c| **c > 0.0).count() as f64 / images.n as f64;
        points.push((sigma.log10(), cosine.value));
        table.row(format!("{sigma}"), vec![Some(cosine), Some(above.into()), Some(gaps.ratio.into())]);
    }
    let file = "time-gap.svg";
    let (first, last) = (SIGMAS[0].log10(), SIGMAS[SIGMAS.len() - 1].log10());
    let axes = Axes {
        title: "cosine of the two gaps",
        x: "log10 of the noise's standard deviation",
        y: "cosine",
        range: first..last,
        height: -1.0..1.0,
    };
    lines(&request.out.join(file), &axes, &[("mean over images".into(), points)])?;
    let (source, count) = (if request.test.is_some() { "test" } else { "training" }, images.n);
    Ok(Section {
        part: Part::TimeGap,
        title: "The gap of training time".into(),
        text: format!(
            "Checkpoints of the strong run: after {early} steps (weak), after {middle} (strong), after {} (in the place of the ideal \
             model); {count} {source} images of cars and horses with noise. The cosine of eps_strong - eps_weak and eps_ideal - \
             eps_strong, of each image by itself; its mean over images.",
            request.settings.steps
        ),
        findings: vec![finding(&table)],
        tables: vec![table],
        pictures: vec![Picture { file: file.into(), caption: "Mean cosine by noise level".into() }],
    })
}

fn finding(table: &Table) -> Finding {
    let lowest = |row: &super::report::Row| row.cells[0].and_then(|c| c.interval).map_or(f64::NAN, |i| i[0]);
    let positive: Vec<bool> = table.rows.iter().map(|r| lowest(r) > 0.0).collect();
    let not: Vec<&str> = table.rows.iter().zip(&positive).filter(|(_, p)| !**p).map(|(r, _)| r.name.as_str()).collect();
    let except = if not.is_empty() { String::new() } else { format!("; not at σ = {}", not.join(", ")) };
    Finding {
        claim: "The mean cosine is positive at every noise level".into(),
        shown: not.is_empty(),
        numbers: format!("{} of {} levels have intervals above 0{except}", positive.len() - not.len(), positive.len()),
    }
}

/// What two gaps have in common.
struct Gaps {
    /// Of each image.
    cosines: Vec<f64>,
    /// Of their lengths, over all images.
    ratio: f64,
}

/// Of denoised images. Noise is (x - denoised)/σ, so its gaps point the other way and are shorter, both of them alike: neither
/// changes a cosine or a ratio.
fn gaps(weak: &[f32], strong: &[f32], ideal: &[f32], image: usize) -> Gaps {
    let (mut cosines, mut squares) = (Vec::new(), [0.0; 2]);
    for ((weak, strong), ideal) in weak.chunks(image).zip(strong.chunks(image)).zip(ideal.chunks(image)) {
        let mut sums = [0.0; 3];
        for ((w, s), i) in weak.iter().zip(strong).zip(ideal) {
            let [first, second] = [f64::from(s - w), f64::from(i - s)];
            sums.iter_mut().zip([first * second, first * first, second * second]).for_each(|(sum, x)| *sum += x);
        }
        let [dot, first, second] = sums;
        cosines.push(dot / (first * second).sqrt().max(f64::MIN_POSITIVE));
        squares = [squares[0] + first, squares[1] + second];
    }
    Gaps { cosines, ratio: (squares[0] / squares[1]).sqrt() }
}

/// An EDM network with its weights on a device.
struct Network {
    session: Session,
    sample: BufferId,
    sigma: BufferId,
    denoised: BufferId,
    batch: usize,
}

impl Network {
    fn open(model: &Model, images: &Dataset, device: &Device) -> Result<Network> {
        let batch = BATCH.min(images.n);
        let built = model.build(&InputSpec::new(batch, images.height, images.width))?;
        let schedule = forward(&built, None, device.target(), Options::default())?;
        let find = |name: &str| {
            let missing = || Error::unsupported(name, format!("{} is no EDM network", model.path().display()));
            schedule.buffers.find(name).ok_or_else(missing)
        };
        let (sample, sigma, denoised) = (find("sample")?, find("sigma")?, find("out/denoised")?);
        let places: Vec<_> = built
            .parameters
            .iter()
            .filter_map(|p| schedule.buffers.find(&format!("weights/{}", p.name)).map(|id| (id, p)))
            .collect();
        let mut session = Session::new(device.clone(), schedule)?;
        model.load(&mut session, places)?;
        Ok(Network { session, sample, sigma, denoised, batch })
    }

    /// The images with noise of this standard deviation, denoised, NHWC. Image i has the same noise at every level.
    fn denoise(&mut self, images: &Dataset, sigma: f64, seed: u64) -> Result<Vec<f32>> {
        let noise = normals(seed, images.n * images.image_len());
        let mut all = Vec::with_capacity(noise.len());
        for first in (0..images.n).step_by(self.batch) {
            // The last batch is filled up with its last image.
            let numbers: Vec<usize> = (first..first + self.batch).map(|i| i.min(images.n - 1)).collect();
            let mut noised = vec![0.0; self.batch * images.image_len()];
            images.batch_f32_into(&numbers, &mut noised)?;
            for (image, i) in noised.chunks_mut(images.image_len()).zip(&numbers) {
                let noise = &noise[i * images.image_len()..];
                image.iter_mut().zip(noise).for_each(|(x, z)| *x += (sigma * z) as f32);
            }
            self.session.write(self.sample, &noised)?;
            self.session.write(self.sigma, &vec![sigma as f32; self.batch])?;
            self.session.run(&mut |_, _| Ok(()))?;
            let denoised = self.session.read::<f32>(self.denoised)?;
            all.extend_from_slice(&denoised[..self.batch.min(images.n - first) * images.image_len()]);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_gaps() {
        // Three images of two numbers: the gaps agree, are at right angles, are opposite.
        let weak = [0.0; 6];
        let strong = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        let ideal = [3.0, 0.0, 1.0, 2.0, -1.0, 0.0];
        let found = gaps(&weak, &strong, &ideal, 2);
        assert_eq!(found.cosines, [1.0, 0.0, -1.0]);
        assert_eq!(found.ratio, 0.5);
    }
}
