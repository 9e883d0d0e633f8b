//! Integers: arithmetic, bits, carries.

use super::support::{check, e, f, s, threads};

#[test]
fn integers() {
    check(&[
        ("add.s32 %r9, %r0, %r1;", [5, s(-7), 0], s(-2)),
        ("add.sat.s32 %r9, %r0, %r1;", [s(i32::MAX), 1, 0], s(i32::MAX)),
        ("add.u64 %d9, %d0, %d1;", [u64::MAX, 2, 0], 1),
        ("add.u16 %h9, %h0, %h1;", [0xffff, 2, 0], 1),
        ("sub.s32 %r9, %r0, 12;", [5, 0, 0], s(-7)),
        ("mul.lo.s32 %r9, %r0, %r1;", [s(-3), 7, 0], s(-21)),
        ("mul.hi.u32 %r9, %r0, %r1;", [0x8000_0000, 6, 0], 3),
        ("mul.hi.s32 %r9, %r0, %r1;", [s(i32::MIN), 6, 0], s(-3)),
        ("mul.hi.u64 %d9, %d0, %d1;", [u64::MAX, u64::MAX, 0], u64::MAX - 1),
        ("mul.wide.s32 %d9, %r0, %r1;", [s(-3), 7, 0], -21i64 as u64),
        ("mul.wide.u32 %d9, %r0, %r1;", [0xffff_ffff, 0xffff_ffff, 0], 0xffff_fffe_0000_0001),
        ("mul.wide.u16 %r9, %h0, %h1;", [0xffff, 0xffff, 0], 0xfffe_0001),
        ("mul24.lo.u32 %r9, %r0, %r1;", [0xff00_0003, 5, 0], 15),
        ("mad.lo.s32 %r9, %r0, %r1, %r2;", [3, 4, s(-20)], s(-8)),
        ("mad.wide.u32 %d9, %r0, %r1, %d2;", [0x1_0000, 0x1_0000, 1], 0x1_0000_0001),
        ("mad.hi.u32 %r9, %r0, %r1, %r2;", [0x8000_0000, 6, 10], 13),
        ("div.s32 %r9, %r0, %r1;", [s(-7), 2, 0], s(-3)),
        ("div.u32 %r9, %r0, %r1;", [7, 0, 0], 0xffff_ffff),
        ("div.s32 %r9, %r0, %r1;", [s(i32::MIN), s(-1), 0], s(i32::MIN)),
        ("rem.s32 %r9, %r0, %r1;", [s(-7), 2, 0], s(-1)),
        ("rem.u64 %d9, %d0, %d1;", [17, 5, 0], 2),
        ("abs.s32 %r9, %r0;", [s(-7), 0, 0], 7),
        ("neg.s32 %r9, %r0;", [7, 0, 0], s(-7)),
        ("min.s32 %r9, %r0, %r1;", [s(-7), 3, 0], s(-7)),
        ("min.u32 %r9, %r0, %r1;", [s(-7), 3, 0], 3),
        ("max.s64 %d9, %d0, %d1;", [u64::MAX, 3, 0], 3),
        ("sad.u32 %r9, %r0, %r1, %r2;", [3, 10, 5], 12),
        ("dp4a.s32.s32 %r9, %r0, %r1, %r2;", [0x01ff_0302, 0x0401_0205, 100], s(100 + 4 - 1 + 6 + 10)),
        ("dp4a.u32.u32 %r9, %r0, %r1, %r2;", [0xff, 0xff, 0], 255 * 255),
        ("popc.b32 %r9, %r0;", [0xf0f0, 0, 0], 8),
        ("popc.b64 %r9, %d0;", [u64::MAX, 0, 0], 64),
        ("clz.b32 %r9, %r0;", [1, 0, 0], 31),
        ("clz.b32 %r9, %r0;", [0, 0, 0], 32),
        ("clz.b64 %r9, %d0;", [1, 0, 0], 63),
        ("brev.b32 %r9, %r0;", [1, 0, 0], 0x8000_0000),
        ("bfind.u32 %r9, %r0;", [0x100, 0, 0], 8),
        ("bfind.s32 %r9, %r0;", [s(-1), 0, 0], 0xffff_ffff),
        ("bfind.shiftamt.u32 %r9, %r0;", [0x100, 0, 0], 23),
    ]);
}

