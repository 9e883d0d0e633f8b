//! What is counted.

use super::support::{kernel, run};
use langevin::ptx::Counters;

/// The counters of one access per thread of a warp at a stride.
fn strided(statement: &str, stride: u32) -> Counters {
    let body = format!(
        ".shared .align 16 .b8 x[16384];\nmov.u64 %d0, x;\nmov.u32 %r0, %tid.x;\nmul.lo.u32 %r1, %r0, {stride};\n\
         cvt.u64.u32 %d1, %r1;\nadd.u64 %d2, %d0, %d1;\nadd.u64 %d3, %out, %d1;\n{statement}\nret;"
    );
    run(&kernel(&body), 1, 32, 16384, &[]).unwrap().1
}

#[test]
fn bank_conflicts_and_sectors() {
    let conflicts = |statement, stride| {
        let c = strided(statement, stride);
        (c.shared_wavefronts, c.bank_conflicts)
    };
    let word = "st.shared.u32 [%d2], 1;";
    assert_eq!(conflicts(word, 4), (1, 0));
    assert_eq!(conflicts(word, 8), (2, 1));
    assert_eq!(conflicts(word, 128), (32, 31));
    assert_eq!(conflicts(word, 132), (1, 0));
    assert_eq!(conflicts(word, 0), (1, 0));
    assert_eq!(conflicts("st.shared.v2.u32 [%d2], {1, 1};", 8), (2, 0));
    assert_eq!(conflicts("st.shared.v4.u32 [%d2], {1, 1, 1, 1};", 16), (4, 0));
    assert_eq!(conflicts("st.shared.v4.u32 [%d2], {1, 1, 1, 1};", 128), (32, 28));
    let sectors = |stride| {
        let c = strided("st.global.u32 [%d3], 1;", stride).stores;
        (c.requests, c.sectors, c.least_sectors)
    };
    assert_eq!(sectors(4), (1, 4, 4));
    assert_eq!(sectors(32), (1, 32, 4));
    assert_eq!(sectors(0), (1, 1, 1));
}
