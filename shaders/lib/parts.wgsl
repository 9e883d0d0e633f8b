// What a product leaves that is cut into parts of its terms: [parts, M, ceil(N/4)] times four columns, which product_sums adds up.

override PARTS: bool;

@group(0) @binding(7) var<storage, read_write> parts: array<vec4<f32>>;
