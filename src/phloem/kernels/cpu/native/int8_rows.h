// Activations as int8: what quantize writes and linear_int8 reads.
//
// A row of K numbers (a multiple of 32) is K int8 levels followed by one BlockScale for each 32 columns, padded to 64
// bytes. x = d * level, as in ggml's Q8_1. Inside every 8 columns the levels lie in the order that the weight's storage
// needs for its dot products (storage.h): EVEN_ODD for q4, NATURAL for the others.
#pragma once
#include "simd.h"

enum LevelOrder : int64_t { ORDER_NATURAL = 0, ORDER_EVEN_ODD = 1 };

struct BlockScale {
    float d;                  // scale of the 32 levels
    float sum, first, second;  // d * sum of all levels, of the first 16, of the last 16
};

INLINE int64_t int8_row_bytes(int64_t k) { return (k + k / 32 * int64_t(sizeof(BlockScale)) + 63) & -64; }
INLINE const BlockScale* block_scales(const char* row, int64_t k) { return reinterpret_cast<const BlockScale*>(row + k); }
