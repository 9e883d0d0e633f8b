//! Several processes that train together: each computes the gradient of its share of a batch, and they sum it.
//!
//! Whoever trains knows [`Collective`] only. [`Alone`] is one process; `Mpi`, with the feature `mpi`, those that `mpirun`
//! started.

mod launcher;
#[cfg(feature = "mpi")]
mod mpi;

pub use launcher::{join, threads};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// A piece of host memory that is on its way through a sum.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    ptr: *mut f32,
    len: usize,
}

// SAFETY: whoever made the piece promised that nobody else touches its memory while it is on its way.
unsafe impl Send for Piece {}

impl Piece {
    /// `len` numbers at `ptr`.
    ///
    /// # Safety
    /// From the call that takes the piece until [`Collective::wait`] returns, the numbers must stay where they are, and nobody
    /// else may touch them.
    pub unsafe fn new(ptr: *mut f32, len: usize) -> Piece {
        Piece { ptr, len }
    }

    /// The numbers.
    ///
    /// # Safety
    /// Only for implementations of [`Collective`], while the piece is on its way, one borrow at a time.
    pub unsafe fn numbers<'a>(self) -> &'a mut [f32] {
        // SAFETY: promised in `new`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

/// What processes that train together do together. All of them make the same calls in the same order; where one could fail
/// and others not, [`agree`] comes before the next call.
///
/// Pieces lie in host memory, which is where the CPU device has its arena. A device with memory of its own will bring a
/// collective of its own (NCCL for CUDA), with pieces that name that memory.
///
/// # Safety
/// A piece must not be touched before `start_sum` was given it, nor after `wait` returned, be it with an error.
pub unsafe trait Collective: Debug + Send {
    /// Which of them this process is, from 0.
    fn rank(&self) -> usize;

    /// How many they are.
    fn size(&self) -> usize;

    /// How many numbers of a gradient are worth a sum of their own: few enough that the first sum begins early, enough to
    /// outweigh what beginning one costs.
    fn bucket(&self) -> usize;

    /// Begins to replace each number by its sum over all processes, the same bits on each, and returns at once.
    fn start_sum(&mut self, piece: Piece) -> Result<()>;

    /// Waits until all sums are there that were begun.
    fn wait(&mut self) -> Result<()>;

    /// Every process has `root`'s bytes afterwards.
    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Replaces each number by its sum over all processes, and waits for it.
    fn sum(&mut self, numbers: &mut [f32]) -> Result<()> {
        // SAFETY: borrowed until `wait` returned.
        self.start_sum(unsafe { Piece::new(numbers.as_mut_ptr(), numbers.len()) })?;
        self.wait()
    }
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

// SAFETY: it touches no piece at all.
unsafe impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn bucket(&self) -> usize {
        usize::MAX
    }

    fn start_sum(&mut self, _: Piece) -> Result<()> {
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn broadcast(&mut self, _: usize, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}

/// An error on its way to other processes. What callers match on keeps its type.
#[derive(Serialize, Deserialize)]
enum Fault {
    Cancelled,
    /// JSON has no NaN: the value's bits.
    NotFinite {
        what: String,
        bits: u32,
        step: usize,
    },
    Other(String),
}

impl Fault {
    fn of(e: &Error) -> Fault {
        match e {
            Error::Cancelled => Fault::Cancelled,
            Error::NotFinite { what, value, step } => {
                Fault::NotFinite { what: what.clone(), bits: value.to_bits(), step: *step }
            }
            e => Fault::Other(e.to_string()),
        }
    }

    fn into_error(self, rank: usize) -> Error {
        match self {
            Fault::Cancelled => Error::Cancelled,
            Fault::NotFinite { what, bits, step } => Error::NotFinite { what, value: f32::from_bits(bits), step },
            Fault::Other(reason) => Error::Rank { rank, reason },
        }
    }
}

/// `mine`, if it went well on every process; else the error of the first that failed, on all of them. Nobody goes on alone,
/// and nobody waits for one that has left. It is a barrier, too.
///
/// # Errors
/// [`Error::Cancelled`] and [`Error::NotFinite`] as they were on that process, other errors as [`Error::Rank`].
pub fn agree<T>(ranks: &mut dyn Collective, mine: Result<T>) -> Result<T> {
    if ranks.size() == 1 {
        return mine;
    }
    let mut failed = vec![0.0; ranks.size()];
    failed[ranks.rank()] = f32::from(mine.is_err());
    ranks.sum(&mut failed)?;
    let Some(root) = failed.iter().position(|f| *f != 0.0) else { return mine };
    let fault = mine.as_ref().err().map(Fault::of);
    let mut bytes = serde_json::to_vec(&fault).unwrap_or_default();
    ranks.broadcast(root, &mut bytes)?;
    match mine {
        Err(e) if root == ranks.rank() => Err(e),
        _ => match serde_json::from_slice(&bytes) {
            Ok(Some(fault)) => Err(Fault::into_error(fault, root)),
            _ => Err(Error::Rank { rank: root, reason: "it did not say why".into() }),
        },
    }
}

/// Fails on all processes unless each has the same `text` as the first.
///
/// # Errors
/// [`Error::Invalid`] that names `what`, on the process that differs; see [`agree`].
pub fn same(ranks: &mut dyn Collective, what: &str, text: &str) -> Result<()> {
    let mut first = text.as_bytes().to_vec();
    ranks.broadcast(0, &mut first)?;
    let equal = first == text.as_bytes();
    let mine = if equal { Ok(()) } else { Err(Error::invalid(what, "is not what the first process has")) };
    agree(ranks, mine)
}
