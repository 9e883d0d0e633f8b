//! Texts and launches that are not right.

use super::support::SAXPY;
use langevin::ptx::{Failure, Launch, Memory, Module};

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
