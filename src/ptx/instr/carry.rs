//! Sums of several words: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`. A thread has one carry flag, which differences
//! use for the borrow.

use super::super::check::Trap;
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::{Operand, Type};
use super::{Decode, Execute, Flow, Opcode, Source, decoded, is_scalar};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let (carries_in, carries_out) = (op.name.ends_with('c'), op.flag("cc"));
    let part = if op.name.starts_with("mad") {
        Some(op.one_of(&["lo", "hi"]).ok_or_else(|| op.unknown())? == "hi")
    } else {
        None
    };
    let ty = op.ty()?;
    if !matches!(ty, Type::U(32 | 64) | Type::S(32 | 64)) {
        return Err(op.unknown());
    }
    let kind = match (part, op.name.starts_with("sub")) {
        (Some(high), _) => Kind::Product { high },
        (None, true) => Kind::Difference,
        (None, false) => Kind::Sum,
    };
    let mut operands = operands.into_iter();
    let to = operands.next().unwrap_or(Operand::Sink);
    let from: Vec<Operand> = operands.collect();
    let count = if part.is_some() { 3 } else { 2 };
    if from.len() != count || !from.iter().all(is_scalar) {
        return Err(format!("`{}` takes {} operands", op.text, count + 1));
    }
    let from = from.into_iter().map(|o| Source::new(o, ty)).collect();
    decoded(Class::Integer, Carry { to, from, ty, kind, carries_in, carries_out })
}

#[derive(Clone, Copy)]
enum Kind {
    Sum,
    Difference,
    /// Half of a product, and a sum.
    Product {
        high: bool,
    },
}

struct Carry {
    to: Operand,
    from: Vec<Source>,
    ty: Type,
    kind: Kind,
    carries_in: bool,
    carries_out: bool,
}

impl Carry {
    /// The result and the new flag.
    fn lane(&self, [a, b, c]: [u64; 3], carry: bool) -> (u64, bool) {
        let bits = self.ty.bits();
        let cut = |v: u128| (self.ty.truncate(v as u64), v >> bits & 1 == 1);
        let sum = |a: u64, b: u64| cut(u128::from(a) + u128::from(b) + u128::from(carry));
        match self.kind {
            Kind::Sum => sum(a, b),
            Kind::Difference => cut(u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(u128::from(carry))),
            Kind::Product { high } => {
                let wide = |v: u64| match self.ty {
                    Type::S(_) => i128::from(self.ty.extend(v) as i64),
                    _ => i128::from(v),
                };
                let product = wide(a).wrapping_mul(wide(b)) as u128 >> if high { bits } else { 0 };
                sum(self.ty.truncate(product as u64), c)
            }
        }
    }
}

impl Execute for Carry {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let before = if self.carries_in { cx.warp.carry } else { 0 };
        let mut after = 0;
        let mut out = [0; 32];
        {
            let rows: Vec<_> = self.from.iter().map(|s| (s.row(cx), s.mask)).collect();
            for lane in cx.lanes() {
                let values = std::array::from_fn(|i| rows.get(i).map_or(0, |(row, mask)| row[lane] & mask));
                let (value, carry) = self.lane(values, before >> lane & 1 == 1);
                out[lane] = value;
                after |= u32::from(carry) << lane;
            }
        }
        if self.carries_out {
            cx.warp.carry = cx.warp.carry & !cx.mask | after;
        }
        cx.set_row(&self.to, &out);
        Ok(Flow::Next)
    }
}
