//! What a launch did, in the units in which hardware is slow.

use std::collections::BTreeMap;
use std::fmt;

/// Kinds of instructions, by the unit that runs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Integer,
    Float,
    /// Exponentials, roots and the like.
    Special,
    Convert,
    Move,
    Control,
    /// Loads, stores and atomics by where they go.
    Global,
    Shared,
    Local,
    /// Parameters and constants.
    Constant,
    /// Copies that run beside the threads.
    Async,
    /// Votes, shuffles, matches, reductions over a warp.
    Warp,
    /// Barriers and fences.
    Barrier,
    /// Products of matrices.
    Matrix,
}

impl Class {
    /// All classes.
    pub const ALL: [Class; 14] = [
        Class::Integer,
        Class::Float,
        Class::Special,
        Class::Convert,
        Class::Move,
        Class::Control,
        Class::Global,
        Class::Shared,
        Class::Local,
        Class::Constant,
        Class::Async,
        Class::Warp,
        Class::Barrier,
        Class::Matrix,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Special => "special",
            Class::Convert => "convert",
            Class::Move => "move",
            Class::Control => "control",
            Class::Global => "global",
            Class::Shared => "shared",
            Class::Local => "local",
            Class::Constant => "constant",
            Class::Async => "async",
            Class::Warp => "warp",
            Class::Barrier => "barrier",
            Class::Matrix => "matrix",
        }
    }
}

/// Traffic of one direction with global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Instructions of warps.
    pub requests: u64,
    /// Sectors of 32 bytes that they touched.
    pub sectors: u64,
    /// Sectors that the same bytes would need if they lay together.
    pub least_sectors: u64,
    /// Bytes that threads asked for, each time they did.
    pub bytes: u64,
    /// Different bytes among them.
    pub distinct_bytes: u64,
}

impl Traffic {
    /// Counts one request from the lanes' (address, bytes).
    pub(super) fn request(&mut self, accesses: &[(u64, u64)]) {
        let Some(&(first, width)) = accesses.first() else { return };
        let (mut low, mut high, mut bytes) = (u64::MAX, 0, 0);
        let (mut rises, mut alike) = (true, true);
        // Of rising addresses a sector comes again only as the last one.
        let (mut sectors, mut next) = (0, 0);
        for &(at, length) in accesses {
            let end = at + length;
            rises &= at >= high;
            alike &= length == width && (at ^ first) % length == 0;
            let (from, to) = ((at / 32).max(next), end.div_ceil(32));
            sectors += to.saturating_sub(from);
            next = next.max(to);
            (low, high, bytes) = (low.min(at), high.max(end), bytes + length);
        }
        if rises {
            self.add(sectors, bytes, bytes);
        } else if alike && high - low < 128 * width && high / 32 - low / 32 < 128 {
            // A bit a sector, and a bit a place of this width.
            let (mut seen, mut places) = (0u128, 0u128);
            for &(at, _) in accesses {
                (at / 32..(at + width).div_ceil(32)).for_each(|sector| seen |= 1 << (sector - low / 32));
                places |= 1 << ((at - low) / width);
            }
            self.add(seen.count_ones().into(), width * u64::from(places.count_ones()), bytes);
        } else {
            self.scattered(accesses, bytes);
        }
    }

    fn scattered(&mut self, accesses: &[(u64, u64)], bytes: u64) {
        let ends = |&(at, bytes): &(u64, u64)| at / 32..=(at + bytes - 1) / 32;
        let mut sectors: Vec<u64> = accesses.iter().flat_map(ends).collect();
        sectors.sort_unstable();
        sectors.dedup();
        let mut different = accesses.to_vec();
        different.sort_unstable();
        different.dedup();
        self.add(sectors.len() as u64, different.iter().map(|a| a.1).sum(), bytes);
    }

    fn add(&mut self, sectors: u64, different_bytes: u64, bytes: u64) {
        self.requests += 1;
        self.sectors += sectors;
        self.least_sectors += different_bytes.div_ceil(32);
        self.bytes += bytes;
    }
}

/// The counts of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions that warps issued, by class.
    pub instructions: BTreeMap<Class, u64>,
    /// Lanes that took part in them, summed: 32 times the instructions if no warp ever diverged.
    pub lanes: u64,
    /// Branches at which a warp's lanes parted.
    pub divergent_branches: u64,
    /// Floating-point operations: a fused multiply-add is two.
    pub flops: u64,
    pub loads: Traffic,
    pub stores: Traffic,
    /// Passes over the banks of shared memory.
    pub shared_wavefronts: u64,
    /// Passes beyond those that the widths of the accesses make necessary: bank conflicts.
    pub bank_conflicts: u64,
}

impl Counters {
    /// All instructions.
    pub fn issued(&self) -> u64 {
        self.instructions.values().sum()
    }

    /// Counts one request to shared memory from the lanes' (address, bytes): 32 banks of 4 bytes; wider accesses go in
    /// halves or quarters of the warp.
    pub(super) fn shared(&mut self, accesses: &[(u64, u64)], width: u64) {
        let lanes_a_pass = (128 / width.max(4)).clamp(1, 32) as usize;
        for pass in accesses.chunks(lanes_a_pass) {
            let passes = wavefronts(pass);
            self.shared_wavefronts += passes;
            self.bank_conflicts += passes.saturating_sub(1);
        }
    }
}

/// The most different words that lie in one bank.
fn wavefronts(accesses: &[(u64, u64)]) -> u64 {
    let mut banks = [u64::MAX; 32];
    let mut conflict = false;
    for &(at, bytes) in accesses {
        for word in at / 4..=(at + bytes - 1) / 4 {
            let held = &mut banks[(word % 32) as usize];
            conflict |= *held != u64::MAX && *held != word;
            *held = word;
        }
    }
    if !conflict {
        return 1;
    }
    let words = accesses.iter().flat_map(|&(at, bytes)| at / 4..=(at + bytes - 1) / 4);
    let mut words: Vec<u64> = words.collect();
    words.sort_unstable();
    words.dedup();
    let mut banks = [0u64; 32];
    words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
    banks.into_iter().max().unwrap_or(0)
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issued = self.issued();
        let full = 100.0 * self.lanes as f64 / (32 * issued.max(1)) as f64;
        writeln!(f, "instructions        {issued} by warps, {full:.1} % of their lanes active")?;
        for (class, count) in &self.instructions {
            writeln!(f, "  {:<17} {count}", class.name())?;
        }
        writeln!(f, "divergent branches  {}", self.divergent_branches)?;
        writeln!(f, "FLOPs               {}", self.flops)?;
        for (name, t) in [("global loads", &self.loads), ("global stores", &self.stores)] {
            let each = t.sectors as f64 / t.requests.max(1) as f64;
            writeln!(
                f,
                "{name:<19} {} requests, {} sectors ({each:.2} a request, {} at best), {} bytes, {} distinct",
                t.requests, t.sectors, t.least_sectors, t.bytes, t.distinct_bytes
            )?;
        }
        write!(
            f,
            "shared memory       {} wavefronts, {} from bank conflicts",
            self.shared_wavefronts, self.bank_conflicts
        )
    }
}
