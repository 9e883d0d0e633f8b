//! Guidance as data. The trajectory only knows which steps are guided; the arithmetic happens where the model is asked.

use super::expr::Expr;
use super::trajectory::Reg;
use crate::{Error, Result};

/// Which steps are guided (Kynkäänniemi et al. 2024, arXiv 2404.07724). Elsewhere the conditional answer is used as
/// it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Interval {
    /// All of them.
    #[default]
    Always,
    /// Those whose noise-to-signal ratio `sigma / alpha` (sigma in EDM's sense) is in `(lo, hi]`; `hi` may be infinite.
    Sigma {
        /// Exclusive lower end, at least 0.
        lo: f64,
        /// Inclusive upper end.
        hi: f64,
    },
    /// Step `i` of `n`, counted from the noisiest, if `lo <= i/n < hi`: `0..1` is all of them.
    Steps {
        /// Inclusive lower end, at least 0.
        lo: f64,
        /// Exclusive upper end, at most 1.
        hi: f64,
    },
}

impl Interval {
    /// Whether step `step` of `steps`, which starts at the noise-to-signal ratio `ratio`, is guided.
    pub fn covers(self, ratio: f64, step: usize, steps: usize) -> bool {
        match self {
            Interval::Always => true,
            Interval::Sigma { lo, hi } => lo < ratio && ratio <= hi,
            Interval::Steps { lo, hi } => {
                let fraction = step as f64 / steps as f64;
                lo <= fraction && fraction < hi
            }
        }
    }

    /// # Errors
    /// [`Error::Invalid`] unless `0 <= lo <= hi`, and `hi <= 1` for a fraction of the steps.
    pub fn validate(self) -> Result<()> {
        let (lo, hi, most) = match self {
            Interval::Always => return Ok(()),
            Interval::Sigma { lo, hi } => (lo, hi, f64::INFINITY),
            Interval::Steps { lo, hi } => (lo, hi, 1.0),
        };
        if 0.0 <= lo && lo <= hi && hi <= most {
            return Ok(());
        }
        Err(Error::invalid("guidance interval", format!("[{lo}, {hi}] is not inside [0, {most}]")))
    }
}

/// Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) in the released codes' convention:
/// `out = uncond + guidance_scale (cond - uncond)`, so that 0 is unconditional, 1 conditional, and above 1
/// extrapolates. (The paper's own `w` is `guidance_scale - 1`.) The unconditional answer may as well come from a
/// weaker model (autoguidance, Karras et al. 2024, arXiv 2406.02507).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Any finite number; negative ones are legitimate (W2SD sweeps them).
    pub guidance_scale: f64,
    /// Which steps are guided.
    pub interval: Interval,
    /// `phi` in `[0, 1]` of Lin et al. 2023 (arXiv 2305.08891, section 3.4):
    /// `out' = phi * out * std(cond) / std(out) + (1 - phi) * out`, standard deviations per image. A device op does it.
    pub rescale: f64,
}

impl Default for Guidance {
    /// No guidance: the conditional answer.
    fn default() -> Self {
        Guidance { guidance_scale: 1.0, interval: Interval::Always, rescale: 0.0 }
    }
}

impl Guidance {
    /// # Errors
    /// [`Error::Invalid`] if a field is out of its range.
    pub fn validate(&self) -> Result<()> {
        if !self.guidance_scale.is_finite() {
            return Err(Error::invalid("guidance scale", format!("{} is not a finite number", self.guidance_scale)));
        }
        if !(0.0..=1.0).contains(&self.rescale) {
            return Err(Error::invalid("guidance rescale", format!("{} is not in [0, 1]", self.rescale)));
        }
        self.interval.validate()
    }

    /// Whether a guided step has to ask for the conditional answer.
    pub fn needs_cond(&self) -> bool {
        self.guidance_scale != 0.0
    }

    /// Whether a guided step has to ask for the unconditional answer.
    pub fn needs_uncond(&self) -> bool {
        self.guidance_scale != 1.0
    }

    /// `uncond + guidance_scale (cond - uncond)`.
    pub fn combine(&self, uncond: Reg, cond: Reg) -> Expr {
        (1.0 - self.guidance_scale) * uncond + self.guidance_scale * cond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let sigma = Interval::Sigma { lo: 0.2, hi: 5.0 };
        assert_eq!([0.2, 0.3, 5.0, 5.1].map(|ratio| sigma.covers(ratio, 0, 1)), [false, true, true, false]);
        let half = Interval::Steps { lo: 0.0, hi: 0.5 };
        assert_eq!([0, 1, 2, 3].map(|step| half.covers(1.0, step, 4)), [true, true, false, false]);
        assert!(Interval::Sigma { lo: 0.0, hi: f64::INFINITY }.validate().is_ok());
        for bad in [(-1.0, 1.0), (0.7, 0.3), (f64::NAN, 1.0), (0.0, f64::NAN)] {
            assert!(Interval::Sigma { lo: bad.0, hi: bad.1 }.validate().is_err());
            assert!(Interval::Steps { lo: bad.0, hi: bad.1 }.validate().is_err());
        }
        assert!(Interval::Steps { lo: 0.0, hi: 1.5 }.validate().is_err());
    }

    #[test]
    fn combination() {
        let guidance = Guidance { guidance_scale: 5.5, ..Guidance::default() };
        assert_eq!(guidance.combine(Reg("u"), Reg("c")).into_terms(), [(Reg("u"), -4.5), (Reg("c"), 5.5)]);
        assert!(guidance.validate().is_ok());
        assert!(Guidance { guidance_scale: f64::NAN, ..guidance }.validate().is_err());
        assert!(Guidance { rescale: 1.1, ..guidance }.validate().is_err());
    }
}
