// A stable counting sort of pairs by expert   experts [pairs] -> order [pairs], places [pairs], offsets [experts + 1]. A
// workgroup an expert: each counts the pairs of all experts before its own, and of its own, a stretch of them a lane.

struct Scalars {
    pairs: u32,
    experts: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// Negative ones are larger than any.
@group(0) @binding(1) var<storage, read_write> experts: array<u32>;
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> places: array<u32>;
@group(0) @binding(4) var<storage, read_write> offsets: array<u32>;

const LANES: u32 = 256u;

// Of the lanes up to this one: pairs of earlier experts, pairs of this one.
var<workgroup> counts: array<vec2<u32>, LANES>;

fn expert_of(pair: u32) -> u32 {
    return min(experts[pair], s.experts - 1u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let expert = wg.x + wg.y * wgs.x;
    if expert >= s.experts {
        return;
    }
    let each = (s.pairs + LANES - 1u) / LANES;
    let begin = min(lane * each, s.pairs);
    let end = min(begin + each, s.pairs);
    var mine = vec2<u32>();
    for (var pair = begin; pair < end; pair++) {
        let e = expert_of(pair);
        mine += vec2<u32>(u32(e < expert), u32(e == expert));
    }
    counts[lane] = mine;
    workgroupBarrier();
    for (var reach = 1u; reach < LANES; reach *= 2u) {
        var v = counts[lane];
        if lane >= reach {
            v += counts[lane - reach];
        }
        workgroupBarrier();
        counts[lane] = v;
        workgroupBarrier();
    }
    let start = counts[LANES - 1u].x;
    var at = start + counts[lane].y - mine.y;
    for (var pair = begin; pair < end; pair++) {
        if expert_of(pair) == expert {
            order[at] = pair;
            places[pair] = at;
            at++;
        }
    }
    if lane == 0u {
        offsets[expert] = start;
        if expert == s.experts - 1u {
            offsets[s.experts] = s.pairs;
        }
    }
}
