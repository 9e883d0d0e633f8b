// dx = gate dy, dgate = sum of dy x over a sample's rows   x, dy, dx [B, R, C], gate, dgate [B, C].
// A workgroup has 32 channels of a sample: 8 invocations a channel take its rows in turn.

struct Scalars {
    samples: u32,
    rows: u32,
    channels: u32,
    // Workgroups a sample.
    parts: u32,
}

const COLS: u32 = 32u;
const ROWS: u32 = 8u;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> gate: array<f32>;
@group(0) @binding(3) var<storage, read_write> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<storage, read_write> dgate: array<f32>;

var<workgroup> sums: array<f32, COLS * ROWS>;

@compute @workgroup_size(COLS * ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group.x + group.y * groups.x;
    let sample = number / s.parts;
    let channel = (number % s.parts) * COLS + lane % COLS;
    let inside = sample < s.samples && channel < s.channels;

    var sum = 0.0;
    if inside {
        let g = gate[sample * s.channels + channel];
        for (var row = lane / COLS; row < s.rows; row += ROWS) {
            let at = (sample * s.rows + row) * s.channels + channel;
            let d = dy[at];
            sum += d * x[at];
            dx[at] = d * g;
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if inside && lane < COLS {
        var total = 0.0;
        for (var k = 0u; k < ROWS; k++) {
            total += sums[k * COLS + lane];
        }
        dgate[sample * s.channels + channel] = total;
    }
}
