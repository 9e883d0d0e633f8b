//! Spreading work over threads.

use rayon::prelude::*;

/// Work below this many elements stays on one thread: waking another costs more.
const MIN_ELEMENTS: usize = 1 << 14;

/// Calls `f(start, end)` on ranges that cover `0..n` once, in parallel if `n` elements are worth it. Ranges start at
/// multiples of `grain`.
pub fn ranges(n: usize, grain: usize, f: impl Fn(usize, usize) + Sync) {
    let threads = rayon::current_num_threads();
    if n == 0 {
        return;
    }
    if threads == 1 || n < MIN_ELEMENTS {
        return f(0, n);
    }
    let chunk = n.div_ceil(threads * 2).next_multiple_of(grain.max(1));
    (0..n.div_ceil(chunk)).into_par_iter().for_each(|i| f(i * chunk, ((i + 1) * chunk).min(n)));
}

/// Calls `f(i)` for every `i` of `0..tasks`, in parallel unless `work` elements in all are too few.
pub fn tasks(tasks: usize, work: usize, f: impl Fn(usize) + Sync) {
    if tasks == 1 || work < MIN_ELEMENTS || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(&f);
    } else {
        (0..tasks).into_par_iter().with_max_len(tasks.div_ceil(rayon::current_num_threads() * 8).max(1)).for_each(&f);
    }
}

/// Calls `f(row, col, part)` for stretches of `out`, seen as rows of `width`, that cover it once: `part` starts at (row, col)
/// and does not leave the row. In parallel; rows longer than a thread's share are cut.
pub fn stretches(out: &mut [f32], width: usize, f: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let (n, out) = (out.len(), Ptr::new(out));
    ranges(n, 16, |start, end| {
        let (mut row, mut col, mut at) = (start / width, start % width, start);
        while at < end {
            let len = (width - col).min(end - at);
            // SAFETY: ranges are inside `out` and do not overlap.
            f(row, col, unsafe { out.part(at, len) });
            (row, col, at) = (row + 1, 0, at + len);
        }
    });
}

/// A pointer that tasks may share: each writes its own part.
#[derive(Clone, Copy)]
pub struct Ptr<T>(*mut T);

// SAFETY: kernels give every task its own elements; see each use.
unsafe impl<T> Send for Ptr<T> {}
unsafe impl<T> Sync for Ptr<T> {}

impl<T> Ptr<T> {
    /// Shares a slice among tasks.
    pub fn new(slice: &mut [T]) -> Self {
        Ptr(slice.as_mut_ptr())
    }

    /// Shares a raw pointer among tasks.
    pub fn from_raw(ptr: *mut T) -> Self {
        Ptr(ptr)
    }

    /// The raw pointer.
    pub fn raw(&self) -> *mut T {
        self.0
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// They must lie inside the slice, and no other task may touch them meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
