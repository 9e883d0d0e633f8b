//! What an instruction sees: registers, operands, memory, and the shadow of shared memory.

use std::cmp::Ordering;

use super::super::check::{Conflict, FaultKind, Mark, Shadow, Trap};
use super::super::count::{Class, Counters};
use super::super::instr::barrier::CLUSTER_BARRIER;
use super::super::memory::{
    CALL_PARAMETERS, CLUSTER_STEP, LOCAL_WINDOW, Memory, PARAM_WINDOW, SHARED_START, SHARED_WINDOW, resolve,
};
use super::super::module::{Entry, Operand, Space, Special, Type, Variable};
use super::{Block, Launch, Row, Warp};

/// What an instruction sees.
pub(in super::super) struct Context<'a> {
    pub entry: &'a Entry,
    pub(super) launch: &'a Launch,
    pub(super) parameters: &'a [u8],
    pub(super) addresses: &'a [u64],
    pub memory: &'a mut Memory,
    pub counters: &'a mut Counters,
    /// The warp's, or another one of the cluster, see [`Context::visit`].
    pub block: &'a mut Block,
    /// The blocks of the cluster; in place of `block` one without warps.
    pub cluster: &'a mut [Block],
    pub warp: &'a mut Warp,
    /// The lanes that execute it.
    pub mask: u32,
    pub(super) pc: usize,
}

