// dW of weight_grad for hardware: the terms of the product are the pixels. The channels and N are multiples of 4.
// After: lib/x_fours, lib/product_sizes, lib/corners, lib/blocks.

struct Scalars {
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    kernel_rows: u32,
    kernel_cols: u32,
    stride: u32,
    pad_top: u32,
    pad_left: u32,
    // B * out_height * out_width
    pixels: u32,
    // kernel_rows * kernel_cols * channels
    terms: u32,
    n: u32,
    part: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(2) var<storage, read_write> dy: array<vec4<real>>;
// [parts, ceil(N/16), terms, 16]: a panel's row of 16 columns is four of them.
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

// A tap and its first channel of four.
alias LeftRows = vec3<u32>;
// The first column of four; those beyond the last are others.
alias RightCols = u32;

fn product_sizes() -> ProductSizes {
    return ProductSizes(1u, s.terms, (s.n + 15u) / 16u * 16u, s.pixels, s.part, s.parts);
}

fn left_rows(sample: u32, row: u32) -> vec3<u32> {
    return tap(row);
}

fn right_cols(sample: u32, col: u32) -> u32 {
    return min(col, s.n - 4u);
}

// Output pixels count through columns, rows and images.
struct Pixel {
    col: u32,
    row: u32,
    image: u32,
}

fn after(p: Pixel) -> Pixel {
    let row_ends = p.col + 1u == s.out_width;
    let image_ends = row_ends && p.row + 1u == s.out_height;
    let row = select(p.row + u32(row_ends), 0u, image_ends);
    return Pixel(select(p.col + 1u, 0u, row_ends), row, p.image + u32(image_ends));
}

fn under(p: Pixel, tap: vec3<u32>, there: bool) -> vec4<f32> {
    let at = vec2<u32>(p.row, p.col) * s.stride + tap.xy - vec2<u32>(s.pad_top, s.pad_left);
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u)));
    let begin = ((p.image * s.height + pixel.x) * s.width + pixel.y) * s.channels + tap.z;
    let seen = inside && there;
    return select(vec4<f32>(), x_four(select(0u, begin, seen), 4u), seen);
}

fn left_block(tap: vec3<u32>, k: u32, end: u32) -> mat4x4<f32> {
    let line = k / s.out_width;
    let a = Pixel(k % s.out_width, line % s.out_height, line / s.out_height);
    let b = after(a);
    let c = after(b);
    let d = after(c);
    return mat4x4<f32>(
        under(a, tap, true), under(b, tap, k + 1u < end), under(c, tap, k + 2u < end), under(d, tap, k + 3u < end),
    );
}

fn right_block(col: u32, k: u32, end: u32) -> mat4x4<f32> {
    // Where there is no pixel, the left operand is zero.
    let at = (min(vec4<u32>(k) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(end - 1u)) * s.n + vec4<u32>(col)) / 4u;
    return mat4x4<f32>(vec4<f32>(dy[at.x]), vec4<f32>(dy[at.y]), vec4<f32>(dy[at.z]), vec4<f32>(dy[at.w]));
}

fn store_sums(at: ProductPlace, row: u32, col: u32, sums: vec4<f32>) {
    let panels = (s.n + 15u) / 16u;
    if row < s.terms && col < 16u * panels {
        let place = ((at.part * panels + col / 16u) * s.terms + row) * 4u + col / 4u % 4u;
        y[place] = select(vec4<f32>(), sums, col < s.n);
    }
}
