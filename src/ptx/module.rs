//! A parsed module: what PTX text says, with every instruction decoded.

use std::fmt;
use std::sync::Arc;

use super::count::Class;
use super::instr::Execute;

/// Text that is not PTX this machine can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// The line of the text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub reason: String,
}

/// The type that an instruction gives to an operand; registers are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Pred,
    /// Bits, unsigned, signed and float of a width in bits.
    B(u32),
    U(u32),
    S(u32),
    F(u32),
    Bf16,
    Tf32,
    F16x2,
    Bf16x2,
}

impl Type {
    /// The type of a modifier such as `f32`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B(8),
            "b16" => Type::B(16),
            "b32" => Type::B(32),
            "b64" => Type::B(64),
            "u8" => Type::U(8),
            "u16" => Type::U(16),
            "u32" => Type::U(32),
            "u64" => Type::U(64),
            "s8" => Type::S(8),
            "s16" => Type::S(16),
            "s32" => Type::S(32),
            "s64" => Type::S(64),
            "f16" => Type::F(16),
            "f32" => Type::F(32),
            "f64" => Type::F(64),
            "bf16" => Type::Bf16,
            "tf32" => Type::Tf32,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::Bf16x2,
            _ => return None,
        })
    }

    /// Width in bits.
    #[inline]
    pub fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B(bits) | Type::U(bits) | Type::S(bits) | Type::F(bits) => bits,
            Type::Bf16 => 16,
            Type::Tf32 | Type::F16x2 | Type::Bf16x2 => 32,
        }
    }

    /// Width in memory.
    #[inline]
    pub fn bytes(self) -> usize {
        (self.bits() as usize).div_ceil(8)
    }

    /// Whether the machine computes with it as a float.
    pub fn is_float(self) -> bool {
        !matches!(self, Type::Pred | Type::B(_) | Type::U(_) | Type::S(_))
    }

    /// The low bits of `value` that the type has.
    #[inline]
    pub fn truncate(self, value: u64) -> u64 {
        if self.bits() == 64 { value } else { value & ((1 << self.bits()) - 1) }
    }

    /// `value` as a number of 64 bits: with its sign, if the type has one.
    #[inline]
    pub fn extend(self, value: u64) -> u64 {
        match self {
            Type::S(bits) => ((value << (64 - bits)) as i64 >> (64 - bits)) as u64,
            _ => self.truncate(value),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Pred => f.write_str("pred"),
            Type::B(bits) => write!(f, "b{bits}"),
            Type::U(bits) => write!(f, "u{bits}"),
            Type::S(bits) => write!(f, "s{bits}"),
            Type::F(bits) => write!(f, "f{bits}"),
            Type::Bf16 => f.write_str("bf16"),
            Type::Tf32 => f.write_str("tf32"),
            Type::F16x2 => f.write_str("f16x2"),
            Type::Bf16x2 => f.write_str("bf16x2"),
        }
    }
}

/// Where a variable lies, or what an address points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
    /// Found out from the address.
    Generic,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Global => "global",
            Space::Const => "const",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Param => "param",
            Space::Generic => "generic",
        })
    }
}

/// A declared variable.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u64,
    pub bytes: u64,
    /// The first bytes; the rest is zero.
    pub(super) initial: Vec<u8>,
    /// `.extern .shared x[]`: its size is the launch's.
    pub(super) dynamic: bool,
    /// Where it begins in its space; unused for global and constant variables, which get a place at a launch.
    pub(super) offset: u64,
}

/// A parameter of an entry.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    /// The type of a scalar, `b8` of a structure.
    pub ty: Type,
    pub bytes: u64,
    pub(super) offset: u64,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes == self.ty.bytes() as u64 {
            write!(f, ".{} {}", self.ty, self.name)
        } else {
            write!(f, ".{} {}[{}]", self.ty, self.name, self.bytes)
        }
    }
}

/// A register that the machine itself fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    NwarpId,
    LaneMask(std::cmp::Ordering, bool),
    Clock,
    DynamicShared,
    TotalShared,
    /// The place of the block in its cluster, by axis and as a number.
    ClusterCtaid(usize),
    ClusterRank,
    /// The cluster's sizes and how many blocks it has.
    ClusterNctaid(usize),
    ClusterBlocks,
    /// The place of the cluster in the grid, and how many there are.
    Clusterid(usize),
    Nclusterid(usize),
    /// The number of the multiprocessor, the grid's number.
    Zero,
    /// The number of multiprocessors.
    One,
}

/// What stands behind an opcode.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Register(u32),
    /// A predicate, and the same negated.
    Predicate(u32),
    Not(u32),
    Integer(u64),
    F32(u32),
    F64(f64),
    Special(Special),
    /// The address of `variables[.0]` plus an offset.
    Variable(usize, i64),
    /// `labels[.0]`.
    Label(usize),
    /// `_`: a result that nobody wants.
    Sink,
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<[Operand; 2]>),
    /// `[base + offset]`, or `[base, {coordinates}]` of a tensor.
    Memory {
        base: Box<Operand>,
        offset: i64,
        coordinates: Vec<Operand>,
    },
}

/// One instruction.
#[derive(Debug)]
pub(super) struct Instruction {
    pub line: u32,
    /// A predicate, and whether it must be false.
    pub guard: Option<(u32, bool)>,
    /// With all modifiers, for messages.
    pub opcode: String,
    pub class: Class,
    pub action: Box<dyn Execute>,
}

/// What an entry says of its launches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// `.reqntid` and `.maxntid`.
    pub threads: Option<[u32; 3]>,
    pub most_threads: Option<u32>,
    /// `.reqnctapercluster`: blocks of a cluster along x, y and z.
    pub cluster: [u32; 3],
}

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// Which module it is of: kernels of one share its variables.
    pub(super) module: u64,
    pub(super) limits: Limits,
    pub(super) variables: Vec<Variable>,
    pub(super) registers: usize,
    pub(super) predicates: usize,
    pub(super) code: Vec<Instruction>,
    /// The instruction behind each label.
    pub(super) labels: Vec<usize>,
    /// For each instruction where lanes that part there meet again: the length of the code if they never do.
    pub(super) reconverge: Vec<usize>,
    pub(super) static_shared: u64,
    pub(super) local_bytes: u64,
}

/// A parsed PTX file.
#[derive(Clone, Debug)]
pub struct Module {
    /// The version of the instruction set, as (major, minor).
    pub version: (u32, u32),
    /// The architecture, such as `sm_80`.
    pub target: String,
    pub entries: Vec<Arc<Entry>>,
}

impl Entry {
    /// Bytes of shared memory that a block has whatever its launch gives it.
    pub fn static_shared_bytes(&self) -> u64 {
        self.static_shared
    }
}

impl Module {
    /// The kernel of that name.
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|e| e.name == name)
    }
}
