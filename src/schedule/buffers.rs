//! Buffers: named places in the arena that outlive programs.

use crate::device::ALIGN;
use crate::passes::join::Joined;
use crate::tensor::TensorType;
use crate::{Error, Result};
use std::sync::Arc;

/// A named place in the arena that outlives programs: weights, latents, optimiser state, the current row.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    pub name: Arc<str>,
    pub ty: TensorType,
    /// Bytes from the start of the arena.
    pub offset: usize,
}

impl Buffer {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.ty.bytes()
    }
}

/// Names a [`Buffer`] of a [`Buffers`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BufferId(pub(crate) usize);

/// The buffers of a schedule, one after the other from the start of the arena.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    all: Vec<Buffer>,
    constants: Vec<(BufferId, Arc<[f32]>)>,
    bytes: usize,
}

impl Buffers {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves a buffer.
    pub fn declare(&mut self, name: impl AsRef<str>, ty: TensorType) -> BufferId {
        let offset = self.bytes;
        self.bytes += ty.bytes().next_multiple_of(ALIGN);
        self.push(name.as_ref().into(), ty, offset)
    }

    /// A buffer inside another one: `skip` elements from its start. Numbers of less than 4 bytes begin at a multiple of
    /// [`ALIGN`](crate::device::ALIGN) bytes.
    pub fn view(&mut self, parent: BufferId, name: impl AsRef<str>, skip: usize, ty: TensorType) -> Result<BufferId> {
        let p = self.get(parent);
        let offset = p.offset + skip * p.ty.dtype.size();
        if ty.dtype.size() < 4 && !offset.is_multiple_of(ALIGN) {
            let reason =
                format!("{ty} at element {skip} of `{}`: views of it begin at multiples of {ALIGN} bytes", p.name);
            return Err(Error::Verify { pass: "buffers", reason });
        }
        if offset + ty.bytes() > p.offset + p.bytes() {
            let reason = format!("{ty} at element {skip} does not lie inside `{}` ({})", p.name, p.ty);
            return Err(Error::Verify { pass: "buffers", reason });
        }
        Ok(self.push(name.as_ref().into(), ty, offset))
    }

    /// Reserves the buffer of a parameter that others are parts of, and theirs inside it, under the names that `name` makes of theirs.
    ///
    /// # Errors
    /// [`Error::Verify`] where a part has a buffer already, or does not lie inside.
    pub fn declare_joined(&mut self, joined: &Joined, name: impl Fn(&str) -> String) -> Result<()> {
        let whole = self.declare(name(&joined.name), joined.ty.clone());
        for (part, skip, ty) in &joined.parts {
            if self.find(&name(part)).is_some() {
                let reason = format!("`{part}` has a buffer, and is to be a part of `{}`", joined.name);
                return Err(Error::Verify { pass: "buffers", reason });
            }
            self.view(whole, name(part), *skip, ty.clone())?;
        }
        Ok(())
    }

    fn push(&mut self, name: Arc<str>, ty: TensorType, offset: usize) -> BufferId {
        self.all.push(Buffer { name, ty, offset });
        BufferId(self.all.len() - 1)
    }

    /// The buffer that holds a constant; equal data is stored once.
    pub(super) fn constant(&mut self, ty: &TensorType, data: &Arc<[f32]>) -> BufferId {
        if let Some((id, _)) = self.constants.iter().find(|(_, d)| same_bits(d, data)) {
            return *id;
        }
        let id = self.declare("constant", ty.clone());
        self.constants.push((id, data.clone()));
        id
    }

    /// Constants with their data, to be written when the arena is made.
    pub fn constants(&self) -> &[(BufferId, Arc<[f32]>)] {
        &self.constants
    }

    /// The buffer that `id` names.
    pub fn get(&self, id: BufferId) -> &Buffer {
        &self.all[id.0]
    }

    /// All buffers.
    pub fn all(&self) -> &[Buffer] {
        &self.all
    }

    /// The first buffer of that name.
    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.all.iter().position(|b| b.name.as_ref() == name).map(BufferId)
    }

    /// True if two buffers share a byte.
    pub(super) fn overlap(&self, a: BufferId, b: BufferId) -> bool {
        let (a, b) = (self.get(a), self.get(b));
        a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes()
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Equal as bits: 0 is not -0, a NaN is itself.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    bytemuck::cast_slice::<f32, u8>(a) == bytemuck::cast_slice::<f32, u8>(b)
}
