// y = epilogue(the sum over the parts of a product, in their order). After: lib/activation, lib/y_fours (or lib/epilogue, lib/y_ones).

struct Scalars {
    m: u32,
    n: u32,
    per_sample: u32,
    parts: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [parts, M, ceil(N/4)]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let line = (s.n + 3u) / 4u;
    let i = (wg.x + wg.y * wgs.x) * 256u + lane;
    let all = s.m * line;
    if i >= all {
        return;
    }
    var sum = x[i];
    for (var part = 1u; part < s.parts; part++) {
        sum += x[part * all + i];
    }
    finish(sum, i / line, i % line * 4u, s.n, s.per_sample, s.scale);
}
