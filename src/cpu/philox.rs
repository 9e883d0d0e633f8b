//! Philox 4x32-10 (Salmon, Moraes, Dror & Shaw 2011): random numbers as a function of a counter and a key.
//!
//! Nothing has state: number i of a stream is the same whoever computes it, in any order, on any device.

/// Counters that [`block`] runs over.
pub const LANES: usize = 16;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox of 16 counters (first + lane, c1, c2, c3): `[word][lane]`. Inlined, so that the caller's vectors are used.
#[inline(always)]
pub fn block(key: [u32; 2], first: u32, [c1, c2, c3]: [u32; 3]) -> [[u32; LANES]; 4] {
    let mut c = [std::array::from_fn(|l| first.wrapping_add(l as u32)), [c1; LANES], [c2; LANES], [c3; LANES]];
    let mut k = key;
    for _ in 0..ROUNDS {
        let mut next = [[0; LANES]; 4];
        for l in 0..LANES {
            let p0 = MULTIPLIERS[0] as u64 * c[0][l] as u64;
            let p1 = MULTIPLIERS[1] as u64 * c[2][l] as u64;
            next[0][l] = (p1 >> 32) as u32 ^ c[1][l] ^ k[0];
            next[1][l] = p1 as u32;
            next[2][l] = (p0 >> 32) as u32 ^ c[3][l] ^ k[1];
            next[3][l] = p0 as u32;
        }
        c = next;
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A word as a number of [0, 1): its upper 24 bits, exact in f32.
#[inline(always)]
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with the reference implementation (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        let first = |key, [c0, rest @ ..]: [u32; 4]| block(key, c0, rest).map(|w| w[0]);
        assert_eq!(first([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(first([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let answer = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(first([0xa409_3822, 0x299f_31d0], counter), answer);
    }

    #[test]
    fn lanes_are_consecutive_counters() {
        let all = block([1, 2], 40, [3, 4, 5]);
        for lane in 0..LANES {
            let one = block([1, 2], 40 + lane as u32, [3, 4, 5]);
            assert_eq!(all.map(|w| w[lane]), one.map(|w| w[0]));
        }
        assert!(uniform(u32::MAX) < 1.0 && uniform(0) == 0.0);
    }
}
