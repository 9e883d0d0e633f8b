// What a product is to lib/blocks.

struct ProductSizes {
    samples: u32,
    rows: u32,
    cols: u32,
    terms: u32,
    // Terms of a part, a multiple of 16.
    part: u32,
    parts: u32,
}

// The product that a tile belongs to, and its part.
struct ProductPlace {
    sample: u32,
    part: u32,
}
