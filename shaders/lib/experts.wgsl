// Rows sorted by expert: those of expert e are offsets[e] <= r < offsets[e + 1].

struct Scalars {
    rows: u32,
    n: u32,
    k: u32,
    experts: u32,
    // The last expert's weight comes first.
    reversed: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// Negative ones are larger than any.
@group(0) @binding(3) var<storage, read_write> offsets: array<u32>;

// The first row of an expert and the one behind its last, inside the rows whatever the offsets are.
fn rows_of(expert: u32) -> vec2<u32> {
    let start = min(offsets[expert], s.rows);
    return vec2<u32>(start, clamp(offsets[expert + 1u], start, s.rows));
}

// Where four columns of row `row` of an expert's weight [experts, k, n] lie, in panels.
fn weight_at(expert: u32, row: u32, quad: u32) -> u32 {
    let slot = select(expert, s.experts - 1u - expert, s.reversed != 0u);
    return ((quad / 4u * s.experts + slot) * s.k + row) * 4u + quad % 4u;
}
