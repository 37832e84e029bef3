// The one multiplication kernel: C[MR, NP*16] (+)= A[MR, steps] * B[steps, NP*16].
//
// A step is four bytes of A (a pair of bfloat16 or one float32, broadcast) against 64 bytes of B a panel (sixteen such
// lanes). Linear layers, q k^T and p v all have this form, see README.md. Every output is one chain of accumulations
// over the steps in order, whatever MR and NP are: that is what makes results independent of the batch.
#pragma once
#include "simd.h"

struct TileArgs {
    const char* a;
    int64_t a_stride;  // bytes between rows of A
    const char* b;
    int64_t panel_stride, step_stride;  // bytes between panels of sixteen columns, and between steps
    int64_t steps;
    float* c;
    int64_t c_stride;  // floats between rows of C
    bool accumulate;   // start from C instead of zero
};

constexpr int MAX_MR = 6, MAX_NP = 4;

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
        for (int p = 0; p < NP; p++)
            acc[r][p] = t.accumulate ? _mm512_loadu_ps(t.c + r * t.c_stride + p * 16) : _mm512_setzero_ps();
    const char* a = t.a;
    const char* b = t.b;
    const int64_t a_stride = t.a_stride, panel_stride = t.panel_stride, step_stride = t.step_stride;
    for (int64_t s = 0; s < t.steps; s++, a += 4, b += step_stride) {
        __m512i column[NP];
#pragma GCC unroll 4
        for (int p = 0; p < NP; p++) column[p] = _mm512_loadu_si512(b + p * panel_stride);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int p = 0; p < NP; p++) acc[r][p] = multiply_add(A(), acc[r][p], column[p], a + r * a_stride);
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

// C for any number of rows, in blocks of six.
template <class A>
static void multiply_rows(TileArgs t, int64_t rows, int panels) {
    for (int64_t done = 0; done < rows; done += MAX_MR) {
        int mr = rows - done < MAX_MR ? int(rows - done) : MAX_MR;
        Tiles<A>::pick(mr, panels)(t);
        t.a += t.a_stride * MAX_MR;
        t.c += t.c_stride * MAX_MR;
    }
}
