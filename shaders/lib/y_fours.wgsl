// The epilogue of lib/epilogue by four columns, where N is a multiple of 4. After: lib/activation.

override BIAS: bool;
override SAMPLE_BIAS: bool;
override RESIDUAL: bool;

// [N]
@group(0) @binding(3) var<storage, read_write> bias: array<vec4<real>>;
// [B, N]
@group(0) @binding(4) var<storage, read_write> sample_bias: array<vec4<real>>;
// [M, N]
@group(0) @binding(5) var<storage, read_write> residual: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<real>>;

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
        v += vec4<f32>(sample_bias[((row / per_sample) * n + col) / 4u]);
    }
    v = vec4<f32>(act(v.x), act(v.y), act(v.z), act(v.w));
    let at = (row * n + col) / 4u;
    if RESIDUAL {
        v += vec4<f32>(residual[at]);
    }
    y[at] = vec4<real>(v * scale);
}
