//! What can be wrong with a kernel, and the shadow of shared memory that finds races.
//!
//! Races are found by vector clocks, after Flanagan and Freund, "FastTrack: Efficient and Precise Dynamic Race Detection":
//! every warp has a clock that ticks when it releases what it did (at a barrier, at a warp's sync, at an arrival), and knows
//! up to which tick of every other warp of its cluster it is ordered behind. An access races with an earlier one whose tick
//! it does not know. Whether the machine happens to run the two in a harmless order makes no difference.

use super::module::Space;
use std::collections::BTreeMap;
use std::ops::Range;

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
        "races in shared memory{} at {address:#x}: {here} here, and no barrier since thread {thread:?}{} {there} it in line {line}",
        of_block(.owner),
        of_block(.block)
    )]
    Race {
        address: u64,
        /// The block whose memory it is, if it is another one than that of the thread at fault.
        owner: Option<[u32; 3]>,
        here: &'static str,
        there: &'static str,
        thread: [u32; 3],
        /// The block of that thread, if it is another one.
        block: Option<[u32; 3]>,
        line: u32,
    },
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

fn of_block(block: &Option<[u32; 3]>) -> String {
    block.map_or(String::new(), |block| format!(" of block {block:?}"))
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
    /// The warp's column among the clocks.
    pub warp: u16,
    pub lane: u8,
    /// Atomic, volatile, relaxed and the like: such accesses do not race with each other.
    pub strong: bool,
}

/// In place of a lane: several of them.
pub(super) const MANY: u8 = u8::MAX;

/// Of each word of shared memory who wrote it last, who read it since, and whether a copy is under way; of a word that was
/// accessed in parts, the same of each byte. It serves one block after the other: a mark that is no newer than the block says
/// nothing.
#[derive(Default)]
pub(super) struct Shadow {
    /// The last tick of the blocks before.
    start: u32,
    words: Marks,
    /// Which words' marks are among `bytes`, which is empty until there are any.
    split: Vec<bool>,
    bytes: Marks,
    flying: Vec<bool>,
}

/// Marks of places that are accessed as wholes.
#[derive(Default)]
struct Marks {
    /// The block's own columns: where they begin, and how many they are.
    first: usize,
    columns: usize,
    writes: Vec<Mark>,
    /// By place and own column.
    reads: Vec<Mark>,
    /// By place and column, of other blocks of the cluster: few, if any.
    visits: BTreeMap<(usize, u16), Mark>,
}

/// Bytes of a word.
const WORD: usize = 4;

impl Marks {
    fn new(places: usize, own: Range<usize>) -> Self {
        let (first, columns) = (own.start, own.len());
        let (writes, reads) = (vec![Mark::default(); places], vec![Mark::default(); places * columns]);
        Marks { first, columns, writes, reads, visits: BTreeMap::new() }
    }

    /// Where the last read of a place by a warp is noted.
    #[inline]
    fn last_read(&mut self, at: usize, warp: u16) -> &mut Mark {
        match usize::from(warp).wrapping_sub(self.first) {
            column if column < self.columns => &mut self.reads[at * self.columns + column],
            _ => self.visits.entry((at, warp)).or_default(),
        }
    }

    /// The reads of a place by its own block.
    #[inline]
    fn own_reads(&self, at: usize) -> &[Mark] {
        &self.reads[at * self.columns..(at + 1) * self.columns]
    }

    /// The reads of a place by other blocks.
    #[inline]
    fn visits(&self, at: usize) -> impl Iterator<Item = &Mark> {
        self.visits.range((at, 0)..=(at, u16::MAX)).map(|(_, read)| read)
    }

    /// `conflicts` with whatever is older than `start` says nothing.
    #[inline]
    fn read(&mut self, at: usize, who: Mark, clocks: &[u32], start: u32) -> Result<(), Conflict> {
        let write = &self.writes[at];
        if write.clock <= start {
            return Err(Conflict::Unwritten);
        }
        if conflicts(write, &who, clocks, start) {
            return Err(Conflict::Race { here: "reads", there: "wrote", mark: *write });
        }
        let mark = self.last_read(at, who.warp);
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

    #[inline]
    fn write(&mut self, at: usize, who: Mark, clocks: &[u32], start: u32) -> Result<(), Conflict> {
        let write = &self.writes[at];
        if conflicts(write, &who, clocks, start) {
            return Err(Conflict::Race { here: "writes", there: "wrote", mark: *write });
        }
        let races = |read: &&Mark| conflicts(read, &who, clocks, start);
        if let Some(read) = self.own_reads(at).iter().find(races).or_else(|| self.visits(at).find(races)) {
            return Err(Conflict::Race { here: "writes", there: "read", mark: *read });
        }
        self.writes[at] = who;
        Ok(())
    }
}

impl Shadow {
    /// The shadow of `bytes` that nobody has touched, of a block that has the columns `own` among the clocks.
    pub fn new(bytes: usize, own: Range<usize>) -> Self {
        let words = bytes.div_ceil(WORD);
        Shadow {
            start: 0,
            words: Marks::new(words, own.clone()),
            split: vec![false; words],
            bytes: Marks::new(0, own),
            flying: vec![false; words],
        }
    }

