//! `wgmma`: products of matrices by four warps together, which go on beside the threads until they are waited for.
//!
//! Each warp has sixteen rows of the result, and computes them by itself. The operands are read when the product is issued; the
//! result comes into the registers at the wait, and until then they hold NaN. At the wait the places in shared memory are looked
//! at again: whoever wrote there in the meantime is found.

use std::collections::VecDeque;

use super::super::check::{FaultKind, MANY, Trap};
use super::super::count::Class;
use super::super::machine::{Context, Row};
use super::super::module::{Operand, Type};
use super::control::Nothing;
use super::matrix::{gather, multiply};
use super::rounding::from_bits;
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

/// The products of one warp that are under way.
#[derive(Default)]
pub struct Products {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
}

/// A product on its way.
struct Product {
    /// Where the result goes, and what it is.
    result: Vec<(u32, Row)>,
    /// Chunks of shared memory that it reads.
    chunks: Vec<usize>,
}

impl Product {
    /// What goes to a register, which is the one with the number `r` if the product has the same form as others.
    fn result_of(&self, r: usize, slot: u32) -> Option<&Row> {
        let found = self.result.get(r).filter(|(s, _)| *s == slot);
        found.or_else(|| self.result.iter().find(|(s, _)| *s == slot)).map(|(_, row)| row)
    }
}

/// Bytes of a matrix that lie together, wherever the rest is.
const CHUNK: u64 = 16;
/// What an accumulator holds while its product is under way.
const UNDER_WAY: Row = [0x7fff_ffff; 32];

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let action = op.one_of(&["fence", "commit_group", "wait_group", "mma_async"]).ok_or_else(|| op.unknown())?;
    if !(op.flag("sync") & op.flag("aligned")) {
        return Err(op.unknown());
    }
    match action {
        "fence" => {
            op.operands::<0>(operands)?;
            decoded(Class::Barrier, Nothing)
        }
        "commit_group" => {
            op.operands::<0>(operands)?;
            decoded(Class::Matrix, Commit)
        }
        "wait_group" => match op.operands(operands)? {
            [Operand::Integer(leave)] => decoded(Class::Barrier, Wait(leave)),
            _ => Err(op.unknown()),
        },
        _ => product(op, operands),
    }
}

fn product(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let shape = |m: &str| {
        let (n, k) = m.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?))
    };
    let (n, k) = op.find(shape).ok_or_else(|| op.unknown())?;
    let [d, a_ty, b_ty] = [op.ty()?, op.ty()?, op.ty()?];
    let known = matches!((a_ty, k), (Type::F(16) | Type::Bf16, 16) | (Type::Tf32, 8));
    if !known || d != Type::F(32) || a_ty != b_ty || n == 0 || !n.is_multiple_of(8) || n > 256 {
        return Err(op.unknown());
    }
    let fits = || format!("the operands of `{}` do not fit", op.text);
    let mut operands = operands.into_iter();
    let mut next = || operands.next().ok_or_else(fits);
    let Operand::Vector(d) = next()? else { return Err(fits()) };
    if d.len() != n / 2 || d.iter().any(|r| !matches!(r, Operand::Register(_))) {
        return Err(fits());
    }
    let a = match next()? {
        Operand::Vector(list) if list.len() == 4 => Left::Registers(list),
        one if is_scalar(&one) => Left::Shared(one),
        _ => return Err(fits()),
    };
    let (b, adds) = (next()?, next()?);
    let numbers: Vec<Operand> = operands.collect();
    // Signs of both, and for halves whether they lie transposed; only what lies in shared memory can.
    let transposable = match (a_ty, &a) {
        (Type::Tf32, _) => 0,
        (_, Left::Registers(_)) => 1,
        (_, Left::Shared(_)) => 2,
    };
    if !is_scalar(&b) || !is_scalar(&adds) || numbers.len() != 2 + transposable {
        return Err(fits());
    }
    let (signs, transposed) = numbers.split_at(2);
    let sign = |o: &Operand| match o {
        Operand::Integer(1) => Ok(1.0),
        Operand::Integer(n) if *n as i64 == -1 => Ok(-1.0),
        _ => Err(fits()),
    };
    let is_transposed = |o: &Operand| match o {
        Operand::Integer(n @ (0 | 1)) => Ok(*n == 1),
        _ => Err(fits()),
    };
    let sign = sign(&signs[0])? * sign(&signs[1])?;
    let transposed: Vec<bool> = transposed.iter().map(is_transposed).collect::<Result<_, _>>()?;
    let b_transposed = transposed.last().copied().unwrap_or(false);
    let a_transposed = transposed.len() == 2 && transposed[0];
    decoded(Class::Matrix, Multiply { n, k, ty: a_ty, d, a, b, adds, sign, a_transposed, b_transposed })
}

