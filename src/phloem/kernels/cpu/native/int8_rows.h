// Activations as int8: what quantize and the row-wise ops write, and linear_int8 reads.
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
INLINE BlockScale* block_scales(char* row, int64_t k) { return reinterpret_cast<BlockScale*>(row + k); }

// How a block's levels are shuffled into the order asked for.
INLINE __m256i level_shuffle(int64_t order) {
    const __m128i natural = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    return _mm256_broadcastsi128_si256(order == ORDER_EVEN_ODD ? even_odd : natural);
}

INLINE float largest_of(__m512 x) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// (sum of all, of the first sixteen, of the last sixteen, 0) of 32 bytes, as numbers.
INLINE __m128 sums_of(__m256i bytes) {
    const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
    const __m128i pairs = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    const __m128i halves = _mm_hadd_epi32(pairs, _mm_setzero_si128());  // first, last, 0, 0
    const __m128i all = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0xe1));
    return _mm_cvtepi32_ps(_mm_unpacklo_epi64(_mm_unpacklo_epi32(all, halves), _mm_srli_si128(halves, 4)));
}

// The largest level is 127; a block with a NaN or an infinity gets a NaN for its scale, and so does every sum over it.
INLINE void quantize_block(__m512 low, __m512 high, char* levels, BlockScale& scale, __m256i order) {
    const __m512 zero = _mm512_setzero_ps();
    const float largest = largest_of(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    const __m128i first = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)));
    const __m128i second = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)));
    const __m256i bytes = _mm256_set_m128i(second, first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels), _mm256_shuffle_epi8(bytes, order));
    // 0 * x is 0 unless x is a NaN or an infinity
    const bool finite = _mm512_cmp_ps_mask(_mm512_mul_ps(_mm512_add_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)), zero), zero, _CMP_NEQ_UQ) == 0;
    const float d = finite ? largest / 127.0f : __builtin_nanf("");
    const __m128 sums = _mm_mul_ps(sums_of(bytes), _mm_set1_ps(d));
    _mm_storeu_ps(&scale.d, _mm_insert_ps(_mm_shuffle_ps(sums, sums, 0x90), _mm_set_ss(d), 0));
}
