// Axes in another order. After: lib/flat.

struct Scalars {
    // Of y.
    n: u32,
    // How many axes are listed: all of y's, for `transpose` the others.
    rank: u32,
    // Where their first number lies.
    x_at: u32,
    y_at: u32,
    // For `transpose`: y's last axis, with the distance of its neighbours in x; the axis whose neighbours touch in x, with
    // their distance in y.
    last: u32,
    last_in_x: u32,
    near: u32,
    near_in_y: u32,
    // Of the listed axes: size, distance of neighbours in x and in y.
    size_0: u32,
    x_0: u32,
    y_0: u32,
    size_1: u32,
    x_1: u32,
    y_1: u32,
    size_2: u32,
    x_2: u32,
    y_2: u32,
    size_3: u32,
    x_3: u32,
    y_3: u32,
    size_4: u32,
    x_4: u32,
    y_4: u32,
    size_5: u32,
    x_5: u32,
    y_5: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<word>;
@group(0) @binding(2) var<storage, read_write> y: array<word>;

// (size, distance in x, distance in y) of a listed axis.
fn axis(number: u32) -> vec3<u32> {
    switch number {
        case 0u: {
            return vec3<u32>(s.size_0, s.x_0, s.y_0);
        }
        case 1u: {
            return vec3<u32>(s.size_1, s.x_1, s.y_1);
        }
        case 2u: {
            return vec3<u32>(s.size_2, s.x_2, s.y_2);
        }
        case 3u: {
            return vec3<u32>(s.size_3, s.x_3, s.y_3);
        }
        case 4u: {
            return vec3<u32>(s.size_4, s.x_4, s.y_4);
        }
        default: {
            return vec3<u32>(s.size_5, s.x_5, s.y_5);
        }
    }
}

// Where a row-major index over the listed axes lies in x and in y.
fn places(index: u32) -> vec2<u32> {
    var rest = index;
    var at = vec2<u32>(s.x_at, s.y_at);
    for (var k = s.rank; k > 0u; k--) {
        let a = axis(k - 1u);
        at += (rest % a.x) * a.yz;
        rest /= a.x;
    }
    return at;
}

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let at = places(i);
            y[at.y] = x[at.x];
        }
    }
}

const SIDE: u32 = 32u;
const ROWS: u32 = 8u;

// A column more than a row has, so that columns do not lie in one bank.
var<workgroup> square: array<word, SIDE * (SIDE + 1u)>;

// Squares of 32 x 32 through workgroup memory, so that both sides are read and written along their lines.
@compute @workgroup_size(SIDE * ROWS)
fn transpose(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group.x + group.y * groups.x;
    let across = (s.near + SIDE - 1u) / SIDE;
    let down = (s.last + SIDE - 1u) / SIDE;
    let near = number % across * SIDE;
    let last = number / across % down * SIDE;
    let rest = number / across / down;
    let inside = rest < s.n / (s.near * s.last);
    let at = places(rest);
    let line = lane / SIDE;
    let col = lane % SIDE;
    for (var k = line; k < SIDE; k += ROWS) {
        if inside && last + k < s.last && near + col < s.near {
            square[k * (SIDE + 1u) + col] = x[at.x + (last + k) * s.last_in_x + near + col];
        }
    }
    workgroupBarrier();
    for (var k = line; k < SIDE; k += ROWS) {
        if inside && near + k < s.near && last + col < s.last {
            y[at.y + (near + k) * s.near_in_y + last + col] = square[col * (SIDE + 1u) + k];
        }
    }
}
