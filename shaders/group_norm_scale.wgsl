// y = act(((x - origin) - mean) * factor + offset), x [B, R, C], the four of every channel of a sample. After: lib/activation, lib/columns.

struct Scalars {
    samples: u32,
    rows: u32,
    channels: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<real>>;
// [B, 4, C]
@group(0) @binding(2) var<storage, read_write> coefficients: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<real>>;

struct Coefficients {
    origin: vec4<f32>,
    mean: vec4<f32>,
    factor: vec4<f32>,
    offset: vec4<f32>,
}

fn put(at: u32, row: u32, end: u32, x: vec4<real>, c: Coefficients) {
    if row < end {
        let v = ((vec4<f32>(x) - c.origin) - c.mean) * c.factor + c.offset;
        y[at] = vec4<real>(vec4<f32>(act(v.x), act(v.y), act(v.z), act(v.w)));
    }
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
    let first = 4u * mine.sample * quads + mine.quad;
    let c = Coefficients(
        coefficients[first], coefficients[first + quads], coefficients[first + 2u * quads], coefficients[first + 3u * quads],
    );
    let start = mine.sample * s.rows * quads + mine.quad;
    for (var row = mine.row; row < mine.end; row += 4u * COLUMN_DOWN) {
        // Four rows are read at a time; y may lie where x does.
        let rows = vec4<u32>(row) + COLUMN_DOWN * vec4<u32>(0u, 1u, 2u, 3u);
        let at = vec4<u32>(start) + min(rows, vec4<u32>(s.rows - 1u)) * quads;
        let v_0 = x[at.x];
        let v_1 = x[at.y];
        let v_2 = x[at.z];
        let v_3 = x[at.w];
        put(at.x, rows.x, mine.end, v_0, c);
        put(at.y, rows.y, mine.end, v_1, c);
        put(at.z, rows.z, mine.end, v_2, c);
        put(at.w, rows.w, mine.end, v_3, c);
    }
}
