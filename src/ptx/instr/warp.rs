//! What the lanes of a warp tell each other.

use super::super::check::{FaultKind, Trap};
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::{Operand, Type};
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    if op.name == "activemask" {
        let ty = op.ty()?;
        let [to] = op.operands(operands)?;
        return if ty == Type::B(32) { decoded(Class::Warp, ActiveMask(to)) } else { Err(op.unknown()) };
    }
    let kind = match op.name {
        "shfl" => op.find(Shuffle::parse).map(Kind::Shuffle),
        "vote" => op.find(Vote::parse).map(Kind::Vote),
        "match" => op.one_of(&["any", "all"]).map(|m| Kind::Match { all: m == "all" }),
        "elect" => Some(Kind::Elect),
        _ => None,
    };
    if !op.flag("sync") {
        return Err(op.unknown());
    }
    let (kind, ty) = match op.name {
        "elect" => (Kind::Elect, Type::B(32)),
        "redux" => {
            let name = op.one_of(&["add", "min", "max", "and", "or", "xor"]).ok_or_else(|| op.unknown())?;
            let ty = op.ty()?;
            (Kind::Reduce(reduction(name, ty).ok_or_else(|| op.unknown())?), ty)
        }
        _ => (kind.ok_or_else(|| op.unknown())?, op.ty()?),
    };
    let fits = match &kind {
        Kind::Shuffle(_) => ty == Type::B(32),
        Kind::Vote(Vote::Ballot) => ty == Type::B(32),
        Kind::Vote(_) => ty == Type::Pred,
        Kind::Match { .. } => matches!(ty, Type::B(32 | 64)),
        Kind::Reduce(_) | Kind::Elect => true,
    };
    let mut operands = operands.into_iter();
    let to = operands.next();
    let from: Vec<Operand> = operands.collect();
    let count = match kind {
        Kind::Shuffle(_) => 4,
        Kind::Elect => 1,
        _ => 2,
    };
    let Some(to) = to.filter(|_| fits && from.len() == count && from.iter().all(is_scalar)) else {
        return Err(format!("{}: its type or operands do not fit", op.unknown()));
    };
    decoded(Class::Warp, Exchange { kind, ty: if op.name == "vote" { Type::Pred } else { ty }, to, from })
}

#[derive(Clone, Copy)]
enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

impl Shuffle {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return None,
        })
    }

    /// The lane that `lane` reads, and whether it is in reach; `c` has the clamp and, from bit 8, the mask of segments.
    fn source(self, lane: i64, b: i64, c: i64) -> (i64, bool) {
        let (clamp, segment) = (c & 31, c >> 8 & 31);
        let most = lane & segment | clamp & !segment;
        let source = match self {
            Shuffle::Up => lane - b,
            Shuffle::Down => lane + b,
            Shuffle::Butterfly => lane ^ b,
            Shuffle::Index => lane & segment | b & !segment,
        };
        let inside = if matches!(self, Shuffle::Up) { source >= most } else { source <= most };
        (if inside { source } else { lane }, inside)
    }
}

#[derive(Clone, Copy)]
enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

impl Vote {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uniform,
            "ballot" => Vote::Ballot,
            _ => return None,
        })
    }
}

enum Kind {
    Shuffle(Shuffle),
    Vote(Vote),
    Match { all: bool },
    Reduce(fn(u64, u64) -> u64),
    Elect,
}

fn reduction(name: &str, ty: Type) -> Option<fn(u64, u64) -> u64> {
    Some(match (name, ty) {
        ("add", Type::U(32) | Type::S(32)) => |a, b| u64::from((a as u32).wrapping_add(b as u32)),
        ("min", Type::U(32)) => |a, b| a.min(b),
        ("max", Type::U(32)) => |a, b| a.max(b),
        ("min", Type::S(32)) => |a, b| (a as i32).min(b as i32) as u32 as u64,
        ("max", Type::S(32)) => |a, b| (a as i32).max(b as i32) as u32 as u64,
        ("and", Type::B(32)) => |a, b| a & b,
        ("or", Type::B(32)) => |a, b| a | b,
        ("xor", Type::B(32)) => |a, b| a ^ b,
        _ => return None,
    })
}

struct Exchange {
    kind: Kind,
    ty: Type,
    to: Operand,
    /// The value first, the member mask last.
    from: Vec<Operand>,
}

impl Execute for Exchange {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let missing = missing(cx, &self.from[self.from.len() - 1])?;
        if missing != 0 {
            return Ok(Flow::Missing(missing));
        }
        let values = cx.values(&self.from[0], self.ty);
        let lanes = || cx.lanes();
        let set = |holds: &dyn Fn(u64) -> bool| lanes().filter(|l| holds(values[*l])).fold(0u64, |m, l| m | 1 << l);
        let all = u64::from(cx.mask);
        let first = cx.mask.trailing_zeros() as usize;
        let results: [(u64, bool); 32] = match &self.kind {
            Kind::Shuffle(kind) => {
                let [b, c] = [1, 2].map(|i| cx.values(&self.from[i], Type::B(32)));
                let mut results = [(0, false); 32];
                for lane in cx.lanes() {
                    let (source, inside) = kind.source(lane as i64, b[lane] as i64 & 31, c[lane] as i64);
                    if all >> source & 1 == 0 {
                        let reason = format!("reads the value of lane {source}, which takes no part");
                        return Err(Trap::new(lane, FaultKind::Misuse(reason)));
                    }
                    results[lane] = (values[source as usize], inside);
                }
                results
            }
            Kind::Vote(vote) => {
                let votes = set(&|v| v == 1);
                let result = match vote {
                    Vote::All => u64::from(votes == all),
                    Vote::Any => u64::from(votes != 0),
                    Vote::Uniform => u64::from(votes == all || votes == 0),
                    Vote::Ballot => votes,
                };
                [(result, false); 32]
            }
            Kind::Match { all: false } => values.map(|v| (set(&|other| other == v), false)),
            Kind::Match { all: true } => {
                let equal = set(&|v| v == values[first]) == all;
                [(if equal { all } else { 0 }, equal); 32]
            }
            Kind::Reduce(f) => {
                let result = cx.lanes().map(|l| values[l]).reduce(f).unwrap_or(0);
                [(self.ty.extend(result), false); 32]
            }
            Kind::Elect => std::array::from_fn(|l| (first as u64, l == first)),
        };
        for lane in cx.lanes() {
            let (value, flag) = results[lane];
            match &self.to {
                Operand::Pair(both) => {
                    cx.set(&both[0], lane, value);
                    cx.set(&both[1], lane, flag.into());
                }
                to => cx.set(to, lane, value),
            }
        }
        Ok(Flow::Next)
    }
}

/// The lanes of a member mask that live and are not here.
pub(super) fn missing(cx: &Context<'_>, members: &Operand) -> Result<u32, Trap> {
    let mut missing = 0;
    for lane in cx.lanes() {
        let members = cx.value(members, Type::B(32), lane) as u32;
        if members >> lane & 1 == 0 {
            let reason = format!("lane {lane} executes it and is not in its member mask {members:#010x}");
            return Err(Trap::new(lane, FaultKind::BarrierDivergence(reason)));
        }
        missing |= members & cx.warp.live & !cx.mask;
    }
    Ok(missing)
}

struct ActiveMask(Operand);

impl Execute for ActiveMask {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            cx.set(&self.0, lane, cx.mask.into());
        }
        Ok(Flow::Next)
    }
}
