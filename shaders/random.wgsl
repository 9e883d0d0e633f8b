// Random numbers y [B, per_sample], normal or uniform: element e of a sample comes from word e mod 4 of Philox with the
// sample's seed as key and (e / 4, draw, stream, 0) as counter. After: lib/flat, lib/multiply, lib/philox, lib/turn.

struct Scalars {
    n: u32,
    first: u32,
    per_sample: u32,
    stream: u32,
    seeds_at: u32,
    draw_at: u32,
    y_at: u32,
}

override NORMAL: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
// [B, 2]
@group(0) @binding(1) var<storage, read_write> seeds: array<u32>;
// [1]
@group(0) @binding(2) var<storage, read_write> draw: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// ln x to 2 ulp for normal x > 0, as `cpu::simd::ln`; the built-in one may be off by 5e-7 near 1, where this is near 0.
fn ln(x: f32) -> f32 {
    let bits = bitcast<i32>(x);
    let e = (bits - 0x3F3504F3) >> 23u;
    let m = bitcast<f32>(bits - (e << 23u));
    let q = (m - 1.0) / (m + 1.0);
    let q2 = q * q;
    let series = q2 * (1.0 / 3.0 + q2 * (1.0 / 5.0 + q2 * (1.0 / 7.0 + q2 * (1.0 / 9.0 + q2 * (1.0 / 11.0)))));
    return f32(e) * 0.6933594 + (2.0 * (q + q * series) - f32(e) * 2.1219444e-4);
}

// r cos a and r sin a of a word for r and a word for the angle (Box & Muller 1958).
fn normal_pair(radius: f32, angle: u32) -> vec2<f32> {
    return sqrt(-2.0 * ln(radius + 1.0 / 16777216.0)) * cos_sin_turn(angle & 0xffffff00u);
}

fn numbers(sample: u32, block: u32) -> vec4<f32> {
    let at = s.seeds_at + 2u * sample;
    let counter = vec4<u32>(block, u32(draw[s.draw_at]), s.stream, 0u);
    let words = philox(vec2<u32>(seeds[at], seeds[at + 1u]), counter);
    let u = uniforms(words);
    if NORMAL {
        return vec4<f32>(normal_pair(u.x, words.y), normal_pair(u.z, words.w));
    }
    return u;
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
            y[s.y_at + start + k] = four[e % 4u];
            e++;
            if e == s.per_sample {
                e = 0u;
                sample++;
            }
        }
    }
}