#[test]
fn bits() {
    check(&[
        ("and.b32 %r9, %r0, %r1;", [0b1100, 0b1010, 0], 0b1000),
        ("or.b64 %d9, %d0, %d1;", [0b1100, 0b1010, 0], 0b1110),
        ("xor.b16 %h9, %h0, %h1;", [0b1100, 0b1010, 0], 0b0110),
        ("not.b32 %r9, %r0;", [0, 0, 0], 0xffff_ffff),
        ("cnot.b32 %r9, %r0;", [5, 0, 0], 0),
        ("and.pred %p9, %p0, !%p1;", [1, 0, 0], 1),
        ("xor.pred %p9, %p0, %p1;", [1, 1, 0], 0),
        ("not.pred %p9, %p0;", [1, 1, 0], 0),
        // The majority: 0xe8.
        ("lop3.b32 %r9, %r0, %r1, %r2, 0xe8;", [0b1100, 0b1010, 0b1001], 0b1000),
        ("lop3.b32 %r9, %r0, %r1, %r2, 0x96;", [0b1100, 0b1010, 0b1001], 0b1111),
        ("shl.b32 %r9, %r0, %r1;", [3, 4, 0], 48),
        ("shl.b32 %r9, %r0, %r1;", [3, 32, 0], 0),
        ("shl.b64 %d9, %d0, %r1;", [3, 64, 0], 0),
        ("shr.u32 %r9, %r0, 4;", [0x8000_0000, 0, 0], 0x0800_0000),
        ("shr.s32 %r9, %r0, 4;", [0x8000_0000, 0, 0], 0xf800_0000),
        ("shr.s32 %r9, %r0, %r1;", [0x8000_0000, 99, 0], 0xffff_ffff),
        ("shr.s64 %d9, %d0, %r1;", [1 << 63, 64, 0], u64::MAX),
        ("shf.l.wrap.b32 %r9, %r0, %r1, %r2;", [0x8000_0000, 1, 1], 3),
        ("shf.r.wrap.b32 %r9, %r0, %r1, %r2;", [0x10, 0x1, 36], 0x1000_0001),
        ("shf.r.clamp.b32 %r9, %r0, %r1, %r2;", [0x10, 0x7, 36], 7),
        ("bfe.u32 %r9, %r0, 4, 8;", [0xabcd, 0, 0], 0xbc),
        ("bfe.s32 %r9, %r0, 4, 8;", [0xabcd, 0, 0], 0xffff_ffbc),
        ("bfe.s32 %r9, %r0, 28, 16;", [0x8000_0000, 0, 0], s(-8)),
        ("bfe.u64 %d9, %d0, 32, 4;", [0xa5_0000_0000, 0, 0], 5),
        ("bfi.b32 %r9, %r0, %r1, 8, 4;", [0xfff, 0xaaaa_aaaa, 0], 0xaaaa_afaa),
        ("bfi.b64 %d9, %d0, %d1, 60, 8;", [0xff, 1, 0], 0xf000_0000_0000_0001),
        ("prmt.b32 %r9, %r0, %r1, 0x5410;", [0x3322_1100, 0x7766_5544, 0], 0x5544_1100),
        ("prmt.b32 %r9, %r0, %r1, 0x0008;", [0x0000_0080, 0, 0], 0x8080_80ff),
        ("mov.b32 %r9, {%h0, %h1};", [0x1234, 0x5678, 0], 0x5678_1234),
        ("mov.b32 {_, %h9}, %r0;", [0x5678_1234, 0, 0], 0x5678),
        ("mov.b64 %d9, {%r0, %r1};", [1, 2, 0], 0x2_0000_0001),
        ("mov.b64 {%r9, %r8}, %d0;", [0x2_0000_0001, 0, 0], 1),
        ("mov.f32 %f9, 0f3F800000;", [0; 3], f(1.0)),
        ("mov.f32 %f9, -1.5;", [0; 3], f(-1.5)),
        ("mov.f64 %e9, 0d3FF8000000000000;", [0; 3], e(1.5)),
        ("mov.u32 %r9, %ntid.x;", [0; 3], 1),
        ("mov.u32 %r9, WARP_SZ;", [0; 3], 32),
        ("selp.b32 %r9, %r0, %r1, %p2;", [1, 2, 0], 2),
        ("slct.u32.s32 %r9, %r0, %r1, %r2;", [1, 2, s(-1)], 2),
        ("slct.f32.f32 %f9, %f0, %f1, %f2;", [1, 2, f(-0.0)], 1),
    ]);
}

#[test]
fn carries() {
    // Words of two and three times the width: the flag goes from one instruction to the next.
    check(&[
        ("add.cc.u32 %r8, %r0, 1;\naddc.u32 %r9, %r1, %r2;", [0xffff_ffff, 5, 7], 13),
        ("add.cc.u32 %r8, %r0, 1;\naddc.u32 %r9, %r1, %r2;", [0xffff_fffe, 5, 7], 12),
        ("add.cc.u32 %r8, %r0, 1;\naddc.cc.u32 %r8, %r1, 0;\naddc.u32 %r9, %r2, 0;", [0xffff_ffff, 0xffff_ffff, 7], 8),
        ("sub.cc.u32 %r8, %r0, 1;\nsubc.u32 %r9, %r1, %r2;", [0, 9, 7], 1),
        ("sub.cc.s32 %r8, %r0, 1;\nsubc.cc.s32 %r9, %r1, %r2;", [1, 9, 7], 2),
        ("mad.lo.cc.u32 %r8, %r0, %r0, %r1;\nmadc.hi.u32 %r9, %r0, %r0, 0;", [0x1_0001, 0xfffd_ffff, 0], 2),
        ("mad.lo.cc.u32 %r8, %r0, 4, 1;\nmadc.hi.s32 %r9, %r0, 4, 10;", [s(-3), 0, 0], 9),
        ("add.cc.u64 %d8, %d0, 1;\naddc.u64 %d9, %d1, 0;", [u64::MAX, 5, 0], 6),
    ]);
    // Each thread has its own flag.
    let got = threads(
        "sub.u32 %r0, %r30, 2;\nadd.cc.u32 %r0, %r0, 2;\nsetp.gt.u32 %p0, %r30, 2;\n@%p0 add.cc.u32 %r0, 0, 0;\naddc.u32 %r9, 0, 0;",
        4,
    );
    assert_eq!(got, [1, 1, 0, 0]);
}
