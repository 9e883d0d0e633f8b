//! Global memory: allocations with bounds, and what of them was written. Local memory likewise, one for each thread.

use super::check::FaultKind;
use super::module::Space;
use crate::{Error, Result};

/// Where a block's shared memory begins in its window; below it lies what the system keeps on recent architectures, so that
/// a null pointer points nowhere.
pub(super) const SHARED_START: u64 = 1024;
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

    pub fn set(&mut self, start: usize, count: usize) {
        (start..start + count).for_each(|i| self.0[i / 64] |= 1 << (i % 64));
    }

    pub fn all(&self, start: usize, count: usize) -> bool {
        (start..start + count).all(|i| self.0[i / 64] >> (i % 64) & 1 == 1)
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }
}

#[derive(Debug)]
struct Allocation {
    name: String,
    base: u64,
    data: Vec<u8>,
    written: Bits,
    read_only: bool,
    /// What the present launch has read and written.
    touched: [Bits; 2],
}

/// Global memory.
#[derive(Debug, Default)]
pub struct Memory {
    /// By rising address.
    allocations: Vec<Allocation>,
}

impl Memory {
    /// Memory without allocations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes` that nothing has written; `name` is for messages. Returns the address.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&mut self, name: &str, bytes: usize) -> Result<u64> {
        let end = self.allocations.last().map_or(0x7f00_0000_0000, |a| a.base + a.data.len() as u64 + GAP);
        let mut data = Vec::new();
        if data.try_reserve_exact(bytes).is_err() {
            return Err(Error::OutOfMemory { device: "ptx", what: format!("array `{name}`"), bytes: bytes as u64 });
        }
        data.resize(bytes, 0);
        let base = end.next_multiple_of(ALIGN);
        let touched = [Bits::new(bytes), Bits::new(bytes)];
        let written = Bits::new(bytes);
        self.allocations.push(Allocation { name: name.to_owned(), base, data, written, read_only: false, touched });
        Ok(base)
    }

    /// Allocates `data`, all of it written.
    pub fn allocate_with(&mut self, name: &str, data: &[u8]) -> Result<u64> {
        let address = self.allocate(name, data.len())?;
        if let Some(a) = self.allocations.last_mut() {
            a.data.copy_from_slice(data);
            a.written.set(0, data.len());
        }
        Ok(address)
    }

    /// The bytes of the allocation at `address`, and whether all of them were written; none if nothing begins there.
    pub fn bytes(&self, address: u64) -> Option<(&[u8], bool)> {
        let a = self.allocations.iter().find(|a| a.base == address)?;
        Some((&a.data, a.written.all(0, a.data.len())))
    }

    /// The address of a module's variable, which is allocated when a launch first needs it. Variables of one name are one.
    pub(super) fn variable(&mut self, name: &str, bytes: u64, initial: &[u8], read_only: bool) -> Result<u64> {
        let name = format!("the variable {name}");
        if let Some(a) = self.allocations.iter().find(|a| a.name == name) {
            return Ok(a.base);
        }
        let address = self.allocate(&name, bytes as usize)?;
        if let Some(a) = self.allocations.last_mut() {
            a.data[..initial.len()].copy_from_slice(initial);
            a.written.set(0, bytes as usize);
            a.read_only = read_only;
        }
        Ok(address)
    }

    pub(super) fn begin_launch(&mut self) {
        self.allocations.iter_mut().flat_map(|a| &mut a.touched).for_each(Bits::clear);
    }

    /// Different bytes that the launch read, and wrote.
    pub(super) fn touched(&self) -> [u64; 2] {
        [0, 1].map(|i| self.allocations.iter().map(|a| a.touched[i].count()).sum())
    }

    fn find(&mut self, access: &'static str, address: u64, bytes: u64) -> Result<(usize, usize), FaultKind> {
        let index = self.allocations.partition_point(|a| a.base <= address);
        let space = Space::Global;
        let outside = |near| FaultKind::OutOfBounds { access, space, address, bytes, near };
        let Some(index) = index.checked_sub(1) else {
            return Err(outside("nothing is allocated there".into()));
        };
        let a = &self.allocations[index];
        let start = address - a.base;
        let length = a.data.len() as u64;
        if start.checked_add(bytes).is_some_and(|end| end <= length) {
            return Ok((index, start as usize));
        }
        Err(outside(format!(
            "it ends {} bytes behind `{}` of {length} bytes",
            start.saturating_add(bytes) - length,
            a.name
        )))
    }

    /// Reads written bytes.
    pub(super) fn load(&mut self, address: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        let bytes = out.len() as u64;
        let (index, start) = self.find("load", address, bytes)?;
        let a = &mut self.allocations[index];
        if !a.written.all(start, out.len()) {
            let place = format!("byte {start} of `{}`", a.name);
            return Err(FaultKind::Unwritten { space: Space::Global, address, bytes, place });
        }
        a.touched[0].set(start, out.len());
        out.copy_from_slice(&a.data[start..start + out.len()]);
        Ok(())
    }

    pub(super) fn store(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let (index, start) = self.find("store", address, data.len() as u64)?;
        let a = &mut self.allocations[index];
        if a.read_only {
            return Err(FaultKind::ReadOnly { place: format!("`{}`", a.name) });
        }
        a.written.set(start, data.len());
        a.touched[1].set(start, data.len());
        a.data[start..start + data.len()].copy_from_slice(data);
        Ok(())
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
