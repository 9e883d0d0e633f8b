// The largest pixel under a window. After: lib/pool.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;

// NaN, told by its bits: a compiler may assume that there is none.
fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

// Where the largest pixel under a window lies in x: the first of equal ones, row by row. NaN is larger than all.
fn peak(i: u32) -> u32 {
    let p = place(i, window_count());
    let under = pixels(p.at);
    var best = number(p, under.start, image_size());
    for (var row = under.start.x; row < under.end.x; row++) {
        for (var col = under.start.y; col < under.end.y; col++) {
            let at = number(p, vec2<u32>(row, col), image_size());
            if x[at] > x[best] || is_nan(bitcast<u32>(x[at])) {
                best = at;
            }
        }
    }
    return best;
}
