//! Global memory: allocations with bounds, and what of them was written. Local memory likewise, one for each thread.

use super::check::FaultKind;
use super::module::{Space, Variable};
use crate::{Error, Result};

/// Where a block's shared memory begins in its window; below it lies what the system keeps on recent architectures, so that
/// a null pointer points nowhere.
pub(super) const SHARED_START: u64 = 1024;
/// From one block of a cluster to the next among addresses of shared memory that `mapa` makes, the first of which lies that far from zero; those below
/// are of the block itself.
pub(super) const CLUSTER_STEP: u64 = 1 << 24;
/// Where the arguments and results of calls begin in the parameter space; a thread has its own.
pub(super) const CALL_PARAMETERS: u64 = 1 << 20;
/// Where the windows of other spaces lie among generic addresses.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
pub(super) const LOCAL_WINDOW: u64 = 2 << 56;
pub(super) const PARAM_WINDOW: u64 = 3 << 56;
const WINDOW_BYTES: u64 = 1 << 32;

/// Alignment of allocations, as of `cudaMalloc`.
const ALIGN: u64 = 256;
/// Nothing lies in the bytes behind an allocation.
const GAP: u64 = 1 << 16;

/// The space that a generic address is in, and the address there.
pub(super) fn resolve(address: u64) -> (Space, u64) {
    for (window, space) in [(SHARED_WINDOW, Space::Shared), (LOCAL_WINDOW, Space::Local), (PARAM_WINDOW, Space::Param)]
    {
        if address.wrapping_sub(window) < WINDOW_BYTES {
            return (space, address - window);
        }
    }
    (Space::Global, address)
}

/// One bit a byte.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(bytes: usize) -> Self {
        Bits(vec![0; bytes.div_ceil(64)])
    }

    /// The words that some bits lie in, and which of each.
    fn words(start: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
        let end = start + count;
        (start / 64..end.div_ceil(64)).map(move |word| {
            let from = if word == start / 64 { u64::MAX << (start % 64) } else { u64::MAX };
            let to = if word == end / 64 { !(u64::MAX << (end % 64)) } else { u64::MAX };
            (word, from & to)
        })
    }

    #[inline]
    pub fn set(&mut self, start: usize, count: usize) {
        if count > 0 && start / 64 == (start + count) / 64 {
            self.0[start / 64] |= ((1 << count) - 1) << (start % 64);
            return;
        }
        Self::words(start, count).for_each(|(word, mask)| self.0[word] |= mask);
    }

    pub fn clear(&mut self, start: usize, count: usize) {
        Self::words(start, count).for_each(|(word, mask)| self.0[word] &= !mask);
    }

    #[inline]
    pub fn all(&self, start: usize, count: usize) -> bool {
        if count > 0 && start / 64 == (start + count) / 64 {
            let mask = ((1 << count) - 1) << (start % 64);
            return self.0[start / 64] & mask == mask;
        }
        Self::words(start, count).all(|(word, mask)| self.0[word] & mask == mask)
    }

    /// Clears some bits; how many of them were set.
    fn take(&mut self, start: usize, count: usize) -> u64 {
        let mut set = 0;
        for (word, mask) in Self::words(start, count) {
            set += u64::from((self.0[word] & mask).count_ones());
            self.0[word] &= !mask;
        }
        set
    }
}

#[derive(Debug)]
struct Allocation {
    name: String,
    base: u64,
    bytes: usize,
    /// Whole units, so that a caller may see aligned numbers in it.
    data: Vec<u128>,
    written: Bits,
    /// The module whose variable it is.
    module: Option<u64>,
    read_only: bool,
    /// What the present launch has read and written.
    touched: [Bits; 2],
}

impl Allocation {
    #[inline]
    fn data(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.data)[..self.bytes]
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.data)[..self.bytes]
    }

    fn end(&self) -> u64 {
        self.base + self.bytes as u64
    }
}

/// A part of global memory that a launch may touch: a tensor in an arena. Windows may overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// For messages.
    pub name: String,
    /// Where it begins. It must lie in one allocation.
    pub address: u64,
    /// Length.
    pub bytes: u64,
    /// Whether the launch may write there; it may always read.
    pub writable: bool,
}

/// What the present launch may touch, within one allocation.
#[derive(Debug)]
struct Bound {
    window: Window,
    allocation: usize,
}

impl Bound {
    #[inline]
    fn contains(&self, address: u64, bytes: u64) -> bool {
        address >= self.window.address
            && address.checked_add(bytes).is_some_and(|end| end <= self.window.address + self.window.bytes)
    }
}

/// Global memory. It outlives launches, and with it the knowledge of which bytes were written.
#[derive(Debug, Default)]
pub struct Memory {
    /// By rising address.
    allocations: Vec<Allocation>,
    bounds: Vec<Bound>,
    /// The one that the last access was in, where the next one probably is.
    last: usize,
}

