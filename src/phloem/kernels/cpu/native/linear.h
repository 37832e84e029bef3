// What the ways of computing linear share: the decoded instruction, panels ready to multiply, and the epilogue.
//
// args: 0 x, 1 y, 2 packed weight, 3 bias (float32 [N]) or 0, 4 K, 5 N, 6 storage, 7 activation type, 8 output type,
//       9 product: plain, AMX (falls back to plain where K is no multiple of 32), or int8, for which x is rows of int8_rows.h
#pragma once
#include "amx_multiply.h"
#include "int8_rows.h"
#include "storage.h"
#include "tile.h"

struct Linear {
    const char* x;
    char* y;
    const char* weight;
    const float* bias;
    int64_t k, n, storage, out_type, act_bytes;
    bool amx, int8;
    TileScope* tiles;  // of this thread, for as long as it works on this instruction
    int64_t panels() const { return (n + 15) / 16; }
    int64_t x_stride() const { return int8 ? int8_row_bytes(k) : k * act_bytes; }
};

INLINE Linear decode(const Instruction& in, TileScope* tiles = nullptr) {
    return {pointer<char>(in, 0), pointer<char>(in, 1), pointer<char>(in, 2), pointer<float>(in, 3), in.args[4],
            in.args[5],           in.args[6],           in.args[8],           in.args[7] == ACT_BF16 ? 2 : 4,
            in.args[9] == PRODUCT_AMX && in.args[4] % 32 == 0, in.args[9] == PRODUCT_INT8, tiles};
}

// Sums [rows, c_stride] of columns starting at panel `first`, plus bias, to the output type.
static inline void finish(const Linear& l, const float* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first, int panels) {
    for (int p = 0; p < panels; p++) {
        const int64_t column = (first + p) * 16;
        const __mmask16 mask = tail_mask(l.n - column);
        const __m512 bias = l.bias ? _mm512_maskz_loadu_ps(mask, l.bias + column) : _mm512_setzero_ps();
        for (int64_t r = 0; r < rows; r++) {
            __m512 sum = _mm512_loadu_ps(c + r * c_stride + p * 16);
            if (l.bias) sum = _mm512_add_ps(sum, bias);
            const int64_t at = (row + r) * l.n + column;
            if (l.out_type == ACT_BF16) store_act(reinterpret_cast<bf16*>(l.y) + at, sum, mask);
            else store_act(reinterpret_cast<float*>(l.y) + at, sum, mask);
        }
    }
}

// Memory that will be read next, fetched into L2 little by little while the multiplication needs no bandwidth.
struct Ahead {
    const char* from;
    int64_t bytes;
    void fetch(int64_t part, int64_t parts) const {
        const char* end = from + bytes * (part + 1) / parts;
        for (const char* line = from + bytes * part / parts; line < end; line += 64) _mm_prefetch(line, _MM_HINT_T1);
    }
};

// Records of a quantized storage are fetched this many ahead of their use.
constexpr int64_t AHEAD = 8;

// Where panels lie that are ready in the activation's type.
struct Ready {
    const char* panels;
    int64_t panel_stride, step_stride;
    Ahead ahead;
};

// The same products on AMX (linear_amx.cpp). Its sums round differently, so a weight uses it for every number of rows.
void multiply_amx(const Linear& l, const Ready& ready, int64_t row, int64_t rows, int64_t first, int panels);
// At most sixteen rows by quantized panels, expanded as they are used.
void multiply_few_rows_amx(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels);
constexpr int64_t AMX_FEW_ROWS = 16;
// Any number of int8 rows by quantized panels (linear_int8.cpp).
void multiply_int8(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch);
