// delta = the products of the rows of y and dy, [B, Tq, heads * dv], in each head: delta [B, heads, Tq].

struct Scalars {
    queries: u32,
    heads: u32,
    dv: u32,
    // B * heads * Tq
    n: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wg.x + wg.y * wgs.x) * 64u + lane;
    if i >= s.n {
        return;
    }
    let pair = i / s.queries;
    let at = ((pair / s.heads * s.queries + i % s.queries) * s.heads + pair % s.heads) * s.dv;
    var sum = 0.0;
    for (var c = 0u; c < s.dv; c++) {
        sum += y[at + c] * dy[at + c];
    }
    delta[i] = sum;
}
