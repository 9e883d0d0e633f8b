//! Shuffling without storing an order.

/// Enough for the order to look random even where the halves have only a few bits.
const ROUNDS: u32 = 8;

/// Where position `index` of epoch `epoch` points in a random order of `0..n`: for each epoch and seed a different
/// permutation, computed from nothing but its arguments, so that a run can continue anywhere.
///
/// A Feistel network permutes the next power of four; numbers that fall outside `0..n` are fed through again until they
/// fall inside ("cycle walking"), which keeps it a bijection (Black & Rogaway 2002). `index` is taken modulo `n`; for
/// `n` = 0 the result is 0.
pub fn permute(index: u64, epoch: u64, seed: u64, n: u64) -> u64 {
    if n <= 1 {
        return 0;
    }
    let bits = u64::BITS - (n - 1).leading_zeros();
    let half = bits.div_ceil(2);
    let key = mix(seed ^ mix(epoch));
    let mut value = index % n;
    loop {
        value = feistel(value, half, key);
        if value < n {
            return value;
        }
    }
}

/// A keyed permutation of `0..4^half`.
fn feistel(value: u64, half: u32, key: u64) -> u64 {
    let mask = u64::MAX >> (u64::BITS - half);
    let (mut left, mut right) = (value >> half, value & mask);
    for round in 0..ROUNDS {
        let round_key = key.wrapping_add(u64::from(round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (left, right) = (right, left ^ mix(right ^ round_key) & mask);
    }
    left << half | right
}

/// The finaliser of SplitMix64: every bit of the input changes every bit of the output half of the time.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
