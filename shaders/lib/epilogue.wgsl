// What a matrix product does before it stores: y = (act(v + bias + sample bias) * gate + residual) * scale;
// `ops::Epilogue`. Its operands are arguments 2, 3, 4 (where one is absent, argument 0 stands for it). After: lib/activation.

override BIAS: bool;
override SAMPLE_BIAS: bool;
override GATE: bool;
override RESIDUAL: bool;
// Numbers between the rows of samples, or 0 if that is n, and the column at which what is wanted of them begins.
override SAMPLE_STRIDE: u32;
override SAMPLE_FIRST: u32;

// [N]
@group(0) @binding(3) var<storage, read_write> bias: array<real>;
// N of the columns of [B, SAMPLE_STRIDE]: the sample bias or the gate
@group(0) @binding(4) var<storage, read_write> sample: array<real>;
// [M, N]
@group(0) @binding(5) var<storage, read_write> residual: array<real>;

// What the sample of `row` has for `col`.
fn of_sample(row: u32, col: u32, n: u32, per_sample: u32) -> f32 {
    let stride = select(n, SAMPLE_STRIDE, SAMPLE_STRIDE > 0u);
    return f32(sample[(row / per_sample) * stride + SAMPLE_FIRST + col]);
}

// `row` of M, `col` of n; a sample has `per_sample` rows.
fn epilogue(value: f32, row: u32, col: u32, n: u32, per_sample: u32, scale: f32) -> f32 {
    var v = value;
    if BIAS {
        v += f32(bias[col]);
    }
    if SAMPLE_BIAS {
        v += of_sample(row, col, n, per_sample);
    }
    v = act(v);
    if GATE {
        v *= of_sample(row, col, n, per_sample);
    }
    if RESIDUAL {
        v += f32(residual[row * n + col]);
    }
    return v * scale;
}
