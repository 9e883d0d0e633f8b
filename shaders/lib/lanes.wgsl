// A workgroup as a tile of lanes, ACROSS beside each other and DOWN below each other, both powers of two. Reductions over a
// line or a column of it go in a fixed order: the same bits every time. All invocations must call them.

override ACROSS: u32;
override DOWN: u32;
// By name, since naga mistakes overrides for each other that follow an array with an expression as its size.
override LANES: u32 = ACROSS * DOWN;

var<workgroup> tile_memory: array<vec2<f32>, LANES>;

// The sums over the lanes of one line, for each of them.
fn sum_across(value: vec2<f32>, lane: u32) -> vec2<f32> {
    if ACROSS == 1u {
        return value;
    }
    let place = lane % ACROSS;
    tile_memory[lane] = value;
    workgroupBarrier();
    for (var reach = ACROSS / 2u; reach > 0u; reach /= 2u) {
        if place < reach {
            tile_memory[lane] += tile_memory[lane + reach];
        }
        workgroupBarrier();
    }
    let sum = tile_memory[lane - place];
    // The next call must not write before all have read.
    workgroupBarrier();
    return sum;
}

// The largest over the lanes of one line, for each of them.
fn max_across(value: f32, lane: u32) -> f32 {
    if ACROSS == 1u {
        return value;
    }
    let place = lane % ACROSS;
    tile_memory[lane].x = value;
    workgroupBarrier();
    for (var reach = ACROSS / 2u; reach > 0u; reach /= 2u) {
        if place < reach {
            tile_memory[lane].x = max(tile_memory[lane].x, tile_memory[lane + reach].x);
        }
        workgroupBarrier();
    }
    let largest = tile_memory[lane - place].x;
    workgroupBarrier();
    return largest;
}

// The sums over the lanes of one column, for each of them.
fn sum_down(value: vec2<f32>, lane: u32) -> vec2<f32> {
    if DOWN == 1u {
        return value;
    }
    tile_memory[lane] = value;
    workgroupBarrier();
    for (var reach = DOWN / 2u; reach > 0u; reach /= 2u) {
        if lane < reach * ACROSS {
            tile_memory[lane] += tile_memory[lane + reach * ACROSS];
        }
        workgroupBarrier();
    }
    let sum = tile_memory[lane % ACROSS];
    workgroupBarrier();
    return sum;
}
