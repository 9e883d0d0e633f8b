// `group_norm` in one launch for hardware, where a workgroup holds whole groups: it takes all rows of a sample in `across` fours of channels,
// an invocation up to eight rows of one four, which it reads once. Groups may begin within a four. After: lib/activation.

struct Scalars {
    samples: u32,
    rows: u32,
    channels: u32,
    groups: u32,
    // Fours of channels of a workgroup, whole groups, and rows below each other: no more invocations than there are.
    across: u32,
    down: u32,
    eps: f32,
}

override MODULATE: bool;
override HELD_LANES: u32;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> gamma: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> beta: array<vec4<real>>;
// [B, C]
@group(0) @binding(4) var<storage, read_write> scale: array<vec4<real>>;
@group(0) @binding(5) var<storage, read_write> shift: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<real>>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;

// What invocations found, [down, across], and in the end what columns sum up to.
var<workgroup> found: array<vec4<f32>, HELD_LANES>;
// The first row.
var<workgroup> origins: array<vec4<f32>, 64>;
// What groups sum up to.
var<workgroup> of_groups: array<f32, 64>;

// Lanes that a column's sums are first added up by.
const SLOTS: u32 = 16u;

// The place of a row; rows beyond the last are the last.
fn place(start: u32, row: u32, quads: u32) -> u32 {
    return start + min(row, s.rows - 1u) * quads;
}

fn there(v: vec4<f32>, row: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, row < s.rows);
}

fn square(v: vec4<f32>) -> vec4<f32> {
    return v * v;
}

// The means over groups of what invocations have, to `of_groups`.
fn means(mine: vec4<f32>, lane: u32, width: u32) {
    found[lane] = mine;
    workgroupBarrier();
    let all = s.across * s.down;
    let first = min(SLOTS, s.down) * s.across;
    if lane < first {
        var sum = mine;
        for (var i = lane + first; i < all; i += first) {
            sum += found[i];
        }
        found[lane] = sum;
    }
    workgroupBarrier();
    if lane < s.across {
        var sum = found[lane];
        for (var i = lane + s.across; i < first; i += s.across) {
            sum += found[i];
        }
        found[lane] = sum;
    }
    workgroupBarrier();
    if lane < 4u * s.across / width {
        var sum = 0.0;
        for (var c = lane * width; c < (lane + 1u) * width; c++) {
            sum += found[c / 4u][c % 4u];
        }
        of_groups[lane] = sum / f32(s.rows * width);
    }
    workgroupBarrier();
}

fn put(start: u32, row: u32, quads: u32, v: vec4<f32>) {
    if row < s.rows {
        y[start + row * quads] = vec4<real>(vec4<f32>(act(v.x), act(v.y), act(v.z), act(v.w)));
    }
}

@compute @workgroup_size(HELD_LANES)
fn held(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quads = s.channels / 4u;
    let tiles = quads / s.across;
    let number = wg.x + wg.y * wgs.x;
    let sample = number / tiles;
    if sample >= s.samples {
        return;
    }
    let width = s.channels / s.groups;
    let quad = lane % s.across;
    // Lanes without a row still meet the others.
    let row = select(s.rows, lane / s.across, lane < s.across * s.down);
    let channel = number % tiles * s.across + quad;
    let start = sample * s.rows * quads + channel;
    let a = vec4<f32>(x[place(start, row, quads)]);
    let b = vec4<f32>(x[place(start, row + s.down, quads)]);
    let c = vec4<f32>(x[place(start, row + 2u * s.down, quads)]);
    let d = vec4<f32>(x[place(start, row + 3u * s.down, quads)]);
    let e = vec4<f32>(x[place(start, row + 4u * s.down, quads)]);
    let f = vec4<f32>(x[place(start, row + 5u * s.down, quads)]);
    let g = vec4<f32>(x[place(start, row + 6u * s.down, quads)]);
    let h = vec4<f32>(x[place(start, row + 7u * s.down, quads)]);

    // Sums run over x less one of the group's numbers, and the mean is kept as two: far from zero it would be rounded too much.
    if lane < s.across {
        origins[lane] = a;
    }
    workgroupBarrier();
    let group = (4u * quad + vec4<u32>(0u, 1u, 2u, 3u)) / width;
    let first = group * width;
    let origin = vec4<f32>(
        origins[first.x / 4u][first.x % 4u],
        origins[first.y / 4u][first.y % 4u],
        origins[first.z / 4u][first.z % 4u],
        origins[first.w / 4u][first.w % 4u],
    );
    var sum = vec4<f32>();
    sum += there(a - origin, row);
    sum += there(b - origin, row + s.down);
    sum += there(c - origin, row + 2u * s.down);
    sum += there(d - origin, row + 3u * s.down);
    sum += there(e - origin, row + 4u * s.down);
    sum += there(f - origin, row + 5u * s.down);
    sum += there(g - origin, row + 6u * s.down);
    sum += there(h - origin, row + 7u * s.down);
    means(sum, lane, width);
    let mean = vec4<f32>(of_groups[group.x], of_groups[group.y], of_groups[group.z], of_groups[group.w]);
    let mine = of_groups[min(lane, 63u)];
    sum = vec4<f32>();
    sum += there(square((a - origin) - mean), row);
    sum += there(square((b - origin) - mean), row + s.down);
    sum += there(square((c - origin) - mean), row + 2u * s.down);
    sum += there(square((d - origin) - mean), row + 3u * s.down);
    sum += there(square((e - origin) - mean), row + 4u * s.down);
    sum += there(square((f - origin) - mean), row + 5u * s.down);
    sum += there(square((g - origin) - mean), row + 6u * s.down);
    sum += there(square((h - origin) - mean), row + 7u * s.down);
    // It is written again behind a barrier.
    means(sum, lane, width);
    let variance = vec4<f32>(of_groups[group.x], of_groups[group.y], of_groups[group.z], of_groups[group.w]);
    let rstd = 1.0 / sqrt(variance + s.eps);
    if lane < 4u * s.across / width {
        let at = 2u * (sample * s.groups + number % tiles * s.across * 4u / width + lane);
        stats[at] = origins[lane * width / 4u][lane * width % 4u] + mine;
        stats[at + 1u] = 1.0 / sqrt(of_groups[lane] + s.eps);
    }
    var factor = rstd * vec4<f32>(gamma[channel]);
    var offset = vec4<f32>(beta[channel]);
    if MODULATE {
        let more = 1.0 + vec4<f32>(scale[sample * quads + channel]);
        factor *= more;
        offset = offset * more + vec4<f32>(shift[sample * quads + channel]);
    }
    put(start, row, quads, ((a - origin) - mean) * factor + offset);
    put(start, row + s.down, quads, ((b - origin) - mean) * factor + offset);
    put(start, row + 2u * s.down, quads, ((c - origin) - mean) * factor + offset);
    put(start, row + 3u * s.down, quads, ((d - origin) - mean) * factor + offset);
    put(start, row + 4u * s.down, quads, ((e - origin) - mean) * factor + offset);
    put(start, row + 5u * s.down, quads, ((f - origin) - mean) * factor + offset);
    put(start, row + 6u * s.down, quads, ((g - origin) - mean) * factor + offset);
    put(start, row + 7u * s.down, quads, ((h - origin) - mean) * factor + offset);
}
