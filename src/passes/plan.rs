//! Memory planning: value lifetimes → offsets in one arena.
//!
//! Offline dynamic storage allocation is NP-hard; the planner places blocks one by one at the lowest free offset, tries
//! several orders, and repairs each: blocks that stick out above the lower bound are placed first in the next try.

/// A piece of memory with the span of launches over which it must keep its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First and last launch that touch it, inclusive.
    pub first: usize,
    pub last: usize,
    /// Bytes, a multiple of the alignment.
    pub bytes: usize,
}

/// Memory that is there anyway and is free for a time: that of buffers before a program writes its outputs there. It lies in front
/// of what the plan takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// Bytes of it, a multiple of the alignment: offsets from this one on are the plan's own.
    pub bytes: usize,
    /// When which part of it is taken, with offsets, in their order.
    pub taken: Vec<(usize, Block)>,
}

/// Offsets for a set of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Those below [`Lent::bytes`] lie in the memory that is lent.
    pub offsets: Vec<usize>,
    /// Bytes that the plan takes besides.
    pub peak: usize,
    /// Bytes that any plan takes: the most that is alive at one launch, less what is lent then.
    pub lower_bound: usize,
    /// The first launch where so much is alive.
    pub fullest: usize,
}

/// Rounds of repair of each order.
const REPAIRS: usize = 32;
/// A plan is good enough if this part of the lower bound is the most that it wastes.
const NEAR: usize = 500;

/// Places every block so that no two that are alive at one launch overlap, nor one with what is taken of the lent memory.
pub fn plan(blocks: &[Block], lent: &Lent) -> Plan {
    let taken = lent.taken.iter().map(|(_, block)| block);
    let (most, fullest) = most_alive(blocks.iter().chain(taken).copied());
    let lower_bound = most.saturating_sub(lent.bytes);
    let mut orders: Vec<Vec<usize>> = Vec::new();
    let mut by = |key: &dyn Fn(&Block) -> (usize, usize)| {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|i| key(&blocks[*i]));
        orders.push(order);
    };
    let life = |b: &Block| b.last - b.first + 1;
    by(&|b| (usize::MAX - b.bytes, b.first));
    by(&|b| (usize::MAX - life(b), usize::MAX - b.bytes));
    by(&|b| (usize::MAX - life(b).saturating_mul(b.bytes), b.first));
    by(&|b| (b.first, usize::MAX - b.bytes));
    // What is alive where memory is fullest comes first: no hole may be left there.
    let elsewhere = |b: &Block| usize::from(b.last < fullest || fullest < b.first);
    by(&|b| (elsewhere(b), usize::MAX - b.last));
    let mut best = Plan { offsets: vec![], peak: usize::MAX, lower_bound, fullest };
    for order in orders {
        improve(blocks, lent, &mut best, order);
        if best.peak <= lower_bound + lower_bound / NEAR {
            break;
        }
    }
    best
}

/// Places blocks in that order, then moves what sticks out above the lower bound to the front of it, again and again. `best` becomes the
/// best of these plans, if it was worse.
fn improve(blocks: &[Block], lent: &Lent, best: &mut Plan, mut order: Vec<usize>) {
    for _ in 0..=REPAIRS {
        let (offsets, peak) = place(blocks, lent, &order);
        let sticks_out = |i: &usize| offsets[*i] + blocks[*i].bytes > lent.bytes + best.lower_bound;
        let (mut front, rest): (Vec<usize>, Vec<usize>) = order.iter().partition(|i| sticks_out(i));
        front.extend(rest);
        order = front;
        if peak < best.peak {
            (best.offsets, best.peak) = (offsets, peak);
        }
        if best.peak == best.lower_bound {
            break;
        }
    }
}

/// The most bytes alive at one launch, and the first such launch.
fn most_alive(blocks: impl Iterator<Item = Block>) -> (usize, usize) {
    let mut events: Vec<(usize, bool, usize)> =
        blocks.flat_map(|b| [(b.first, true, b.bytes), (b.last + 1, false, b.bytes)]).collect();
    // Blocks that end before a launch go first.
    events.sort_unstable();
    let (mut live, mut most, mut fullest) = (0, 0, 0);
    for (launch, opens, bytes) in events {
        if opens {
            live += bytes;
            if live > most {
                (most, fullest) = (live, launch);
            }
        } else {
            live -= bytes;
        }
    }
    (most, fullest)
}

