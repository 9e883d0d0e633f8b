//! Exchanges within a warp.

use super::support::{s, threads};

#[test]
fn exchanges_within_a_warp() {
    let all = |value: fn(u32) -> u32| (0..32).map(value).collect::<Vec<u32>>();
    let of = |body: &str| threads(body, 32);
    assert_eq!(of("shfl.sync.down.b32 %r9, %r30, 4, 31, -1;"), all(|l| if l < 28 { l + 4 } else { l }));
    assert_eq!(
        of("shfl.sync.up.b32 %r9|%p0, %r30, 4, 0, -1;\n@!%p0 mov.u32 %r9, 99;"),
        all(|l| if l < 4 { 99 } else { l - 4 })
    );
    assert_eq!(of("shfl.sync.bfly.b32 %r9, %r30, 3, 31, -1;"), all(|l| l ^ 3));
    assert_eq!(of("shfl.sync.idx.b32 %r9, %r30, 5, 31, -1;"), all(|_| 5));
    // Segments of eight: the clamp's mask is 0b11000.
    assert_eq!(of("shfl.sync.idx.b32 %r9, %r30, 1, 0x181f, -1;"), all(|l| l / 8 * 8 + 1));
    let odd = "and.b32 %r0, %r30, 1;\nsetp.eq.u32 %p0, %r0, 1;\n";
    assert_eq!(of(&format!("{odd}vote.sync.ballot.b32 %r9, %p0, -1;")), all(|_| 0xaaaa_aaaa));
    for (name, expected) in [("any", 1), ("all", 0), ("uni", 0)] {
        let got = of(&format!("{odd}vote.sync.{name}.pred %p1, %p0, -1;\nselp.u32 %r9, 1, 0, %p1;"));
        assert_eq!(got, vec![expected; 32], "{name}");
    }
    assert_eq!(of(&format!("{odd}match.any.sync.b32 %r9, %r0, -1;")), all(|l| 0x5555_5555 << (l % 2)));
    assert_eq!(of(&format!("{odd}match.all.sync.b32 %r9|%p1, %r0, -1;")), all(|_| 0));
    assert_eq!(of("redux.sync.add.u32 %r9, %r30, -1;"), all(|_| 496));
    assert_eq!(of("sub.u32 %r0, %r30, 3;\nredux.sync.min.s32 %r9, %r0, -1;"), all(|_| s(-3) as u32));
    assert_eq!(of("redux.sync.xor.b32 %r9, %r30, -1;"), all(|_| 0));
    assert_eq!(of("elect.sync %r1|%p0, -1;\nselp.u32 %r9, 1, 0, %p0;"), all(|l| u32::from(l == 0)));
    assert_eq!(of(&format!("{odd}mov.u32 %r9, 0;\n@%p0 activemask.b32 %r9;")), all(|l| 0xaaaa_aaaa * (l % 2)));
    assert_eq!(of("mov.u32 %r9, %lanemask_lt;"), all(|l| (1 << l) - 1));
    assert_eq!(of("mov.u32 %r9, %laneid;"), all(|l| l));
    let two = threads("mov.u32 %r0, %warpid;\nmov.u32 %r1, %nwarpid;\nmad.lo.u32 %r9, %r0, 10, %r1;", 64);
    assert_eq!((two[0], two[63]), (2, 12));
}
