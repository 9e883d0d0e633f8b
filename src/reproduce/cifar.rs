//! Part `cifar`: two models of unbalanced data (section 3.2 of the paper).
//!
//! Horses are common and cars are rare for the strong model, and nearly absent for the weak one. Does reflection between them draw
//! as many cars as horses?

use super::draw::{Drawn, draw, rows};
use super::report::{Cell, Finding, Picture, Section, Table};
use super::train::train;
use super::{Event, Part, Request, Watch};
use crate::classifier::{Classifier, ClassifierTrainConfig, ClassifierTrainer};
use crate::data::{ClassLimit, Dataset, DatasetOptions};
use crate::diffusion::{QueryTime, Reflection, SamplerKind};
use crate::eval::{Bootstrap, ClassProbabilities, wilson};
use crate::evaluator::{FeatureExtractor, pictures};
use crate::model::Model;
use crate::run::Settings;
use crate::sampler::{Images, Leg, Reflect, SampleRequest};
use crate::weights::Dtype;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// CIFAR-10's classes.
const CARS: u32 = 1;
const HORSES: u32 = 7;
/// The runs: the name of the folder, and its data.
pub(super) const STRONG: (&str, &str) = ("strong", "7:5000,1:2500");
const WEAK: (&str, &str) = ("weak", "7:5000,1:500");
/// The classifier that counts cars is not trained on the last images.
const HOLDOUT: usize = 1000;
const CLASSIFIER_STEPS: usize = 1000;
const RESAMPLES: usize = 1000;
/// The column of [`Images::contrast`], and how much of the strong model's there must be: of a grey ground a classifier says
/// something too.
const CONTRAST: &str = "contrast";
const LEAST_CONTRAST: f64 = 0.5;

/// Trains the run of this name and data, or goes on with it; its folder.
pub(super) fn train_on(
    request: &Request,
    data: &Path,
    (name, classes): (&str, &str),
    watch: &mut Watch,
) -> Result<PathBuf> {
    let data = data.display().to_string();
    let settings = Settings { data, classes: classes.into(), ..request.settings.clone() };
    train(request, name, settings, watch)
}

/// Images of cars and horses in the form that the runs see.
pub(super) fn cars_and_horses(request: &Request, data: &Path) -> Result<Dataset> {
    let resize = (request.settings.resize > 0).then_some(request.settings.resize);
    let classes = Some(vec![ClassLimit::from(CARS), ClassLimit::from(HORSES)]);
    Dataset::open(data, &DatasetOptions { resize, classes, ..DatasetOptions::default() })
}

/// The network that tells cars from horses, and how often it does so for each of them, of images that it was not trained on.
struct Judge {
    network: FeatureExtractor,
    /// Cars that it takes for cars, horses that it takes for horses.
    right: [f64; 2],
    held_out: usize,
}

impl Judge {
    fn new(request: &Request, data: &Path, watch: &mut Watch) -> Result<Judge> {
        let folder = request.out.join("classifier");
        let data = cars_and_horses(request, data)?;
        let holdout = HOLDOUT.min(data.n / 5);
        if !Classifier::is_one(&folder) {
            let steps = CLASSIFIER_STEPS.min(request.settings.steps);
            let defaults = ClassifierTrainConfig::default();
            let batch = defaults.batch.min(data.n - holdout);
            let config = ClassifierTrainConfig { steps, batch, holdout, flip: true, ..defaults };
            watch(Event::Begin { what: "training the classifier", steps: steps as u64 })?;
            let mut trainer = ClassifierTrainer::new(config, &data, request.device.clone())?;
            for _ in 0..steps {
                trainer.step()?;
                watch(Event::Step(1))?;
            }
            trainer.save(&folder, Dtype::F16)?;
        }
        let network = FeatureExtractor::classifier(Classifier::open(&folder)?, request.device.clone())?;
        let mut judge = Judge { network, right: [0.0; 2], held_out: holdout };
        let held_out = data.part(data.n - holdout..data.n)?;
        let seen = judge.cars(&held_out)?;
        let labels = held_out.labels.unwrap_or_default();
        judge.right = [CARS, HORSES].map(|class| {
            let of_class = || seen.iter().zip(&labels).filter(|(_, l)| **l == class);
            let right = of_class().filter(|(car, _)| (**car > 0.0) == (class == CARS)).count();
            right as f64 / of_class().count().max(1) as f64
        });
        Ok(judge)
    }

