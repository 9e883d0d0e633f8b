// y = (x * W + residual) * scale with `dilation` - 1 zeros between the pixels of x, stride 1: the data gradient of a strided convolution
// x [B, H, W, C], W [taps * C, n] in panels -> y [B, H', W', n]
//
// Floor: 2 n FLOPs for a pixel of x, a tap and a channel. Pixels of y that are `dilation` apart, of one *phase*, meet numbers under the same taps and
// zeros under all others. So a phase is a convolution of x without zeros, by those of the taps; its pixels are the rows of a product as in `conv2d`,
// and rows of W are left out. Tiles are counted phase by phase, those with the most taps first.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

// Pixels (dilation * y + first_y, dilation * x + first_x), under taps (dilation * i + tap_y, dilation * j + tap_x).
struct Phase {
    Window w;
    u32 tap_y, tap_x, first_y, first_x, terms;

    // Phase `number` of a convolution. Taps of phase (0, 0) begin at the window's corner.
    __device__ __forceinline__ Phase(const Window& all, u32 number) : w(all) {
        u32 d = all.dilation;
        tap_y = number / d;
        tap_x = number % d;
        // The first pixel under whose tap there is a pixel of x.
        first_y = (all.pad_top + d * tap_y - tap_y) % d;
        first_x = (all.pad_left + d * tap_x - tap_x) % d;
        w.out_height = (all.out_height + d - 1 - first_y) / d;
        w.out_width = (all.out_width + d - 1 - first_x) / d;
        w.kernel_rows = all.kernel_rows > tap_y ? (all.kernel_rows - tap_y + d - 1) / d : 0;
        w.kernel_cols = all.kernel_cols > tap_x ? (all.kernel_cols - tap_x + d - 1) / d : 0;
        terms = w.kernel_rows * w.kernel_cols * w.channels;
        // A divisor.
        w.kernel_cols = max(w.kernel_cols, 1);
        // Exact, and maybe below zero.
        w.pad_top = u32(int(all.pad_top - tap_y - first_y) / int(d));
        w.pad_left = u32(int(all.pad_left - tap_x - first_x) / int(d));
        w.dilation = 1;
    }

    // The row of W for a term of this phase.
    __device__ __forceinline__ u32 weight_row(const Window& all, const Term& term) const {
        return ((all.dilation * term.ky + tap_y) * all.kernel_cols + all.dilation * term.kx + tap_x) * all.channels + term.c;
    }
};

// Columns of a weight in panels, of which the rows of a phase's terms are read.
template <class Panels, int DEPTH, class T>
struct PhasePanels : Panels {
    const T* base;
    const Window& all;
    const Phase& phase;
    Term term;

    __device__ __forceinline__ PhasePanels(const T* w, u32 rows, u32 first, u32 count, Terms terms, const Window& all, const Phase& phase)
        : Panels(w, rows, first, count, Terms{0, 0}), base(this->at - 16 * Panels::term()), all(all), phase(phase),
          term(phase.w, terms.first + Panels::term()) {}

    template <class To>
    __device__ __forceinline__ void fetch(To* tile, int left) {
        this->at = base + u64(phase.weight_row(all, term)) * 16;
        Panels::fetch(tile, left);
        term.advance(phase.w, DEPTH);
    }
};

// Four numbers of a row. As an instruction: NVRTC splits the store behind the divisions of a place.
template <bool WIDE, class T>
__device__ __forceinline__ void store_sums(T* to, const float (&v)[4], u32 count) {
    if constexpr (!WIDE) {
        store_quad<false>(to, v, count);
        return;
    }
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; i++) pack.at[i] = narrow<T>(v[i]);
    u64 at = __cvta_generic_to_global(to);
    if constexpr (sizeof(T) == 4) {
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(pack.whole.x), "r"(pack.whole.y), "r"(pack.whole.z), "r"(pack.whole.w)
                     : "memory");
    } else {
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(pack.whole.x), "r"(pack.whole.y) : "memory");
    }
}

// As `Finish`, where a phase's rows are in y.
template <class T>
struct PhaseRows {
    using Operands = Pack<T, 4>;

    const Epilogue<T>& epilogue;
    f32* parts;
    const Window& all;
    const Phase& phase;
    u32 rows;

