// The epilogue of lib/epilogue by four columns, where N is a multiple of 4. After: lib/activation.

override BIAS: bool;
override SAMPLE_BIAS: bool;
override GATE: bool;
override RESIDUAL: bool;
// As in lib/epilogue, multiples of 4.
override SAMPLE_STRIDE: u32;
override SAMPLE_FIRST: u32;

// [N]
@group(0) @binding(3) var<storage, read_write> bias: array<vec4<real>>;
// N of the columns of [B, SAMPLE_STRIDE]: the sample bias or the gate
@group(0) @binding(4) var<storage, read_write> sample: array<vec4<real>>;
// [M, N]
@group(0) @binding(5) var<storage, read_write> residual: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<real>>;

// What the sample of `row` has for four columns.
fn of_sample(row: u32, col: u32, n: u32, per_sample: u32) -> vec4<f32> {
    let stride = select(n, SAMPLE_STRIDE, SAMPLE_STRIDE > 0u);
    return vec4<f32>(sample[((row / per_sample) * stride + SAMPLE_FIRST + col) / 4u]);
}

// Stores four columns of a row from `col` on, if they are any of n; a sample has `per_sample` rows.
fn finish(value: vec4<f32>, row: u32, col: u32, n: u32, per_sample: u32, scale: f32) {
    if col >= n {
        return;
    }
    var v = value;
    if BIAS {
        v += vec4<f32>(bias[col / 4u]);
    }
    if SAMPLE_BIAS {
        v += of_sample(row, col, n, per_sample);
    }
    v = vec4<f32>(act(v.x), act(v.y), act(v.z), act(v.w));
    if GATE {
        v *= of_sample(row, col, n, per_sample);
    }
    let at = (row * n + col) / 4u;
    if RESIDUAL {
        v += vec4<f32>(residual[at]);
    }
    y[at] = vec4<real>(v * scale);
}