impl Memory {
    /// Memory without allocations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes` that nothing has written, and that lie at a multiple of 16 for the caller too; `name` is for messages.
    /// Returns the address.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&mut self, name: &str, bytes: usize) -> Result<u64> {
        let end = self.allocations.last().map_or(0x7f00_0000_0000, |a| a.end() + GAP);
        let mut data = Vec::new();
        let units = bytes.div_ceil(size_of::<u128>());
        if data.try_reserve_exact(units).is_err() {
            return Err(Error::OutOfMemory { device: "ptx", what: format!("array `{name}`"), bytes: bytes as u64 });
        }
        data.resize(units, 0);
        let base = end.next_multiple_of(ALIGN);
        let [written, read, wrote] = std::array::from_fn(|_| Bits::new(bytes));
        let (name, touched) = (name.to_owned(), [read, wrote]);
        self.allocations.push(Allocation { name, base, bytes, data, written, module: None, read_only: false, touched });
        Ok(base)
    }

    /// Allocates `data`, all of it written.
    pub fn allocate_with(&mut self, name: &str, data: &[u8]) -> Result<u64> {
        let address = self.allocate(name, data.len())?;
        self.slice_mut(address, data.len())?.copy_from_slice(data);
        Ok(address)
    }

    /// The bytes of the allocation at `address`, and whether all of them were written; none if nothing begins there.
    pub fn bytes(&self, address: u64) -> Option<(&[u8], bool)> {
        let a = self.allocations.iter().find(|a| a.base == address)?;
        Some((a.data(), a.written.all(0, a.bytes)))
    }

    /// Bytes from `address` on, written or not.
    ///
    /// # Errors
    /// [`Error::Device`] if they are not in one allocation.
    pub fn slice(&self, address: u64, bytes: usize) -> Result<&[u8]> {
        let (index, start) = self.inside(address, bytes)?;
        Ok(&self.allocations[index].data()[start..start + bytes])
    }

    /// Bytes from `address` on, for the caller to write: they count as written from now on.
    ///
    /// # Errors
    /// [`Error::Device`] if they are not in one allocation.
    pub fn slice_mut(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        let (index, start) = self.inside(address, bytes)?;
        let a = &mut self.allocations[index];
        a.written.set(start, bytes);
        Ok(&mut a.data_mut()[start..start + bytes])
    }

    /// Whether all bytes from `address` on were written.
    ///
    /// # Errors
    /// [`Error::Device`] if they are not in one allocation.
    pub fn is_written(&self, address: u64, bytes: usize) -> Result<bool> {
        let (index, start) = self.inside(address, bytes)?;
        Ok(self.allocations[index].written.all(start, bytes))
    }

    /// Lets the bytes from `address` on count as unwritten again: a place of an arena that now holds another value.
    ///
    /// # Errors
    /// [`Error::Device`] if they are not in one allocation.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<()> {
        let (index, start) = self.inside(address, bytes)?;
        self.allocations[index].written.clear(start, bytes);
        Ok(())
    }

    /// The allocation that has all of the bytes, and where they begin in it.
    fn inside(&self, address: u64, bytes: usize) -> Result<(usize, usize)> {
        let index = self.allocations.partition_point(|a| a.base <= address).checked_sub(1);
        let found = index.map(|i| (i, (address - self.allocations[i].base) as usize));
        let fits =
            |&(i, start): &(usize, usize)| start.checked_add(bytes).is_some_and(|end| end <= self.allocations[i].bytes);
        let reason = || format!("no allocation has the {bytes} bytes from {address:#x} on");
        found.filter(fits).ok_or_else(|| Error::Device { device: "ptx", reason: reason() })
    }

    /// The address of a module's variable, which is allocated when a launch first needs it. Variables of one name are one
    /// among the kernels of a module.
    pub(super) fn variable(&mut self, module: u64, variable: &Variable) -> Result<u64> {
        let name = format!("the variable {}", variable.name);
        if let Some(a) = self.allocations.iter().find(|a| a.module == Some(module) && a.name == name) {
            return Ok(a.base);
        }
        let bytes = variable.bytes as usize;
        let address = self.allocate(&name, bytes)?;
        self.slice_mut(address, bytes)?[..variable.initial.len()].copy_from_slice(&variable.initial);
        if let Some(a) = self.allocations.last_mut() {
            a.module = Some(module);
            a.read_only = variable.space == Space::Const;
        }
        Ok(address)
    }

    /// Lets a launch touch the windows and all variables; every allocation if there are no windows.
    ///
    /// # Errors
    /// What window lies in no allocation.
    pub(super) fn begin_launch(&mut self, windows: &[Window]) -> Result<()> {
        let mut bounds = Vec::new();
        for window in windows {
            let (allocation, _) = self.inside(window.address, window.bytes as usize)?;
            bounds.push(Bound { window: window.clone(), allocation });
        }
        for (allocation, a) in self.allocations.iter().enumerate() {
            if windows.is_empty() || a.module.is_some() {
                let (name, bytes) = (a.name.clone(), a.bytes as u64);
                let window = Window { name, address: a.base, bytes, writable: !a.read_only };
                bounds.push(Bound { window, allocation });
            }
        }
        (self.bounds, self.last) = (bounds, 0);
        Ok(())
    }

    /// Different bytes that the launch read, and wrote.
    pub(super) fn end_launch(&mut self) -> [u64; 2] {
        let mut counts = [0; 2];
        for Bound { window, allocation } in std::mem::take(&mut self.bounds) {
            let a = &mut self.allocations[allocation];
            let start = (window.address - a.base) as usize;
            for (count, touched) in counts.iter_mut().zip(&mut a.touched) {
                *count += touched.take(start, window.bytes as usize);
            }
        }
        counts
    }

    /// The allocation of an access that stays inside a bound, and where it begins there.
    #[inline]
    fn find(
        &mut self,
        access: &'static str,
        address: u64,
        bytes: u64,
        writes: bool,
    ) -> Result<(usize, usize), FaultKind> {
        let may = |b: &&Bound| b.contains(address, bytes) && (b.window.writable || !writes);
        let found = match self.bounds.get(self.last).filter(may) {
            Some(_) => Some(self.last),
            None => self.bounds.iter().position(|b| may(&b)),
        };
        match found {
            Some(found) => {
                self.last = found;
                let bound = &self.bounds[found];
                Ok((bound.allocation, (address - self.allocations[bound.allocation].base) as usize))
            }
            None => Err(self.outside(access, address, bytes)),
        }
    }

    #[cold]
    fn outside(&self, access: &'static str, address: u64, bytes: u64) -> FaultKind {
        if let Some(bound) = self.bounds.iter().find(|b| b.contains(address, bytes)) {
            return FaultKind::ReadOnly { place: format!("`{}`", bound.window.name) };
        }
        let below = self.bounds.iter().filter(|b| b.window.address <= address);
        let near = match below.max_by_key(|b| b.window.address + b.window.bytes) {
            None => "nothing is allocated there".to_owned(),
            Some(Bound { window, .. }) => {
                let end = window.address + window.bytes;
                let behind = address.saturating_add(bytes).saturating_sub(end);
                format!("it ends {behind} bytes behind `{}` of {} bytes", window.name, window.bytes)
            }
        };
        FaultKind::OutOfBounds { access, space: Space::Global, address, bytes, near }
    }

    /// Reads written bytes.
    #[inline]
    pub(super) fn load(&mut self, address: u64, bytes: u64) -> Result<&[u8], FaultKind> {
        let (index, start) = self.find("load", address, bytes, false)?;
        let a = &mut self.allocations[index];
        let length = bytes as usize;
        if !a.written.all(start, length) {
            let bound = self.bounds.iter().find(|b| b.contains(address, bytes));
            let place = bound.map(|b| format!("byte {} of `{}`", address - b.window.address, b.window.name));
            let place = place.unwrap_or_default();
            return Err(FaultKind::Unwritten { space: Space::Global, address, bytes, place });
        }
        a.touched[0].set(start, length);
        Ok(&a.data()[start..start + length])
    }

    /// The place of bytes that are written now.
    #[inline]
    pub(super) fn store(&mut self, address: u64, bytes: u64) -> Result<&mut [u8], FaultKind> {
        let (index, start) = self.find("store", address, bytes, true)?;
        let a = &mut self.allocations[index];
        let length = bytes as usize;
        a.written.set(start, length);
        a.touched[1].set(start, length);
        Ok(&mut a.data_mut()[start..start + length])
    }
}

/// The local memory of one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    data: Vec<u8>,
    written: Bits,
}

impl Local {
    pub fn new(bytes: u64) -> Self {
        Local { data: vec![0; bytes as usize], written: Bits::new(bytes as usize) }
    }

    fn find(&self, access: &'static str, address: u64, bytes: u64) -> Result<usize, FaultKind> {
        let length = self.data.len() as u64;
        if address.checked_add(bytes).is_some_and(|end| end <= length) {
            return Ok(address as usize);
        }
        let near = format!("a thread has {length} bytes");
        Err(FaultKind::OutOfBounds { access, space: Space::Local, address, bytes, near })
    }

    pub fn load(&self, address: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        let start = self.find("load", address, out.len() as u64)?;
        if !self.written.all(start, out.len()) {
            let (bytes, place) = (out.len() as u64, "local memory".to_owned());
            return Err(FaultKind::Unwritten { space: Space::Local, address, bytes, place });
        }
        out.copy_from_slice(&self.data[start..start + out.len()]);
        Ok(())
    }

    pub fn store(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let start = self.find("store", address, data.len() as u64)?;
        self.written.set(start, data.len());
        self.data[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
