//! Matrices spread over the lanes of a warp: `ldmatrix`, `stmatrix`, `mma`.
//!
//! Layouts are those of the PTX ISA: lane = 4 · group + member; a register of 32 bits holds two halves side by side in a row.

use super::super::check::Trap;
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::{Operand, Space, Type};
use super::data::{Place, aligned, locate, place, space};
use super::rounding::from_bits;
use super::{Decode, Execute, Flow, Opcode, decoded};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    if op.name == "mma" {
        return mma(op, operands);
    }
    let fits = op.flag("sync") & op.flag("aligned") & op.flag("m8n8");
    let count = op.one_of(&["x1", "x2", "x4"]).map(|x| usize::from(x.as_bytes()[1] - b'0'));
    let transposed = op.flag("trans");
    let space = space(op).unwrap_or(Space::Generic);
    let ty = op.ty()?;
    let store = op.name == "stmatrix";
    let [first, second] = op.operands(operands)?;
    let (values, address) = if store { (second, first) } else { (first, second) };
    let registers = match values {
        Operand::Vector(list) => list,
        one => vec![one],
    };
    if !fits || ty != Type::B(16) || count != Some(registers.len()) {
        return Err(op.unknown());
    }
    decoded(Class::Shared, Fragments { registers, place: place(op, address)?, space, transposed, store })
}

/// `ldmatrix` and `stmatrix`: matrices of 8 × 8 halves, whose rows lie at addresses that eight lanes each give.
struct Fragments {
    registers: Vec<Operand>,
    place: Place,
    space: Space,
    transposed: bool,
    store: bool,
}

impl Execute for Fragments {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let missing = cx.whole_warp()?;
        if missing != 0 {
            return Ok(Flow::Missing(missing));
        }
        let mut accesses = Vec::with_capacity(32);
        for (matrix, register) in self.registers.iter().enumerate() {
            let mut halves = [[0u16; 8]; 8];
            // Where element (row, column) of the matrix in memory lies among the lanes: (lane, half).
            let owner = |row: usize, col: usize| {
                let (row, col) = if self.transposed { (col, row) } else { (row, col) };
                (4 * row + col / 2, 16 * (col % 2))
            };
            if self.store {
                let values = cx.values(register, Type::B(32));
                for (row, line) in halves.iter_mut().enumerate() {
                    for (col, half) in line.iter_mut().enumerate() {
                        let (lane, shift) = owner(row, col);
                        *half = (values[lane] >> shift) as u16;
                    }
                }
            }
            for (row, line) in halves.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                let (space, address) = locate(cx, &self.place, self.space, lane);
                let access = if self.store { "stmatrix" } else { "ldmatrix" };
                let done = aligned(access, space, address, 16).and_then(|()| {
                    let bytes: &mut [u8] = bytemuck::cast_slice_mut(line);
                    if self.store {
                        cx.store(lane, space, address, bytes, false)
                    } else {
                        cx.load(lane, space, address, bytes, false)
                    }
                });
                done.map_err(|kind| Trap::new(lane, kind))?;
                accesses.push((address, 16));
            }
            if !self.store {
                let mut values = [0u64; 32];
                for (row, line) in halves.iter().enumerate() {
                    for (col, half) in line.iter().enumerate() {
                        let (lane, shift) = owner(row, col);
                        values[lane] |= u64::from(*half) << shift;
                    }
                }
                (0..32).for_each(|lane| cx.set(register, lane, values[lane]));
            }
        }
        cx.count(Space::Shared, &accesses, 16, self.store);
        Ok(Flow::Next)
    }
}

