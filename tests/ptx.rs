//! The PTX machine: each instruction against values worked out by hand, each detector with a kernel that provokes it, and
//! kernels that NVRTC 12.0 compiled (`tests/ptx/*.cu` to `*.ptx`, `--gpu-architecture=compute_80`,
//! `gemm_sm90` with `compute_90a`, all without the variables of `nv/target`) against f64 references.

use half::{bf16, f16};
use langevin::ptx::tensor::{Element, Swizzle};
use langevin::ptx::{Counters, Failure, FaultKind, Launch, Memory, Module, TensorMap};

/// A kernel `k(out)` around some statements, with registers of every type.
fn kernel(body: &str) -> String {
    kernel_with("", body)
}

fn kernel_with(globals: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n{globals}\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .pred %p<20>;\n.reg .b16 %h<20>;\n.reg .b32 %r<40>;\n.reg .b64 %d<20>;\n.reg .f32 %f<40>;\n.reg .f64 %e<20>;\n\
         .reg .b64 %out, %in;\nld.param.u64 %out, [out];\nld.param.u64 %in, [in];\n{body}\n}}\n"
    )
}

/// Runs a kernel of these tests over `out_bytes` that are written where the kernel does, and `input`.
fn run(text: &str, grid: u32, block: u32, out_bytes: usize, input: &[u8]) -> Result<(Vec<u8>, Counters), Failure> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut memory = Memory::new();
    let out = memory.allocate("out", out_bytes).unwrap();
    let input = memory.allocate_with("in", input).unwrap();
    let mut launch = Launch::new([grid, 1, 1], [block, 1, 1]).argument(out).argument(input);
    launch.shared_bytes = 1024;
    launch.budget = 100_000;
    let counters = module.entry("k").unwrap().launch(&mut memory, &launch)?;
    Ok((memory.bytes(out).unwrap().0.to_vec(), counters))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// What each of a block's threads leaves in %r9.