    /// 1 for each car.
    fn cars(&mut self, images: &Dataset) -> Result<Vec<f64>> {
        let logits = self.network.extract("the images", images, &mut |_| Ok(()))?.logits;
        let Some(logits) = logits else { return Err(Error::invalid("classifier", "does not classify")) };
        Ok(ClassProbabilities::new(&logits).predictions().iter().map(|p| f64::from(*p == CARS)).collect())
    }
}

/// A row of the table.
struct Method {
    name: &'static str,
    drawn: Drawn,
    cars: Vec<f64>,
}

impl Method {
    fn share(&self, rows: impl Iterator<Item = usize>, n: usize) -> f64 {
        rows.map(|i| self.cars[i]).sum::<f64>() / n as f64
    }

    /// How much farther from one half its share of cars is than that of another method; pairs of samples have the same latents.
    fn farther_than(&self, other: &Method) -> Result<Cell> {
        let bootstrap = Bootstrap { resamples: RESAMPLES, seed: 0 };
        let off = |m: &Method, rows: &[usize]| (m.share(rows.iter().copied(), rows.len()) - 0.5).abs();
        Ok(bootstrap.estimate(self.cars.len(), |rows| Ok(off(self, rows) - off(other, rows)))?.into())
    }
}

pub(super) fn run(request: &Request, data: &Path, watch: &mut Watch) -> Result<Section> {
    let [strong, weak] = [train_on(request, data, STRONG, watch)?, train_on(request, data, WEAK, watch)?];
    let [strong, weak] = [Model::open(strong)?, Model::open(weak)?];
    let mut judge = Judge::new(request, data, watch)?;
    let methods = methods(request, &strong, &weak, &mut judge, watch)?;
    let mut table = Table::new(
        &format!("{} samples a row, Euler's method.", request.samples),
        "sampler",
        &[
            ("steps", 0),
            ("network evaluations", 0),
            ("seconds", 0),
            (CONTRAST, 3),
            ("share of cars", 3),
            ("farther from 1/2 than strong", 3),
        ],
    );
    for (steps, method) in &methods {
        let hits = method.cars.iter().filter(|c| **c > 0.0).count();
        let contrast = method.drawn.images.contrast();
        let cells =
            [(*steps as f64).into(), (method.drawn.nfe as f64).into(), method.drawn.seconds.into(), contrast.into()];
        let shares = [wilson(hits, method.cars.len()).into(), method.farther_than(&methods[0].1)?];
        table.row(method.name, cells.into_iter().chain(shares).map(Some).collect());
    }
    let sets: Vec<&Images> = methods.iter().map(|(_, m)| &m.drawn.images).collect();
    let file = "cifar.png";
    rows(&request.out.join(file), &sets)?;
    let names: Vec<&str> = methods.iter().map(|(_, m)| m.name).collect();
    Ok(Section {
        part: Part::Cifar,
        title: "Two models of unbalanced data".into(),
        text: text(request, &judge),
        findings: findings(&table),
        tables: vec![table],
        pictures: vec![Picture {
            file: file.into(),
            caption: format!("A column has one latent; rows from the top: {}", names.join(", ")),
        }],
    })
}

