//! Samples of a model by several methods, from the same seeds.

use super::{Event, Watch};
use crate::image::{BatchShape, grid};
use crate::model::Model;
use crate::sampler::{Images, SampleRequest};
use crate::{Device, Error, Result};
use std::path::Path;
use std::time::Instant;

/// What a method drew, and what it cost.
pub(super) struct Drawn {
    pub images: Images,
    /// The class that each was asked to be; none if the model has no classes.
    pub classes: Vec<u32>,
    /// Network evaluations an image.
    pub nfe: usize,
    pub seconds: f64,
}

pub(super) fn draw(
    name: &str,
    request: SampleRequest,
    model: &Model,
    device: &Device,
    watch: &mut Watch,
) -> Result<Drawn> {
    let nfe = request.nfe(model)?;
    let batches = request.n.div_ceil(request.batch);
    watch(Event::Begin { what: name, steps: (request.steps * batches) as u64 })?;
    let mut sampler = request.prepare(model, device.clone())?;
    let start = Instant::now();
    let images = sampler.run(&mut |_| watch(Event::Step(1)))?;
    let seconds = start.elapsed().as_secs_f64();
    let classes = sampler.classes().iter().map(|c| *c as u32).collect();
    Ok(Drawn { images, classes, nfe, seconds })
}

/// The first images of each set, a row a set.
pub(super) fn rows(path: &Path, sets: &[&Images]) -> Result<()> {
    const COLUMNS: usize = 16;
    let Some([n, c, h, w]) = sets.first().map(|s| s.shape) else {
        return Err(Error::invalid("rows", "there are none"));
    };
    let columns = n.min(COLUMNS);
    let data: Vec<f32> = sets.iter().flat_map(|s| s.data[..columns * c * h * w].iter().copied()).collect();
    grid(&data, BatchShape::nchw(columns * sets.len(), c, h, w), columns, 2)?.upscale_to(256)?.save_png(path)
}
