// Every channel of x [B, H, W, C] upsampled with zeros, filtered along both sides, downsampled -> y [B, H', W', C].
// After: lib/line.

struct Scalars {
    // B * H'
    lines: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    up: u32,
    down: u32,
    // Of rows, of which a launch may see a band, and of columns.
    row_pad: u32,
    pad: u32,
    taps: u32,
    weight_0: f32,
    weight_1: f32,
    weight_2: f32,
    weight_3: f32,
    weight_4: f32,
    weight_5: f32,
    weight_6: f32,
    weight_7: f32,
    weight_8: f32,
    weight_9: f32,
    weight_10: f32,
    weight_11: f32,
    weight_12: f32,
    weight_13: f32,
    weight_14: f32,
    weight_15: f32,
}

// All taps weigh weight_0.
override EQUAL: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> y: array<real>;

// The first input pixel that output pixel o sees.
fn first_seen(o: u32, pad: u32) -> u32 {
    let base = o * s.down;
    return (base - min(base, pad) + s.up - 1u) / s.up;
}

// The number of the tap with which output pixel o sees input pixel i, from the first one on.
fn tap(o: u32, i: u32, pad: u32) -> u32 {
    return i * s.up + pad - o * s.down;
}

fn weight(t: u32) -> f32 {
    if EQUAL {
        return s.weight_0;
    }
    var four = vec4<f32>(s.weight_0, s.weight_1, s.weight_2, s.weight_3);
    if t >= 12u {
        four = vec4<f32>(s.weight_12, s.weight_13, s.weight_14, s.weight_15);
    } else if t >= 8u {
        four = vec4<f32>(s.weight_8, s.weight_9, s.weight_10, s.weight_11);
    } else if t >= 4u {
        four = vec4<f32>(s.weight_4, s.weight_5, s.weight_6, s.weight_7);
    }
    return four[t % 4u];
}

@compute @workgroup_size(LINE_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = line_start(group, groups, lane, s.out_width * s.channels);
    let line = place.x;
    if line >= s.lines {
        return;
    }
    let image = line / s.out_height;
    let oy = line % s.out_height;
    let first_row = first_seen(oy, s.row_pad);
    for (var k = 0u; k < LINE_EACH; k++) {
        let e = place.y + k * LINE_LANES;
        if e < s.out_width * s.channels {
            let ox = e / s.channels;
            let channel = e % s.channels;
            var sum = 0.0;
            for (var i = first_seen(ox, s.pad); i < s.width && tap(ox, i, s.pad) < s.taps; i++) {
                var column = 0.0;
                for (var j = first_row; j < s.height && tap(oy, j, s.row_pad) < s.taps; j++) {
                    let pixel = (image * s.height + j) * s.width + i;
                    column += weight(tap(oy, j, s.row_pad)) * f32(x[pixel * s.channels + channel]);
                }
                sum += weight(tap(ox, i, s.pad)) * column;
            }
            y[line * s.out_width * s.channels + e] = real(sum);
        }
    }
}
