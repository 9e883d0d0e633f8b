//! What the tests share: kernels around a few statements, the texts of compiled kernels, and numbers.

use half::{bf16, f16};
use langevin::ptx::{Counters, Failure, FaultKind, Launch, Memory, Module};

/// A kernel `k(out)` around some statements, with registers of every type.
pub fn kernel(body: &str) -> String {
    kernel_with("", body)
}

pub fn kernel_with(globals: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n{globals}\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .pred %p<20>;\n.reg .b16 %h<20>;\n.reg .b32 %r<40>;\n.reg .b64 %d<20>;\n.reg .f32 %f<40>;\n.reg .f64 %e<20>;\n\
         .reg .b64 %out, %in;\nld.param.u64 %out, [out];\nld.param.u64 %in, [in];\n{body}\n}}\n"
    )
}

/// Runs a kernel of these tests over `out_bytes` that are written where the kernel does, and `input`.
pub fn run(text: &str, grid: u32, block: u32, out_bytes: usize, input: &[u8]) -> Result<(Vec<u8>, Counters), Failure> {
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

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// What each of a block's threads leaves in %r9.
pub fn threads(body: &str, block: u32) -> Vec<u32> {
    let text = kernel(&format!(
        "mov.u32 %r30, %tid.x;\n{body}\nmul.wide.u32 %d18, %r30, 4;\nadd.u64 %d19, %out, %d18;\nst.global.u32 [%d19], %r9;\nret;"
    ));
    let (bytes, _) = run(&text, 1, block, 4 * block as usize, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    words(&bytes)
}

/// The fault that a kernel ends with.
pub fn fault(body: &str, block: u32) -> (FaultKind, u32, [u32; 3]) {
    match run(&kernel(body), 1, block, 64, &[1; 64]) {
        Err(Failure::Fault(fault)) => (fault.kind, fault.line, fault.thread),
        other => panic!("{other:?}\n{body}"),
    }
}

/// The line of a kernel of these tests at which its body begins.
pub const BODY: u32 = 16;

/// Runs statements whose operands %r0, %r1, %r2 (and %d, %h, %f, %e of the same numbers) are given, and compares the register
/// with the number 9 that they set.
#[track_caller]
pub fn check(cases: &[(&str, [u64; 3], u64)]) {
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

pub fn f(x: f32) -> u64 {
    x.to_bits().into()
}

pub fn e(x: f64) -> u64 {
    x.to_bits()
}

pub fn h(x: f32) -> u64 {
    f16::from_f32(x).to_bits().into()
}

pub fn b(x: f32) -> u64 {
    bf16::from_f32(x).to_bits().into()
}

pub const fn s(x: i32) -> u64 {
    x as u32 as u64
}

pub const SAXPY: &str = include_str!("saxpy.ptx");
pub const BLOCK_SUM: &str = include_str!("block_sum.ptx");
pub const MATMUL: &str = include_str!("matmul_tiled.ptx");
pub const SOFTMAX: &str = include_str!("softmax_row.ptx");
pub const MMA: &str = include_str!("mma_bf16.ptx");
pub const MIXED: &str = include_str!("mixed.ptx");
pub const GEMM: &str = include_str!("gemm_sm90.ptx");

/// Numbers in [-1, 1), always the same.
pub fn noise(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

pub fn floats_at(memory: &Memory, address: u64) -> Vec<f32> {
    let (bytes, written) = memory.bytes(address).unwrap();
    assert!(written, "something was left unwritten");
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn launch(text: &str, name: &str, memory: &mut Memory, launch: &Launch) -> Result<Counters, Failure> {
    Module::parse(text).unwrap().entry(name).unwrap().launch(memory, launch)
}
