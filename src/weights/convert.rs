//! Between the little-endian bytes of a file, at any alignment, and numbers.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;

/// Elements that one task converts: large enough to hide the hand-over, small enough to spread page faults over cores.
const TASK: usize = 1 << 18;
/// Elements of a block that is staged on the stack on its way through `half`'s vectorised conversion.
const BLOCK: usize = 256;

/// Converts `src`, which holds exactly `dst.len()` elements, to f32. The reason of a failure names the dtype.
pub(super) fn to_f32(dtype: Dtype, src: &[u8], dst: &mut [f32]) -> Result<(), String> {
    if dst.len() <= TASK {
        return to_f32_serial(dtype, src, dst);
    }
    let parts = src.par_chunks(TASK * dtype.bitsize() / 8);
    dst.par_chunks_mut(TASK).zip(parts).try_for_each(|(dst, src)| to_f32_serial(dtype, src, dst))
}

fn to_f32_serial(dtype: Dtype, src: &[u8], dst: &mut [f32]) -> Result<(), String> {
    match dtype {
        Dtype::BOOL => map(src, dst, |[b]| f32::from(u8::from(b != 0))),
        Dtype::U8 => map(src, dst, |[b]| f32::from(b)),
        Dtype::I8 => map(src, dst, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::F8_E4M3 => map(src, dst, |[b]| f8e4m3_to_f32(b)),
        Dtype::F8_E5M2 => map(src, dst, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
        Dtype::U16 => map(src, dst, |b| f32::from(u16::from_le_bytes(b))),
        Dtype::I16 => map(src, dst, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::F16 => f16_to_f32(src, dst),
        Dtype::BF16 => map(src, dst, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::U32 => map(src, dst, |b| u32::from_le_bytes(b) as f32),
        Dtype::I32 => map(src, dst, |b| i32::from_le_bytes(b) as f32),
        Dtype::F32 => map(src, dst, f32::from_le_bytes),
        Dtype::U64 => map(src, dst, |b| u64::from_le_bytes(b) as f32),
        Dtype::I64 => map(src, dst, |b| i64::from_le_bytes(b) as f32),
        Dtype::F64 => map(src, dst, |b| f64::from_le_bytes(b) as f32),
        _ => return Err(format!("is {dtype}, which cannot be read as numbers")),
    }
    Ok(())
}

/// Converts integers to i64. The reason of a failure says what cannot be represented.
pub(super) fn to_i64(dtype: Dtype, src: &[u8], dst: &mut [i64]) -> Result<(), String> {
    match dtype {
        Dtype::BOOL => map(src, dst, |[b]| i64::from(b != 0)),
        Dtype::U8 => map(src, dst, |[b]| i64::from(b)),
        Dtype::I8 => map(src, dst, |b| i64::from(i8::from_le_bytes(b))),
        Dtype::U16 => map(src, dst, |b| i64::from(u16::from_le_bytes(b))),
        Dtype::I16 => map(src, dst, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U32 => map(src, dst, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I32 => map(src, dst, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::I64 => map(src, dst, i64::from_le_bytes),
        Dtype::U64 => {
            for (d, b) in dst.iter_mut().zip(src.as_chunks().0) {
                let value = u64::from_le_bytes(*b);
                *d = i64::try_from(value).map_err(|_| format!("{value} does not fit in an i64"))?;
            }
        }
        _ => return Err(format!("is {dtype}, where whole numbers are needed")),
    }
    Ok(())
}

/// The bytes of f32 values in another dtype. The reason of a failure names the value that the dtype cannot hold.
pub(super) fn from_f32(dtype: Dtype, values: &[f32], bytes: &mut Vec<u8>) -> Result<(), String> {
    match dtype {
        Dtype::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Dtype::BF16 => {
            check_range(values, dtype, |v| bf16::from_f32(v).is_infinite())?;
            bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
        }
        Dtype::F16 => {
            check_range(values, dtype, |v| f16::from_f32(v).is_infinite())?;
            bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        }
        Dtype::I64 => {
            // 2^63 itself is the first f32 that an i64 cannot hold.
            let fits = |v: f32| v.fract() == 0.0 && (-9.223_372e18..9.223_372e18).contains(&v);
            if let Some(v) = values.iter().find(|v| !fits(**v)) {
                return Err(format!("{v} is not a whole number that fits in an i64"));
            }
            bytes.extend(values.iter().flat_map(|v| (*v as i64).to_le_bytes()));
        }
        _ => return Err(format!("writing {dtype} is not supported; use F32, F16, BF16 or I64")),
    }
    Ok(())
}

/// A finite weight that becomes infinite would break the model silently.
fn check_range(values: &[f32], dtype: Dtype, overflows: impl Fn(f32) -> bool) -> Result<(), String> {
    match values.iter().find(|v| v.is_finite() && overflows(**v)) {
        Some(v) => Err(format!("{v} is too large for {dtype}")),
        None => Ok(()),
    }
}

fn map<const N: usize, T>(src: &[u8], dst: &mut [T], convert: impl Fn([u8; N]) -> T) {
    for (d, b) in dst.iter_mut().zip(src.as_chunks::<N>().0) {
        *d = convert(*b);
    }
}

fn f16_to_f32(src: &[u8], dst: &mut [f32]) {
    let mut block = [f16::ZERO; BLOCK];
    for (dst, src) in dst.chunks_mut(BLOCK).zip(src.chunks(BLOCK * 2)) {
        let block = &mut block[..dst.len()];
        for (h, b) in block.iter_mut().zip(src.as_chunks().0) {
            *h = f16::from_le_bytes(*b);
        }
        block.convert_to_f32_slice(dst);
    }
}

/// The "fn" flavour: no infinities, and only all ones is NaN.
fn f8e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3) & 15, u32::from(byte) & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, m) => m as f32 / 512.0,
        (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f8_values_match_their_definitions() {
        for (byte, value) in [(0x38, 1.0), (0x7e, 448.0), (0xc0, -2.0), (0x01, 1.0 / 512.0), (0x08, 1.0 / 64.0)] {
            assert_eq!(f8e4m3_to_f32(byte), value, "{byte:#x}");
        }
        assert!(f8e4m3_to_f32(0x7f).is_nan() && f8e4m3_to_f32(0xff).is_nan());
        let mut out = [0.0; 3];
        to_f32(Dtype::F8_E5M2, &[0x3c, 0xc0, 0x7b], &mut out).unwrap();
        assert_eq!(out, [1.0, -2.0, 57344.0]);
    }

    #[test]
    fn every_f16_and_bf16_is_converted_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        // One byte off, as in a file whose header has an odd length.
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
        let mut out = vec![0.0; 1 << 16];
        to_f32(Dtype::F16, &shifted[1..], &mut out).unwrap();
        assert!((0..=u16::MAX).all(|b| same(out[b as usize], f16::from_bits(b).to_f32())));
        to_f32(Dtype::BF16, &shifted[1..], &mut out).unwrap();
        assert!((0..=u16::MAX).all(|b| same(out[b as usize], bf16::from_bits(b).to_f32())));
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn large_tensors_are_split_at_the_right_places() {
        let n = 2 * TASK + 17;
        let bytes: Vec<u8> = (0..n as i64).flat_map(i64::to_le_bytes).collect();
        let mut out = vec![-1.0; n];
        to_f32(Dtype::I64, &bytes, &mut out).unwrap();
        assert!(out.iter().enumerate().all(|(i, v)| *v == i as f32));
    }
}
