// What `lib/reduce` has, for adapters with subgroups (naga 30 knows them without `enable subgroups`): two barriers a sum instead of one for each halving. The order of a sum
// is the adapter's, the same every time on one adapter.

override REDUCE_LANES: u32 = 256u;

// Where an invocation stands. Entry points take it as their last argument.
struct Place {
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) within: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// A sum for each subgroup; there are at most as many as invocations.
var<workgroup> reduce_memory: array<f32, REDUCE_LANES>;

// The sum of `value` over the workgroup, for every invocation. All of them must call it.
fn reduce_sum(value: f32, place: Place) -> f32 {
    let part = subgroupAdd(value);
    if place.within == 0u {
        reduce_memory[place.subgroup] = part;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < place.subgroups; i++) {
        sum += reduce_memory[i];
    }
    // The next call must not write before all have read.
    workgroupBarrier();
    return sum;
}
