// y and lse of attention from those of parts of the keys: y = the sum of exp(lse of a part - lse) times its y, in the parts' order.

struct Scalars {
    queries: u32,
    heads: u32,
    dv: u32,
    // B * heads
    pairs: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [parts, B * heads, Tq, dv]
@group(0) @binding(1) var<storage, read_write> part_y: array<vec4<f32>>;
// [parts, B * heads, Tq]
@group(0) @binding(2) var<storage, read_write> part_lse: array<f32>;
// [B, Tq, heads * dv]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<real>>;
// [B, heads, Tq]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wg.x + wg.y * wgs.x) * 64u + lane;
    let fours = s.dv / 4u;
    let rows = s.pairs * s.queries;
    let line = i / fours;
    if line >= rows {
        return;
    }
    var top = part_lse[line];
    for (var part = 1u; part < s.parts; part++) {
        top = max(top, part_lse[part * rows + line]);
    }
    var total = 0.0;
    var sum = vec4<f32>();
    for (var part = 0u; part < s.parts; part++) {
        let weight = exp(part_lse[part * rows + line] - top);
        total += weight;
        sum += weight * part_y[part * rows * fours + i];
    }
    let pair = line / s.queries;
    let place = (pair / s.heads * s.queries + line % s.queries) * s.heads + pair % s.heads;
    y[place * fours + i % fours] = vec4<real>(sum / total);
    if i % fours == 0u {
        lse[line] = top + log(total);
    }
}
