//! Instructions by class. `decode` looks at an opcode once, when the text is read; what it returns runs for a warp.

mod atomic;
pub(super) mod barrier;
mod bitwise;
mod carry;
mod compare;
mod control;
mod convert;
pub(super) mod copy;
mod data;
mod float;
mod integer;
mod matrix;
mod rounding;
mod warp;
pub(super) mod wgmma;

use std::cell::Cell;
use std::fmt;

use super::check::Trap;
use super::count::Class;
use super::machine::{Context, Row, immediate};
use super::module::{Operand, Special, Type};

/// What happens after an instruction.
pub(super) enum Flow {
    Next,
    /// Next, but others should run first.
    Yield,
    /// The same again once the barrier that the warp waits at is complete.
    Wait,
    /// The active lanes go to a label.
    Jump(usize),
    /// The active lanes end.
    End,
    /// The same again once these lanes of the warp have come here or ended.
    Missing(u32),
}

/// A decoded instruction.
pub(super) trait Execute: Send + Sync {
    /// Runs it for the active lanes of a warp.
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap>;

    /// The label that it goes to, of a branch.
    fn target(&self) -> Option<usize> {
        None
    }

    /// Whether the thread ends with it.
    fn ends(&self) -> bool {
        false
    }
}

impl fmt::Debug for dyn Execute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Execute")
    }
}

/// A decoded instruction and its class.
pub(super) struct Decoded {
    pub class: Class,
    pub action: Box<dyn Execute>,
}

/// The result of a decoder; the error says what is not known.
type Decode = Result<Decoded, String>;

fn decoded(class: Class, action: impl Execute + 'static) -> Decode {
    Ok(Decoded { class, action: Box::new(action) })
}

/// An opcode cut at its dots. Every modifier has to be asked for by somebody, so that none is passed over.
pub(super) struct Opcode<'a> {
    text: &'a str,
    name: &'a str,
    modifiers: Vec<&'a str>,
    used: Cell<u64>,
}

impl<'a> Opcode<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or("");
        Opcode { text, name, modifiers: parts.collect(), used: Cell::new(0) }
    }

    /// Whether it has a modifier.
    fn flag(&self, name: &str) -> bool {
        self.one_of(&[name]).is_some()
    }

    /// The first modifier among `names`.
    fn one_of<'b>(&self, names: &[&'b str]) -> Option<&'b str> {
        self.find(|m| names.iter().copied().find(|n| *n == m))
    }

    fn find<T>(&self, accept: impl Fn(&str) -> Option<T>) -> Option<T> {
        let unused = |i: &usize| self.used.get() >> i & 1 == 0;
        let (i, found) =
            (0..self.modifiers.len()).filter(unused).find_map(|i| accept(self.modifiers[i]).map(|t| (i, t)))?;
        self.used.set(self.used.get() | 1 << i);
        Some(found)
    }

    /// The next type.
    fn ty(&self) -> Result<Type, String> {
        self.find(Type::parse).ok_or_else(|| format!("`{}` lacks a type", self.text))
    }

    /// Whether its last type computes in floats.
    fn is_float(&self) -> bool {
        self.modifiers.iter().rev().find_map(|m| Type::parse(m)).is_some_and(Type::is_float)
    }

    fn unknown(&self) -> String {
        format!("unknown instruction `{}`", self.text)
    }

    fn finish(&self) -> Result<(), String> {
        match (0..self.modifiers.len()).find(|i| self.used.get() >> i & 1 == 0) {
            Some(i) => Err(format!("{}: the modifier `.{}` is not known with it", self.unknown(), self.modifiers[i])),
            None => Ok(()),
        }
    }

    /// Exactly `N` operands.
    fn operands<const N: usize>(&self, operands: Vec<Operand>) -> Result<[Operand; N], String> {
        let given = operands.len();
        operands.try_into().map_err(|_| format!("`{}` takes {N} operands, and {given} are given", self.text))
    }
}

/// Decodes an instruction.
///
/// # Errors
/// What is not known about it.
pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    if op.modifiers.len() > 24 {
        return Err(op.unknown());
    }
    let decoder = match op.name {
        "addc" | "subc" | "madc" => carry::decode,
        "add" | "sub" | "mad" if op.modifiers.contains(&"cc") => carry::decode,
        "add" | "sub" | "mul" | "mad" | "div" | "abs" | "neg" | "min" | "max" if op.is_float() => float::decode,
        "fma" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "testp" | "copysign" => {
            float::decode
        }
        "add" | "sub" | "mul" | "mad" | "mul24" | "mad24" | "div" | "rem" | "abs" | "neg" | "min" | "max" | "sad"
        | "dp4a" | "popc" | "clz" | "brev" | "bfind" => integer::decode,
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "bfe" | "bfi" | "prmt" => {
            bitwise::decode
        }
        "setp" | "set" | "selp" | "slct" => compare::decode,
        "cvt" => convert::decode,
        "mov" | "ld" | "ldu" | "st" | "cvta" | "prefetch" | "prefetchu" | "isspacep" | "mapa" => data::decode,
        "atom" | "red" => atomic::decode,
        "bra" | "ret" | "exit" | "trap" | "nanosleep" | "setmaxnreg" | "griddepcontrol" => control::decode,
        "bar" | "barrier" | "membar" | "fence" | "mbarrier" => barrier::decode,
        "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => warp::decode,
        "ldmatrix" | "stmatrix" | "mma" => matrix::decode,
        "wgmma" => wgmma::decode,
        "cp" => copy::decode,
        _ => return Err(op.unknown()),
    };
    let decoded = decoder(op, operands)?;
    op.finish()?;
    Ok(decoded)
}