/// What each method draws, with its steps.
fn methods(
    request: &Request,
    strong: &Model,
    weak: &Model,
    judge: &mut Judge,
    watch: &mut Watch,
) -> Result<Vec<(usize, Method)>> {
    let steps = request.steps;
    let plain = |model: &Model, steps| SampleRequest {
        sampler: SamplerKind::Euler,
        steps,
        n: request.samples,
        batch: request.batch,
        seed: request.seed,
        ..SampleRequest::new(model)
    };
    let pair = |query| Reflect {
        reflection: Reflection { query, ..Reflection::default() },
        strong: Leg::default(),
        weak: Leg { model: Some(weak), ..Leg::default() },
    };
    let reflected = |reflect| SampleRequest { reflect: Some(reflect), ..plain(strong, steps) };
    let equal_calls = reflected(pair(QueryTime::Old)).nfe(strong)?;
    let requests = [
        ("strong", strong, plain(strong, steps)),
        ("weak", weak, plain(weak, steps)),
        ("W2SD, old time", strong, reflected(pair(QueryTime::Old))),
        ("W2SD, new time", strong, reflected(pair(QueryTime::New))),
        ("S2WD, old time", strong, reflected(pair(QueryTime::Old).swapped())),
        ("S2WD, new time", strong, reflected(pair(QueryTime::New).swapped())),
        (
            "AutoGuidance, w = 1",
            strong,
            SampleRequest { guide: Some(weak), guidance_scale: 2.0, ..plain(strong, steps) },
        ),
        ("strong, as many evaluations as W2SD", strong, plain(strong, equal_calls)),
    ];
    requests
        .into_iter()
        .map(|(name, model, sample)| {
            let steps = sample.steps;
            let drawn = draw(name, sample, model, &request.device, watch)?;
            let cars = judge.cars(&pictures(&drawn.images, None)?)?;
            Ok((steps, Method { name, drawn, cars }))
        })
        .collect()
}

fn text(request: &Request, judge: &Judge) -> String {
    let s = &request.settings;
    let [cars, horses] = judge.right.map(|r| 100.0 * r);
    format!(
        "Strong: trained on 5,000 horses and 2,500 cars of CIFAR-10, weak: on 5,000 horses and 500 cars; unconditional, network \
         `{}`, {}×{} pixels, {} steps of {} images, seed {}. Reflection at all steps but the last. All rows have the same latents \
         (seed {}). A classifier trained on all cars and horses counts cars; of {} images that it was not trained on it takes \
         {cars:.1} % of the cars and {horses:.1} % of the horses for what they are.",
        s.network, s.resize, s.resize, s.steps, s.batch, s.seed, request.seed, judge.held_out
    )
}

fn findings(table: &Table) -> Vec<Finding> {
    let claims = [
        ("W2SD, old time", "W2SD draws cars and horses more evenly than the strong model", -1.0),
        ("W2SD, new time", "so it does if the weak model is told the new time", -1.0),
        ("S2WD, old time", "S2WD draws them less evenly", 1.0),
        ("S2WD, new time", "so it does if the strong model, which inverts then, is told the new time", 1.0),
    ];
    let row = |name: &str| table.rows.iter().find(|r| r.name == name).and_then(|r| *r.cells.last()?);
    let contrast = |name: &str| {
        let column = table.columns.iter().position(|c| c.name == CONTRAST)?;
        table.rows.iter().find(|r| r.name == name).and_then(|r| *r.cells.get(column)?).map(|cell| cell.value)
    };
    let finding = |(name, claim, sign): (&str, &str, f64)| {
        let Cell { value, interval: Some([low, high]) } = row(name)? else { return None };
        let mut numbers = format!("distance of the share from 1/2 less strong's: {value:.3}, {low:.3} to {high:.3}");
        let whole = contrast(name)? >= LEAST_CONTRAST * contrast("strong")?;
        if !whole {
            numbers += "; its samples have lost their contrast, so their share says nothing";
        }
        Some(Finding { claim: claim.into(), shown: whole && low * sign > 0.0 && high * sign > 0.0, numbers })
    };
    claims.into_iter().filter_map(finding).collect()
}
