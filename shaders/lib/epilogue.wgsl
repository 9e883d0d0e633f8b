// What a matrix product does before it stores: y = (act(v + bias + sample bias) * gate + residual) * scale;
// `ops::Epilogue`. Its operands are arguments 2, 3, 4 (where one is absent, argument 0 stands for it). After: lib/activation.

override BIAS: bool;
override SAMPLE_BIAS: bool;
override GATE: bool;
override RESIDUAL: bool;

// [N]
@group(0) @binding(3) var<storage, read_write> bias: array<real>;
// [B, N]: the sample bias or the gate
@group(0) @binding(4) var<storage, read_write> sample: array<real>;
// [M, N]
@group(0) @binding(5) var<storage, read_write> residual: array<real>;

// `row` of M, `col` of n; a sample has `per_sample` rows.
fn epilogue(value: f32, row: u32, col: u32, n: u32, per_sample: u32, scale: f32) -> f32 {
    var v = value;
    if BIAS {
        v += f32(bias[col]);
    }
    if SAMPLE_BIAS {
        v += f32(sample[(row / per_sample) * n + col]);
    }
    v = act(v);
    if GATE {
        v *= f32(sample[(row / per_sample) * n + col]);
    }
    if RESIDUAL {
        v += f32(residual[row * n + col]);
    }
    return v * scale;
}
