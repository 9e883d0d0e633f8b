//! Descriptions of tensors in global memory, by which bulk copies find their tiles.

use crate::{Error, Result};

/// Bytes of a tensor map, on the machine and on hardware.
pub const TENSOR_MAP_BYTES: usize = 128;
/// What the machine's own encoding begins with.
const MAGIC: [u8; 8] = *b"ptx-tile";
/// Most elements of a tile along one axis.
const MAX_TILE: u32 = 256;

/// Types of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    Bf16,
}

impl Element {
    const ALL: [Element; 10] = [
        Element::U8,
        Element::U16,
        Element::U32,
        Element::I32,
        Element::U64,
        Element::I64,
        Element::F16,
        Element::F32,
        Element::F64,
        Element::Bf16,
    ];

    /// Width in memory.
    pub fn bytes(self) -> u64 {
        match self {
            Element::U8 => 1,
            Element::U16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::U64 | Element::I64 | Element::F64 => 8,
        }
    }
}

/// How the chunks of 16 bytes of a tile's rows change places in shared memory, so that a column of them is in different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    /// Within rows of so many bytes.
    B32,
    B64,
    B128,
}

impl Swizzle {
    const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    /// The length of the rows within which chunks change places; 16, which is one chunk, if none does.
    pub fn bytes(self) -> u64 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tensor in global memory and the tile that one copy moves: the arguments of `cuTensorMapEncodeTiled`, without interleaving,
/// with zeros out of bounds. Axes are in its order, the one whose elements lie together first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub element: Element,
    /// A multiple of 16.
    pub address: u64,
    /// Elements along each of one to five axes: 2³² at most.
    pub shape: Vec<u64>,
    /// Bytes from one element to the next along each axis but the first: multiples of 16 below 2⁴⁰.
    pub strides: Vec<u64>,
    /// The tile's extent along each axis, in elements of the tensor: 256 at most.
    pub tile: Vec<u32>,
    /// Of each axis every so many-th element is taken: 8 at most, and 1 for the first axis.
    pub steps: Vec<u32>,
    /// A tile's row must be as long as what it permutes.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// The map of all elements of a dense tensor, whose shape and tile have the contiguous axis first.
    pub fn dense(element: Element, address: u64, shape: &[u64], tile: &[u32], swizzle: Swizzle) -> Self {
        let mut strides: Vec<u64> = Vec::new();
        for extent in shape.iter().take(shape.len().saturating_sub(1)) {
            strides.push(strides.last().copied().unwrap_or(element.bytes()).saturating_mul(*extent));
        }
        let steps = vec![1; shape.len()];
        TensorMap { element, address, shape: shape.to_vec(), strides, tile: tile.to_vec(), steps, swizzle }
    }

