//! Linear combinations of registers, so that a sampler can be written as its paper writes it.

use std::ops::{Add, Mul, Sub};

use super::trajectory::Reg;

/// `sum_i coefficient_i * register_i`, each register at most once, in order of first appearance.
///
/// A coefficient that happens to be zero stays: which registers a stage reads must not depend on numbers, or
/// consecutive steps of a trajectory would not have the same shape.
///
/// ```
/// use langevin::diffusion::{Expr, Reg};
/// let eps = Expr::from(Reg::OUT);
/// let x0 = 2.0 * &Expr::from(Reg::X) - 1.5 * &eps;
/// assert_eq!((0.5 * &x0 + eps).into_terms(), [(Reg::X, 1.0), (Reg::OUT, 0.25)]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expr(Vec<(Reg, f64)>);

impl Expr {
    /// The terms, in order of first appearance.
    pub fn into_terms(self) -> Vec<(Reg, f64)> {
        self.0
    }

    fn accumulate(mut self, sign: f64, other: Expr) -> Expr {
        for (reg, coefficient) in other.0 {
            match self.0.iter_mut().find(|(own, _)| *own == reg) {
                Some((_, sum)) => *sum += sign * coefficient,
                None => self.0.push((reg, sign * coefficient)),
            }
        }
        self
    }
}

impl From<Reg> for Expr {
    fn from(reg: Reg) -> Expr {
        Expr(vec![(reg, 1.0)])
    }
}

impl Add for Expr {
    type Output = Expr;
    fn add(self, other: Expr) -> Expr {
        self.accumulate(1.0, other)
    }
}

impl Sub for Expr {
    type Output = Expr;
    fn sub(self, other: Expr) -> Expr {
        self.accumulate(-1.0, other)
    }
}

impl Mul<&Expr> for f64 {
    type Output = Expr;
    fn mul(self, expr: &Expr) -> Expr {
        Expr(expr.0.iter().map(|&(reg, coefficient)| (reg, self * coefficient)).collect())
    }
}

impl Mul<Reg> for f64 {
    type Output = Expr;
    fn mul(self, reg: Reg) -> Expr {
        Expr(vec![(reg, self)])
    }
}
