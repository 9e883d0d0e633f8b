//! Progress bars with rate and time left.

use super::{Output, check_interrupt};
use crate::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `length` units of work; hidden if the output is quiet or JSON.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new(output: Output, length: u64, unit: &str) -> Progress {
        let target =
            if output.quiet || output.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let template = format!("{{prefix}} {{bar:32}} {{pos}}/{{len}} {unit} {{per_sec}} eta {{eta}} {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Progress { bar }
    }

    /// Moves on; an error once the user pressed Ctrl-C.
    pub fn advance(&self, units: u64) -> Result<()> {
        self.bar.inc(units);
        check_interrupt()
    }

    /// Shows a word behind the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
