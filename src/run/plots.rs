//! A run's log, or several runs' logs side by side, as one SVG.

use super::log::{BIN_EDGES, Entry, bin_name, read_log};
use crate::files::write_atomic;
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// Pixels of one panel.
const PANEL: (u32, u32) = (640, 320);

/// A line: its name and its points.
type Line = (String, Vec<(f64, f64)>);

/// Draws the logs of `runs` into `log.svg` in `folder`: loss, loss by noise level (of the first run), norm of the gradient,
/// learning rate, speed.
pub fn plot(folder: &Path, runs: &[&Path]) -> Result<()> {
    let mut logs = Vec::new();
    for run in runs {
        let name = run.file_name().map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned());
        logs.push((name, read_log(run)?));
    }
    let path = folder.join("log.svg");
    let svg = draw(&logs).map_err(|reason| Error::format(&path, reason))?;
    write_atomic(&path, svg.as_bytes())
}

fn draw(logs: &[(String, Vec<Entry>)]) -> Result<String, String> {
    let of = |value: fn(&Entry) -> f64| -> Vec<Line> {
        let points = |log: &[Entry]| log.iter().map(|e| (e.images as f64, value(e))).collect();
        logs.iter().map(|(name, log)| (name.clone(), points(log))).collect()
    };
    let panels = [
        ("loss", of(|e| e.loss)),
        ("loss by ln(alpha/sigma)", logs.first().map(|(_, log)| bins(log)).unwrap_or_default()),
        ("norm of the gradient", of(|e| e.grad_norm)),
        ("learning rate", of(|e| e.lr)),
        ("images a second", of(|e| e.images_per_second)),
    ];
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (PANEL.0, PANEL.1 * panels.len() as u32)).into_drawing_area();
        root.fill(&WHITE).map_err(text)?;
        for ((title, lines), area) in panels.iter().zip(root.split_evenly((panels.len(), 1))) {
            panel(&area, title, lines)?;
        }
        root.present().map_err(text)?;
    }
    Ok(svg)
}

/// Loss by noise level.
fn bins(log: &[Entry]) -> Vec<Line> {
    let points = |i: usize| -> Vec<(f64, f64)> {
        log.iter().filter_map(|e| Some((e.images as f64, (*e.loss_bins.get(i)?)?))).collect()
    };
    (0..=BIN_EDGES.len()).map(|i| (bin_name(i), points(i))).filter(|(_, points)| !points.is_empty()).collect()
}

fn panel(area: &DrawingArea<SVGBackend, Shift>, title: &str, lines: &[Line]) -> Result<(), String> {
    let points = || lines.iter().flat_map(|(_, points)| points.iter().filter(|(_, y)| y.is_finite()));
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(lo, hi), p| (lo.min(p.1), hi.max(p.1)));
    // One point, or none, still needs an axis of some length.
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0), high.max(1.0)) };
    let margin = 0.05 * (high - low);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, low - margin..high + margin)
        .map_err(text)?;
    chart.configure_mesh().x_desc("images").light_line_style(WHITE).draw().map_err(text)?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), &color)).map_err(text)?;
        if lines.len() > 1 {
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], color));
        }
    }
    if lines.len() > 1 {
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw().map_err(text)?;
    }
    Ok(())
}

fn text(e: impl std::fmt::Display) -> String {
    format!("cannot be drawn: {e}")
}