fn threads(body: &str, block: u32) -> Vec<u32> {
    let text = kernel(&format!(
        "mov.u32 %r30, %tid.x;\n{body}\nmul.wide.u32 %d18, %r30, 4;\nadd.u64 %d19, %out, %d18;\nst.global.u32 [%d19], %r9;\nret;"
    ));
    let (bytes, _) = run(&text, 1, block, 4 * block as usize, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    words(&bytes)
}

/// The fault that a kernel ends with.
fn fault(body: &str, block: u32) -> (FaultKind, u32, [u32; 3]) {
    match run(&kernel(body), 1, block, 64, &[1; 64]) {
        Err(Failure::Fault(fault)) => (fault.kind, fault.line, fault.thread),
        other => panic!("{other:?}\n{body}"),
    }
}

/// The line of a kernel of these tests at which its body begins.
const BODY: u32 = 16;

/// Runs statements whose operands %r0, %r1, %r2 (and %d, %h, %f, %e of the same numbers) are given, and compares the register
/// with the number 9 that they set.
#[track_caller]
fn check(cases: &[(&str, [u64; 3], u64)]) {
    for (statement, values, expected) in cases {
        let mut body = String::new();
        for (i, v) in values.iter().enumerate() {
            body += &format!(
                "mov.u64 %d{i}, {v};\ncvt.u32.u64 %r{i}, %d{i};\ncvt.u16.u64 %h{i}, %d{i};\nmov.b32 %f{i}, %r{i};\n\
                 mov.b64 %e{i}, %d{i};\nsetp.ne.u32 %p{i}, %r{i}, 0;\n"
            );
        }
        let kind = ["%r9", "%d9", "%h9", "%f9", "%e9", "%p9"].into_iter().find(|k| statement.contains(k)).unwrap();
        let (ty, bytes) = match kind {
            "%r9" | "%f9" => ("b32", 4),
            "%d9" | "%e9" => ("b64", 8),
            "%h9" => ("b16", 2),
            _ => ("b32", 4),
        };
        let store = if kind == "%p9" {
            "selp.b32 %r10, 1, 0, %p9;\nst.global.b32 [%out], %r10;".to_owned()
        } else {
            format!("st.global.{ty} [%out], {kind};")
        };
        let text = kernel(&format!("{body}{statement}\n{store}\nret;"));
        let (out, _) = run(&text, 1, 1, bytes, &[]).unwrap_or_else(|e| panic!("{statement}: {e}"));
        let got = out.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        assert_eq!(got, *expected, "{statement} of {values:x?}: {got:#x}, not {expected:#x}");
    }
}

fn f(x: f32) -> u64 {
    x.to_bits().into()
}

fn e(x: f64) -> u64 {
    x.to_bits()
}

fn h(x: f32) -> u64 {
    f16::from_f32(x).to_bits().into()
}

fn b(x: f32) -> u64 {
    bf16::from_f32(x).to_bits().into()
}

const fn s(x: i32) -> u64 {
    x as u32 as u64
}

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

#[test]
fn functions() {
    // The result of a loop that each thread leaves at its own time, by way of a structure.
    let globals = ".func (.param .b32 sum) power(.param .b32 base, .param .align 4 .b8 exponent[8]);\n\
        .func (.param .b32 sum) twice(.param .b32 x)\n{\n.reg .b32 %r<3>;\nld.param.u32 %r0, [x];\n{\n.param .b32 a;\n.param .align 4 .b8 b[8];\n\
        .param .b32 c;\nst.param.b32 [a+0], %r0;\nst.param.b32 [b+4], 1;\nst.param.b32 [b], 0;\ncall (c), power, (a, b);\n\
        ld.param.u32 %r1, [c];\n}\nadd.u32 %r1, %r1, %r0;\nst.param.b32 [sum], %r1;\nret;\n}\n\
        .func (.param .b32 sum) power(.param .b32 base, .param .align 4 .b8 exponent[8])\n{\n.reg .pred %p<2>;\n.reg .b32 %r<4>;\n.reg .b64 %rd0;\n\
        ld.param.u32 %r0, [base];\nmov.b64 %rd0, exponent;\nld.param.u32 %r1, [%rd0+4];\nmov.u32 %r2, 1;\nL:\nst.param.b32 [sum], %r2;\n\
        setp.eq.u32 %p1, %r1, 0;\n@%p1 ret;\nmul.lo.u32 %r2, %r2, %r0;\nsub.u32 %r1, %r1, 1;\nbra.uni L;\n}";
    let body = "mov.u32 %r30, %tid.x;\nmov.u32 %r9, 0;\nsetp.ne.u32 %p0, %r30, 3;\n{\n.param .b32 base;\n.param .align 8 .b8 exponent[8];\n\
        .param .b32 out1;\nst.param.b32 [base], 3;\nst.param.v2.b32 [exponent], {7, %r30};\ncall.uni (out1), power, (base, exponent);\n\
        ld.param.b32 %r9, [out1+0];\n}\n{\n.param .b32 x;\n.param .b32 y;\nst.param.b32 [x], %r9;\nst.param.b32 [y], 1000;\n\
        @%p0 call (y), twice, (x);\nld.param.b32 %r9, [y];\n}\nbar.warp.sync -1;\nmul.wide.u32 %d18, %r30, 4;\nadd.u64 %d19, %out, %d18;\n\
        st.global.u32 [%d19], %r9;\nret;";
    let (out, _) = run(&kernel_with(globals, body), 1, 5, 20, &[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(words(&out), [2, 6, 18, 1000, 162]);
}

#[test]
fn comparisons() {
    let nan = f(f32::NAN);
    check(&[
        ("setp.lt.s32 %p9, %r0, %r1;", [s(-1), 1, 0], 1),
        ("setp.lt.u32 %p9, %r0, %r1;", [s(-1), 1, 0], 0),
        ("setp.hs.u32 %p9, %r0, %r1;", [1, 1, 0], 1),
        ("setp.ge.s64 %p9, %d0, -2;", [u64::MAX, 0, 0], 1),
        ("setp.eq.b16 %p9, %h0, %h1;", [0x1_0001, 1, 0], 1),
        ("setp.lt.f32 %p9, %f0, %f1;", [f(1.0), nan, 0], 0),
        ("setp.ltu.f32 %p9, %f0, %f1;", [f(1.0), nan, 0], 1),
        ("setp.ne.f32 %p9, %f0, %f1;", [f(1.0), nan, 0], 0),
        ("setp.neu.f32 %p9, %f0, %f1;", [f(1.0), nan, 0], 1),
        ("setp.nan.f32 %p9, %f0, %f1;", [f(1.0), nan, 0], 1),
        ("setp.num.f64 %p9, %e0, %e1;", [e(1.0), e(2.0), 0], 1),
        ("setp.eq.ftz.f32 %p9, %f0, %f1;", [1, 0, 0], 1),
        ("setp.gt.f16 %p9, %h0, %h1;", [h(2.0), h(-3.0), 0], 1),
        ("setp.gt.and.s32 %p9, %r0, %r1, %p2;", [2, 1, 0], 0),
        ("setp.gt.or.s32 %p9|%p8, %r0, %r1, !%p2;", [1, 2, 0], 1),
        ("setp.gt.s32 %p8|%p9, %r0, %r1;", [1, 2, 0], 1),
        ("set.lt.u32.s32 %r9, %r0, %r1;", [1, 2, 0], 0xffff_ffff),
        ("set.eq.f16.f16 %h9, %h0, %h1;", [h(2.0), h(2.0), 0], h(1.0)),
        ("set.eq.f16.f16 %h9, %h0, %h1;", [h(2.0), h(-2.0), 0], 0),
        ("set.gt.f16x2.f16x2 %r9, %r0, %r1;", [h(2.0) << 16 | h(-3.0), h(1.0) << 16 | h(-2.0), 0], h(1.0) << 16),
        ("set.leu.u32.bf16x2 %r9, %r0, %r1;", [b(2.0) << 16 | b(f32::NAN), b(1.0) << 16 | b(-2.0), 0], 0xffff),
        ("setp.lt.s16 %p9, %h0, %h1;", [0xffff, 1, 0], 1),
        ("setp.lt.u16 %p9, %h0, %h1;", [0xffff, 1, 0], 0),
        ("setp.geu.f64 %p9, %e0, %e1;", [e(f64::NAN), e(1.0), 0], 1),
        ("setp.equ.f32 %p9, %f0, %f1;", [f(1.0), f(2.0), 0], 0),
        ("setp.lt.bf16 %p9, %h0, %h1;", [b(-1.0), b(1.0), 0], 1),
        ("set.lt.f32.s32 %f9, %r0, %r1;", [1, 2, 0], f(1.0)),
        ("testp.subnormal.f32 %p9, %f0;", [1, 0, 0], 1),
        ("testp.notanumber.f32 %p9, %f0;", [nan, 0, 0], 1),
    ]);
}

#[test]
fn floats() {
    let tiny = 1u64;
    let half_ulp = f(2f32.powi(-24));
    check(&[
        ("add.f32 %f9, %f0, %f1;", [f(1.0), half_ulp, 0], f(1.0)),
        ("add.rp.f32 %f9, %f0, %f1;", [f(1.0), tiny, 0], 0x3f80_0001),
        ("add.rm.f32 %f9, %f0, %f1;", [f(1.0), tiny | 1 << 31, 0], 0x3f7f_ffff),
        ("add.rz.f32 %f9, %f0, %f1;", [f(-1.0), tiny, 0], 0xbf7f_ffff),
        ("add.rm.f32 %f9, %f0, %f1;", [f(1.0), f(-1.0), 0], f(-0.0)),
        ("add.ftz.f32 %f9, %f0, %f1;", [tiny, tiny, 0], 0),
        ("add.sat.f32 %f9, %f0, %f1;", [f(0.75), f(0.75), 0], f(1.0)),
        ("add.f32 %f9, %f0, %f1;", [f(f32::INFINITY), f(f32::NEG_INFINITY), 0], 0x7fff_ffff),
        ("sub.f32 %f9, %f0, 0f3F800000;", [f(3.0), 0, 0], f(2.0)),
        ("mul.f32 %f9, %f0, %f1;", [f(1e-30), f(1e-10), 0], f(1e-40)),
        ("mul.ftz.f32 %f9, %f0, %f1;", [f(-1e-30), f(1e-10), 0], f(-0.0)),
        ("mul.rz.f32 %f9, %f0, %f1;", [f(f32::MAX), f(2.0), 0], f(f32::MAX)),
        // (1 + 2^-12)² - (1 + 2^-11) = 2^-24 exactly, which two roundings would lose.
        ("fma.rn.f32 %f9, %f0, %f0, %f1;", [f(1.0 + 2f32.powi(-12)), f(-1.0 - 2f32.powi(-11)), 0], half_ulp),
        ("fma.rp.f32 %f9, %f0, %f1, %f2;", [f(1.0), f(1.0), tiny], 0x3f80_0001),
        ("fma.rn.f64 %e9, %e0, %e1, %e2;", [e(3.0), e(0.1), e(-0.3)], e(3f64.mul_add(0.1, -0.3))),
        ("div.rn.f32 %f9, %f0, %f1;", [f(1.0), f(3.0), 0], f(1.0 / 3.0)),
        ("div.rz.f32 %f9, %f0, %f1;", [f(1.0), f(3.0), 0], 0x3eaa_aaaa),
        ("div.rp.f32 %f9, %f0, %f1;", [f(-1.0), f(3.0), 0], 0xbeaa_aaaa),
        ("rcp.rm.f32 %f9, %f0;", [f(3.0), 0, 0], 0x3eaa_aaaa),
        ("rcp.rn.f64 %e9, %e0;", [e(3.0), 0, 0], e(1.0 / 3.0)),
        ("sqrt.rn.f32 %f9, %f0;", [f(2.0), 0, 0], f(2f32.sqrt())),
        ("sqrt.rp.f32 %f9, %f0;", [f(2.0), 0, 0], 0x3fb5_04f4),
        ("sqrt.rz.f32 %f9, %f0;", [f(2.0), 0, 0], 0x3fb5_04f3),
        ("rsqrt.approx.f32 %f9, %f0;", [f(4.0), 0, 0], f(0.5)),
        ("rcp.approx.ftz.f32 %f9, %f0;", [f(0.0), 0, 0], f(f32::INFINITY)),
        ("ex2.approx.f32 %f9, %f0;", [f(-3.0), 0, 0], f(0.125)),
        ("lg2.approx.f32 %f9, %f0;", [f(8.0), 0, 0], f(3.0)),
        ("sin.approx.f32 %f9, %f0;", [f(1.0), 0, 0], f(1f64.sin() as f32)),
        ("cos.approx.f32 %f9, %f0;", [f(1.0), 0, 0], f(1f64.cos() as f32)),
        ("tanh.approx.f32 %f9, %f0;", [f(0.5), 0, 0], f(0.5f64.tanh() as f32)),
        ("ex2.approx.f16 %h9, %h0;", [h(2.0), 0, 0], h(4.0)),
        ("min.f32 %f9, %f0, %f1;", [f(f32::NAN), f(2.0), 0], f(2.0)),
        ("min.NaN.f32 %f9, %f0, %f1;", [f(f32::NAN), f(2.0), 0], 0x7fff_ffff),
        ("max.f32 %f9, %f0, %f1;", [f(-0.0), f(0.0), 0], f(0.0)),
        ("min.f32 %f9, %f0, %f1;", [f(0.0), f(-0.0), 0], f(-0.0)),
        ("abs.f32 %f9, %f0;", [f(-2.0), 0, 0], f(2.0)),
        ("neg.ftz.f32 %f9, %f0;", [tiny, 0, 0], f(-0.0)),
        ("neg.bf16x2 %r9, %r0;", [b(1.0) << 16 | b(-2.0), 0, 0], b(-1.0) << 16 | b(2.0)),
        ("copysign.f32 %f9, %f0, %f1;", [f(-1.0), f(3.0), 0], f(-3.0)),
        ("add.f16 %h9, %h0, %h1;", [h(1.0), h(2.5), 0], h(3.5)),
        ("add.f16 %h9, %h0, %h1;", [h(60000.0), h(60000.0), 0], h(f32::INFINITY)),
        (
            "fma.rn.f16x2 %r9, %r0, %r1, %r2;",
            [h(2.0) << 16 | h(3.0), h(4.0) << 16 | h(5.0), h(1.0) << 16 | h(-1.0)],
            h(9.0) << 16 | h(14.0),
        ),
        ("fma.rn.relu.f16 %h9, %h0, %h1, %h2;", [h(2.0), h(-4.0), h(1.0)], 0),
        (
            "fma.rn.bf16x2 %r9, %r0, %r1, %r2;",
            [b(2.0) << 16 | b(3.0), b(4.0) << 16 | b(5.0), b(1.0) << 16 | b(-1.0)],
            b(9.0) << 16 | b(14.0),
        ),
        ("max.bf16 %h9, %h0, %h1;", [b(2.0), b(4.0), 0], b(4.0)),
        ("add.f64 %e9, %e0, %e1;", [e(0.1), e(0.2), 0], e(0.1 + 0.2)),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("cvt.s64.s32 %d9, %r0;", [s(-5), 0, 0], -5i64 as u64),
        ("cvt.u64.u32 %d9, %r0;", [s(-5), 0, 0], 0xffff_fffb),
        ("cvt.s32.s8 %r9, %r0;", [0x80, 0, 0], s(-128)),
        ("cvt.u32.u16 %r9, %h0;", [0x1_8000, 0, 0], 0x8000),
        ("cvt.sat.u8.s32 %r9, %r0;", [s(-5), 0, 0], 0),
        ("cvt.sat.s8.s32 %r9, %r0;", [300, 0, 0], 127),
        ("cvt.rzi.s32.f32 %r9, %f0;", [f(-2.9), 0, 0], s(-2)),
        ("cvt.rni.s32.f32 %r9, %f0;", [f(2.5), 0, 0], 2),
        ("cvt.rmi.s32.f32 %r9, %f0;", [f(-2.1), 0, 0], s(-3)),
        ("cvt.rpi.s32.f32 %r9, %f0;", [f(2.1), 0, 0], 3),
        ("cvt.rzi.u32.f32 %r9, %f0;", [f(-2.9), 0, 0], 0),
        ("cvt.rzi.s32.f32 %r9, %f0;", [f(1e20), 0, 0], s(i32::MAX)),
        ("cvt.rzi.s32.f32 %r9, %f0;", [f(f32::NAN), 0, 0], 0),
        ("cvt.rzi.s64.f64 %d9, %e0;", [e(f64::NAN), 0, 0], 1 << 63),
        ("cvt.rn.f32.u32 %f9, %r0;", [0xffff_ffff, 0, 0], f(4294967296.0)),
        ("cvt.rz.f32.u32 %f9, %r0;", [0xffff_ffff, 0, 0], f(4294967040.0)),
        ("cvt.rn.f32.s64 %f9, %d0;", [(1 << 62) + (1 << 38) + 1, 0, 0], 0x5e80_0001),
        ("cvt.rn.f64.s32 %e9, %r0;", [s(-3), 0, 0], e(-3.0)),
        ("cvt.f64.f32 %e9, %f0;", [f(0.1), 0, 0], e(f64::from(0.1f32))),
        ("cvt.rn.f32.f64 %f9, %e0;", [e(0.1), 0, 0], f(0.1)),
        ("cvt.rp.f32.f64 %f9, %e0;", [e(1.0 + 1e-12), 0, 0], 0x3f80_0001),
        ("cvt.rn.f16.f32 %h9, %f0;", [f(1.0 + 3.0 * 2f32.powi(-11)), 0, 0], 0x3c02),
        ("cvt.rz.f16.f32 %h9, %f0;", [f(1e9), 0, 0], 0x7bff),
        ("cvt.rn.f16.f32 %h9, %f0;", [f(2f32.powi(-24)), 0, 0], 1),
        ("cvt.f32.f16 %f9, %h0;", [0x0001, 0, 0], f(2f32.powi(-24))),
        ("cvt.rn.bf16.f32 %h9, %f0;", [0x3f80_8000, 0, 0], 0x3f80),
        ("cvt.rn.bf16.f32 %h9, %f0;", [0x3f81_8000, 0, 0], 0x3f82),
        ("cvt.f32.bf16 %f9, %h0;", [0x3f81, 0, 0], 0x3f81_0000),
        ("cvt.rn.f16x2.f32 %r9, %f0, %f1;", [f(1.0), f(2.0), 0], h(1.0) << 16 | h(2.0)),
        ("cvt.rn.bf16x2.f32 %r9, %f0, %f1;", [f(1.0), f(2.0), 0], b(1.0) << 16 | b(2.0)),
        ("cvt.rn.relu.bf16x2.f32 %r9, %f0, %f1;", [f(-1.0), f(2.0), 0], b(2.0)),
        ("cvt.rna.tf32.f32 %r9, %f0;", [0x3f80_1000, 0, 0], 0x3f80_2000),
        ("cvt.rni.f32.f32 %f9, %f0;", [f(-2.5), 0, 0], f(-2.0)),
        ("cvt.sat.f32.f32 %f9, %f0;", [f(7.0), 0, 0], f(1.0)),
        ("cvt.ftz.f32.f16 %f9, %h0;", [h(1.5), 0, 0], f(1.5)),
    ]);
}

const SAXPY: &str = include_str!("ptx/saxpy.ptx");
const BLOCK_SUM: &str = include_str!("ptx/block_sum.ptx");
const MATMUL: &str = include_str!("ptx/matmul_tiled.ptx");
const SOFTMAX: &str = include_str!("ptx/softmax_row.ptx");
const MMA: &str = include_str!("ptx/mma_bf16.ptx");

/// Numbers in [-1, 1), always the same.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn floats_at(memory: &Memory, address: u64) -> Vec<f32> {
    let (bytes, written) = memory.bytes(address).unwrap();
    assert!(written, "something was left unwritten");
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn launch(text: &str, name: &str, memory: &mut Memory, launch: &Launch) -> Result<Counters, Failure> {
    Module::parse(text).unwrap().entry(name).unwrap().launch(memory, launch)
}

#[test]
fn saxpy() {
    let (n, x) = (1000, noise(1000));
    let mut memory = Memory::new();
    let [px, py] = ["x", "y"].map(|name| memory.allocate_with(name, bytes(&x)).unwrap());
    let arguments = Launch::new([8, 1, 1], [128, 1, 1]).argument(n).argument(3f32).argument(px).argument(py);
    let counters = launch(SAXPY, "saxpy", &mut memory, &arguments).unwrap();
    for (y, x) in floats_at(&memory, py).iter().zip(&x) {
        assert_eq!(*y, 3f32.mul_add(*x, *x));
    }
    assert_eq!(counters.flops, 2 * n as u64);
    assert_eq!(counters.loads.bytes, 8 * n as u64);
    assert_eq!(counters.loads.distinct_bytes, 8 * n as u64);
    assert_eq!(counters.stores.distinct_bytes, 4 * n as u64);
    // 1000 floats are 125 sectors.
    assert_eq!((counters.loads.sectors, counters.loads.least_sectors), (250, 250));
    assert_eq!(counters.divergent_branches, 1);
}

#[test]
fn block_sum() {
    let (n, x) = (5000, noise(5000));
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let out = memory.allocate("out", 12).unwrap();
    let arguments = Launch::new([3, 1, 1], [256, 1, 1]).argument(n).argument(px).argument(out);
    launch(BLOCK_SUM, "block_sum", &mut memory, &arguments).unwrap();
    for (block, sum) in floats_at(&memory, out).iter().enumerate() {
        let expected: f64 = (0..5000).filter(|i| i / 256 % 3 == block).map(|i| f64::from(x[i])).sum();
        assert!((f64::from(*sum) - expected).abs() < 1e-4, "{sum} {expected}");
    }
}

/// Two matrices of 48 × 48 and their product through the kernel.
fn matmul(text: &str) -> Result<(f64, Counters), Failure> {
    let n = 48usize;
    let a = noise(2 * n * n);
    let (a, b) = a.split_at(n * n);
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytes(a)).unwrap();
    let pb = memory.allocate_with("b", bytes(b)).unwrap();
    let pc = memory.allocate("c", 4 * n * n).unwrap();
    let arguments = Launch::new([3, 3, 1], [16, 16, 1]).argument(n as u32).argument(pa).argument(pb).argument(pc);
    let counters = launch(text, "matmul_tiled", &mut memory, &arguments)?;
    let c = floats_at(&memory, pc);
    let exact = |i: usize, j: usize| (0..n).map(|k| f64::from(a[i * n + k]) * f64::from(b[k * n + j])).sum::<f64>();
    let errors = (0..n * n).map(|i| (f64::from(c[i]) - exact(i / n, i % n)).abs());
    Ok((errors.fold(0.0, f64::max), counters))
}

#[test]
fn matmul_in_tiles() {
    let (error, counters) = matmul(MATMUL).unwrap();
    assert!(error < 1e-5, "{error}");
    assert_eq!(counters.flops, 2 * 48 * 48 * 48);
    assert_eq!(counters.bank_conflicts, 0);
}

#[test]
fn a_missing_barrier_is_found() {
    // Each of the two barriers in the loop, taken out.
    let barriers: Vec<usize> = MATMUL.match_indices("bar.sync").map(|m| m.0).collect();
    assert_eq!(barriers.len(), 2);
    let kinds = barriers.iter().map(|at| {
        let broken = format!("{}//{}", &MATMUL[..*at], &MATMUL[*at..]);
        match matmul(&broken) {
            Err(Failure::Fault(fault)) => fault.kind,
            other => panic!("{other:?}"),
        }
    });
    let kinds: Vec<FaultKind> = kinds.collect();
    // Without the first, a warp reads what others write; without the second it writes what they still read.
    assert!(matches!(kinds[0], FaultKind::Race { here: "reads", there: "wrote", .. }), "{}", kinds[0]);
    assert!(matches!(kinds[1], FaultKind::Race { here: "writes", there: "read", .. }), "{}", kinds[1]);
}

#[test]
fn softmax_of_rows() {
    let (rows, n) = (4usize, 300usize);
    let x: Vec<f16> = noise(rows * n).iter().map(|v| f16::from_f32(8.0 * v)).collect();
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let py = memory.allocate("y", 2 * rows * n).unwrap();
    let arguments = Launch::new([rows as u32, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(py);
    launch(SOFTMAX, "softmax_row", &mut memory, &arguments).unwrap();
    let y: Vec<f16> = bytemuck::pod_collect_to_vec(memory.bytes(py).unwrap().0);
    for row in 0..rows {
        let exps: Vec<f64> = x[row * n..(row + 1) * n].iter().map(|v| v.to_f64().exp()).collect();
        let sum: f64 = exps.iter().sum();
        for (y, e) in y[row * n..].iter().zip(&exps) {
            assert!((y.to_f64() - e / sum).abs() <= 1e-3 * e / sum + 6e-8, "{y} {}", e / sum);
        }
    }
}

#[test]
fn mma_with_bf16() {
    let (m, n, k) = (32usize, 16usize, 80usize);
    let a: Vec<bf16> = noise(m * k).iter().map(|v| bf16::from_f32(*v)).collect();
    let b: Vec<bf16> = noise(k * n).iter().map(|v| bf16::from_f32(*v)).collect();
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytemuck::cast_slice(&a)).unwrap();
    let pb = memory.allocate_with("b", bytemuck::cast_slice(&b)).unwrap();
    let pc = memory.allocate("c", 4 * m * n).unwrap();
    let grid = [(n / 8) as u32, (m / 16) as u32, 1];
    let arguments =
        Launch::new(grid, [32, 1, 1]).argument(n as u32).argument(k as u32).argument(pa).argument(pb).argument(pc);
    let counters = launch(MMA, "mma_bf16", &mut memory, &arguments).unwrap();
    let c = floats_at(&memory, pc);
    for i in 0..m * n {
        let exact: f64 = (0..k).map(|j| a[i / n * k + j].to_f64() * b[j * n + i % n].to_f64()).sum();
        assert!((f64::from(c[i]) - exact).abs() < 1e-4, "{i}: {} {exact}", c[i]);
    }
    assert_eq!(counters.flops, (2 * m * n * k) as u64);
}

// --- what the compiler makes of ordinary code ----------------------------------------------------------------------

const MATH: &str = include_str!("ptx/math.ptx");
const DOUBLES: &str = include_str!("ptx/doubles.ptx");
const INTEGERS: &str = include_str!("ptx/integers.ptx");
const HALVES: &str = include_str!("ptx/halves.ptx");
const MIXED: &str = include_str!("ptx/mixed.ptx");

/// The error function by its power series: good to 1e-12 up to 3.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Holds `out[f, n]` against each function of the `x[n]`, relatively or absolutely, whichever is larger.
#[track_caller]
fn hold(x: &[f64], out: &[f64], relative: f64, functions: &[fn(f64) -> f64]) {
    assert_eq!(out.len(), x.len() * functions.len());
    for (k, f) in functions.iter().enumerate() {
        for (x, y) in x.iter().zip(&out[k * x.len()..]) {
            let exact = f(*x);
            assert!((y - exact).abs() <= relative * exact.abs().max(0.01), "function {k} of {x}: {y}, not {exact}");
        }
    }
}

#[test]
fn functions_of_floats() {
    let x: Vec<f32> = noise(200).iter().map(|v| 3.0 * v).collect();
    let mut memory = Memory::new();
    let (n, count) = (x.len(), 30);
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let out = memory.allocate("out", 4 * n * count).unwrap();
    let arguments = Launch::new([2, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(out);
    launch(MATH, "math", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = floats_at(&memory, out).iter().map(|v| f64::from(*v)).collect();
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    const SEVENTH: f64 = 0.7f32 as f64;
    hold(
        &x,
        &out,
        4e-6,
        &[
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            f64::cos,
            erf,
            f64::tanh,
            |x| x.abs().powf(1.7),
            |x| 1.0 / x.abs().sqrt(),
            |x| x / 3.0,
            |x| x / 7.1,
            |x| x.abs().sqrt(),
            f64::exp2,
            |x| x.abs().ln_1p(),
            f64::exp_m1,
            f64::floor,
            f64::round_ties_even,
            |x| x % SEVENTH,
            |x| x.atan2(0.3f32.into()),
            |x| 1.5f64.copysign(x),
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            |x| 1.0 / x,
            |x| x.abs().log2(),
            f64::cbrt,
            |x| x.min(0.0),
            |x| 0.5 * (1.0 + erf(x / 2f64.sqrt())),
            |x| x.hypot(2.0),
            // The argument is rounded to f32 first; most are beyond the reach of the fast reduction.
            |x| f64::from(x as f32 * 1e6).sin(),
            f64::round,
        ],
    );
}

#[test]
fn functions_of_doubles() {
    let x: Vec<f64> = noise(100).iter().map(|v| 3.0 * f64::from(*v)).collect();
    let mut memory = Memory::new();
    let (n, count) = (x.len(), 22);
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let out = memory.allocate("out", 8 * n * count).unwrap();
    let arguments = Launch::new([1, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(out);
    launch(DOUBLES, "doubles", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = bytemuck::pod_collect_to_vec(memory.bytes(out).unwrap().0);
    hold(
        &x,
        &out,
        1e-14,
        &[
            |x| x + 0.1,
            |x| x * x,
            |x| x / 7.1,
            |x| 1.0 / x,
            |x| x.abs().sqrt(),
            |x| 1.0 / x.abs().sqrt(),
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            f64::cos,
            f64::tanh,
            |x| x.abs().powf(1.7),
            f64::floor,
            |x| f64::from(x as f32),
            |x| (x * 1e6).trunc(),
            |x| x.mul_add(x, -1.0),
            |x| x.min(0.5),
            |x| (x * 1e10).sin(),
            |x| 3.0 / (x * x),
            |x| (x.abs() * 1e6).trunc(),
            |x| 32.0 * x,
            f64::round_ties_even,
        ],
    );
}

/// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [(c[0], 0xD251_1F53u64), (c[2], 0xCD9E_8D57)].map(|(c, m)| u64::from(c) * m);
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn functions_of_integers() {
    let (n, seed, d, m) = (64usize, 0x1234_5678u32, -13i32, 0x1_2345_6789u64);
    let mut memory = Memory::new();
    let out = memory.allocate("out", 8 * n * 37).unwrap();
    let arguments =
        Launch::new([1, 1, 1], [64, 1, 1]).argument(n as u32).argument(seed).argument(d).argument(m).argument(out);
    launch(INTEGERS, "integers", &mut memory, &arguments).unwrap();
    let out: Vec<u64> = bytemuck::pod_collect_to_vec(memory.bytes(out).unwrap().0);
    for i in 0..n {
        let c = philox([i as u32, 0, 0, 0], [seed, 7]);
        let (a, b, w) = (c[0] as i32, c[1] as i32, u64::from(c[2]) << 32 | u64::from(c[3]));
        let (s, u) = (w as i64, |v: i32| i64::from(v) as u64);
        let both = u64::from(b as u32) << 32 | u64::from(a as u32);
        let byte = |n: u32| (both >> (8 * n)) as u8;
        let expected = [
            c[0].into(),
            c[1].into(),
            c[2].into(),
            c[3].into(),
            u(a / d),
            u(a % d),
            (c[0] / d as u32).into(),
            (c[0] % d as u32).into(),
            w / m,
            w % m,
            (s / m as i64) as u64,
            (s % m as i64) as u64,
            ((u128::from(w) * u128::from(m)) >> 64) as u64,
            ((i128::from(s) * -i128::from(m)) >> 64) as u64,
            a.count_ones().into(),
            a.leading_zeros().into(),
            if a == 0 { 0 } else { u64::from(a.trailing_zeros()) + 1 },
            (a.reverse_bits() as u32).into(),
            u32::from_le_bytes([5, 3, 7, 1].map(byte)).into(),
            ((both >> 32) << 13 | u64::from(a as u32 >> 19)) & 0xffff_ffff,
            (both >> (d & 31)) & 0xffff_ffff,
            (c[0] >> 5 & 0x3ff).into(),
            w >> (d & 63),
            (s >> (d & 63)) as u64,
            u(a.min(b)),
            u(a.wrapping_abs()),
            w.leading_zeros().into(),
            w.wrapping_mul(m).wrapping_add(3),
            c[0].abs_diff(c[1]).wrapping_add(5).into(),
            u(((i64::from(a) * i64::from(b)) >> 32) as i32),
            u((a as i16).into()),
            u((b as i8).into()),
            (a as f32).to_bits().into(),
            (i64::from(a) * i64::from(b)) as u64,
            w / 10,
            u(a / 7),
            (c[0] % 1000).into(),
        ];
        for (k, expected) in expected.iter().enumerate() {
            let got = out[k * n + i];
            assert!(got == *expected, "{k} of {i}: {got:#x}, not {expected:#x}");
        }
    }
}

#[test]
fn functions_of_halves() {
    let n = 96usize;
    let x: Vec<f16> = noise(n).iter().map(|v| f16::from_f32(2.0 * v)).collect();
    let y: Vec<bf16> = noise(n).iter().map(|v| bf16::from_f32(2.0 * v)).collect();
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let py = memory.allocate_with("y", bytemuck::cast_slice(&y)).unwrap();
    let out = memory.allocate("out", 4 * n * 19).unwrap();
    let arguments = Launch::new([1, 1, 1], [96, 1, 1]).argument(n as u32).argument(px).argument(py).argument(out);
    launch(HALVES, "halves", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = floats_at(&memory, out).iter().map(|v| f64::from(*v)).collect();
    let (of_x, of_y) = out.split_at(11 * n);
    let x64: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
    let y64: Vec<f64> = y.iter().map(|v| v.to_f64()).collect();
    hold(
        &x64,
        of_x,
        6e-4,
        &[
            |x| x,
            |x| 2.0 * x,
            |x| x * x,
            |x| x * x + x,
            |x| x.max(0.25),
            |x| f64::from(u8::from(x > 0.25)),
            |x| x / 3.0,
            |x| x.abs().sqrt(),
            f64::exp,
            f64::round_ties_even,
            |x| 1.1 * x,
        ],
    );
    hold(
        &y64,
        of_y,
        5e-3,
        &[|y| y, |y| 2.0 * y, |y| y * y, |y| y * y + y, |y| y.max(0.25), |y| -y, f64::exp, |y| 1.1 * y],
    );

    let [u, v] = ["u", "v"].map(|name| memory.allocate(name, 2 * n).unwrap());
    let arguments = Launch::new([1, 1, 1], [64, 1, 1]).argument(n as u32 / 2).argument(px).argument(py);
    launch(HALVES, "pairs", &mut memory, &arguments.argument(u).argument(v)).unwrap();
    let u: Vec<f16> = bytemuck::pod_collect_to_vec(memory.bytes(u).unwrap().0);
    let v: Vec<bf16> = bytemuck::pod_collect_to_vec(memory.bytes(v).unwrap().0);
    for i in 0..n {
        assert_eq!(u[i], f16::from_f64(2.0 * x64[i] + x64[i ^ 1]));
        assert_eq!(v[i], bf16::from_f64(2.0 * y64[i] + y64[i ^ 1]));
    }
}

#[test]
fn calls_structures_and_reductions() {
    let (n, which, block) = (200usize, 2usize, 128usize);
    let x = noise(4 * n);
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let (py, pz) = (memory.allocate("y", 16 * n).unwrap(), memory.allocate("z", 16 * n).unwrap());
    let sum = memory.allocate_with("sum", &[0; 4]).unwrap();
    let count = memory.allocate_with("count", &[0; 28]).unwrap();
    // float a, int b, and a float4 at a multiple of 16.
    let mut pair = [0u32; 8];
    (pair[0], pair[1]) = (0.5f32.to_bits(), 3);
    pair[4..].copy_from_slice(&[1.0f32, 2.0, 3.0, 4.0].map(f32::to_bits));
    let arguments =
        Launch::new([2, 1, 1], [block as u32, 1, 1]).argument(n as u32).argument(px).argument(py).argument(pz);
    let mut arguments = arguments.argument(sum).argument(count).argument(which as u32).argument(pair);
    arguments.shared_bytes = 64;
    launch(MIXED, "mixed", &mut memory, &arguments).unwrap();
    let (y, z) = (floats_at(&memory, py), words(memory.bytes(pz).unwrap().0));
    let (mut total, mut above, mut positive) = (0f64, 0, 0);
    for i in 0..n {
        let v = &x[4 * i..4 * i + 4];
        let pick: f32 = (0..=which).map(|k| v[0] * ((k * 3 + which) % 7) as f32).sum();
        let horner = (0..which + i % block % 3).fold(0f32, |s, _| s.mul_add(v[1], 1.0));
        let expected = [pick, horner, v[2] * 3.0, v[3] + 1.5 + 6.0 + 2.0];
        for (y, e) in y[4 * i..4 * i + 4].iter().zip(expected) {
            assert!((y - e).abs() < 1e-5, "{i}: {y} {e}");
        }
        assert_eq!(z[4 * i..4 * i + 4], [(i % block) as u32, i as u32, u32::MAX, y[4 * i].to_bits()]);
        total += f64::from(y[4 * i + 3]);
        above += u32::from(y[4 * i] > 0.5);
        positive += u32::from(i < block && y[4 * i + 1] > 1.0);
    }
    assert!((f64::from(floats_at(&memory, sum)[0]) - total).abs() < 1e-2);
    assert_eq!(words(memory.bytes(count).unwrap().0), [above, 96, 5, positive, 0, 1, 5]);
}

// --- memory --------------------------------------------------------------------------------------------------------

#[test]
fn memory_instructions() {
    let input: Vec<u8> = (0..64).collect();
    let text = kernel(
        "ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}, [%in+16];\nst.global.v2.u32 [%out], {%r3, %r0};\n\
         ld.global.s8 %r4, [%in+63];\nst.global.u8 [%out+8], %r4;\nld.global.u16 %h0, [%in+2];\nst.global.u16 [%out+10], %h0;\n\
         ld.volatile.global.u64 %d0, [%in];\nst.global.cs.u32 [%out+12], %d0;\nret;",
    );
    let (out, counters) = run(&text, 1, 1, 16, &input).unwrap();
    assert_eq!(out, [28, 29, 30, 31, 16, 17, 18, 19, 63, 0, 2, 3, 0, 1, 2, 3]);
    assert_eq!((counters.loads.requests, counters.loads.bytes, counters.loads.distinct_bytes), (4, 27, 25));
    assert_eq!((counters.stores.requests, counters.stores.sectors), (4, 4));
}

#[test]
fn every_space_is_reached_by_generic_addresses() {
    let globals = ".const .align 4 .b32 table[3] = {7, 8, 9};\n.global .align 4 .u32 counter = 5;\n.shared .align 8 .b8 room[16];";
    let body = "mov.u64 %d0, table;\nld.const.u32 %r0, [%d0+4];\nst.global.u32 [%out], %r0;\n\
        ld.global.u32 %r1, [counter];\nst.global.u32 [%out+4], %r1;\n\
        mov.u64 %d1, room;\ncvta.shared.u64 %d2, %d1;\nst.u32 [%d2+8], 11;\nld.shared.u32 %r2, [room+8];\nst.global.u32 [%out+8], %r2;\n\
        .local .align 8 .b8 depot[8];\nmov.u64 %d3, depot;\ncvta.local.u64 %d4, %d3;\nst.local.u32 [%d3+4], 12;\nld.u32 %r3, [%d4+4];\n\
        st.u32 [%out+12], %r3;\ncvta.to.shared.u64 %d5, %d2;\nsub.u64 %d6, %d5, %d1;\nst.global.u32 [%out+16], %d6;\n\
        isspacep.shared %p0, %d2;\nselp.u32 %r4, 1, 0, %p0;\nst.global.u32 [%out+20], %r4;\nret;";
    let (out, _) = run(&kernel_with(globals, body), 1, 1, 24, &[]).unwrap();
    assert_eq!(words(&out), [8, 5, 11, 12, 0, 1]);
}

#[test]
fn atomics() {
    let cases: &[(&str, u64, u64)] = &[
        ("add.u32", 5, 5 + 32),
        ("min.s32", s(-5), s(-5)),
        ("max.u32", 0, 1),
        ("inc.u32", 3, (3..35).fold(3, |a, _| if a >= 1 { 0 } else { a + 1 })),
        ("and.b32", 3, 1),
        ("or.b32", 2, 3),
        ("xor.b32", 2, 2),
        ("exch.b32", 2, 1),
    ];
    for (name, start, expected) in cases {
        let text = kernel(&format!(
            ".shared .u32 x;\nmov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 0;\n@%p0 st.shared.u32 [x], {start};\nbar.sync 0;\n\
             atom.shared.{name} %r1, [x], 1;\nbar.sync 0;\n@%p0 ld.shared.u32 %r2, [x];\n@%p0 st.global.u32 [%out], %r2;\nret;"
        ));
        let (out, _) = run(&text, 1, 32, 4, &[]).unwrap();
        assert_eq!(u64::from(words(&out)[0]), *expected, "{name}");
    }
    // Each lane gets what the one before it left.
    let got = threads(
        ".shared .f32 x;\nsetp.eq.u32 %p0, %r30, 0;\n@%p0 st.shared.f32 [x], 0f00000000;\nbar.warp.sync -1;\n\
         atom.shared.add.f32 %f0, [x], 0f3F000000;\nmov.b32 %r9, %f0;",
        4,
    );
    assert_eq!(got, [0.0f32, 0.5, 1.0, 1.5].map(f32::to_bits));
    let swapped = threads(
        ".shared .u32 x;\nsetp.eq.u32 %p0, %r30, 0;\n@%p0 st.shared.u32 [x], 2;\nbar.warp.sync -1;\n\
         add.u32 %r1, %r30, 1;\natom.shared.cas.b32 %r9, [x], %r30, %r1;",
        4,
    );
    assert_eq!(swapped, [2, 2, 2, 3]);
    let text = kernel("st.global.u32 [%out], 0;\nred.global.add.u32 [%out], 2;\natom.add.f16x2 %r0, [%in], %r1;\nret;");
    assert!(run(&text, 1, 1, 4, &[0; 4]).is_ok());
}

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

#[test]
fn barriers_that_reduce() {
    let count = "setp.lt.u32 %p0, %r30, 40;\nbar.red.popc.u32 %r9, 1, %p0;";
    assert_eq!(threads(count, 64), vec![40; 64]);
    for (name, expected) in [("and", 0), ("or", 1)] {
        let got = threads(
            &format!("setp.lt.u32 %p0, %r30, 40;\nbar.red.{name}.pred %p1, 1, %p0;\nselp.u32 %r9, 1, 0, %p1;"),
            64,
        );
        assert_eq!(got, vec![expected; 64]);
    }
    // One warp tells the other, by a barrier of 64 threads at which it does not wait.
    let handed = threads(
        ".shared .u32 x[32];\nmov.u64 %d0, x;\nand.b32 %r0, %r30, 31;\nmul.wide.u32 %d1, %r0, 4;\nadd.u64 %d0, %d0, %d1;\n\
         mov.u32 %r9, 0;\nsetp.lt.u32 %p0, %r30, 32;\n@%p0 bra WRITE;\nbar.sync 3, 64;\nld.shared.u32 %r9, [%d0];\nbra DONE;\n\
         WRITE:\nst.shared.u32 [%d0], %r30;\nbar.arrive 3, 64;\nDONE:",
        64,
    );
    assert_eq!(handed[32..], (0..32).collect::<Vec<u32>>());
}

// --- global memory -------------------------------------------------------------------------------------------------

/// Doubles the words of `in` into `out`, one a thread.
fn double() -> String {
    kernel(
        "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\nadd.u64 %d1, %in, %d0;\nadd.u64 %d2, %out, %d0;\n\
         ld.global.u32 %r1, [%d1];\nshl.b32 %r1, %r1, 1;\nst.global.u32 [%d2], %r1;\nret;",
    )
}

#[test]
fn windows_of_an_arena_are_the_bounds() {
    let module = Module::parse(&double()).unwrap();
    let entry = module.entry("k").unwrap();
    let mut memory = Memory::new();
    let arena = memory.allocate("arena", 256).unwrap();
    let (x, y) = (arena + 32, arena + 64);
    memory.slice_mut(x, 16).unwrap().copy_from_slice(bytemuck::cast_slice(&[1u32, 2, 3, 4]));
    let of = |threads, from: u64, to: u64| Launch::new([1, 1, 1], [threads, 1, 1]).argument(to).argument(from);
    let good = of(4, x, y).window("x", x, 16, false).window("y", y, 16, true);
    let counters = entry.launch(&mut memory, &good).unwrap();
    assert_eq!(words(memory.slice(y, 16).unwrap()), [2, 4, 6, 8]);
    assert_eq!((counters.loads.distinct_bytes, counters.stores.distinct_bytes), (16, 16));
    // In place: one address, of which the larger window may be written.
    let in_place = of(4, y, y).window("y", y, 16, false).window("y again", y, 16, true);
    let counters = entry.launch(&mut memory, &in_place).unwrap();
    assert_eq!(words(memory.slice(y, 16).unwrap()), [4, 8, 12, 16]);
    assert_eq!((counters.loads.distinct_bytes, counters.stores.distinct_bytes), (16, 16));

    let mut kind = |launch: Launch| match entry.launch(&mut memory, &launch) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // The arena goes on behind both windows.
    let behind = kind(of(5, x, y).window("x", x, 16, false).window("y", y, 20, true));
    assert!(behind.to_string().contains("it ends 4 bytes behind `x` of 16 bytes"), "{behind}");
    let behind = kind(of(5, x, y).window("x", x, 32, false).window("y", y, 16, true));
    assert!(matches!(behind, FaultKind::Unwritten { ref place, .. } if place == "byte 16 of `x`"), "{behind}");
    let behind = kind(of(4, x, y).window("x", x, 16, false).window("y", y, 12, true));
    assert!(matches!(behind, FaultKind::OutOfBounds { access: "store", .. }), "{behind}");
    let constant = kind(of(4, x, y).window("x", x, 16, true).window("y", y, 16, false));
    assert_eq!(constant, FaultKind::ReadOnly { place: "`y`".into() });
    // A later value of the same place has not been written.
    memory.forget(x + 4, 4).unwrap();
    let stale = match entry.launch(&mut memory, &good) {
        Err(Failure::Fault(fault)) => (fault.kind, fault.thread),
        other => panic!("{other:?}"),
    };
    assert!(matches!(stale, (FaultKind::Unwritten { ref place, .. }, [1, 0, 0]) if place == "byte 4 of `x`"));
    assert_eq!([memory.is_written(x, 4), memory.is_written(x, 16)].map(Result::unwrap), [true, false]);
    let outside = of(4, x, y).window("x", x, 16, false).window("y", arena + 250, 16, true);
    assert!(matches!(entry.launch(&mut memory, &outside), Err(Failure::Request(_))));
    assert!(memory.slice(arena + 250, 7).is_err() && memory.slice(0, 1).is_err());
}

#[test]
fn variables_belong_to_a_module() {
    let counting = |start: u32| {
        kernel_with(
            &format!(".global .u32 n = {start};"),
            "atom.global.add.u32 %r0, [n], 1;\nst.global.u32 [%out], %r0;\nret;",
        )
    };
    let modules = [10, 20].map(|start| Module::parse(&counting(start)).unwrap());
    let mut memory = Memory::new();
    let out = memory.allocate("out", 4).unwrap();
    let arguments = Launch::new([1, 1, 1], [1, 1, 1]).argument(out).argument(out).window("out", out, 4, true);
    let mut next = |module: usize| {
        modules[module].entry("k").unwrap().launch(&mut memory, &arguments).unwrap();
        words(memory.slice(out, 4).unwrap())[0]
    };
    assert_eq!([next(0), next(1), next(0), next(1)], [10, 20, 11, 21]);
}

// --- divergence ----------------------------------------------------------------------------------------------------

#[test]
fn nested_branches_meet_again() {
    // The vote after them sees the whole warp, or the member mask would be at fault.
    let got = threads(
        "and.b32 %r0, %r30, 1;\nand.b32 %r1, %r30, 2;\nsetp.eq.u32 %p0, %r0, 0;\nsetp.eq.u32 %p1, %r1, 0;\n@%p0 bra EVEN;\n\
         @%p1 bra ODD_LOW;\nmov.u32 %r9, 3;\nbra ODD_END;\nODD_LOW:\nmov.u32 %r9, 1;\nODD_END:\nactivemask.b32 %r5;\nadd.u32 %r9, %r9, 10;\n\
         bra END;\nEVEN:\nmov.u32 %r9, 0;\n@%p1 bra END;\nmov.u32 %r9, 2;\nEND:\nvote.sync.ballot.b32 %r4, %p0, -1;\n\
         setp.ne.u32 %p3, %r5, 0xaaaaaaaa;\nand.pred %p3, %p3, !%p0;\n@%p3 trap;",
        32,
    );
    assert_eq!(got, (0..32).map(|l| [0, 11, 2, 13][l % 4]).collect::<Vec<u32>>());
}

#[test]
fn loops_of_different_lengths_meet_again() {
    let got = threads(
        "mov.u32 %r9, 0;\nmov.u32 %r1, 0;\nLOOP:\nsetp.ge.u32 %p0, %r1, %r30;\n@%p0 bra OUT;\nadd.u32 %r9, %r9, %r1;\n\
         add.u32 %r1, %r1, 1;\nbra LOOP;\nOUT:\nbar.sync 0;",
        64,
    );
    assert_eq!(got, (0..64).map(|n: u32| (0..n).sum()).collect::<Vec<u32>>());
}

#[test]
fn threads_that_return_early_are_not_waited_for() {
    for leave in ["@%p0 ret;", "@%p0 bra LEAVE;", "@!%p0 bra STAY;\nst.global.u32 [%d0], 7;\nret;\nSTAY:"] {
        let text = kernel(&format!(
            "mov.u32 %r30, %tid.x;\nmul.wide.u32 %d0, %r30, 4;\nadd.u64 %d0, %d0, %out;\nst.global.u32 [%d0], 7;\n\
             setp.lt.u32 %p0, %r30, 40;\n{leave}\nbar.sync 0;\nst.global.u32 [%d0], 9;\nLEAVE:\nret;"
        ));
        let (out, _) = run(&text, 1, 70, 280, &[]).unwrap_or_else(|e| panic!("{leave}: {e}"));
        assert_eq!(words(&out), (0..70).map(|t| if t < 40 { 7 } else { 9 }).collect::<Vec<u32>>(), "{leave}");
    }
}

#[test]
fn labels_and_registers_in_braces_are_their_own() {
    let block = "{\n.reg .pred q;\n.reg .b32 n;\nmov.u32 n, 3;\nAGAIN:\nadd.u32 %r9, %r9, n;\nsub.u32 n, n, 1;\n\
        setp.ne.u32 q, n, 0;\n@q bra AGAIN;\n}\n";
    assert_eq!(threads(&format!("mov.u32 %r9, 0;\n{block}{block}"), 1), [12]);
}

#[test]
fn the_grid_and_its_places() {
    let text = kernel(
        "mov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %nctaid.x;\nmad.lo.u32 %r2, %r1, 10, %r0;\nmul.wide.u32 %d0, %r0, 4;\n\
         add.u64 %d0, %d0, %out;\nst.global.u32 [%d0], %r2;\nret;",
    );
    let (out, _) = run(&text, 3, 1, 12, &[]).unwrap();
    assert_eq!(words(&out), [30, 31, 32]);
}

// --- detectors -----------------------------------------------------------------------------------------------------

#[test]
fn out_of_bounds() {
    let (kind, line, thread) = fault(
        "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\nadd.u64 %d0, %d0, %in;\nld.global.u32 %r1, [%d0];\nret;",
        20,
    );
    assert!(matches!(kind, FaultKind::OutOfBounds { access: "load", bytes: 4, .. }), "{kind}");
    assert!(kind.to_string().contains("it ends 4 bytes behind `in` of 64 bytes"), "{kind}");
    assert_eq!((line, thread), (BODY + 3, [16, 0, 0]));
    for body in [
        "st.global.u32 [%out+64], 1;",
        "mov.u64 %d0, 0;\nld.global.u32 %r0, [%d0];",
        "mov.u32 %r1, 0;\nld.shared.u32 %r0, [%r1];",
        "mov.u64 %d3, -8;\nld.global.u32 %r0, [%d3];",
        "ld.param.u64 %d0, [in+8];",
        "mov.u64 %d0, 1024;\nst.shared.u32 [%d0+1024], 1;",
        "mov.u32 %r0, 0;\nst.local.u32 [%r0], 1;",
        "red.global.add.u32 [%in+64], 1;",
        "mov.u32 %r0, 1024;\ncp.async.ca.shared.global [%r0], [%in+64], 4;",
    ] {
        let (kind, ..) = fault(body, 1);
        assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{body}: {kind}");
    }
    let (kind, ..) = fault("st.const.u32 [%in], 1;", 1);
    assert!(matches!(kind, FaultKind::ReadOnly { .. }), "{kind}");
}

#[test]
fn misaligned() {
    for body in
        ["ld.global.u32 %r0, [%in+2];", "ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%in+8];", "st.global.u16 [%out+1], 1;"]
    {
        let (kind, line, _) = fault(body, 1);
        assert!(matches!(kind, FaultKind::Misaligned { .. }), "{body}: {kind}");
        assert_eq!(line, BODY);
    }
}

#[test]
fn reads_of_what_nothing_wrote() {
    let (kind, ..) = fault("ld.global.u32 %r0, [%out+4];", 1);
    assert!(kind.to_string().contains("byte 4 of `out`"), "{kind}");
    for body in [
        "st.global.u16 [%out], 1;\nld.global.u32 %r0, [%out];",
        ".shared .u32 x;\nld.shared.u32 %r0, [x];",
        ".local .u32 x;\nld.local.u32 %r0, [x];",
        ".shared .u32 x;\natom.shared.add.u32 %r0, [x], 1;",
    ] {
        let (kind, ..) = fault(body, 1);
        assert!(matches!(kind, FaultKind::Unwritten { .. }), "{body}: {kind}");
    }
}

#[test]
fn races_in_shared_memory() {
    let prefix = ".shared .align 4 .b32 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n\
        sub.u32 %r1, 63, %r30;\nmul.wide.u32 %d3, %r1, 4;\nadd.u64 %d3, %d0, %d3;\n";
    let races: &[&str] = &[
        // Write and read, whichever warp comes first.
        "st.shared.u32 [%d2], 0;\nbar.sync 0;\nst.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [%d3];",
        // Write after read.
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nld.shared.u32 %r2, [%d3];\nst.shared.u32 [%d2], 2;",
        // Two writes.
        "st.shared.u32 [%d0], %r30;",
        // A warp's own sync does not order two warps.
        "st.shared.u32 [%d2], 0;\nbar.sync 0;\nst.shared.u32 [%d2], 1;\nbar.warp.sync -1;\nld.shared.u32 %r2, [%d3];",
        // Atomics and ordinary writes.
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nred.shared.add.u32 [x], 1;\nsetp.eq.u32 %p0, %r30, 40;\n@%p0 st.shared.u32 [x], 1;",
    ];
    for body in races {
        let (kind, ..) = fault(&format!("{prefix}{body}\nret;"), 64);
        assert!(matches!(kind, FaultKind::Race { .. }), "{body}: {kind}");
    }
    let (kind, line, thread) = fault(&format!("{prefix}{}\nret;", races[0]), 64);
    assert_eq!((line, thread), (BODY + 10, [0, 0, 0]));
    assert!(kind.to_string().contains("thread [63, 0, 0] read it in line 27"), "{kind}");

    let sound = [
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nld.shared.u32 %r2, [%d3];\nbar.sync 0;\nst.shared.u32 [%d2], 2;",
        "st.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [%d2];",
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\natom.shared.add.u32 %r2, [x], 1;",
        "st.volatile.shared.u32 [x], 1;\nld.volatile.shared.u32 %r2, [x];",
    ];
    for body in sound {
        run(&kernel(&format!("{prefix}{body}\nret;")), 1, 64, 64, &[]).unwrap_or_else(|e| panic!("{body}: {e}"));
    }
}

#[test]
fn races_within_a_warp() {
    let prefix = ".shared .align 4 .b32 x[32];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n";
    let (kind, ..) = fault(&format!("{prefix}st.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [x+4];"), 32);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
    for sound in ["st.shared.u32 [%d2], 1;\nbar.warp.sync -1;\nld.shared.u32 %r2, [x+4];", "st.shared.u32 [x], %r30;"] {
        run(&kernel(&format!("{prefix}{sound}\nret;")), 1, 32, 64, &[]).unwrap();
    }
}

#[test]
fn barrier_divergence() {
    let low = "mov.u32 %r30, %tid.x;\nsetp.lt.u32 %p0, %r30, 16;\n";
    for body in [
        format!("{low}@%p0 bar.sync 0;\nret;"),
        format!("{low}@%p0 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0;\nB:\nst.global.u32 [%out], 1;\nret;"),
        format!("{low}@%p0 bra A;\nbra B;\nA:\nbar.warp.sync -1;\nB:\nst.global.u32 [%out], 1;\nret;"),
        format!("{low}@%p0 shfl.sync.idx.b32 %r1, %r30, 0, 31, -1;\nret;"),
        format!("{low}shfl.sync.idx.b32 %r1, %r30, 0, 31, 0xffff;\nret;"),
        // Two warps at two barriers.
        "mov.u32 %r30, %tid.x;\nshr.u32 %r1, %r30, 5;\nbar.sync %r1;\nret;".to_owned(),
        "mov.u32 %r30, %tid.x;\nsetp.lt.u32 %p0, %r30, 32;\n@%p0 bar.sync 1, 64;\n@!%p0 bar.sync 1, 96;\nret;"
            .to_owned(),
        "bar.sync 1, 96;\nret;".to_owned(),
    ] {
        let (kind, line, _) = fault(&body, 64);
        assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{body}: {kind}");
        assert!(line >= BODY);
    }
}

#[test]
fn endless_loops_and_traps_end() {
    assert_eq!(fault("L:\nbra L;", 1).0, FaultKind::Budget(100_000));
    assert_eq!(fault("mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 5;\n@%p0 trap;", 32).2, [5, 0, 0]);
    assert!(matches!(fault("bar.sync 16;", 1).0, FaultKind::Misuse(_)));
    assert!(matches!(
        fault("mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 5;\n@%p0 shfl.sync.idx.b32 %r1, %r0, 0, 31, 32;", 32).0,
        FaultKind::Misuse(_)
    ));
}

// --- copies beside the threads -------------------------------------------------------------------------------------

/// Every thread copies 16 bytes of the input to its place in shared memory; then the statements.
fn copying(statements: &str) -> String {
    format!(
        ".shared .align 16 .b8 x[1024];\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 16;\nmov.u64 %d0, x;\nadd.u64 %d2, %d0, %d1;\n\
         add.u64 %d3, %in, %d1;\ncp.async.cg.shared.global [%d2], [%d3], 16;\n{statements}\nret;"
    )
}

#[test]
fn asynchronous_copies_have_to_be_waited_for() {
    let input = [7u8; 1024];
    let of = |statements: &str, block| run(&kernel(&copying(statements)), 1, block, 64, &input);
    let kind = |statements: &str, block| match of(statements, block) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{statements}: {other:?}"),
    };
    let read = "ld.shared.u32 %r1, [%d2];\nst.global.u32 [%out], %r1;";
    let (out, _) = of(&format!("cp.async.commit_group;\ncp.async.wait_group 0;\n{read}"), 1).unwrap();
    assert_eq!(out[..4], [7; 4]);
    assert!(of(&format!("cp.async.wait_all;\n{read}"), 1).is_ok());
    assert!(matches!(kind(read, 1), FaultKind::InFlight { line: 22, .. }));
    // A group that was not committed is not waited for, and one group may be left.
    assert!(matches!(kind(&format!("cp.async.wait_group 0;\n{read}"), 1), FaultKind::InFlight { .. }));
    assert!(matches!(
        kind(&format!("cp.async.commit_group;\ncp.async.wait_group 1;\n{read}"), 1),
        FaultKind::InFlight { .. }
    ));
    assert!(matches!(kind("st.shared.u32 [%d2], 1;", 1), FaultKind::InFlight { .. }));
    // Waiting is for one's own copies; those of others are behind a barrier.
    let other = "xor.b32 %r2, %r30, 32;\nmul.wide.u32 %d4, %r2, 16;\nadd.u64 %d4, %d0, %d4;\nld.shared.u32 %r1, [%d4];";
    assert!(of(&format!("cp.async.wait_all;\nbar.sync 0;\n{other}"), 64).is_ok());
    let early = kind(&format!("cp.async.wait_all;\n{other}"), 64);
    assert!(
        matches!(early, FaultKind::Race { .. } | FaultKind::Unwritten { .. } | FaultKind::InFlight { .. }),
        "{early}"
    );
    // Bytes beyond the source's are zero.
    let (out, _) = of(
        "cp.async.wait_all;\nmov.u32 %r3, 4;\ncp.async.ca.shared.global [%d2], [%d3], 8, %r3;\ncp.async.wait_all;\n\
         ld.shared.u64 %d5, [%d2];\nst.global.u64 [%out], %d5;",
        1,
    )
    .unwrap();
    assert_eq!(out[..8], [7, 7, 7, 7, 0, 0, 0, 0]);
}

/// A bulk copy of 64 bytes that `expected` are announced of, by thread 0; then the statements, in which all may wait.
fn bulk(expected: u32, statements: &str) -> Result<(Vec<u8>, Counters), Failure> {
    let text = kernel(&format!(
        ".shared .align 16 .b8 x[64];\n.shared .align 8 .b64 object;\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmov.u64 %d1, object;\n\
         setp.ne.u32 %p0, %r30, 0;\n@%p0 bra READY;\nmbarrier.init.shared::cta.b64 [%d1], 1;\nfence.mbarrier_init.release.cluster;\n\
         READY:\nbar.sync 0;\n@%p0 bra ISSUED;\nmbarrier.arrive.expect_tx.shared::cta.b64 %d2, [%d1], {expected};\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\nISSUED:\n{statements}\n\
         and.b32 %r1, %r30, 15;\nmul.wide.u32 %d3, %r1, 4;\nadd.u64 %d4, %d0, %d3;\nadd.u64 %d5, %out, %d3;\n\
         ld.shared.u32 %r2, [%d4];\nst.global.u32 [%d5], %r2;\nret;"
    ));
    run(&text, 1, 64, 64, &(0..64).collect::<Vec<u8>>())
}

#[test]
fn bulk_copies_complete_barrier_objects() {
    let wait = "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra WAIT;";
    let (out, counters) = bulk(64, wait).unwrap();
    assert_eq!(out, (0..64).collect::<Vec<u8>>());
    assert_eq!((counters.loads.requests, counters.loads.distinct_bytes), (1, 64));
    let kind = |result| match result {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    assert!(matches!(kind(bulk(64, "")), FaultKind::InFlight { .. } | FaultKind::Unwritten { .. }));
    // One warp's waiting does not help the other.
    let half = "setp.lt.u32 %p2, %r30, 32;\n@!%p2 bra SKIP;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra WAIT;\nSKIP:";
    assert!(matches!(
        kind(bulk(64, half)),
        FaultKind::InFlight { .. } | FaultKind::Race { .. } | FaultKind::Unwritten { .. }
    ));
    // More is announced than comes.
    assert_eq!(kind(bulk(80, wait)), FaultKind::Budget(100_000));
}

/// Copies arrive at a barrier object by themselves: behind its phase they are there for all, and before it for nobody.
#[test]
fn copies_arrive_at_barrier_objects() {
    let body = |wait: &str| {
        format!(
            ".shared .align 16 .b8 x[1024];\n.shared .align 8 .b64 object;\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmov.u64 %d6, object;\n\
             setp.ne.u32 %p0, %r30, 0;\n@%p0 bra READY;\nmbarrier.init.shared.b64 [%d6], 64;\nREADY:\nbar.sync 0;\n\
             mul.wide.u32 %d1, %r30, 16;\nadd.u64 %d2, %d0, %d1;\nadd.u64 %d3, %in, %d1;\ncp.async.cg.shared.global [%d2], [%d3], 16;\n\
             cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%d6];\n{wait}\nxor.b32 %r2, %r30, 32;\nmul.wide.u32 %d4, %r2, 16;\n\
             add.u64 %d4, %d0, %d4;\nld.shared.u32 %r1, [%d4];\nmul.wide.u32 %d5, %r30, 4;\nadd.u64 %d5, %out, %d5;\n\
             st.global.u32 [%d5], %r1;\nret;"
        )
    };
    let input: Vec<u8> = (0..1024).map(|i| (i / 16) as u8).collect();
    let of = |wait: &str| run(&kernel(&body(wait)), 1, 64, 256, &input);
    let (out, _) = of("WAIT:\nmbarrier.try_wait.parity.shared.b64 %p1, [%d6], 0;\n@!%p1 bra WAIT;").unwrap();
    assert_eq!(words(&out), (0..64).map(|i| 0x0101_0101 * (i ^ 32)).collect::<Vec<u32>>());
    let Err(Failure::Fault(fault)) = of("") else { panic!("nobody waits for the copies") };
    let kind = fault.kind;
    assert!(
        matches!(kind, FaultKind::InFlight { .. } | FaultKind::Race { .. } | FaultKind::Unwritten { .. }),
        "{kind}"
    );
}

#[test]
fn barrier_objects_count_arrivals() {
    // 64 threads arrive; then the phase is over, and what each wrote is there for all.
    let got = threads(
        ".shared .align 8 .b64 object;\n.shared .align 4 .b32 x[64];\nmov.u64 %d1, object;\nmov.u64 %d0, x;\nsetp.ne.u32 %p0, %r30, 0;\n\
         @%p0 bra READY;\nmbarrier.init.shared.b64 [%d1], 64;\nREADY:\nbar.sync 0;\nmul.wide.u32 %d2, %r30, 4;\nadd.u64 %d3, %d0, %d2;\n\
         st.shared.u32 [%d3], %r30;\nmbarrier.arrive.shared.b64 %d4, [%d1];\nWAIT:\nmbarrier.test_wait.shared.b64 %p1, [%d1], %d4;\n\
         @!%p1 bra WAIT;\nsub.u32 %r1, 63, %r30;\nmul.wide.u32 %d2, %r1, 4;\nadd.u64 %d3, %d0, %d2;\nld.shared.u32 %r9, [%d3];",
        64,
    );
    assert_eq!(got, (0..64).rev().collect::<Vec<u32>>());
    let (kind, ..) = fault(
        ".shared .align 8 .b64 object;\nmbarrier.init.shared.b64 [object], 1;\nmbarrier.arrive.shared.b64 _, [object], 2;",
        1,
    );
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}

// --- matrices ------------------------------------------------------------------------------------------------------

#[test]
fn matrices_are_stored_and_transposed() {
    let body = ".shared .align 16 .b8 x[256];\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %in, %d1;\n\
        ld.global.u32 %r0, [%d2];\nadd.u64 %d3, %d0, %d1;\nst.shared.u32 [%d3], %r0;\nbar.warp.sync -1;\nand.b32 %r1, %r30, 7;\n\
        mul.wide.u32 %d4, %r1, 16;\nadd.u64 %d5, %d0, %d4;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%d5];\n\
        setp.ne.u32 %p0, %r2, %r0;\n@%p0 trap;\nadd.u64 %d6, %d5, 128;\nstmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%d6], {%r2};\n\
        bar.warp.sync -1;\nadd.u64 %d7, %d3, 128;\nld.shared.u32 %r3, [%d7];\nadd.u64 %d8, %out, %d1;\nst.global.u32 [%d8], %r3;\nret;";
    let input: Vec<u16> = (0..64).collect();
    let (out, counters) = run(&kernel(body), 1, 32, 128, bytemuck::cast_slice(&input)).unwrap();
    let out: Vec<u16> = bytemuck::pod_collect_to_vec(&out);
    assert_eq!(out, (0..64).map(|i| i % 8 * 8 + i / 8).collect::<Vec<u16>>());
    assert_eq!(counters.bank_conflicts, 0);
}

/// One `mma` of [16, k] by [k, 8] whose registers are filled by the rules of the PTX ISA.
fn one_mma(shape: &str, ty: &str, k: usize, encode: fn(f32) -> u32, wide: bool) {
    let small = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
    let (a, b) = (|m: usize, k: usize| small(m * 16 + k), |k: usize, n: usize| small(k * 8 + n + 5));
    let pair = |low: f32, high: f32| encode(low) | encode(high) << 16;
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        let mut registers = [0u32; 6];
        for (r, register) in registers[..4].iter_mut().enumerate() {
            let row = group + 8 * (r % 2);
            *register = if wide {
                encode(a(row, member + 4 * (r / 2)))
            } else {
                pair(a(row, 2 * member + 8 * (r / 2)), a(row, 2 * member + 8 * (r / 2) + 1))
            };
        }
        for r in 0..2 {
            registers[4 + r] = if wide {
                encode(b(member + 4 * r, group))
            } else {
                pair(b(2 * member + 8 * r, group), b(2 * member + 8 * r + 1, group))
            };
        }
        input.extend(registers);
    }
    let (ra, rb) = if wide || k == 16 { ("{%r0, %r1, %r2, %r3}", "{%r4, %r5}") } else { ("{%r0, %r1}", "{%r4}") };
    let body = format!(
        "mov.u32 %r30, %tid.x;\nmul.wide.u32 %d0, %r30, 24;\nadd.u64 %d1, %in, %d0;\nld.global.v2.b32 {{%r0, %r1}}, [%d1];\n\
         ld.global.v2.b32 {{%r2, %r3}}, [%d1+8];\nld.global.v2.b32 {{%r4, %r5}}, [%d1+16];\nmov.f32 %f4, 0f3F800000;\n\
         mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {{%f0, %f1, %f2, %f3}}, {ra}, {rb}, {{%f4, %f4, %f4, %f4}};\n\
         mul.wide.u32 %d2, %r30, 16;\nadd.u64 %d3, %out, %d2;\nst.global.v4.f32 [%d3], {{%f0, %f1, %f2, %f3}};\nret;"
    );
    let (out, counters) = run(&kernel(&body), 1, 32, 512, bytemuck::cast_slice(&input)).unwrap();
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&out);
    for lane in 0..32 {
        for r in 0..4 {
            let (row, col) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
            let exact: f32 = 1.0 + (0..k).map(|k| a(row, k) * b(k, col)).sum::<f32>();
            assert_eq!(out[4 * lane + r], exact, "{shape} {ty} ({row}, {col})");
        }
    }
    assert_eq!(counters.flops, (2 * 16 * 8 * k) as u64);
}

#[test]
fn products_of_matrices() {
    let half = |x| u32::from(f16::from_f32(x).to_bits());
    let brain = |x| u32::from(bf16::from_f32(x).to_bits());
    one_mma("m16n8k16", "f16", 16, half, false);
    one_mma("m16n8k16", "bf16", 16, brain, false);
    one_mma("m16n8k8", "f16", 8, half, false);
    one_mma("m16n8k8", "bf16", 8, brain, false);
    one_mma("m16n8k8", "tf32", 8, f32::to_bits, true);
    let (kind, ..) = fault(
        "mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 0;\nmov.u32 %r1, 1024;\n@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
        32,
    );
    assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{kind}");
}

// --- Hopper --------------------------------------------------------------------------------------------------------

/// Where element (row, k) of a matrix of halves lies in shared memory, rows of `span` bytes with the eight rows of a pattern
/// one behind the other: the chunk of 16 bytes within the row is changed by the row's number.
fn swizzled(span: usize, row: usize, byte: usize) -> usize {
    let (chunk, inside) = (byte / 16, byte % 16);
    let turned = match span {
        128 => chunk ^ (row % 8),
        64 => chunk ^ (row / 2 % 4),
        32 => chunk ^ (row / 4 % 2),
        _ => chunk,
    };
    row * span + 16 * turned + inside
}

fn descriptor(start: usize, leading: usize, stride: usize, span: usize) -> u64 {
    let mode = [16, 128, 64, 32].iter().position(|s| *s == span).unwrap() as u64;
    ((start / 16) | ((leading / 16) << 16) | ((stride / 16) << 32)) as u64 | (mode << 62)
}

/// A `wgmma` of [64, 16] by [16, 32] whose operands are images in shared memory from 1024 and 1024 + 8192 on, with each layout.
fn one_wgmma(span: usize, a_transposed: bool, b_transposed: bool) {
    let a = |m: usize, k: usize| ((m * 7 + k * 3) % 11) as f32 - 5.0;
    let b = |k: usize, n: usize| ((k * 5 + n * 2) % 9) as f32 - 4.0;
    let mut image = vec![0u8; 16384];
    // Puts a matrix of `rows` by 16 at `base`, and says what describes it.
    let mut put = |base: usize, rows: usize, transposed: bool, value: &dyn Fn(usize, usize) -> f32| {
        let per_span = span / 2;
        for row in 0..rows {
            for k in 0..16 {
                let at = match (span, transposed) {
                    // Matrices of 8 rows by 16 bytes: next to each other along k at 4096, along the rows at 128.
                    (16, false) => k / 8 * 4096 + row / 8 * 128 + row % 8 * 16 + k % 8 * 2,
                    // Along the rows at 256, along k at 128.
                    (16, true) => row / 8 * 256 + k / 8 * 128 + k % 8 * 16 + row % 8 * 2,
                    (_, false) => swizzled(span, row, 2 * k),
                    // Blocks of `span` bytes along the rows, 2048 bytes apart.
                    (_, true) => row / per_span * 2048 + swizzled(span, k, row % per_span * 2),
                };
                image[base + at..base + at + 2].copy_from_slice(&bf16::from_f32(value(row, k)).to_le_bytes());
            }
        }
        let (leading, stride) = match (span, transposed) {
            (16, false) => (4096, 128),
            (16, true) => (128, 256),
            (_, false) => (16, 8 * span),
            (_, true) => (2048, 8 * span),
        };
        descriptor(1024 + base, leading, stride, span)
    };
    let a_bits = put(0, 64, a_transposed, &a);
    let b_bits = put(8192, 32, b_transposed, &|n, k| b(k, n));
    let (ta, tb) = (u8::from(a_transposed), u8::from(b_transposed));
    let list: Vec<String> = (0..16).map(|i| format!("%f{i}")).collect();
    let list = list.join(", ");
    let body = format!(
        ".shared .align 1024 .b8 x[16384];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 16;\nmov.u32 %r0, 0;\nCOPY:\n\
         add.u64 %d2, %in, %d1;\nld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2];\nadd.u64 %d3, %d0, %d1;\n\
         st.shared.v4.u32 [%d3], {{%r1, %r2, %r3, %r4}};\nadd.u64 %d1, %d1, 2048;\nadd.u32 %r0, %r0, 1;\nsetp.lt.u32 %p0, %r0, 8;\n@%p0 bra COPY;\n\
         fence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;\nsetp.ne.u32 %p1, %r0, %r0;\nmov.u64 %d4, {a_bits};\nmov.u64 %d5, {b_bits};\n\
         wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{list}}}, %d4, %d5, %p1, 1, 1, {ta}, {tb};\n\
         wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{list}}}, %d4, %d5, 1, -1, -1, {ta}, {tb};\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nmul.wide.u32 %d6, %r30, 64;\nadd.u64 %d7, %out, %d6;\n\
         st.global.v4.f32 [%d7], {{%f0, %f1, %f2, %f3}};\nst.global.v4.f32 [%d7+16], {{%f4, %f5, %f6, %f7}};\n\
         st.global.v4.f32 [%d7+32], {{%f8, %f9, %f10, %f11}};\nst.global.v4.f32 [%d7+48], {{%f12, %f13, %f14, %f15}};\nret;"
    );
    let (out, counters) = run(&kernel(&body), 1, 128, 128 * 64, &image).unwrap_or_else(|e| panic!("{span}: {e}"));
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&out);
    for thread in 0..128 {
        for i in 0..16 {
            let m = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let n = thread % 4 * 2 + i / 4 * 8 + i % 2;
            let exact: f32 = 2.0 * (0..16).map(|k| a(m, k) * b(k, n)).sum::<f32>();
            assert_eq!(out[16 * thread + i], exact, "{span} {a_transposed} {b_transposed} ({m}, {n})");
        }
    }
    assert_eq!(counters.flops, 2 * 2 * 64 * 32 * 16);
}

#[test]
fn products_by_four_warps() {
    for span in [16, 32, 64, 128] {
        for (a, b) in [(false, false), (true, false), (false, true), (true, true)] {
            one_wgmma(span, a, b);
        }
    }
}

/// A of ones in registers, B of ones in shared memory; [64, 16] by [16, 8] of halves or [64, 8] by [8, 8] of tf32. Then the
/// statements, and %f0 of the first thread.
fn wgmma_of_ones(types: &str, one: u32, numbers: &str, statements: &str) -> Result<f32, Failure> {
    let body = format!(
        ".shared .align 128 .b8 x[256];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 2;\nadd.u64 %d2, %d0, %d1;\n\
         mov.u32 %r0, {one};\nand.b32 %r1, %r30, 1;\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 st.shared.u32 [%d2], %r0;\nbar.sync 0;\nmov.f32 %f0, 0f3F800000;\n\
         mov.f32 %f1, %f0;\nmov.f32 %f2, %f0;\nmov.f32 %f3, %f0;\nwgmma.fence.sync.aligned;\nmov.u64 %d3, {};\n\
         wgmma.mma_async.sync.aligned.{types} {{%f0, %f1, %f2, %f3}}, {{%r0, %r0, %r0, %r0}}, %d3, 1, {numbers};\n\
         wgmma.commit_group.sync.aligned;\n{statements}\nsetp.eq.u32 %p2, %r30, 0;\n@%p2 st.global.f32 [%out], %f0;\nret;",
        descriptor(1024, 128, 128, 16)
    );
    let (out, _) = run(&kernel(&body), 1, 128, 4, &[])?;
    Ok(f32::from_le_bytes(out.try_into().unwrap()))
}

#[test]
fn products_by_four_warps_have_to_be_waited_for() {
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let halves = "m64n8k16.f32.f16.f16";
    let ones = 0x3c00_3c00;
    assert_eq!(wgmma_of_ones(halves, ones, "1, 1, 0", wait).unwrap(), 17.0);
    assert_eq!(wgmma_of_ones(halves, ones, "-1, 1, 0", wait).unwrap(), -15.0);
    assert_eq!(wgmma_of_ones("m64n8k8.f32.tf32.tf32", 1f32.to_bits(), "1, 1", wait).unwrap(), 9.0);
    // Before the wait there is nothing to be seen.
    assert!(wgmma_of_ones(halves, ones, "1, 1, 0", "").unwrap().is_nan());
    assert!(wgmma_of_ones(halves, ones, "1, 1, 0", "wgmma.wait_group.sync.aligned 1;").unwrap().is_nan());
    // Its operands may not change before the wait, barrier or not.
    let change = format!("bar.sync 0;\n@%p0 st.shared.u32 [%d2], 0;\n{wait}");
    match wgmma_of_ones(halves, ones, "1, 1, 0", &change) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::Race { here: "reads", .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
    assert!(
        wgmma_of_ones(halves, ones, "1, 1, 0", &format!("{wait}\nbar.sync 0;\n@%p0 st.shared.u32 [%d2], 0;")).is_ok()
    );
    let (kind, ..) = fault(
        ".shared .align 128 .b8 x[256];\nwgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, %d0, 1, 1, 1;",
        96,
    );
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}

/// One thread brings a tile of `from` and sends it to `to`; `[axes]` coordinates as given.
fn move_tile(
    from: &TensorMap,
    at: &[i32],
    to: &TensorMap,
    there: &[i32],
    memory: &mut Memory,
) -> Result<Counters, Failure> {
    let axes = at.len();
    let list = |c: &[i32]| c.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ");
    let bytes = from.tile.iter().zip(&from.steps).map(|(n, s)| n.div_ceil(*s)).product::<u32>() * 4;
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128])\n{{\n\
         .reg .pred %p<2>;\n.reg .b64 %d<4>;\n.shared .align 1024 .b8 x[8192];\n.shared .align 8 .b64 object;\nmov.b64 %d0, a;\ncvta.param.u64 %d1, %d0;\n\
         mov.b64 %d2, b;\ncvta.param.u64 %d3, %d2;\nprefetch.tensormap [%d1];\nmbarrier.init.shared.b64 [object], 1;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [object], {bytes};\n\
         cp.async.bulk.tensor.{axes}d.shared::cluster.global.mbarrier::complete_tx::bytes [x], [%d1, {{{}}}], [object];\n\
         L:\nmbarrier.try_wait.parity.shared.b64 %p0, [object], 0;\n@!%p0 bra L;\nfence.proxy.async.shared::cta;\n\
         cp.async.bulk.tensor.{axes}d.global.shared::cta.tile.bulk_group [%d3, {{{}}}], [x];\ncp.async.bulk.commit_group;\n\
         cp.async.bulk.wait_group.read 0;\nst.shared.u32 [x], 0;\nret;\n}}\n",
        list(at),
        list(there)
    );
    let launch = Launch { budget: 10_000, ..Launch::new([1, 1, 1], [1, 1, 1]) };
    let launch = launch.argument(from.encode().unwrap()).argument(to.encode().unwrap());
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}")).entry("k").unwrap().launch(memory, &launch)
}

#[test]
fn tiles_of_tensors() {
    let x: Vec<u32> = (0..6 * 40).collect();
    let mut memory = Memory::new();
    let from = memory.allocate_with("from", bytemuck::cast_slice(&x)).unwrap();
    // Two axes, out of the tensor on two sides, with every swizzle on both ways: what comes back is what went.
    for (swizzle, columns) in [(Swizzle::None, 12), (Swizzle::B32, 8), (Swizzle::B64, 16), (Swizzle::B128, 32)] {
        let to = memory.allocate("to", 4 * 16 * columns).unwrap();
        let a = TensorMap::dense(Element::U32, from, &[40, 6], &[columns as u32, 16], swizzle);
        let b = TensorMap::dense(Element::U32, to, &[columns as u64, 16], &[columns as u32, 16], swizzle);
        let counters = move_tile(&a, &[32, -2], &b, &[0, 0], &mut memory).unwrap();
        let got = words(memory.slice(to, 4 * 16 * columns).unwrap());
        for (i, got) in got.iter().enumerate() {
            let (row, col) = (i / columns, i % columns);
            let inside = (2..8).contains(&row) && col < 8;
            assert_eq!(*got, if inside { ((row - 2) * 40 + 32 + col) as u32 } else { 0 }, "{swizzle:?} ({row}, {col})");
        }
        assert_eq!(
            (counters.loads.distinct_bytes, counters.stores.distinct_bytes),
            (6 * 8 * 4, 4 * 16 * columns as u64)
        );
    }
    // Three axes, of the second every other element; only what lies inside is written.
    let to = memory.allocate("to", 4 * 2 * 2 * 3).unwrap();
    let a = TensorMap {
        steps: vec![1, 2, 1],
        ..TensorMap::dense(Element::U32, from, &[8, 5, 6], &[4, 3, 3], Swizzle::None)
    };
    let b = TensorMap::dense(Element::U32, to, &[4, 1, 3], &[4, 2, 3], Swizzle::None);
    move_tile(&a, &[4, 1, 2], &b, &[0, 0, 0], &mut memory).unwrap();
    let got = words(memory.slice(to, 48).unwrap());
    let expected: Vec<u32> = (0..12).map(|i| (2 + i / 4) * 40 + 8 + 4 + i % 4).collect();
    assert_eq!(got, expected);
    // What nobody wrote is not read, and bounds are the allocation's, whatever the map says.
    let empty = memory.allocate("empty", 1024).unwrap();
    let fault = |a: &TensorMap, memory: &mut Memory| match move_tile(a, &[0, 0], a, &[0, 0], memory) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    let a = TensorMap::dense(Element::F32, empty, &[32, 8], &[32, 8], Swizzle::B128);
    assert!(matches!(fault(&a, &mut memory), FaultKind::Unwritten { .. }));
    let a = TensorMap::dense(Element::F32, from, &[40, 60], &[32, 8], Swizzle::B128);
    let kind = match move_tile(&a, &[0, 40], &a, &[0, 0], &mut memory) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
}

#[test]
fn maps_of_tensors_that_cannot_be() {
    let good = TensorMap::dense(Element::Bf16, 4096, &[100, 7, 3], &[64, 4, 1], Swizzle::B128);
    assert_eq!(good.strides, [200, 1400]);
    // Strides of 200 bytes are no multiples of 16.
    assert!(good.encode().unwrap_err().to_string().contains("multiples of 16"));
    let good = TensorMap { strides: vec![208, 2080], ..good };
    good.encode().unwrap();
    let wrong = [
        TensorMap { address: 4100, ..good.clone() },
        TensorMap { tile: vec![32, 4, 1], ..good.clone() },
        TensorMap { tile: vec![64, 257, 1], ..good.clone() },
        TensorMap { steps: vec![1, 9, 1], ..good.clone() },
        TensorMap { steps: vec![2, 1, 1], ..good.clone() },
        TensorMap { shape: vec![100, 7], ..good.clone() },
        TensorMap { shape: vec![0, 7, 3], ..good.clone() },
        TensorMap { tile: vec![60, 4, 1], swizzle: Swizzle::None, ..good.clone() },
    ];
    for map in wrong {
        assert!(map.encode().is_err(), "{map:?}");
    }
    let (kind, ..) = fault(
        ".shared .align 128 .b8 x[128];\n.shared .align 8 .b64 object;\nmbarrier.init.shared.b64 [object], 1;\n\
         cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [x], [%in, {0}], [object];",
        1,
    );
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
}

#[test]
fn bulk_copies_to_global_memory() {
    let body = |between: &str| {
        format!(
            ".shared .align 16 .b8 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n\
             st.shared.u32 [%d2], %r30;\nfence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %p0, %r30, 0;\n@%p0 bra END;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%out], [%d0], 64;\ncp.async.bulk.commit_group;\n{between}\nst.shared.u32 [%d2], 9;\n\
             cp.async.bulk.wait_group 0;\nEND:\nret;"
        )
    };
    let (out, _) = run(&kernel(&body("cp.async.bulk.wait_group.read 0;")), 1, 16, 64, &[]).unwrap();
    assert_eq!(words(&out), (0..16).collect::<Vec<u32>>());
    // Another warp that changes the source before the wait is found, though a barrier is between them.
    let text = kernel(
        ".shared .align 16 .b8 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nsetp.eq.u32 %p0, %r30, 0;\n\
         @%p0 st.shared.v4.u32 [%d0], {1, 2, 3, 4};\n@%p0 cp.async.bulk.global.shared::cta.bulk_group [%out], [%d0], 16;\n\
         @%p0 cp.async.bulk.commit_group;\nbar.sync 0;\nsetp.eq.u32 %p1, %r30, 32;\n@%p1 st.shared.u32 [%d0], 9;\n\
         @%p0 cp.async.bulk.wait_group 0;\nret;",
    );
    match run(&text, 1, 64, 64, &[]) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn clusters_of_one_block() {
    // What each thread wrote before the arrival is there for all behind the wait.
    let body = |wait: &str| {
        format!(
            ".shared .align 4 .b32 x[64];\nmov.u64 %d0, x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\nst.shared.u32 [%d2], %r30;\n\
             barrier.cluster.arrive.release.aligned;\n{wait}\nsub.u32 %r1, 63, %r30;\nmul.wide.u32 %d1, %r1, 4;\n\
             cvt.u32.u64 %r2, %d0;\nmapa.shared::cluster.u32 %r3, %r2, 0;\ncvt.u32.u64 %r4, %d1;\nadd.u32 %r3, %r3, %r4;\n\
             ld.shared::cluster.u32 %r9, [%r3];\nmov.u32 %r5, %cluster_ctarank;\nadd.u32 %r9, %r9, %r5;\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;"
        )
    };
    assert_eq!(threads(&body("barrier.cluster.wait.acquire.aligned;"), 64), (0..64).rev().collect::<Vec<u32>>());
    let (kind, ..) = fault("barrier.cluster.wait.aligned;", 32);
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}

/// A kernel whose blocks are in clusters of `size`, each of one warp: %r5 is the block's place there.
fn clusters(size: u32, body: &str) -> String {
    let body = format!(
        ".shared .align 8 .b32 x[64];\nmov.u32 %r30, %tid.x;\nmov.u32 %r5, %cluster_ctarank;\nmov.u64 %d0, x;\ncvt.u32.u64 %r2, %d0;\n{body}\nret;"
    );
    kernel(&body).replace(")\n{", &format!(")\n.explicitcluster\n.reqnctapercluster {size}, 1, 1\n{{"))
}

const MEET: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";

/// Thread 0 of each block writes 10 times its place to where the next block of its cluster has it, then all go on with `between`, and thread 0 leaves what
/// it has been given in `out`, by blocks.
fn hand_on(before: &str, between: &str) -> String {
    clusters(
        4,
        &format!(
            "{before}\nsetp.ne.u32 %p0, %r30, 0;\nadd.u32 %r6, %r5, 1;\nmov.u32 %r7, %cluster_nctarank;\nrem.u32 %r6, %r6, %r7;\n\
             mul.lo.u32 %r8, %r5, 10;\nmapa.shared::cluster.u32 %r3, %r2, %r6;\n@!%p0 st.shared::cluster.u32 [%r3], %r8;\n{between}\n@%p0 ret;\n\
             ld.shared.u32 %r9, [x];\nmov.u32 %r10, %ctaid.x;\nmul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;"
        ),
    )
}

#[test]
fn blocks_of_a_cluster_write_to_each_other() {
    let (out, _) = run(&hand_on(MEET, MEET), 8, 32, 32, &[]).unwrap();
    assert_eq!(words(&out), [30, 0, 10, 20, 30, 0, 10, 20]);
    // Half of the way there by generic addresses, and back by a read.
    let body = format!(
        "st.shared.u32 [x], %r5;\n{MEET}\nxor.b32 %r6, %r5, 1;\nmapa.shared::cluster.u32 %r3, %r2, %r6;\nld.shared::cluster.u32 %r9, [%r3];\n\
         cvta.shared.u64 %d2, %d0;\nmapa.u64 %d2, %d2, %r6;\nld.u32 %r11, [%d2];\nadd.u32 %r9, %r9, %r11;\nmov.u32 %r10, %ctaid.x;\n\
         mul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;\n{MEET}"
    );
    let (out, _) = run(&clusters(2, &body), 4, 1, 16, &[]).unwrap();
    assert_eq!(words(&out), [2, 0, 2, 0]);
    let places = "mov.u32 %r6, %clusterid.x;\nmov.u32 %r7, %nclusterid.x;\nmov.u32 %r8, %cluster_ctaid.x;\nmov.u32 %r9, %cluster_nctaid.x;\n\
                  mad.lo.u32 %r9, %r9, 10, %r8;\nmad.lo.u32 %r9, %r7, 100, %r9;\nmad.lo.u32 %r9, %r6, 1000, %r9;\nmov.u32 %r10, %ctaid.x;\n\
                  mul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;";
    let (out, _) = run(&clusters(2, places), 6, 1, 24, &[]).unwrap();
    assert_eq!(words(&out), [320, 321, 1320, 1321, 2320, 2321]);
}

#[test]
fn what_is_wrong_between_blocks_of_a_cluster() {
    let fault = |text: &str| match run(text, 4, 32, 32, &[]) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // Nothing orders what another block wrote, and what it writes.
    assert!(matches!(fault(&hand_on(MEET, "")), FaultKind::Unwritten { .. } | FaultKind::InFlight { .. }));
    let own = format!("@!%p0 st.shared.u32 [x], 7;\n{MEET}");
    assert!(matches!(fault(&hand_on(MEET, &own)), FaultKind::Race { .. } | FaultKind::InFlight { .. }));
    // A block that may not have begun, one that may have ended, one that is not there.
    assert!(matches!(fault(&hand_on("", MEET)), FaultKind::Misuse(_)));
    let late = clusters(
        4,
        &format!(
            "st.shared.u32 [x], 1;\n{MEET}\nsetp.eq.u32 %p0, %r5, 0;\n@%p0 ret;\nmapa.shared::cluster.u32 %r3, %r2, 0;\nld.shared::cluster.u32 %r9, [%r3];"
        ),
    );
    assert!(matches!(fault(&late), FaultKind::Misuse(_)));
    // Whichever of the two comes first: block 0 is done before the one that it reads ends.
    let early = format!(
        "st.shared.u32 [x], 1;\n{MEET}\nsetp.ne.u32 %p0, %r5, 0;\n@%p0 ret;\nmapa.shared::cluster.u32 %r3, %r2, 2;\nld.shared::cluster.u32 %r9, [%r3];"
    );
    assert!(matches!(fault(&clusters(4, &early)), FaultKind::Misuse(_)));
    // An arrival that promises nothing of what was written elsewhere.
    let relaxed = MEET.replace("arrive.release", "arrive.relaxed");
    assert!(matches!(fault(&hand_on(MEET, &relaxed)), FaultKind::Misuse(_)));
    let beyond = format!(
        "st.shared.u32 [x], 1;\n{MEET}\nmapa.shared::cluster.u32 %r3, %r2, 4;\nld.shared::cluster.u32 %r9, [%r3];"
    );
    assert!(matches!(fault(&clusters(4, &beyond)), FaultKind::Misuse(_)));
    let far = beyond.replace("%r2, 4", "%r2, 256");
    assert!(matches!(fault(&clusters(4, &far)), FaultKind::Misuse(_)));
    // Blocks that are left over, and more than a GPU's clusters have.
    assert!(matches!(run(&clusters(4, ""), 6, 32, 32, &[]), Err(Failure::Request(_))));
    assert!(matches!(run(&clusters(16, ""), 16, 32, 32, &[]), Err(Failure::Request(_))));
    // Waits for a block that never comes.
    let alone = format!("setp.ne.u32 %p0, %r5, 0;\n@%p0 bra AWAY;\n{MEET}\nret;\nAWAY:\nbar.sync 1, 64;");
    assert!(matches!(fault(&clusters(4, &alone)), FaultKind::BarrierDivergence(_)));
}

const GEMM: &str = include_str!("ptx/gemm_sm90.ptx");

/// [100, k] by [72, k] through the kernel; the text may be changed.
fn gemm(text: &str, k: usize) -> Result<Counters, Failure> {
    let (m, n) = (100usize, 72usize);
    let row = k.next_multiple_of(8);
    let numbers = |rows: usize| noise(rows * row).iter().map(|v| bf16::from_f32(*v)).collect::<Vec<bf16>>();
    let (a, b) = (numbers(m), numbers(n));
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytemuck::cast_slice(&a)).unwrap();
    let pb = memory.allocate_with("b", bytemuck::cast_slice(&b)).unwrap();
    let pc = memory.allocate("c", 4 * m * n).unwrap();
    let map = |address, rows: usize| {
        let strides = vec![2 * row as u64];
        let dense = TensorMap::dense(Element::Bf16, address, &[k as u64, rows as u64], &[64, 64], Swizzle::B128);
        TensorMap { strides, ..dense }.encode().unwrap()
    };
    let arguments = Launch::new([2, 2, 1], [128, 1, 1]).argument(map(pa, m)).argument(map(pb, n));
    let mut arguments = arguments.argument(m as u32).argument(n as u32).argument(k as u32).argument(pc);
    arguments.shared_bytes = 4 * 8192;
    arguments.budget = 1_000_000;
    let counters = launch(text, "gemm", &mut memory, &arguments)?;
    for (i, c) in floats_at(&memory, pc).iter().enumerate() {
        let exact: f64 = (0..k).map(|j| a[i / n * row + j].to_f64() * b[i % n * row + j].to_f64()).sum();
        assert!((f64::from(*c) - exact).abs() < 1e-4, "{k}, {i}: {c} {exact}");
    }
    Ok(counters)
}

#[test]
fn a_product_through_tensor_maps() {
    for k in [7, 64, 200, 320] {
        let counters = gemm(GEMM, k).unwrap();
        assert_eq!(counters.flops, 2 * 128 * 128 * k.next_multiple_of(64) as u64);
    }
    let kind = |text: &str| match gemm(text, 320) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // Tiles come while products are under way that are not waited for.
    let hasty = kind(&GEMM.replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"));
    assert!(matches!(hasty, FaultKind::InFlight { .. }), "{hasty}");
    // Products that do not wait for the tiles: not at all, and by one look instead of a loop.
    for waits in ["mbarrier.try_wait", "@!p bra AGAIN;"] {
        let hasty = kind(&GEMM.replace(waits, &format!("// {waits}")));
        assert!(matches!(hasty, FaultKind::InFlight { .. } | FaultKind::Unwritten { .. }), "{waits}: {hasty}");
    }
}

// --- counters ------------------------------------------------------------------------------------------------------

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

// --- text that is not right ----------------------------------------------------------------------------------------

#[test]
fn mistakes_in_the_text_are_named() {
    let function = |i: usize| format!(".func f{i}() {{ call f{}; call f{}; }} ", i + 1, i + 1);
    let doubling = format!(
        ".version 8.0\n.target sm_80\n.func f60() {{ membar.gl; }}\n.entry k() {{ call f0; }}\n{}",
        (0..60).map(function).collect::<String>()
    );
    let cases: &[(&str, u32, &str)] = &[
        ("", 1, "`.version`"),
        (".version 9.0\n.target sm_80", 1, "PTX 9.0 is newer than 8.8"),
        (".version 8.0\n.target sm_42", 2, "the target `sm_42` is not known"),
        (".version 8.0\n.target sm_80\n.address_size 32", 3, "32 bits"),
        (".version 8.0\n.target sm_80\n.entry k() {\n call f;\n}", 4, "no function `f` with a body"),
        (".version 8.0\n.target sm_80\n.func f();\n.entry k() {\n call f;\n}", 5, "no function `f` with a body"),
        (".version 8.0\n.target sm_80\n.func f() {\n call f;\n}\n.entry k() {\n call f;\n}", 4, "`f` calls itself"),
        (".version 8.0\n.target sm_80\n.func f() {}\n.func f() {}", 4, "two functions `f`"),
        (
            ".version 8.0\n.target sm_80\n.func f(.param .b32 x) {}\n.entry k() {\n .param .b64 y;\n call f, (y);\n}",
            6,
            "the arguments of the call of `f` do not fit",
        ),
        (".version 8.0\n.target sm_80\n.func f() { ret;", 3, "ends"),
        // Sixty functions that each call the next one twice.
        (&doubling, 5, "too long"),
        (".version 8.0\n.target sm_80\n.entry k() {\n frob.u32 %r1;\n}", 4, "`%r1` is not declared"),
        (".version 8.0\n.target sm_80\n.entry k() {\n frob;\n}", 4, "unknown instruction `frob`"),
        (".version 8.0\n.target sm_90a\n.entry k() {\n tcgen05.wait;\n}", 4, "unknown instruction `tcgen05.wait`"),
        (".version 8.0\n.target sm_80\n.entry k() {\n add.u32.fast 1, 2, 3;\n}", 4, "add.u32.fast"),
        (
            ".version 8.0\n.target sm_80\n.entry k() {\n.reg .b32 a;\n add.fast.u32 a, 2, 3;\n}",
            5,
            "the modifier `.fast`",
        ),
        (
            ".version 8.0\n.target sm_80\n.entry k() {\n.reg .b32 a;\n add.u32 a, 2;\n}",
            5,
            "takes 3 operands, and 2 are given",
        ),
        (".version 8.0\n.target sm_80\n.entry k() {\n bra NOWHERE;\n}", 4, "no label `NOWHERE`"),
        (".version 8.0\n.target sm_80\n.entry k() {\nL:\nL:\n}", 5, "two labels `L`"),
        (".version 8.0\n.target sm_80\n.entry k() {\n ret\n}", 5, "`}` stands where an operand should"),
        (".version 8.0\n.target sm_80\n.entry k() {\n ret;", 4, "ends"),
        (".version 8.0\n.target sm_80\n.entry k() {\n .shared .b8 x[300000];\n}", 5, "more shared or local memory"),
        (".version 8.0\n.target sm_80\n/* no end", 3, "a comment has no end"),
        (".version 8.0\n.target sm_80\n#", 3, "`#` has no meaning"),
        (".version 8.0\n.target sm_80\n.global .b8 x[99999999999999999999];", 3, "not a number"),
        (".version 8.0\n.target sm_80\n.global .b8 x[9999999999];", 3, "too large"),
        (".version 8.0\n.target sm_80\n.entry k(){}\n.entry k(){}", 4, "two entries `k`"),
    ];
    for (text, line, words) in cases {
        let error = Module::parse(text).unwrap_err();
        assert!(error.reason.contains(words) && error.line == *line, "{text}\n{error}");
    }
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let entry = Module::parse(SAXPY).unwrap().entry("saxpy").unwrap().clone();
    let mut memory = Memory::new();
    let mut refused = |launch: Launch, words: &str| match entry.launch(&mut memory, &launch) {
        Err(Failure::Request(reason)) => assert!(reason.contains(words), "{reason}"),
        other => panic!("{other:?}"),
    };
    let launch = |grid, block| Launch::new([grid, 1, 1], [block, 1, 1]);
    refused(
        launch(1, 32),
        "takes 4 arguments (.u32 saxpy_param_0, .f32 saxpy_param_1, .u64 saxpy_param_2, .u64 saxpy_param_3), and 0 were given",
    );
    refused(
        launch(1, 32).argument(1u64).argument(1f32).argument(1u64).argument(1u64),
        "argument 0 of `saxpy` has 8 bytes where `.u32 saxpy_param_0` takes 4",
    );
    refused(launch(0, 32), "not possible");
    refused(launch(1, 1025), "not possible");
    let mut large = launch(1, 32);
    large.shared_bytes = 300_000;
    refused(large, "shared memory");
}

/// Mutations of the compiled kernels: bytes changed, pieces left out, doubled and cut off. Whatever they are, the answer is an
/// error or a run within the budget.
mod mutations {
    use super::*;
    use proptest::prelude::*;

    /// What the compiled kernels have none of.
    const REST: &str = ".shared .align 16 .b8 x[512];\n.shared .align 8 .b64 object;\n.local .align 8 .b8 depot[64];\n\
        mov.u64 %d0, x;\nmov.u64 %d1, object;\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %d2, %r0, 16;\nadd.u64 %d3, %d0, %d2;\n\
        st.shared.v4.u32 [%d3], {1, 2, 3, 4};\nbar.warp.sync -1;\natom.shared.cas.b32 %r1, [x+4], 1, %r0;\nred.shared.add.f32 [x], 1.5;\n\
        ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r2, %r3, %r4, %r5}, [%d3];\nprmt.b32 %r6, %r2, %r3, 0x5410;\n\
        bfe.s32 %r7, %r6, %r0, 9;\nbfi.b64 %d4, %d2, %d3, %r0, %r1;\nshf.l.wrap.b32 %r8, %r6, %r7, %r0;\nlop3.b32 %r9, %r1, %r2, %r3, 0xe8;\n\
        cvt.rni.s8.f32 %r10, %f0;\ncvt.rz.f16x2.f32 %r11, %f0, %f1;\ncvt.sat.u64.s16 %d5, %h0;\ndiv.rp.f32 %f2, %f0, %f1;\nmul.hi.u64 %d6, %d2, %d3;\n\
        st.local.u64 [depot+8], %d6;\nshfl.sync.up.b32 %r12|%p0, %r11, 3, 0x1800, -1;\nmatch.any.sync.b32 %r13, %r12, -1;\n\
        setp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%d1], 1;\nbar.red.popc.u32 %r14, 1, 32, %p0;\n\
        @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\n\
        mbarrier.try_wait.parity.shared.b64 %p2, [%d1], 1;\nret;";

    #[test]
    fn the_unchanged_texts_are_good() {
        for text in [SAXPY, BLOCK_SUM, MATMUL, SOFTMAX, MMA, MIXED, GEMM, &kernel(REST)] {
            Module::parse(text).unwrap();
        }
    }

    fn survive(text: &str) {
        let Ok(module) = Module::parse(text) else { return };
        for entry in &module.entries {
            let mut memory = Memory::new();
            let x = memory.allocate_with("x", &[0; 4096]).unwrap();
            let map = TensorMap::dense(Element::Bf16, x, &[64, 16], &[64, 64], Swizzle::B128).encode().unwrap();
            let arguments = entry.parameters.iter().map(|p| match p.bytes {
                8 => x.to_le_bytes().to_vec(),
                128 => map.to_vec(),
                n => vec![1; n.min(64) as usize],
            });
            let mut launch = Launch::new([1, 1, 1], [128, 1, 1]);
            launch.shared_bytes = 32768;
            launch.arguments = arguments.collect();
            launch.budget = 2000;
            let _ = entry.launch(&mut memory, &launch);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn never_panic(
            which in 0..8usize,
            changes in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 32..127u8), 1..6),
        ) {
            let rest = kernel(REST);
            let mut text = [SAXPY, BLOCK_SUM, MATMUL, SOFTMAX, MMA, MIXED, GEMM, &rest][which].as_bytes().to_vec();
            for (kind, a, b, byte) in changes {
                if text.is_empty() {
                    break;
                }
                let (a, b) = (a.index(text.len()), b.index(text.len()));
                match kind {
                    0 => text[a] = byte,
                    1 => drop(text.drain(a..(a + b % 40).min(text.len()))),
                    2 => {
                        let piece = text[a..(a + b % 400).min(text.len())].to_vec();
                        text.splice(b..b, piece);
                    }
                    _ => text.truncate(text.len() / 2 + a / 2),
                }
            }
            survive(&String::from_utf8_lossy(&text));
        }
    }
}
