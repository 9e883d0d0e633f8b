// y = x / (1 - p) where u >= p, zero elsewhere; u as random.wgsl makes it. After: lib/flat, lib/multiply, lib/philox.

struct Scalars {
    n: u32,
    first: u32,
    per_sample: u32,
    stream: u32,
    p: f32,
    // 1 / (1 - p)
    scale: f32,
    x_at: u32,
    seeds_at: u32,
    draw_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// [B, 2]
@group(0) @binding(2) var<storage, read_write> seeds: array<u32>;
// [1]
@group(0) @binding(3) var<storage, read_write> draw: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn numbers(sample: u32, block: u32) -> vec4<f32> {
    let at = s.seeds_at + 2u * sample;
    let counter = vec4<u32>(block, u32(draw[s.draw_at]), s.stream, 0u);
    return uniforms(philox(vec2<u32>(seeds[at], seeds[at + 1u]), counter));
}

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Four neighbours an invocation, which one block makes where samples divide into fours.
    let start = flat_start(group, groups, 0u) + FLAT_EACH * lane;
    var sample = (s.first + start) / s.per_sample;
    var e = (s.first + start) % s.per_sample;
    var four = vec4<f32>();
    for (var k = 0u; k < FLAT_EACH; k++) {
        if start + k < s.n {
            if k == 0u || e % 4u == 0u {
                four = numbers(sample, e / 4u);
            }
            let kept = x[s.x_at + start + k] * s.scale;
            y[s.y_at + start + k] = select(0.0, kept, four[e % 4u] >= s.p);
            e++;
            if e == s.per_sample {
                e = 0u;
                sample++;
            }
        }
    }
}