fn mma(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let fits = op.flag("sync") & op.flag("aligned");
    let shape = op.one_of(&["m16n8k8", "m16n8k16"]).ok_or_else(|| op.unknown())?;
    let fits = fits & op.flag("row") & op.flag("col");
    let [d, a, b, c] = [op.ty()?, op.ty()?, op.ty()?, op.ty()?];
    let k = if shape == "m16n8k8" { 8 } else { 16 };
    let known = matches!((k, a), (8 | 16, Type::F(16) | Type::Bf16) | (8, Type::Tf32));
    if !fits || !known || a != b || d != Type::F(32) || c != d {
        return Err(op.unknown());
    }
    // Registers of A: 16 · k elements over 32 lanes.
    let registers = 16 * k / 32 * a.bits() as usize / 32;
    let vectors: [Operand; 4] = op.operands(operands)?;
    let mut lists = Vec::new();
    for (vector, count) in vectors.into_iter().zip([4, registers, registers / 2, 4]) {
        match vector {
            Operand::Vector(list) if list.len() == count => lists.push(list),
            one if count == 1 && !matches!(one, Operand::Vector(_)) => lists.push(vec![one]),
            _ => return Err(format!("an operand of `{}` does not have {count} registers", op.text)),
        }
    }
    let [d, a_list, b_list, c] = lists.try_into().map_err(|_| op.unknown())?;
    decoded(Class::Matrix, Mma { k, ty: a, d, a: a_list, b: b_list, c })
}

/// D = A B + C with A `[16, k]`, B `[k, 8]`. Products are exact and summed in f64, and the sum is rounded once; hardware rounds
/// in between, in an order that nothing documents.
struct Mma {
    k: usize,
    ty: Type,
    d: Vec<Operand>,
    a: Vec<Operand>,
    b: Vec<Operand>,
    c: Vec<Operand>,
}

/// Spreads registers into rows of k: register r of lane (group, member) holds the elements of `row(r)` from `col(r)` on.
pub(super) fn gather<const ROWS: usize>(cx: &Context<'_>, list: &[Operand], ty: Type, tall: bool) -> [[f64; 16]; ROWS] {
    let mut out = [[0.0; 16]; ROWS];
    let each = 32 / ty.bits() as usize;
    for (r, operand) in list.iter().enumerate() {
        let values = cx.values(operand, Type::B(32));
        // A has two rows of registers, one above the other, before it goes on to the right.
        let (down, right) = if tall { (r % 2, r / 2) } else { (0, r) };
        for (lane, value) in values.iter().enumerate() {
            for i in 0..each {
                let bits = if each == 2 { value >> (16 * i) & 0xffff } else { *value };
                out[lane / 4 + 8 * down][(lane % 4 + 4 * right) * each + i] = from_bits(bits, ty);
            }
        }
    }
    out
}

/// Adds the products of A, which is given as `[k, rows]`, and B, `[k, n]`, to `[rows, n]`, with vectors as wide as the CPU has.
pub(super) fn multiply(a: &[f64], b: &[f64], out: &mut [f64], rows: usize, n: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(a: &[f64], b: &[f64], out: &mut [f64], rows: usize, n: usize) {
            products(a, b, out, rows, n);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has both.
            return unsafe { wide(a, b, out, rows, n) };
        }
    }
    products(a, b, out, rows, n);
}

#[inline(always)]
fn products(a: &[f64], b: &[f64], out: &mut [f64], rows: usize, n: usize) {
    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(n)) {
        for (a, out) in a.iter().zip(out.chunks_exact_mut(n)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

impl Execute for Mma {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let missing = cx.whole_warp()?;
        if missing != 0 {
            return Ok(Flow::Missing(missing));
        }
        let a: [[f64; 16]; 16] = gather(cx, &self.a, self.ty, true);
        let b: [[f64; 16]; 8] = gather(cx, &self.b, self.ty, false);
        let (mut a_rows, mut b_rows, mut sums) = ([0.0; 256], [0.0; 128], [0.0; 128]);
        for k in 0..self.k {
            (0..16).for_each(|row| a_rows[16 * k + row] = a[row][k]);
            (0..8).for_each(|col| b_rows[8 * k + col] = b[col][k]);
        }
        multiply(&a_rows[..16 * self.k], &b_rows[..8 * self.k], &mut sums, 16, 8);
        let c: Vec<[u64; 32]> = self.c.iter().map(|c| cx.values(c, Type::F(32))).collect();
        for (r, (d, c)) in self.d.iter().zip(&c).enumerate() {
            for (lane, c) in c.iter().enumerate() {
                let (row, col) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
                let sum = (sums[8 * row + col] + from_bits(*c, Type::F(32))) as f32;
                cx.set(d, lane, sum.to_bits().into());
            }
        }
        cx.counters.flops += 2 * 16 * 8 * self.k as u64;
        Ok(Flow::Next)
    }
}