enum Left {
    Registers(Vec<Operand>),
    /// A descriptor.
    Shared(Operand),
}

/// D = A B + D, or A B, with A `[64, k]` and B `[k, n]`.
struct Multiply {
    n: usize,
    k: usize,
    ty: Type,
    d: Vec<Operand>,
    a: Left,
    b: Operand,
    adds: Operand,
    sign: f64,
    a_transposed: bool,
    b_transposed: bool,
}

/// What a matrix descriptor says, in bytes.
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    /// The length of rows whose chunks are permuted; 16 if none are.
    span: u64,
}

impl Descriptor {
    fn new(bits: u64) -> Result<Self, FaultKind> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let span = [16, 128, 64, 32][(bits >> 62) as usize];
        if bits >> 49 & 7 != 0 {
            let reason = "a matrix whose swizzle begins at an offset (bits 49 to 51 of its descriptor) is not known";
            return Err(FaultKind::Misuse(reason.into()));
        }
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), span })
    }

    /// The address of a chunk: element `k` of row `row`, the chunks running along k, or the other way round if
    /// `transposed`; `each` elements make a chunk. The canonical layouts of the PTX ISA, "Shared Memory Matrix Layout".
    fn chunk(&self, row: u64, k: u64, each: u64, transposed: bool) -> u64 {
        let across = self.span / CHUNK;
        let offset = match (transposed, self.span) {
            (false, CHUNK) => row % 8 * CHUNK + row / 8 * self.stride + k / each * self.leading,
            (false, _) => row % 8 * self.span + row / 8 * self.stride + k / each * CHUNK,
            (true, CHUNK) => k % 8 * CHUNK + k / 8 * self.leading + row / each * self.stride,
            (true, _) => {
                let row = row / each;
                row % across * CHUNK + row / across * self.leading + k % 8 * self.span + k / 8 * self.stride
            }
        };
        swizzle(self.start + offset, self.span)
    }
}

/// Where a byte of a pattern of rows of `span` bytes lies: its chunk's number within the row is changed by the row's.
pub(super) fn swizzle(address: u64, span: u64) -> u64 {
    address ^ (address >> 7 & (span / CHUNK - 1)) << 4
}

impl Multiply {
    /// `rows` of a matrix in shared memory from row `first` on, as `[k, rows]`.
    fn read(
        &self,
        cx: &mut Context<'_>,
        descriptor: &Operand,
        transposed: bool,
        (first, rows): (usize, usize),
        chunks: &mut Vec<usize>,
    ) -> Result<Vec<f64>, FaultKind> {
        let lane = cx.mask.trailing_zeros() as usize;
        let descriptor = Descriptor::new(cx.value(descriptor, Type::B(64), lane))?;
        let size = self.ty.bytes();
        let each = CHUNK as usize / size;
        let mut out = vec![0.0; self.k * rows];
        let mut who = cx.mark(lane, false);
        who.lane = MANY;
        let (row_step, k_step) = if transposed { (each, 1) } else { (1, each) };
        for row in (0..rows).step_by(row_step) {
            for k in (0..self.k).step_by(k_step) {
                let address = descriptor.chunk((first + row) as u64, k as u64, each as u64, transposed);
                let start = cx.shared_place("wgmma", address, CHUNK)?;
                cx.read_shared(start, CHUNK as usize, who)?;
                chunks.push(start);
                let bytes = &cx.block.shared[start..start + CHUNK as usize];
                for (i, bytes) in bytes.chunks_exact(size).enumerate() {
                    let (row, k) = if transposed { (row + i, k) } else { (row, k + i) };
                    let bits = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                    out[k * rows + row] = from_bits(bits, self.ty);
                }
            }
        }
        Ok(out)
    }
}

