//! Part `analytic`: mixtures of Gaussians with exact scores.

use super::mixture::{Mixture, Way, share_and_mean, ways};
use super::plots::{Axes, Line, lines, scatter};
use super::report::{Cell, Finding, Picture, Section, Table};
use super::{Event, Part, Request, Watch};
use crate::Result;
use crate::diffusion::Reflection;

/// Samples of each row.
const SAMPLES: usize = 20_000;
/// Steps of DDIM.
const STEPS: usize = 50;
const FEW_STEPS: usize = 10;
/// Weight of the left mode.
const STRONG: f64 = 0.3;
const WEAK: f64 = 0.1;
/// Weight of the light corner for the strong mixture, and for the two weak ones.
const STRONG_CORNER: f64 = 0.1;
const WEAK_CORNERS: [f64; 2] = [1e-6, 0.05];

/// The left mode's share for each of [`ways`], as another program found it: the same mixtures and levels in NumPy, with noise
/// of its own. `None`: not computed there.
const REFERENCE: [(usize, [Option<f64>; 10]); 2] = [
    (
        STEPS,
        [
            Some(0.301),
            Some(0.102),
            Some(0.472),
            Some(0.515),
            Some(0.464),
            Some(0.500),
            Some(0.097),
            Some(0.296),
            Some(0.293),
            Some(0.294),
        ],
    ),
    (FEW_STEPS, [None, None, Some(0.381), Some(0.564), Some(0.360), Some(0.502), None, None, None, None]),
];
/// The same for the light corner: weight of the weak corner, reflections, share.
const REFERENCE_CORNER: [(f64, Option<usize>, f64); 5] = [
    (WEAK_CORNERS[0], None, 0.099),
    (WEAK_CORNERS[0], Some(12), 0.105),
    (WEAK_CORNERS[0], Some(25), 0.168),
    (WEAK_CORNERS[0], Some(49), 0.207),
    (WEAK_CORNERS[1], Some(49), 0.158),
];

pub(super) fn run(request: &Request, watch: &mut Watch) -> Result<Section> {
    watch(Event::Begin { what: "mixtures", steps: (2 * ways().len() + REFERENCE_CORNER.len()) as u64 })?;
    let mut tables = Vec::new();
    let mut found = Vec::new();
    for (steps, reference) in REFERENCE {
        let (table, samples) = line(steps, &reference, request.seed, watch)?;
        tables.push(table);
        found.push(samples);
    }
    tables.push(square(request.seed, watch)?);
    let shares = |i: usize| share_and_mean(&found[0][i], |x| x[0] < 0.0).0;
    let [strong, w2sd, s2wd] = [0, 2, 6].map(shares);
    let findings = vec![
        Finding {
            claim: "W2SD brings the left mode nearer to one half than the strong mixture does".into(),
            shown: (w2sd - 0.5).abs() < (strong - 0.5).abs(),
            numbers: format!("{w2sd:.3} against {strong:.3}"),
        },
        Finding {
            claim: "S2WD takes it farther away".into(),
            shown: (s2wd - 0.5).abs() > (strong - 0.5).abs(),
            numbers: format!("{s2wd:.3} against {strong:.3}"),
        },
    ];
    let pictures = vec![densities(request, &found[0])?, corners(request)?];
    Ok(Section {
        part: Part::Analytic,
        title: "Gaussian mixtures with exact scores".into(),
        text: format!(
            "DDIM on the VP schedule of linear betas from 1e-4 to 0.02, 1000 timesteps, leading spacing, ending at timestep 0; \
             {SAMPLES} samples a row from the same latents, seed {}; reflection at all steps but the last unless said otherwise. \
             A share has a standard error of at most 0.0035. The reference column was computed by another program (NumPy) with noise \
             of its own.",
            request.seed
        ),
        tables,
        findings,
        pictures,
    })
}

type Clouds<const D: usize> = Vec<Vec<[f64; D]>>;

