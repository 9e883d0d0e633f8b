//! `langevin reproduce`

use super::Output;
use super::progress::Progress;
use crate::reproduce::{Event, Part, Request};
use crate::{Error, Result};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Run a paper's claims again
#[derive(Args, Debug)]
pub struct ReproduceArgs {
    #[command(subcommand)]
    paper: Paper,
}

#[derive(Subcommand, Debug)]
enum Paper {
    W2sd(W2sdArgs),
}

/// Weak-to-strong diffusion with reflection (Bai, Sugiyama & Xie 2025)
///
/// Writes w2sd.md, w2sd.json and pictures into --out. Parts that were run before into the same folder stay in the report.
///
///   analytic      mixtures of Gaussians with exact scores; seconds
///
/// Example: langevin reproduce w2sd --part analytic --out w2sd
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
struct W2sdArgs {
    /// Which parts to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    part: Vec<String>,
    /// Folder of the report
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: ReproduceArgs, output: Output) -> Result<()> {
    let Paper::W2sd(args) = args.paper;
    let mut request = Request::new(&args.out);
    if !args.part.is_empty() {
        request.parts = args.part.iter().map(|p| p.parse::<Part>()).collect::<Result<_>>()?;
    }
    request.seed = args.seed;
    let mut bar: Option<Progress> = None;
    let report = request.run(&mut |event| {
        match event {
            Event::Begin { what, steps } => {
                if let Some(done) = bar.take() {
                    done.finish();
                }
                let begun = bar.insert(Progress::new(output, steps, "steps"));
                begun.message(what.into());
            }
            Event::Step(n) => return bar.as_ref().map_or(Ok(()), |bar| bar.advance(n)),
            Event::Note(text) => output.note(text),
        }
        super::check_interrupt()
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    let json = serde_json::to_value(&report).map_err(|e| Error::invalid("--json", e.to_string()))?;
    output.result(report.markdown().trim_end(), json);
    Ok(())
}
