// Elementwise shaders: workgroups of 256 invocations, 4 elements each, 256 apart, so that neighbours read neighbours.

const FLAT_LANES: u32 = 256u;
const FLAT_EACH: u32 = 4u;

// The first element of an invocation.
fn flat_start(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (group.x + group.y * groups.x) * (FLAT_LANES * FLAT_EACH) + lane;
}