    /// Begins a block whose ticks come after `start`.
    pub fn next_block(&mut self, start: u32) {
        self.start = start;
        self.flying.fill(false);
        // They would say nothing, and take room.
        self.words.visits.clear();
        self.bytes.visits.clear();
    }

    /// A read of `bytes` from `at` on; `clocks` are those that the reader's warp knows.
    ///
    /// # Errors
    /// The byte of the conflict.
    #[inline]
    pub fn read(&mut self, at: usize, bytes: usize, who: Mark, clocks: &[u32]) -> Result<(), (usize, Conflict)> {
        self.access(at, bytes, |marks, place, start| marks.read(place, who, clocks, start))
    }

    /// A write of `bytes` from `at` on.
    ///
    /// # Errors
    /// The byte of the conflict.
    #[inline]
    pub fn write(&mut self, at: usize, bytes: usize, who: Mark, clocks: &[u32]) -> Result<(), (usize, Conflict)> {
        self.access(at, bytes, |marks, place, start| marks.write(place, who, clocks, start))
    }

    #[inline]
    fn access(
        &mut self,
        at: usize,
        bytes: usize,
        mut f: impl FnMut(&mut Marks, usize, u32) -> Result<(), Conflict>,
    ) -> Result<(), (usize, Conflict)> {
        let end = at + bytes;
        for word in at / WORD..end.div_ceil(WORD) {
            let (from, to) = (at.max(word * WORD), end.min((word + 1) * WORD));
            if self.flying[word] {
                let mark = if self.split[word] { self.bytes.writes[from] } else { self.words.writes[word] };
                return Err((from, Conflict::InFlight(mark)));
            }
            if to - from == WORD && !self.split[word] {
                f(&mut self.words, word, self.start).map_err(|c| (from, c))?;
                continue;
            }
            self.split(word);
            for byte in from..to {
                f(&mut self.bytes, byte, self.start).map_err(|c| (byte, c))?;
            }
        }
        Ok(())
    }

    /// Gives each byte of the word marks of its own.
    fn split(&mut self, word: usize) {
        if std::mem::replace(&mut self.split[word], true) {
            return;
        }
        let Marks { first, columns, .. } = self.words;
        if self.bytes.writes.is_empty() {
            self.bytes = Marks::new(WORD * self.words.writes.len(), first..first + columns);
        }
        for byte in word * WORD..(word + 1) * WORD {
            self.bytes.writes[byte] = self.words.writes[word];
            self.bytes.reads[byte * columns..(byte + 1) * columns].copy_from_slice(self.words.own_reads(word));
            self.bytes.visits.extend(self.words.visits(word).map(|read| ((byte, read.warp), *read)));
        }
    }

    /// A copy of whole words to `at` begins.
    ///
    /// # Errors
    /// The byte of the conflict.
    #[inline]
    pub fn take_off(&mut self, at: usize, bytes: usize, who: Mark, clocks: &[u32]) -> Result<(), (usize, Conflict)> {
        self.write(at, bytes, who, clocks)?;
        self.flying[at / WORD..(at + bytes) / WORD].fill(true);
        Ok(())
    }

    /// The copy to `at` is done, and visible to those behind `who`.
    pub fn land(&mut self, at: usize, bytes: usize, who: Mark) {
        for word in at / WORD..(at + bytes) / WORD {
            self.flying[word] = false;
            if self.split[word] {
                self.bytes.writes[word * WORD..(word + 1) * WORD].fill(who);
            } else {
                self.words.writes[word] = who;
            }
        }
    }
}

/// Whether nothing orders `who` behind `earlier`, which is no mark if its tick is `start` or before.
#[inline]
fn conflicts(earlier: &Mark, who: &Mark, clocks: &[u32], start: u32) -> bool {
    if earlier.clock <= start || (earlier.strong && who.strong) {
        return false;
    }
    if earlier.warp != who.warp {
        return clocks[earlier.warp as usize] < earlier.clock;
    }
    earlier.lane != who.lane && earlier.time != who.time && earlier.clock == who.clock
}
