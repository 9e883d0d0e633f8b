//! Methods that draw MNIST's digits, in one table.

use super::draw::{Drawn, draw, rows};
use super::report::{Cell, Finding, Picture, Table};
use super::{Request, Watch};
use crate::Result;
use crate::classifier::Classifier;
use crate::data::{Dataset, DatasetOptions};
use crate::eval::{Bootstrap, NEIGHBOURS, Reference};
use crate::evaluator::{FeatureExtractor, Metric, evaluate, pictures};
use crate::model::Model;
use crate::sampler::{Images, SampleRequest};
use std::path::Path;

const RESAMPLES: usize = 100;
/// The table's column of Fréchet distances.
const DISTANCE: usize = 5;

/// A row: what is sampled, and the guidance that it amounts to, if it amounts to guidance.
pub(super) struct Method<'a> {
    pub name: String,
    pub sample: SampleRequest<'a>,
    pub guidance: Option<f64>,
}

/// The embedded classifier and real digits to compare with.
pub(super) struct Digits {
    network: FeatureExtractor,
    reference: Reference,
}

impl Digits {
    pub fn new(request: &Request, mnist: &Path) -> Result<Digits> {
        let mut network = FeatureExtractor::classifier(Classifier::embedded()?, request.device.clone())?;
        let real = Dataset::open(mnist, &DatasetOptions::default())?;
        let reference = network.reference(&real, NEIGHBOURS, &mut |_| Ok(()))?;
        Ok(Digits { network, reference })
    }

    /// How many real digits there are.
    pub fn real(&self) -> usize {
        self.reference.features.n()
    }

    /// Draws with every method; the table, and a picture in `file` with a row for each.
    pub fn compare(
        &mut self,
        request: &Request,
        model: &Model,
        methods: Vec<Method>,
        file: &str,
        watch: &mut Watch,
    ) -> Result<(Table, Picture)> {
        let title = format!("{} samples a row, Euler's method; intervals by bootstrap.", request.samples);
        let columns = [
            ("steps", 0),
            ("network evaluations", 0),
            ("seconds", 0),
            ("guidance to first order", 1),
            ("as asked, %", 1),
            ("`fd-classifier`", 3),
            ("values outside of -1..1, %", 2),
        ];
        let mut table = Table::new(&title, "sampler", &columns);
        let mut sets = Vec::new();
        for Method { name, sample, guidance } in methods {
            let steps = sample.steps;
            let drawn = draw(&name, sample, model, &request.device, watch)?;
            let [as_asked, distance] = self.judge(&drawn)?;
            let outside = drawn.images.data.iter().filter(|v| v.abs() > 1.0).count() as f64;
            let outside = 100.0 * outside / drawn.images.data.len() as f64;
            let cost = [steps as f64, drawn.nfe as f64, drawn.seconds].map(|c| Some(c.into()));
            let found = [guidance.map(Cell::from), Some(as_asked), Some(distance), Some(outside.into())];
            table.row(name, cost.into_iter().chain(found).collect());
            sets.push(drawn.images);
        }
        rows(&request.out.join(file), &sets.iter().collect::<Vec<&Images>>())?;
        let names: Vec<&str> = table.rows.iter().map(|r| r.name.as_str()).collect();
        let caption = format!("A column has one latent and class; rows from the top: {}", names.join(", "));
        Ok((table, Picture { file: file.into(), caption }))
    }

    /// Percent of samples that are what they should be, and the distance from the real images.
    fn judge(&mut self, drawn: &Drawn) -> Result<[Cell; 2]> {
        let data = pictures(&drawn.images, Some(drawn.classes.clone()))?;
        let extracted = self.network.extract("the samples", &data, &mut |_| Ok(()))?;
        let bootstrap = Bootstrap { resamples: RESAMPLES, seed: 0 };
        let (metrics, labels) = ([Metric::Fd, Metric::Classes], Some(&drawn.classes[..]));
        let found = evaluate(&self.network, &extracted, labels, &self.reference, &metrics, bootstrap, &mut |_| Ok(()))?;
        let of = |name: &str, factor: f64| {
            let estimate = found.rows.iter().find(|r| r.name == name).map(|r| r.estimate);
            estimate.map_or(Cell::from(f64::NAN), |e| Cell {
                value: factor * e.value,
                interval: e.interval.map(|i| i.map(|v| factor * v)),
            })
        };
        Ok([of("class-agreement", 100.0), of("fd-classifier", 1.0)])
    }
}

/// Whether a row is nearer to the real digits than another, by intervals that do not meet.
pub(super) fn nearer(claim: &str, table: &Table, row: usize, other: usize) -> Option<Finding> {
    let cell = |row: usize| table.rows.get(row)?.cells[DISTANCE].and_then(|c| Some((c.value, c.interval?)));
    let ((a, [_, a_high]), (b, [b_low, _])) = (cell(row)?, cell(other)?);
    let numbers = format!("`fd-classifier` {a:.3} against {b:.3}");
    Some(Finding { claim: claim.into(), shown: a_high < b_low, numbers })
}
