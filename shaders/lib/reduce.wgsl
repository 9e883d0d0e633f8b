// Sums over a workgroup of REDUCE_LANES invocations, a power of two, in a fixed order: the same bits every time.

override REDUCE_LANES: u32 = 256u;

// Where an invocation stands. Entry points take it as their last argument.
struct Place {
    @builtin(local_invocation_index) lane: u32,
}

var<workgroup> reduce_memory: array<f32, REDUCE_LANES>;

// The sum of `value` over the workgroup, for every invocation. All of them must call it.
fn reduce_sum(value: f32, place: Place) -> f32 {
    reduce_memory[place.lane] = value;
    workgroupBarrier();
    for (var half = REDUCE_LANES / 2u; half > 0u; half /= 2u) {
        if place.lane < half {
            reduce_memory[place.lane] += reduce_memory[place.lane + half];
        }
        workgroupBarrier();
    }
    let sum = reduce_memory[0];
    // The next call must not write before all have read.
    workgroupBarrier();
    return sum;
}
