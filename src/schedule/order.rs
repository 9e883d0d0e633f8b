//! Which launches of a program have to wait for which: those that touch the same memory, unless both only read it.

use std::ops::Range;

/// The bytes that a launch touches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Access {
    pub reads: Vec<Range<usize>>,
    pub writes: Vec<Range<usize>>,
}

impl Access {
    /// True if the launches may not run at the same time, or the other way round.
    fn conflicts(&self, other: &Access) -> bool {
        let meet = |a: &[Range<usize>], b: &[Range<usize>]| {
            a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
        };
        meet(&self.writes, &other.writes) || meet(&self.writes, &other.reads) || meet(&self.reads, &other.writes)
    }
}

/// For each launch those before it that it must wait for; not those that one of these waits for.
pub(super) fn dependencies(launches: &[Access]) -> Vec<Vec<usize>> {
    let words = launches.len().div_ceil(64);
    // By launch, a bit for each that has ended when it begins.
    let mut ended: Vec<Vec<u64>> = Vec::with_capacity(launches.len());
    let mut all = Vec::with_capacity(launches.len());
    for (i, launch) in launches.iter().enumerate() {
        let (mut seen, mut waits) = (vec![0; words], vec![]);
        for j in (0..i).rev() {
            if seen[j / 64] >> (j % 64) & 1 == 0 && launch.conflicts(&launches[j]) {
                seen.iter_mut().zip(&ended[j]).for_each(|(seen, ended)| *seen |= ended);
                seen[j / 64] |= 1 << (j % 64);
                waits.push(j);
            }
        }
        ended.push(seen);
        all.push(waits);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn access(reads: &[usize], writes: &[usize]) -> Access {
        let bytes = |places: &[usize]| places.iter().map(|p| 10 * p..10 * p + 10).collect();
        Access { reads: bytes(reads), writes: bytes(writes) }
    }

    #[test]
    fn launches_wait_for_what_they_read_and_for_what_they_write_over() {
        let launches = [
            access(&[0], &[1]),
            // Beside the first: both only read 0.
            access(&[0], &[2]),
            access(&[1, 2], &[3]),
            // Behind the third, and so behind the first two.
            access(&[3, 1], &[4]),
            // Writes what the first launch wrote, when the third and fourth have read it.
            access(&[], &[1]),
            access(&[9], &[8]),
        ];
        let expected: [&[usize]; 6] = [&[], &[], &[1, 0], &[2], &[3], &[]];
        assert_eq!(dependencies(&launches), expected.map(<[usize]>::to_vec));
    }

    #[test]
    fn ranges_that_only_touch_do_not_meet() {
        let bytes = |start: usize, end: usize| std::iter::once(start..end).collect::<Vec<_>>();
        let launches =
            [Access { reads: vec![], writes: bytes(0, 8) }, Access { reads: bytes(8, 12), writes: bytes(12, 16) }];
        assert!(dependencies(&launches).iter().all(Vec::is_empty));
    }

    proptest! {
        /// Whoever conflicts with a launch before it waits for it, directly or through others; nobody waits twice for one.
        #[test]
        fn conflicts_are_ordered(places in prop::collection::vec((prop::collection::vec(0..12usize, 0..3), 0..12usize), 0..40)) {
            let launches: Vec<Access> = places.iter().map(|(reads, write)| access(reads, &[*write])).collect();
            let waits = dependencies(&launches);
            let mut behind: Vec<Vec<bool>> = vec![];
            for (i, waits) in waits.iter().enumerate() {
                let mut all = vec![false; i];
                for (n, j) in waits.iter().enumerate() {
                    let through = waits[..n].iter().any(|k| *k > *j && behind[*k][*j]);
                    prop_assert!(!through, "{i} waits for {j} twice");
                    behind[*j].iter().enumerate().for_each(|(k, b)| all[k] |= b);
                    all[*j] = true;
                }
                for j in 0..i {
                    prop_assert!(!launches[i].conflicts(&launches[j]) || all[j], "{i} does not wait for {j}");
                }
                behind.push(all);
            }
        }
    }
}
