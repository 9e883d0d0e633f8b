//! What lowering to PTX kernels over lines of elements shares; `kernels/lib/lines.cuh`.

use crate::graph::{Arg, FLAT_THREADS, Launch, Ptx, PtxFile};
use crate::tensor::DType;

/// Bytes of the largest access.
const THREAD_BYTES: usize = 16;
/// Numbers of a row from which on a block takes it, and not a warp.
const LONG: usize = 4096;

/// A divisor as kernels take it: itself, and the factor and shift that stand for it (Granlund and Montgomery 1994, the form that is
/// exact for all numbers of 32 bits).
pub(super) fn divisor(d: usize) -> [usize; 3] {
    let d = d.max(1);
    let shift = d.next_power_of_two().ilog2();
    let factor = (((1u128 << shift) - d as u128) << 32) / d as u128 + 1;
    [d, factor as usize, shift as usize]
}

/// The bytes of the largest unit of which all `lengths`, in elements, are multiples: 16 to those of an element.
pub(super) fn unit(dtype: DType, lengths: impl IntoIterator<Item = usize>) -> usize {
    let zeros = lengths.into_iter().map(|n| (n * dtype.size()).trailing_zeros()).min().unwrap_or(0);
    (1 << zeros.min(THREAD_BYTES.ilog2())).max(dtype.size())
}

/// A launch that moves `bytes` in units: the entry for units of that size. Its first scalar is how many there are.
pub(super) fn by_unit(
    name: &'static str,
    file: PtxFile,
    unit: usize,
    bytes: usize,
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let kernel = Ptx::new(name, file, DType::F32).entry(format!("{name}_{unit}"));
    // A thread has 16 bytes of units, or two of the largest: `move_units`.
    let blocks = bytes.div_ceil(FLAT_THREADS * THREAD_BYTES.max(2 * unit)).max(1);
    Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(bytes / unit)
}

/// A launch that makes `elements` in lines of `line`, 16 bytes at once where lines are a multiple of that. Its first scalars are
/// `elements`, whether they are, and the line as a divisor.
pub(super) fn by_pack(
    kernel: Ptx,
    dtype: DType,
    elements: usize,
    line: usize,
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let wide = (line * dtype.size()).is_multiple_of(THREAD_BYTES);
    Launch::ptx_flat(kernel, dtype, elements, args).scalar(wide).scalars(divisor(line))
}

/// A launch that makes a number of each of `rows` rows of `cols`: a warp a row, or a block where rows are long. Its entry ends in
/// the number of warps.
pub(super) fn by_team(
    name: &'static str,
    file: PtxFile,
    dims: [usize; 2],
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    by_warps(|warps| Ptx::new(name, file, DType::F32).entry(format!("{name}_{warps}")), dims, args)
}

/// As [`by_team`], by the kernel for so many warps a row.
pub(super) fn by_warps(
    kernel: impl FnOnce(usize) -> Ptx,
    [rows, cols]: [usize; 2],
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let warps = if cols < LONG { 1 } else { 8 };
    let blocks = rows.div_ceil(FLAT_THREADS / 32 / warps).max(1);
    Launch::ptx(kernel(warps), [blocks, 1, 1], FLAT_THREADS, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_are_exact() {
        let edges = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 255, 256, 320, 641, 65535, 65536, 65537, 1_000_003];
        let high = [1 << 31, (1 << 31) - 1, (1 << 31) + 1, (1u64 << 32) - 2, (1u64 << 32) - 1];
        for d in edges.into_iter().chain(high).filter(|d| *d > 0) {
            let [size, factor, shift] = divisor(d as usize).map(|v| u64::from(u32::try_from(v).unwrap()));
            for n in edges.into_iter().chain(high).flat_map(|n| [n, n * d, (n * d).saturating_sub(1)]) {
                let n = n & 0xffff_ffff;
                assert_eq!((((n * factor) >> 32) + n) >> shift, n / size, "{n} / {size}");
            }
        }
    }

    #[test]
    fn units_divide_all_lengths() {
        assert_eq!(unit(DType::F32, [4, 8, 0]), 16);
        assert_eq!(unit(DType::F32, [4, 3]), 4);
        assert_eq!(unit(DType::F16, [4, 12]), 8);
        assert_eq!(unit(DType::F16, [1]), 2);
        assert_eq!(unit(DType::Bf16, [1024]), 16);
    }
}
