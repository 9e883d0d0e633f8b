// Workgroups over x [samples, rows, cols]: each takes a stretch of rows of one sample, in as many columns as it has lanes
// across. Counts come from `ops::lanes::Stretches`. After: lib/lanes.

struct Scalars {
    samples: u32,
    rows: u32,
    cols: u32,
    // Rows of a stretch, stretches of a sample, tiles of columns.
    each: u32,
    stretches: u32,
    tiles: u32,
    // What some shaders need besides: groups of columns, and a factor.
    groups: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;

// What an invocation takes: one column, every DOWN-th row from `row` to before `end`.
struct Stretch {
    sample: u32,
    col: u32,
    // Number of the stretch among those of all samples.
    number: u32,
    // Rows within the sample; none where there is no such column.
    row: u32,
    end: u32,
    // It is the lane that stores the sums of its column.
    stores: bool,
}

// True if a workgroup has work.
fn has_stretch(number: u32) -> bool {
    return number < s.samples * s.stretches * s.tiles;
}

fn stretch(number: u32, lane: u32) -> Stretch {
    let all = number / s.tiles;
    let first = all % s.stretches * s.each;
    let col = number % s.tiles * ACROSS + lane % ACROSS;
    let there = col < s.cols;
    let end = select(0u, min(first + s.each, s.rows), there);
    return Stretch(all / s.stretches, col, all, first + lane / ACROSS, end, there && lane < ACROSS);
}
