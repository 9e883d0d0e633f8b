// Of every stretch of rows of x [B, R, C], and every channel: one of its numbers, the mean less that number, and the sum of
// squared differences from the mean. Each number is read once. After: lib/columns.

struct Scalars {
    samples: u32,
    rows: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<real>>;
// [B, stretches, 3, C]
@group(0) @binding(2) var<storage, read_write> moments: array<vec4<f32>>;

var<workgroup> column_sums: array<vec4<f32>, 256>;

// The sums over the lanes of a column, for each of them.
fn sum_column(value: vec4<f32>, lane: u32) -> vec4<f32> {
    column_sums[lane] = value;
    workgroupBarrier();
    for (var reach = COLUMN_DOWN / 2u; reach > 0u; reach /= 2u) {
        if lane < reach * COLUMN_ACROSS {
            column_sums[lane] += column_sums[lane + reach * COLUMN_ACROSS];
        }
        workgroupBarrier();
    }
    let sum = column_sums[lane % COLUMN_ACROSS];
    // The next call must not write before all have read.
    workgroupBarrier();
    return sum;
}

// A row's numbers less `origin`, zero where there is none.
fn number(at: u32, row: u32, end: u32, origin: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(), vec4<f32>(x[at]) - origin, row < end);
}

@compute @workgroup_size(COLUMN_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let quads = s.channels / 4u;
    let mine = column(wg.x + wg.y * wgs.x, lane, s.rows, quads);
    if mine.sample >= s.samples {
        return;
    }
    let first = mine.stretch * COLUMN_ROWS;
    let start = mine.sample * s.rows * quads + mine.quad;
    let origin = vec4<f32>(x[start + first * quads]);
    let last = s.rows - 1u;
    let at = vec4<u32>(start) + min(vec4<u32>(mine.row) + COLUMN_DOWN * vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last)) * quads;
    let far = vec4<u32>(start) + min(vec4<u32>(mine.row) + COLUMN_DOWN * vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(last)) * quads;
    let a = number(at.x, mine.row, mine.end, origin);
    let b = number(at.y, mine.row + COLUMN_DOWN, mine.end, origin);
    let c = number(at.z, mine.row + 2u * COLUMN_DOWN, mine.end, origin);
    let d = number(at.w, mine.row + 3u * COLUMN_DOWN, mine.end, origin);
    let e = number(far.x, mine.row + 4u * COLUMN_DOWN, mine.end, origin);
    let f = number(far.y, mine.row + 5u * COLUMN_DOWN, mine.end, origin);
    let g = number(far.z, mine.row + 6u * COLUMN_DOWN, mine.end, origin);
    let h = number(far.w, mine.row + 7u * COLUMN_DOWN, mine.end, origin);
    let count = min(COLUMN_ROWS, s.rows - first);
    let mean = sum_column(((a + b) + (c + d)) + ((e + f) + (g + h)), lane) / f32(count);

    var squares = square(a - mean, mine.row, mine.end) + square(b - mean, mine.row + COLUMN_DOWN, mine.end);
    squares += square(c - mean, mine.row + 2u * COLUMN_DOWN, mine.end);
    squares += square(d - mean, mine.row + 3u * COLUMN_DOWN, mine.end);
    squares += square(e - mean, mine.row + 4u * COLUMN_DOWN, mine.end);
    squares += square(f - mean, mine.row + 5u * COLUMN_DOWN, mine.end);
    squares += square(g - mean, mine.row + 6u * COLUMN_DOWN, mine.end);
    squares += square(h - mean, mine.row + 7u * COLUMN_DOWN, mine.end);
    let total = sum_column(squares, lane);
    if lane < COLUMN_ACROSS && mine.row < mine.end {
        let stretches = (s.rows + COLUMN_ROWS - 1u) / COLUMN_ROWS;
        let to = (mine.sample * stretches + mine.stretch) * 3u * quads + mine.quad;
        moments[to] = origin;
        moments[to + quads] = mean;
        moments[to + 2u * quads] = total;
    }
}

fn square(difference: vec4<f32>, row: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), difference * difference, row < end);
}