    __device__ __forceinline__ bool wide() const { return gridDim.y == 1 ? epilogue.wide() : epilogue.n % 4 == 0; }
    __device__ __forceinline__ bool activates() const { return false; }
    __device__ __forceinline__ void activated(u32, u32, float (&)[4]) const {}
    __device__ __forceinline__ bool has(u32 row, u32 col) const { return row < rows && col < epilogue.n; }

    // Where four columns of a row are in y.
    __device__ __forceinline__ u64 at(u32 row, u32 col) const {
        Pixel pixel(phase.w, row);
        u32 y = all.dilation * pixel.y + phase.first_y, x = all.dilation * pixel.x + phase.first_x;
        return u64((pixel.image * all.out_height + y) * all.out_width + x) * epilogue.n + col;
    }

    template <bool WIDE>
    __device__ __forceinline__ Operands operands(u32 row, u32 col) const {
        if (gridDim.y > 1 || !epilogue.has_residual || !has(row, col)) return Operands::zeros();
        return four<WIDE>(epilogue.residual + at(row, col), epilogue.n - col);
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], const Operands& residual) const {
        u32 m = epilogue.m, n = epilogue.n;
        if (!has(row, col)) return;
        if (gridDim.y > 1) {
            store_sums<WIDE>(parts + u64(blockIdx.y) * m * n + at(row, col), v, n - col);
            return;
        }
        add_pack(v, residual);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] *= epilogue.scale;
        store_sums<WIDE>(epilogue.y + at(row, col), v, n - col);
    }
};

// Part `blockIdx.y` of a phase's terms.
__device__ __forceinline__ Terms terms_of_phase(u32 terms) {
    u32 part = (terms + gridDim.y - 1) / gridDim.y;
    return terms_of(terms, (part + HALF_DEPTH - 1) / HALF_DEPTH * HALF_DEPTH);
}

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void conv2d_phases(const T* x, const Window& all, const T* w, f32* parts, u32 k, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n, d = all.dilation, images = m / (all.out_height * all.out_width);
    u32 most = images * ((all.out_height + d - 1) / d) * ((all.out_width + d - 1) / d);
    TilePlace place(tiles_of(most, Tile::ROWS), tiles_of(n, Tile::COLS));
    Phase phase(all, place.batch);
    u32 rows = images * phase.w.out_height * phase.w.out_width;
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    if (row >= rows) return;
    Terms terms = terms_of_phase(phase.terms);
    A a(x, phase.w, row, rows, terms);
    PhasePanels<B, Tile::DEPTH, T> b(w, k, col, n, terms, all, phase);
    Tile::run(a, b, terms, row, col, PhaseRows<T>{epilogue, parts, all, phase, rows});
}

// As `conv2d`, but for biases and activation, of which there are none.
#define CONV2D(T, SIZE, THREADS, BLOCKS, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_phases_##SIZE##_##T(                                  \
        const T* x, const T* w, const T* bias, const T* sample, const T* residual, T* y, f32* parts, WINDOW_PARAMETERS, u32 m, \
        u32 n, u32 k, u32 per_sample, u32 part, EPILOGUE_SCALARS) {                                                            \
        Epilogue<T> e(bias, sample, residual, y, m, n, per_sample, 0, 0, has_residual, n, 0, IDENTITY, scale);                 \
        conv2d_phases<__VA_ARGS__>(x, Window{WINDOW_ARGUMENTS}, w, parts, k, e);                                               \
    }
#define CONV2D_F32(SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                                        \
    CONV2D(f32, SIZE, 32 * WARPS_M * WARPS_N, BLOCKS, Ffma<WARPS_M, WARPS_N>, Patches<SIZE, WARPS_M * WARPS_N>,                           \
           Panels<SIZE, WARPS_M * WARPS_N>)
#define CONV2D_HALF(T, SIZE, BLOCKS) CONV2D(T, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfPatches<T, SIZE>, HalfPanels<T, SIZE>)
CONV2D_F32(128, 4, 2, 2)
CONV2D_F32(64, 2, 1, 8)
CONV2D_HALF(f16, 128, 2)
CONV2D_HALF(f16, 64, 4)
CONV2D_HALF(bf16, 128, 2)
CONV2D_HALF(bf16, 64, 4)