    /// The 128 bytes that a kernel of the machine takes for it, which hardware would not understand.
    ///
    /// # Errors
    /// As [`TensorMap::check`].
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES]> {
        self.check()?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend([self.shape.len() as u8, self.element as u8, self.swizzle as u8]);
        bytes.extend(self.address.to_le_bytes());
        for axis in 0..self.shape.len() {
            let stride = if axis == 0 { 0 } else { self.strides[axis - 1] };
            bytes.extend(((self.shape[axis] - 1) as u32).to_le_bytes());
            bytes.extend(stride.to_le_bytes());
            bytes.extend([(self.tile[axis] - 1) as u8, self.steps[axis] as u8]);
        }
        let mut out = [0; TENSOR_MAP_BYTES];
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(out)
    }

    /// What [`TensorMap::encode`] encoded; none if it did not.
    pub(super) fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&MAGIC)?;
        let mut take = |n: usize| {
            let (taken, left) = rest.split_at_checked(n)?;
            rest = left;
            Some(taken.iter().rev().fold(0, |n: u64, b| n << 8 | u64::from(*b)))
        };
        let rank = take(1)?;
        let element = *Element::ALL.get(take(1)? as usize)?;
        let swizzle = *Swizzle::ALL.get(take(1)? as usize)?;
        let address = take(8)?;
        let (mut shape, mut strides, mut tile, mut steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rank {
            shape.push(take(4)? + 1);
            strides.push(take(8)?);
            tile.push(take(1)? as u32 + 1);
            steps.push(take(1)? as u32);
        }
        let strides = strides.into_iter().skip(1).collect();
        let map = TensorMap { element, address, shape, strides, tile, steps, swizzle };
        map.check().is_ok().then_some(map)
    }

    /// Whether such a map is possible.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what `cuTensorMapEncodeTiled` refuses, and for a swizzle of longer rows than the tile's.
    pub fn check(&self) -> Result<()> {
        self.reason().map_err(|reason| Error::invalid("tensor map", reason))
    }

    fn reason(&self) -> Result<(), String> {
        let rank = self.shape.len();
        if !(1..=5).contains(&rank) {
            return Err(format!("a tensor of {rank} axes is not possible: one to five"));
        }
        if self.strides.len() != rank - 1 || self.tile.len() != rank || self.steps.len() != rank {
            return Err(format!(
                "strides {:?}, tile {:?} and steps {:?} are not of {rank} axes",
                self.strides, self.tile, self.steps
            ));
        }
        if !self.address.is_multiple_of(16) || self.strides.iter().any(|s| s % 16 != 0 || *s >= 1 << 40) {
            return Err(format!(
                "the address {:#x} or the strides {:?} are no multiples of 16",
                self.address, self.strides
            ));
        }
        if self.shape.iter().any(|n| *n == 0 || *n > 1 << 32) || self.tile.iter().any(|n| *n == 0 || *n > MAX_TILE) {
            return Err(format!("a tile {:?} of a tensor {:?} is not possible", self.tile, self.shape));
        }
        if self.steps[0] != 1 || self.steps.iter().any(|s| !(1..=8).contains(s)) {
            return Err(format!(
                "steps of {:?} are not possible: 1 for the first axis, 1 to 8 for the others",
                self.steps
            ));
        }
        let row = self.row_bytes();
        if !row.is_multiple_of(16) || self.swizzle != Swizzle::None && row != self.swizzle.bytes() {
            return Err(format!("rows of {row} bytes do not fit the swizzle {:?}", self.swizzle));
        }
        Ok(())
    }

    /// Bytes of a tile along its first axis.
    pub(super) fn row_bytes(&self) -> u64 {
        u64::from(self.tile[0]) * self.element.bytes()
    }

    /// How many elements of each axis a tile has.
    pub(super) fn extents(&self) -> Vec<u64> {
        self.tile.iter().zip(&self.steps).map(|(n, step)| u64::from(n.div_ceil(*step))).collect()
    }

    /// Bytes of a tile.
    pub(super) fn tile_bytes(&self) -> u64 {
        self.extents().iter().product::<u64>() * self.element.bytes()
    }

    /// The rows of the tile at some coordinates, in the order of shared memory: where in the tile a part begins, its address in
    /// global memory and its length, for what of the row is inside the tensor.
    pub(super) fn rows(&self, at: &[i64]) -> Vec<(u64, u64, u64)> {
        let extents = self.extents();
        let size = self.element.bytes();
        let (first, last) = (at[0].max(0), (at[0] + i64::from(self.tile[0])).min(self.shape[0] as i64));
        let mut out = Vec::new();
        for row in 0..extents[1..].iter().product::<u64>() {
            let (mut rest, mut address, mut inside) = (row, self.address, first < last);
            for axis in 1..extents.len() {
                let place = at[axis] + (rest % extents[axis]) as i64 * i64::from(self.steps[axis]);
                rest /= extents[axis];
                inside &= (0..self.shape[axis] as i64).contains(&place);
                address = address.wrapping_add_signed(place.wrapping_mul(self.strides[axis - 1] as i64));
            }
            if inside {
                let start = row * self.row_bytes() + (first - at[0]) as u64 * size;
                out.push((start, address.wrapping_add(first as u64 * size), (last - first) as u64 * size));
            }
        }
        out
    }
}