impl Context<'_> {
    /// The lanes that execute the instruction, in order.
    #[inline]
    pub fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        let mask = self.mask;
        (0..32).filter(move |l| mask >> l & 1 == 1)
    }

    /// A fault of the first lane.
    pub fn fault(&self, kind: FaultKind) -> Trap {
        Trap::new(self.mask.trailing_zeros() as usize, kind)
    }

    /// The operand's bits for one lane, cut to the type's width.
    #[inline]
    pub fn value(&self, operand: &Operand, ty: Type, lane: usize) -> u64 {
        let bits = match operand {
            Operand::Register(slot) => self.warp.registers[*slot as usize][lane],
            Operand::Predicate(slot) => (self.warp.predicates[*slot as usize] >> lane & 1).into(),
            Operand::Not(slot) => (!self.warp.predicates[*slot as usize] >> lane & 1).into(),
            Operand::Special(special) => self.special(*special, lane),
            Operand::Variable(index, offset) => self.addresses[*index].wrapping_add_signed(*offset),
            other => immediate(other, ty).unwrap_or(0),
        };
        ty.truncate(bits)
    }

    /// [`Context::value`] of all lanes.
    pub fn values(&self, operand: &Operand, ty: Type) -> [u64; 32] {
        match operand {
            Operand::Register(slot) => {
                let mask = ty.truncate(u64::MAX);
                let mut row = self.warp.registers[*slot as usize];
                row.iter_mut().for_each(|v| *v &= mask);
                row
            }
            Operand::Special(Special::Tid(_) | Special::LaneId | Special::LaneMask(..))
            | Operand::Predicate(_)
            | Operand::Not(_) => std::array::from_fn(|lane| self.value(operand, ty, lane)),
            // The same for all.
            _ => [self.value(operand, ty, 0); 32],
        }
    }

    /// Sets a result.
    pub fn set(&mut self, operand: &Operand, lane: usize, value: u64) {
        match operand {
            Operand::Register(slot) => self.warp.registers[*slot as usize][lane] = value,
            Operand::Predicate(slot) => {
                let all = &mut self.warp.predicates[*slot as usize];
                *all = *all & !(1 << lane) | (value as u32 & 1) << lane;
            }
            _ => {}
        }
    }

    /// Sets a result of all active lanes.
    #[inline]
    pub fn set_row(&mut self, operand: &Operand, row: &Row) {
        match operand {
            Operand::Register(slot) if self.mask == u32::MAX => self.warp.registers[*slot as usize] = *row,
            operand => self.lanes().for_each(|lane| self.set(operand, lane, row[lane])),
        }
    }

    /// A predicate, or whether a value is 1, as a bit a lane.
    pub fn holds(&self, operand: &Operand) -> u32 {
        match operand {
            Operand::Predicate(slot) => self.warp.predicates[*slot as usize],
            Operand::Not(slot) => !self.warp.predicates[*slot as usize],
            other => (0..32).fold(0, |bits, lane| bits | (self.value(other, Type::Pred, lane) as u32) << lane),
        }
    }

    /// Sets a predicate of all active lanes.
    pub fn set_holds(&mut self, operand: &Operand, bits: u32) {
        match operand {
            Operand::Predicate(slot) => {
                let all = &mut self.warp.predicates[*slot as usize];
                *all = *all & !self.mask | bits & self.mask;
            }
            operand => self.lanes().for_each(|lane| self.set(operand, lane, (bits >> lane & 1).into())),
        }
    }

    /// The address that a memory operand means for one lane.
    pub fn address(&self, base: &Operand, offset: i64, lane: usize, space: Space) -> u64 {
        let ty = address_type(space);
        let base = match base {
            Operand::Integer(n) => *n,
            other => self.value(other, Type::U(64), lane),
        };
        ty.truncate(base.wrapping_add_signed(offset))
    }

    /// The space of the variable that an address begins with, for `ld` and `st` without one.
    pub fn space_of(&self, base: &Operand) -> Option<Space> {
        match base {
            Operand::Variable(index, _) => Some(self.entry.variables[*index].space),
            _ => None,
        }
    }

    fn special(&self, special: Special, lane: usize) -> u64 {
        let (warp, cluster) = (&self.warp, self.entry.limits.cluster);
        match special {
            Special::Tid(axis) => warp.threads[axis][lane],
            Special::Ntid(axis) => self.launch.block[axis].into(),
            Special::Ctaid(axis) => warp.block[axis].into(),
            Special::Nctaid(axis) => self.launch.grid[axis].into(),
            Special::LaneId => lane as u64,
            Special::WarpId => warp.index as u64,
            Special::NwarpId => self.block.warps() as u64,
            Special::LaneMask(order, equal) => {
                let has = |l: &usize| l.cmp(&lane) == order || (equal && *l == lane && order != Ordering::Equal);
                (0..32).filter(has).fold(0, |m, l| m | 1 << l)
            }
            Special::Clock => warp.time.into(),
            Special::DynamicShared => self.launch.shared_bytes.into(),
            Special::TotalShared => self.block.shared.len() as u64,
            Special::ClusterCtaid(axis) => (warp.block[axis] % cluster[axis]).into(),
            Special::ClusterRank => warp.rank as u64,
            Special::ClusterNctaid(axis) => cluster[axis].into(),
            Special::ClusterBlocks => self.cluster.len() as u64,
            Special::Clusterid(axis) => (warp.block[axis] / cluster[axis]).into(),
            Special::Nclusterid(axis) => (self.launch.grid[axis] / cluster[axis]).into(),
            Special::Zero => 0,
            Special::One => 1,
        }
    }

    /// Does what `f` does in the block whose shared memory an address lies in, at the address there; the clock that orders it
    /// and the marks that it leaves are the warp's own.
    ///
    /// # Errors
    /// Where there is no such block, or it may not have begun or have ended; those of `f`.
    pub fn visit<R>(
        &mut self,
        address: u64,
        f: impl FnOnce(&mut Self, u64) -> Result<R, FaultKind>,
    ) -> Result<R, FaultKind> {
        let own = address % CLUSTER_STEP;
        let Some(rank) = (address / CLUSTER_STEP).checked_sub(1).map(|rank| rank as usize) else { return f(self, own) };
        if rank == self.warp.rank {
            return f(self, own);
        }
        let misuse = |reason: String| Err(FaultKind::Misuse(reason));
        match self.cluster.get(rank) {
            None => return misuse(format!("the cluster has no block {rank}")),
            Some(other) if other.live == 0 => {
                return misuse(format!("touches shared memory of block {rank} of the cluster, which may have ended"));
            }
            _ if self.warp.arrived.is_some() || self.block.barriers[CLUSTER_BARRIER].completions == 0 => {
                let reason = "before it has waited for the cluster, whose other blocks may not be there yet";
                return misuse(format!("touches shared memory of block {rank} {reason}"));
            }
            _ => {}
        }
        self.warp.away = true;
        std::mem::swap(self.block, &mut self.cluster[rank]);
        self.block.visited = Some(self.block.barriers[CLUSTER_BARRIER].completions);
        let done = f(self, own);
        std::mem::swap(self.block, &mut self.cluster[rank]);
        done
    }

    /// The shadow of the block's shared memory, and the clocks that the warp knows.
    #[inline]
    pub fn shadow(&mut self) -> (&mut Shadow, &[u32]) {
        (&mut self.block.shadow, &self.warp.clock)
    }

    /// The mark of an access that the lane does now.
    #[inline]
    pub fn mark(&self, lane: usize, strong: bool) -> Mark {
        let Warp { clock, column, time, .. } = &*self.warp;
        let (pc, warp) = (self.pc as u32, *column as u16);
        Mark { clock: clock[*column], time: *time, pc, warp, lane: lane as u8, strong }
    }

    /// Where an access to shared memory begins, if it lies inside.
    #[inline]
    pub fn shared_place(&self, access: &'static str, address: u64, bytes: u64) -> Result<usize, FaultKind> {
        let (space, size) = (Space::Shared, self.block.shared.len() as u64);
        let start = address.checked_sub(SHARED_START);
        if let Some(start) = start.filter(|s| s.checked_add(bytes).is_some_and(|end| end <= size)) {
            return Ok(start as usize);
        }
        let near = format!("the block has {size} bytes from {SHARED_START:#x} on");
        Err(FaultKind::OutOfBounds { access, space, address, bytes, near })
    }

    /// Notes a read of shared memory.
    #[inline]
    pub fn read_shared(&mut self, start: usize, bytes: usize, who: Mark) -> Result<(), FaultKind> {
        let (shadow, clocks) = self.shadow();
        let done = shadow.read(start, bytes, who, clocks);
        done.map_err(|(at, conflict)| self.conflict(at, bytes as u64, conflict))
    }

    /// Notes a write to shared memory.
    #[inline]
    pub fn write_shared(&mut self, start: usize, bytes: usize, who: Mark) -> Result<(), FaultKind> {
        let (shadow, clocks) = self.shadow();
        let done = shadow.write(start, bytes, who, clocks);
        done.map_err(|(at, conflict)| self.conflict(at, bytes as u64, conflict))
    }

    /// The fault that a conflict at byte `at` of shared memory amounts to.
    pub fn conflict(&self, at: usize, bytes: u64, conflict: Conflict) -> FaultKind {
        let address = SHARED_START + at as u64;
        let line = |mark: &Mark| self.entry.code.get(mark.pc as usize).map_or(0, |i| i.line);
        match conflict {
            Conflict::Unwritten => {
                FaultKind::Unwritten { space: Space::Shared, address, bytes, place: self.shared_name(address) }
            }
            Conflict::InFlight(mark) => FaultKind::InFlight { address, line: line(&mark) },
            // It has come, and whoever touches it has not waited for it.
            Conflict::Race { mark, .. } if usize::from(mark.warp) == self.block.bulk_column() => {
                FaultKind::InFlight { address, line: line(&mark) }
            }
            Conflict::Race { here, there, mark } => {
                let columns = self.block.columns.len();
                let (rank, warp) = (usize::from(mark.warp) / columns, usize::from(mark.warp) % columns);
                let thread = place_of(warp as u32 * 32 + u32::from(mark.lane) % 32, self.launch.block);
                let other = |rank: usize| (rank != self.warp.rank).then(|| self.block_at(rank));
                let (owner, block) = (other(self.block.rank), other(rank));
                FaultKind::Race { address, owner, here, there, thread, block, line: line(&mark) }
            }
        }
    }

    /// The place in the grid of the block with a number in the cluster.
    fn block_at(&self, rank: usize) -> [u32; 3] {
        let (cluster, block) = (self.entry.limits.cluster, self.warp.block);
        let at = place_of(rank as u32, cluster);
        std::array::from_fn(|axis| block[axis] - block[axis] % cluster[axis] + at[axis])
    }

    fn shared_name(&self, address: u64) -> String {
        let inside = |v: &&Variable| {
            v.space == Space::Shared && v.offset <= address && (v.dynamic || address < v.offset + v.bytes)
        };
        let found = self.entry.variables.iter().filter(inside).max_by_key(|v| v.offset);
        found.map_or("no variable".into(), |v| format!("byte {} of `{}`", address - v.offset, v.name))
    }

    /// Reads memory for one lane; `strong` accesses do not race with each other.
    pub fn load(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        out: &mut [u8],
        strong: bool,
    ) -> Result<(), FaultKind> {
        match space {
            Space::Generic => {
                let (space, address) = resolve(address);
                self.load(lane, space, address, out, strong)
            }
            Space::Global | Space::Const => {
                out.copy_from_slice(self.memory.load(address, out.len() as u64)?);
                Ok(())
            }
            Space::Local => self.warp.local.get(lane).ok_or_else(|| no_local(address))?.load(address, out),
            Space::Shared => {
                let start = self.shared_place("load", address, out.len() as u64)?;
                self.read_shared(start, out.len(), self.mark(lane, strong))?;
                out.copy_from_slice(&self.block.shared[start..start + out.len()]);
                Ok(())
            }
            Space::Param if address >= CALL_PARAMETERS => {
                self.load(lane, Space::Local, address - CALL_PARAMETERS, out, strong)
            }
            Space::Param => {
                let size = self.parameters.len() as u64;
                let bytes = out.len() as u64;
                if address.checked_add(bytes).is_none_or(|end| end > size) {
                    let near = format!("the parameters have {size} bytes");
                    return Err(FaultKind::OutOfBounds { access: "load", space, address, bytes, near });
                }
                out.copy_from_slice(&self.parameters[address as usize..][..out.len()]);
                Ok(())
            }
        }
    }

    /// Writes memory for one lane.
    pub fn store(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        data: &[u8],
        strong: bool,
    ) -> Result<(), FaultKind> {
        match space {
            Space::Generic => {
                let (space, address) = resolve(address);
                self.store(lane, space, address, data, strong)
            }
            Space::Global => {
                self.memory.store(address, data.len() as u64)?.copy_from_slice(data);
                Ok(())
            }
            Space::Local => self.warp.local.get_mut(lane).ok_or_else(|| no_local(address))?.store(address, data),
            Space::Shared => {
                let start = self.shared_place("store", address, data.len() as u64)?;
                self.write_shared(start, data.len(), self.mark(lane, strong))?;
                self.block.shared[start..start + data.len()].copy_from_slice(data);
                Ok(())
            }
            Space::Param if address >= CALL_PARAMETERS => {
                self.store(lane, Space::Local, address - CALL_PARAMETERS, data, strong)
            }
            Space::Const | Space::Param => Err(FaultKind::ReadOnly { place: format!("{space} memory") }),
        }
    }

    /// Counts what a request's lanes touched in one space.
    pub fn count(&mut self, space: Space, accesses: &[(u64, u64)], width: u64, store: bool) {
        match space {
            Space::Shared => self.counters.shared(accesses, width),
            Space::Global if store => self.counters.stores.request(accesses),
            Space::Global => self.counters.loads.request(accesses),
            Space::Const | Space::Local | Space::Param | Space::Generic => {}
        }
    }

    /// Counts operations of all active lanes.
    #[inline]
    pub fn count_flops(&mut self, each: u64) {
        self.counters.flops += each * u64::from(self.mask.count_ones());
    }
}