/// An instruction that computes one result from up to three operands, lane by lane.
struct Alu<F> {
    result: Operand,
    operands: Vec<Source>,
    masks: [u64; 3],
    function: F,
    flops: u64,
}

/// An operand of an [`Alu`] in its type.
struct Source {
    operand: Operand,
    ty: Type,
    /// The bits that the type has.
    mask: u64,
    /// The operand, if it is a number.
    number: Option<Box<Row>>,
}

impl Source {
    fn new(operand: Operand, ty: Type) -> Self {
        let mask = ty.truncate(u64::MAX);
        let number = immediate(&operand, ty).map(|bits| Box::new([bits; 32]));
        Source { operand, ty, mask, number }
    }

    /// Its values, whose bits beyond the type's mean nothing.
    #[inline]
    fn row<'a>(&'a self, cx: &'a Context<'_>) -> Values<'a> {
        match (&self.number, &self.operand) {
            (Some(row), _) => Values::There(row),
            (_, Operand::Register(slot)) => Values::There(&cx.warp.registers[*slot as usize]),
            (_, Operand::Special(Special::Tid(axis))) => Values::There(&cx.warp.threads[*axis]),
            (_, operand) => Values::Here(Box::new(cx.values(operand, self.ty))),
        }
    }
}

enum Values<'a> {
    There(&'a Row),
    Here(Box<Row>),
}

impl std::ops::Deref for Values<'_> {
    type Target = Row;

    #[inline]
    fn deref(&self) -> &Row {
        match self {
            Values::There(row) => row,
            Values::Here(row) => row,
        }
    }
}

/// No operand.
static NONE: Row = [0; 32];

impl<F: Fn([u64; 3]) -> u64 + Send + Sync> Execute for Alu<F> {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let mut out = NONE;
        {
            let row = |i: usize| self.operands.get(i).map_or(Values::There(&NONE), |s| s.row(cx));
            let (a, b, c) = (row(0), row(1), row(2));
            let (a, b, c) = (&*a, &*b, &*c);
            let masks = self.masks;
            if cx.mask == u32::MAX {
                whole(&self.function, [a, b, c], masks, &mut out);
            } else {
                for lane in cx.lanes() {
                    out[lane] = (self.function)([a[lane] & masks[0], b[lane] & masks[1], c[lane] & masks[2]]);
                }
            }
        }
        cx.set_row(&self.result, &out);
        cx.count_flops(self.flops);
        Ok(Flow::Next)
    }
}

/// The function of all lanes, with vectors as wide as the CPU has.
fn whole(function: &impl Fn([u64; 3]) -> u64, rows: [&Row; 3], masks: [u64; 3], out: &mut Row) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(function: &impl Fn([u64; 3]) -> u64, rows: [&Row; 3], masks: [u64; 3], out: &mut Row) {
            lanes(function, rows, masks, out);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has both.
            return unsafe { wide(function, rows, masks, out) };
        }
    }
    lanes(function, rows, masks, out);
}

#[inline(always)]
fn lanes(function: &impl Fn([u64; 3]) -> u64, [a, b, c]: [&Row; 3], masks: [u64; 3], out: &mut Row) {
    for lane in 0..32 {
        out[lane] = function([a[lane] & masks[0], b[lane] & masks[1], c[lane] & masks[2]]);
    }
}

/// An [`Alu`] with operands of these types: all bits of an operand are cut to its type before `function` sees them.
fn alu(
    op: &Opcode<'_>,
    class: Class,
    flops: u64,
    operands: Vec<Operand>,
    types: &[Type],
    function: impl Fn([u64; 3]) -> u64 + Send + Sync + 'static,
) -> Decode {
    if operands.len() != types.len() + 1 {
        return Err(format!("`{}` takes {} operands, and {} are given", op.text, types.len() + 1, operands.len()));
    }
    let mut operands = operands.into_iter();
    let is_result = |r: &Operand| matches!(r, Operand::Register(_) | Operand::Predicate(_) | Operand::Sink);
    let result = operands.next().filter(is_result);
    let result = result.ok_or_else(|| format!("the result of `{}` is not a register", op.text))?;
    let operands: Vec<Operand> = operands.collect();
    if !operands.iter().all(is_scalar) {
        return Err(format!("an operand of `{}` is neither a register nor a number", op.text));
    }
    let operands: Vec<Source> =
        operands.into_iter().zip(types).map(|(operand, ty)| Source::new(operand, *ty)).collect();
    let masks = std::array::from_fn(|i| operands.get(i).map_or(0, |s| s.mask));
    decoded(class, Alu { result, operands, masks, function, flops })
}

/// Whether an operand has one value per lane.
fn is_scalar(operand: &Operand) -> bool {
    !matches!(
        operand,
        Operand::Vector(_) | Operand::Pair(_) | Operand::Memory { .. } | Operand::Label(_) | Operand::Sink
    )
}
