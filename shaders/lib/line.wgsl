// Shaders over lines of pixels [width, channels]: a workgroup of 256 invocations takes 1024 elements of one line, 256 apart.

const LINE_LANES: u32 = 256u;
const LINE_EACH: u32 = 4u;

// (the line, its first element) of an invocation; a line has `elements`.
fn line_start(group: vec3<u32>, groups: vec3<u32>, lane: u32, elements: u32) -> vec2<u32> {
    let number = group.x + group.y * groups.x;
    let parts = (elements + LINE_LANES * LINE_EACH - 1u) / (LINE_LANES * LINE_EACH);
    return vec2<u32>(number / parts, (number % parts) * (LINE_LANES * LINE_EACH) + lane);
}