impl Execute for Multiply {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let missing = cx.whole_warp()?;
        if missing != 0 {
            return Ok(Flow::Missing(missing));
        }
        let part = cx.warp.index % 4;
        if cx.block.warps() < cx.warp.index - part + 4 {
            let reason = "four warps have to take part, and the block's last ones are fewer";
            return Err(cx.fault(FaultKind::Misuse(reason.into())));
        }
        let mut chunks = Vec::new();
        let trap = |kind| Trap::new(0, kind);
        // `[k, 16]` like what comes from shared memory.
        let a = match &self.a {
            Left::Registers(list) => {
                let rows: [[f64; 16]; 16] = gather(cx, list, self.ty, true);
                (0..self.k * 16).map(|i| rows[i % 16][i / 16]).collect()
            }
            Left::Shared(descriptor) => {
                self.read(cx, descriptor, self.a_transposed, (16 * part, 16), &mut chunks).map_err(trap)?
            }
        };
        let b = self.read(cx, &self.b, self.b_transposed, (0, self.n), &mut chunks).map_err(trap)?;
        let adds = cx.value(&self.adds, Type::Pred, 0) == 1;
        let mut sums = vec![0.0; 16 * self.n];
        multiply(&a, &b, &mut sums, 16, self.n);
        let mut result = Vec::with_capacity(self.d.len());
        for (r, operand) in self.d.iter().enumerate() {
            let Operand::Register(slot) = operand else { continue };
            let before = cx.accumulator(r, *slot);
            let row = std::array::from_fn(|lane| {
                let (row, col) = (lane / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + lane % 4 * 2 + r % 2);
                let before = if adds { from_bits(before[lane], Type::F(32)) } else { 0.0 };
                ((self.sign * sums[row * self.n + col] + before) as f32).to_bits().into()
            });
            result.push((*slot, row));
        }
        for (slot, _) in &result {
            cx.warp.registers[*slot as usize] = UNDER_WAY;
        }
        cx.warp.products.open.push(Product { result, chunks });
        cx.counters.flops += 2 * 16 * (self.n * self.k) as u64;
        Ok(Flow::Next)
    }
}

impl Context<'_> {
    /// What an accumulator will hold once all products have come.
    fn accumulator(&self, r: usize, slot: u32) -> Row {
        let products = &self.warp.products;
        let mut all = products.groups.iter().flatten().chain(&products.open).rev();
        all.find_map(|p| p.result_of(r, slot)).copied().unwrap_or(self.warp.registers[slot as usize])
    }
}

struct Commit;

impl Execute for Commit {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let products = &mut cx.warp.products;
        let group = std::mem::take(&mut products.open);
        products.groups.push_back(group);
        Ok(Flow::Next)
    }
}

/// Waits until no more than so many of the newest groups are under way.
struct Wait(u64);

impl Execute for Wait {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        while cx.warp.products.groups.len() as u64 > self.0
            && let Some(group) = cx.warp.products.groups.pop_front()
        {
            for product in group {
                let mut who = cx.mark(0, false);
                who.lane = MANY;
                for start in product.chunks {
                    cx.read_shared(start, CHUNK as usize, who).map_err(|kind| Trap::new(0, kind))?;
                }
                for (r, (slot, row)) in product.result.into_iter().enumerate() {
                    // A newer product of the same accumulator may still be under way.
                    let products = &cx.warp.products;
                    let mut newer = products.groups.iter().flatten().chain(&products.open);
                    if !newer.any(|p| p.result_of(r, slot).is_some()) {
                        cx.warp.registers[slot as usize] = row;
                    }
                }
            }
        }
        Ok(Flow::Next)
    }
}
