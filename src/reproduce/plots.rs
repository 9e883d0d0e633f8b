//! Plots of a reproduction, as SVG.

use crate::files::write_atomic;
use crate::{Error, Result};
use plotters::prelude::*;
use std::ops::Range;
use std::path::Path;

/// Pixels of a plot of lines, and of a side of a scatter plot.
const LINES: (u32, u32) = (720, 400);
const SIDE: u32 = 320;

/// A line: its name and its points.
pub(super) type Line = (String, Vec<(f64, f64)>);

/// What axes are, and where they reach.
pub(super) struct Axes<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub range: Range<f64>,
    pub height: Range<f64>,
}

/// Lines in one picture.
pub(super) fn lines(path: &Path, axes: &Axes, lines: &[Line]) -> Result<()> {
    save(path, LINES, |root| {
        let mut chart = ChartBuilder::on(root)
            .caption(axes.title, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(56)
            .build_cartesian_2d(axes.range.clone(), axes.height.clone())
            .map_err(text)?;
        chart.configure_mesh().x_desc(axes.x).y_desc(axes.y).light_line_style(WHITE).draw().map_err(text)?;
        for (i, (name, points)) in lines.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let series = chart.draw_series(LineSeries::new(points.iter().copied(), &color)).map_err(text)?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], color));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw().map_err(text)
    })
}

/// Clouds of points side by side, each in `[-reach, reach]²`.
pub(super) fn scatter(path: &Path, reach: f64, clouds: &[(String, Vec<(f64, f64)>)]) -> Result<()> {
    save(path, (SIDE * clouds.len() as u32, SIDE), |root| {
        for ((title, points), area) in clouds.iter().zip(root.split_evenly((1, clouds.len().max(1)))) {
            let mut chart = ChartBuilder::on(&area)
                .caption(title, ("sans-serif", 16))
                .margin(8)
                .x_label_area_size(24)
                .y_label_area_size(28)
                .build_cartesian_2d(-reach..reach, -reach..reach)
                .map_err(text)?;
            chart.configure_mesh().light_line_style(WHITE).draw().map_err(text)?;
            let dots = points.iter().map(|p| Circle::new(*p, 1, BLUE.mix(0.5).filled()));
            chart.draw_series(dots).map_err(text)?;
        }
        Ok(())
    })
}

type Root<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn save(path: &Path, size: (u32, u32), draw: impl FnOnce(&Root) -> Result<(), String>) -> Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(text).and_then(|()| draw(&root));
        drawn.and_then(|()| root.present().map_err(text)).map_err(|reason| Error::format(path, reason))?;
    }
    write_atomic(path, svg.as_bytes())
}

fn text(e: impl std::fmt::Display) -> String {
    format!("cannot be drawn: {e}")
}
