//! What can be wrong with a kernel, and the shadow of shared memory that finds races.
//!
//! Races are found by vector clocks, after Flanagan and Freund, "FastTrack: Efficient and Precise Dynamic Race Detection":
//! every warp has a clock that ticks when it releases what it did (at a barrier, at a warp's sync, at an arrival), and knows
//! up to which tick of every other warp it is ordered behind. An access races with an earlier one whose tick it does not
//! know. Whether the machine happens to run the two in a harmless order makes no difference.

use super::module::Space;

/// What a kernel did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    #[error("{access} of {bytes} bytes at {space} address {address:#x} is out of bounds: {near}")]
    OutOfBounds { access: &'static str, space: Space, address: u64, bytes: u64, near: String },
    #[error("{access} of {bytes} bytes at {space} address {address:#x} is not aligned")]
    Misaligned { access: &'static str, space: Space, address: u64, bytes: u64 },
    #[error("reads {bytes} bytes at {space} address {address:#x} ({place}) that nothing has written")]
    Unwritten { space: Space, address: u64, bytes: u64, place: String },
    #[error("writes to {place}, which is constant")]
    ReadOnly { place: String },
    #[error(
        "races in shared memory at {address:#x}: {here} here, and no barrier since thread {thread:?} {there} it in line {line}"
    )]
    Race { address: u64, here: &'static str, there: &'static str, thread: [u32; 3], line: u32 },
    #[error("touches shared memory at {address:#x} that the asynchronous copy of line {line} still fills")]
    InFlight { address: u64, line: u32 },
    #[error("barrier divergence: {0}")]
    BarrierDivergence(String),
    #[error("{0}")]
    Misuse(String),
    #[error("more than {0} instructions were issued: an endless loop?")]
    Budget(u64),
    #[error("the kernel trapped")]
    Trap,
}

/// What a kernel did wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel {kernel}, block {block:?}, thread {thread:?}, line {line} (`{opcode}`): {kind}")]
pub struct Fault {
    pub kernel: String,
    pub block: [u32; 3],
    /// The first thread that did it.
    pub thread: [u32; 3],
    /// The line of the PTX text.
    pub line: u32,
    pub opcode: String,
    pub kind: FaultKind,
}

/// Why a launch failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The launch does not fit the entry.
    #[error("{0}")]
    Request(String),
    /// The kernel is wrong.
    #[error(transparent)]
    Fault(Box<Fault>),
}

impl Failure {
    /// The crate's error, of the device `ptx`. Not a `From`: a second conversion would leave closures all over the crate
    /// without a type.
    pub fn into_error(self) -> crate::Error {
        crate::Error::Device { device: "ptx", reason: self.to_string() }
    }
}

/// A fault while it is on its way out of an instruction.
pub(super) struct Trap {
    pub lane: usize,
    pub kind: FaultKind,
}

impl Trap {
    pub fn new(lane: usize, kind: FaultKind) -> Self {
        Trap { lane, kind }
    }
}

/// What a shared-memory access conflicts with.
pub(super) enum Conflict {
    Unwritten,
    InFlight(Mark),
    Race { here: &'static str, there: &'static str, mark: Mark },
}

/// Who touches shared memory, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The warp's tick; 0 if nobody.
    pub clock: u32,
    /// The warp's count of instructions: lanes of one instruction do not race with each other.
    pub time: u32,
    pub pc: u32,
    pub warp: u16,
    pub lane: u8,
    /// Atomic, volatile, relaxed and the like: such accesses do not race with each other.
    pub strong: bool,
}

/// In place of a lane: several of them.
const MANY: u8 = u8::MAX;

/// Per byte of shared memory who wrote it last, who read it since, and whether a copy is under way.
pub(super) struct Shadow {
    warps: usize,
    writes: Vec<Mark>,
    /// By byte and warp.
    reads: Vec<Mark>,
    flying: Vec<bool>,
}

impl Shadow {
    /// The shadow of `bytes` that nobody has touched.
    pub fn new(bytes: usize, warps: usize) -> Self {
        let none = Mark::default();
        Shadow { warps, writes: vec![none; bytes], reads: vec![none; bytes * warps], flying: vec![false; bytes] }
    }

    /// A read of byte `at`; `clocks` are those that the reader's warp knows.
    pub fn read(&mut self, at: usize, who: Mark, clocks: &[u32]) -> Result<(), Conflict> {
        let write = self.writes[at];
        if self.flying[at] {
            return Err(Conflict::InFlight(write));
        }
        if write.clock == 0 {
            return Err(Conflict::Unwritten);
        }
        if conflicts(&write, &who, clocks) {
            return Err(Conflict::Race { here: "reads", there: "wrote", mark: write });
        }
        let mark = &mut self.reads[at * self.warps + who.warp as usize];
        if mark.clock == who.clock && (mark.lane != who.lane || !mark.strong) {
            mark.lane = if mark.lane == who.lane { who.lane } else { MANY };
            mark.strong &= who.strong;
            mark.time = who.time;
            mark.pc = who.pc;
        } else {
            *mark = who;
        }
        Ok(())
    }

    /// Whether a write to byte `at` may happen now.
    pub fn check_write(&self, at: usize, who: &Mark, clocks: &[u32]) -> Result<(), Conflict> {
        let write = self.writes[at];
        if self.flying[at] {
            return Err(Conflict::InFlight(write));
        }
        if conflicts(&write, who, clocks) {
            return Err(Conflict::Race { here: "writes", there: "wrote", mark: write });
        }
        let reads = &self.reads[at * self.warps..(at + 1) * self.warps];
        match reads.iter().find(|r| conflicts(r, who, clocks)) {
            Some(read) => Err(Conflict::Race { here: "writes", there: "read", mark: *read }),
            None => Ok(()),
        }
    }

    /// A write to byte `at`.
    pub fn write(&mut self, at: usize, who: Mark, clocks: &[u32]) -> Result<(), Conflict> {
        self.check_write(at, &who, clocks)?;
        self.writes[at] = who;
        Ok(())
    }

    /// A copy to byte `at` begins.
    pub fn take_off(&mut self, at: usize, who: Mark, clocks: &[u32]) -> Result<(), Conflict> {
        self.write(at, who, clocks)?;
        self.flying[at] = true;
        Ok(())
    }

    /// The copy to byte `at` is done, and visible to those behind `who`.
    pub fn land(&mut self, at: usize, who: Mark) {
        self.flying[at] = false;
        self.writes[at] = who;
    }
}

/// Whether nothing orders `who` behind `earlier`.
fn conflicts(earlier: &Mark, who: &Mark, clocks: &[u32]) -> bool {
    if earlier.clock == 0 || (earlier.strong && who.strong) {
        return false;
    }
    if earlier.warp != who.warp {
        return clocks[earlier.warp as usize] < earlier.clock;
    }
    earlier.lane != who.lane && earlier.time != who.time && earlier.clock == who.clock
}