/// Two modes: the share of the left one by each way.
fn line(steps: usize, reference: &[Option<f64>], seed: u64, watch: &mut Watch) -> Result<(Table, Clouds<1>)> {
    let pair = [Mixture::line(STRONG), Mixture::line(WEAK)];
    let title = format!(
        "Modes at -4 and 4, standard deviation 0.8; weight of the left mode: strong {STRONG}, weak {WEAK}; {steps} steps."
    );
    let columns = [("left share", 3), ("reference", 3), ("mean of the left", 2), ("mean of the right", 2)];
    let mut table = Table::new(&title, "sampler", &columns);
    let mut clouds = Vec::new();
    for ((name, way), reference) in ways().into_iter().zip(reference) {
        let samples = way.sample(pair.each_ref(), steps, SAMPLES, seed)?;
        let (left, left_mean) = share_and_mean(&samples, |x| x[0] < 0.0);
        let (_, right_mean) = share_and_mean(&samples, |x| x[0] >= 0.0);
        let cells = vec![
            Some(Cell::from(left)),
            reference.map(Cell::from),
            Some(Cell::from(left_mean)),
            Some(Cell::from(right_mean)),
        ];
        table.row(name, cells);
        clouds.push(samples);
        watch(Event::Step(1))?;
    }
    Ok((table, clouds))
}

/// Four modes: the share of the corner that the strong mixture has too little of and the weak one hardly any.
fn square(seed: u64, watch: &mut Watch) -> Result<Table> {
    let title = format!(
        "Modes at (±4, ±4); weight of the corner (-4, -4): strong {STRONG_CORNER}, weak as in the row, ideal 0.25; {STEPS} steps."
    );
    let columns = [("share of the corner", 3), ("reference", 3), ("mean of its samples, x", 2)];
    let mut table = Table::new(&title, "sampler", &columns);
    for (weak, lambda, reference) in REFERENCE_CORNER {
        let (name, way) = match lambda {
            None => ("strong".into(), Way::Strong),
            Some(_) => (
                format!("W2SD, weak {weak:?}, {} of {STEPS} steps reflect", lambda.unwrap_or_default()),
                Way::W2sd(Reflection { lambda, ..Reflection::default() }),
            ),
        };
        let samples = corner(way, weak, SAMPLES, seed)?;
        let (share, mean) = share_and_mean(&samples, |x| x[0] < 0.0 && x[1] < 0.0);
        table.row(name, vec![Some(share.into()), Some(reference.into()), Some(mean.into())]);
        watch(Event::Step(1))?;
    }
    Ok(table)
}

fn corner(way: Way, weak: f64, n: usize, seed: u64) -> Result<Vec<[f64; 2]>> {
    way.sample([&Mixture::square(STRONG_CORNER), &Mixture::square(weak)], STEPS, n, seed)
}

/// Histograms of the samples on the line, as densities.
fn densities(request: &Request, clouds: &Clouds<1>) -> Result<Picture> {
    const BINS: usize = 80;
    const REACH: f64 = 8.0;
    let width = 2.0 * REACH / BINS as f64;
    let density = |samples: &[[f64; 1]]| -> Vec<(f64, f64)> {
        let mut counts = [0.0; BINS];
        for [x] in samples {
            if let Some(count) = counts.get_mut(((x + REACH) / width) as usize) {
                *count += 1.0 / (samples.len() as f64 * width);
            }
        }
        counts.iter().enumerate().map(|(i, d)| ((i as f64 + 0.5) * width - REACH, *d)).collect()
    };
    let shown = [0, 1, 2, 5, 6];
    let drawn: Vec<Line> = shown.into_iter().map(|i| (ways()[i].0.to_string(), density(&clouds[i]))).collect();
    let axes = Axes {
        title: "samples of a mixture of two modes, 50 steps",
        x: "x",
        y: "density",
        range: -REACH..REACH,
        height: 0.0..0.5,
    };
    let file = "analytic-line.svg";
    lines(&request.out.join(file), &axes, &drawn)?;
    Ok(Picture { file: file.into(), caption: "Densities of the samples; the ideal is even".into() })
}

/// Some samples of the square.
fn corners(request: &Request) -> Result<Picture> {
    const SHOWN: usize = 300;
    let w2sd = Way::W2sd(Reflection::default());
    let clouds = [("strong", Way::Strong), ("weak", Way::Weak), ("W2SD", w2sd), ("S2WD", Way::S2wd)].into_iter().map(
        |(name, way)| {
            let samples = corner(way, WEAK_CORNERS[0], SHOWN, request.seed)?;
            Ok((name.to_string(), samples.iter().map(|[x, y]| (*x, *y)).collect()))
        },
    );
    let file = "analytic-square.svg";
    scatter(&request.out.join(file), 8.0, &clouds.collect::<Result<Vec<_>>>()?)?;
    Ok(Picture { file: file.into(), caption: "Samples of the square; the weak mixture has no mode at (-4, -4)".into() })
}
