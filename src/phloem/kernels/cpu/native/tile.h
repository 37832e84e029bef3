// The one multiplication kernel: C[MR, NP*16] = A[MR, steps] * B[steps, NP*16].
//
// A step is four bytes of A (a pair of bfloat16 or one float32, broadcast) against 64 bytes of B a panel (sixteen such
// lanes). Linear layers, q k^T and p v all have this form, see README.md. Every output is one chain of accumulations
// over the steps in order, whatever MR and NP are: that is what makes results independent of the batch.
#pragma once
#include "simd.h"

constexpr int MAX_MR = 6, MAX_NP = 4, MAX_SEGMENTS = 4;

struct TileArgs {
    const char* a;
    int64_t a_stride;  // bytes between rows of A
    // B may lie in up to four places one after another (pages of a cache): steps[i] steps from panels b[i][0..3].
    const char* b[MAX_SEGMENTS][MAX_NP];
    int64_t steps[MAX_SEGMENTS];
    int64_t step_stride;  // bytes between steps of B
    int segments;
    float* c;
    int64_t c_stride;  // floats between rows of C
};

INLINE __m512 multiply_add(bf16, __m512 acc, __m512i b, const char* a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return _mm512_dpbf16_ps(acc, (__m512bh)b, (__m512bh)_mm512_set1_epi32(pair));
}
INLINE __m512 multiply_add(float, __m512 acc, __m512i b, const char* a) {
    float value;
    memcpy(&value, a, 4);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(b), _mm512_set1_ps(value), acc);
}

template <class A, int MR, int NP>
static void tile(const TileArgs& t) {
    __m512 acc[MR][NP];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int p = 0; p < NP; p++) acc[r][p] = _mm512_setzero_ps();
    const char* a = t.a;
    const int64_t a_stride = t.a_stride, step_stride = t.step_stride;
    for (int segment = 0; segment < t.segments; segment++) {
        const char* const* b = t.b[segment];
        const char *b0 = b[0], *b1 = b[1 % NP], *b2 = b[2 % NP], *b3 = b[3 % NP];
        int64_t at = 0;
        for (int64_t s = t.steps[segment]; s > 0; s--, a += 4, at += step_stride) {
            __m512i column[NP];
            column[0] = _mm512_loadu_si512(b0 + at);
            if (NP > 1) column[1 % NP] = _mm512_loadu_si512(b1 + at);
            if (NP > 2) column[2 % NP] = _mm512_loadu_si512(b2 + at);
            if (NP > 3) column[3 % NP] = _mm512_loadu_si512(b3 + at);
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
                for (int p = 0; p < NP; p++) acc[r][p] = multiply_add(A(), acc[r][p], column[p], a + r * a_stride);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int p = 0; p < NP; p++) _mm512_storeu_ps(t.c + r * t.c_stride + p * 16, acc[r][p]);
}

template <class A>
struct Tiles {
    using Kernel = void (*)(const TileArgs&);
    // The kernel for `rows` rows (1..6) and `panels` panels (1..4).
    static Kernel pick(int rows, int panels) {
        static constexpr Kernel table[MAX_MR][MAX_NP] = {
            {tile<A, 1, 1>, tile<A, 1, 2>, tile<A, 1, 3>, tile<A, 1, 4>},
            {tile<A, 2, 1>, tile<A, 2, 2>, tile<A, 2, 3>, tile<A, 2, 4>},
            {tile<A, 3, 1>, tile<A, 3, 2>, tile<A, 3, 3>, tile<A, 3, 4>},
            {tile<A, 4, 1>, tile<A, 4, 2>, tile<A, 4, 3>, tile<A, 4, 4>},
            {tile<A, 5, 1>, tile<A, 5, 2>, tile<A, 5, 3>, tile<A, 5, 4>},
            {tile<A, 6, 1>, tile<A, 6, 2>, tile<A, 6, 3>, tile<A, 6, 4>},
        };
        return table[rows - 1][panels - 1];
    }
};

// Appends a segment whose panels are `stride` bytes apart.
INLINE void add_segment(TileArgs& t, const char* first, int64_t stride, int64_t steps) {
    for (int p = 0; p < MAX_NP; p++) t.b[t.segments][p] = first + p * stride;
    t.steps[t.segments++] = steps;
}

// Rows fall into blocks of nearly equal height, so that no block is left with too few chains to hide latency.
struct RowBlocks {
    int64_t rows, blocks;
    explicit RowBlocks(int64_t n, int64_t most) : rows(n), blocks((n + most - 1) / most) {}
    int64_t begin(int64_t block) const { return rows * block / blocks; }
    int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
};

// C for any number of rows.
template <class A>
static void multiply_rows(TileArgs t, int64_t rows, int panels) {
    const char* a = t.a;
    float* c = t.c;
    const RowBlocks blocks(rows, MAX_MR);
    for (int64_t i = 0; i < blocks.blocks; i++) {
        t.a = a + t.a_stride * blocks.begin(i);
        t.c = c + t.c_stride * blocks.begin(i);
        Tiles<A>::pick(int(blocks.size(i)), panels)(t);
    }
}