/// The place with a number among as many along each axis, x first.
fn place_of(number: u32, [x, y, _]: [u32; 3]) -> [u32; 3] {
    [number % x, number / x % y, number / (x * y)]
}

fn no_local(address: u64) -> FaultKind {
    let near = "the kernel has none".to_owned();
    FaultKind::OutOfBounds { access: "access", space: Space::Local, address, bytes: 1, near }
}

/// A literal's bits in a type.
pub(in super::super) fn immediate(operand: &Operand, ty: Type) -> Option<u64> {
    Some(ty.truncate(match (operand, ty) {
        (Operand::Integer(n), _) => *n,
        (Operand::F32(bits), Type::F(64)) => f64::from(f32::from_bits(*bits)).to_bits(),
        (Operand::F32(bits), _) => (*bits).into(),
        (Operand::F64(x), Type::F(64) | Type::B(64)) => x.to_bits(),
        (Operand::F64(x), Type::F(16)) => half::f16::from_f64(*x).to_bits().into(),
        (Operand::F64(x), Type::Bf16) => half::bf16::from_f64(*x).to_bits().into(),
        (Operand::F64(x), _) => (*x as f32).to_bits().into(),
        _ => return None,
    }))
}

/// The width of addresses in a space.
pub(in super::super) fn address_type(space: Space) -> Type {
    if matches!(space, Space::Shared | Space::Local) { Type::U(32) } else { Type::U(64) }
}

/// The class of instructions that touch a space.
pub(in super::super) fn class_of(space: Space) -> Class {
    match space {
        Space::Global | Space::Generic => Class::Global,
        Space::Shared => Class::Shared,
        Space::Local => Class::Local,
        Space::Const | Space::Param => Class::Constant,
    }
}

/// The base of a space's window among generic addresses.
pub(in super::super) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}
