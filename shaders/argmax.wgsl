// The first index of the largest number of each row of x [rows, n]; NaN is never larger, a row of NaN gives 0. A line of ACROSS
// lanes a row, DOWN rows a workgroup.

struct Scalars {
    rows: u32,
    n: u32,
}

override ACROSS: u32;
override DOWN: u32;
override LANES: u32 = ACROSS * DOWN;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<i32>;

// A number and where it stands; before any was seen nowhere, behind all.
struct Best {
    value: f32,
    at: u32,
}

const NOWHERE: u32 = 0xffffffffu;

var<workgroup> best_memory: array<Best, LANES>;

fn better(a: Best, b: Best) -> Best {
    if b.value > a.value || (b.value == a.value && b.at < a.at) {
        return b;
    }
    return a;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    // Lanes without a row still meet the others.
    let n = select(0u, s.n, row < s.rows);
    // Minus infinity, which WGSL has no literal for.
    var bits = 0xff800000u;
    var best = Best(bitcast<f32>(bits), NOWHERE);
    for (var i = across; i < n; i += ACROSS) {
        best = better(best, Best(x[row * s.n + i], i));
    }
    best_memory[lane] = best;
    workgroupBarrier();
    for (var reach = ACROSS / 2u; reach > 0u; reach /= 2u) {
        if across < reach {
            best_memory[lane] = better(best_memory[lane], best_memory[lane + reach]);
        }
        workgroupBarrier();
    }
    if across < min(n, 1u) {
        let at = best_memory[lane].at;
        y[row] = select(i32(at), 0, at == NOWHERE);
    }
}