/// Places blocks in `order`, each at the lowest offset where it fits beside those already placed that live with it. Their offsets, and
/// how many bytes they take behind the lent memory.
fn place(blocks: &[Block], lent: &Lent, order: &[usize]) -> (Vec<usize>, usize) {
    let mut offsets = vec![0; blocks.len()];
    // Placed blocks, sorted by offset.
    let mut placed = lent.taken.clone();
    let mut end = lent.bytes;
    for &i in order {
        let b = &blocks[i];
        let mut offset = 0;
        for (at, other) in &placed {
            if other.last < b.first || b.last < other.first {
                continue;
            }
            if *at >= offset + b.bytes {
                break;
            }
            offset = offset.max(at + other.bytes);
        }
        offsets[i] = offset;
        end = end.max(offset + b.bytes);
        let at = placed.partition_point(|(at, _)| *at <= offset);
        placed.insert(at, (offset, *b));
    }
    (offsets, end - lent.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_live_blocks_overlap(
            raw in prop::collection::vec((0usize..40, 0usize..12, 1usize..64), 0..60),
            taken in prop::collection::vec((0usize..60, 1usize..64), 0..10),
        ) {
            let blocks: Vec<Block> =
                raw.iter().map(|(f, l, b)| Block { first: *f, last: f + l, bytes: b * 64 }).collect();
            // The lent memory ends in a part that is always taken, or a block could lie across its end.
            let mut lent = Lent::default();
            for (first, bytes) in &taken {
                let block = Block { first: *first, last: 60, bytes: bytes * 64 };
                lent.taken.push((lent.bytes, block));
                lent.bytes += block.bytes;
            }
            lent.taken.push((lent.bytes, Block { first: 0, last: 60, bytes: 64 }));
            lent.bytes += 64;
            let plan = plan(&blocks, &lent);
            for (i, a) in blocks.iter().enumerate() {
                prop_assert!(plan.offsets[i] + a.bytes <= lent.bytes + plan.peak);
                for (at, b) in &lent.taken {
                    let apart = plan.offsets[i] + a.bytes <= *at || at + b.bytes <= plan.offsets[i];
                    prop_assert!(a.last < b.first || apart, "{a:?} lies in memory that is taken");
                }
                for (j, b) in blocks.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = plan.offsets[i] + a.bytes <= plan.offsets[j] || plan.offsets[j] + b.bytes <= plan.offsets[i];
                    prop_assert!(!together || apart, "{a:?} and {b:?} overlap");
                }
            }
            prop_assert!(plan.peak >= plan.lower_bound);
            // Not optimal in general, but never far off on such small sets.
            prop_assert!(plan.peak <= (lent.bytes + plan.lower_bound) * 3 / 2);
        }
    }

    #[test]
    fn what_is_lent_is_used() {
        // Gradients are written from the end of their region to its start, while what the forward pass kept is freed.
        let n = 50;
        let kept = |i: usize| Block { first: i, last: 2 * n - i - 1, bytes: 64 * (2 + i % 3) };
        let blocks: Vec<Block> = (0..n).map(kept).collect();
        let gradient = |i: usize| (64 * i, Block { first: 2 * n - i - 1, last: 2 * n, bytes: 64 });
        let wall = (64 * n, Block { first: 0, last: 2 * n, bytes: 64 });
        let lent = Lent { bytes: 64 * (n + 1), taken: (0..n).map(gradient).chain([wall]).collect() };
        let (alone, plan) = (plan(&blocks, &Lent::default()), plan(&blocks, &lent));
        assert!(plan.peak + 32 * n < alone.peak, "{} instead of {}", plan.peak, alone.peak);
    }

    #[test]
    fn a_stack_is_planned_exactly() {
        // Forward keeps, backward frees in reverse order: the shape of a training step.
        let n = 50;
        let mut blocks: Vec<Block> =
            (0..n).map(|i| Block { first: i, last: 2 * n - i, bytes: 64 * (1 + i % 7) }).collect();
        blocks.extend((0..n).map(|i| Block { first: n + i, last: n + i + 1, bytes: 64 * (1 + i % 5) }));
        let plan = plan(&blocks, &Lent::default());
        assert!(plan.peak as f64 <= 1.02 * plan.lower_bound as f64, "{} > {}", plan.peak, plan.lower_bound);
    }
}
