// Packed weights: how the numbers of a panel (sixteen output rows) lie in memory. Written by pack.cpp, read here.
//
// Quantized storages are records of 16 rows x 32 columns, panel by panel, along K within a panel:
//   q4   16 f16 scale, 16 f16 offset, 4 x 64 bytes of nibbles   320 bytes   w = d*q + m
//   q8   16 f16 scale, 16 x 32 int8                             544 bytes   w = d*q
//   q8m  16 f16 scale, 16 f16 offset, 16 x 32 int8              576 bytes   w = d*q + m
//   q8h  2 x 16 f16 scale (first, second 16 columns), int8      576 bytes   w = d*q
// Order inside: a pair of columns is two vectors of sixteen lanes, lane i of vector h being row 8h + i/2, column i%2, so
// that converting both to bfloat16 yields the pair-interleaved order that vdpbf16ps and AMX read. In q4, nibble j of
// 32-bit lane i in vector z is pair 4z + j/2, half h = j%2. In q8, bytes 32p..32p+31 are pair p.
//   bf16 [K/2][16][2], f32 [K][16], a panel at a time.
#pragma once
#include "ops.h"
#include "simd.h"

struct Pair {
    __m512 low, high;  // rows 0..7 and 8..15 of one column pair, interleaved
};

INLINE __m512 spread(__m512 per_row, bool high) {
    const __m512i low_index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(high ? _mm512_add_epi32(low_index, _mm512_set1_epi32(8)) : low_index, per_row);
}
INLINE __m512 load_halves(const char* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }

struct Q4 {
    static constexpr int64_t BYTES = 320;
    struct Scales {
        __m512 levels, d_low, d_high, m_low, m_high;
    };
    INLINE Scales scales(const char* record) {
        __m512 d = load_halves(record), m = load_halves(record + 32);
        const __m512 levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return {levels, spread(d, false), spread(d, true), spread(m, false), spread(m, true)};
    }
    // vpermps reads only the low four bits of a lane, so shifting is all the unpacking there is.
    INLINE Pair expand(const char* record, int pair, const Scales& s) {
        __m512i word = _mm512_loadu_si512(record + 64 + 64 * (pair >> 2));
        const int shift = 8 * (pair & 3);
        __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(word, shift), s.levels);
        __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(word, shift + 4), s.levels);
        return {_mm512_fmadd_ps(low, s.d_low, s.m_low), _mm512_fmadd_ps(high, s.d_high, s.m_high)};
    }
};

INLINE Pair load_bytes(const char* bytes) {
    __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)bytes));
    __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(bytes + 16)));
    return {_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)};
}

struct Q8 {
    static constexpr int64_t BYTES = 544;
    struct Scales {
        __m512 d_low, d_high;
    };
    INLINE Scales scales(const char* record) {
        __m512 d = load_halves(record);
        return {spread(d, false), spread(d, true)};
    }
    INLINE Pair expand(const char* record, int pair, const Scales& s) {
        Pair q = load_bytes(record + 32 + 32 * pair);
        return {_mm512_mul_ps(q.low, s.d_low), _mm512_mul_ps(q.high, s.d_high)};
    }
};

struct Q8M {
    static constexpr int64_t BYTES = 576;
    struct Scales {
        __m512 d_low, d_high, m_low, m_high;
    };
    INLINE Scales scales(const char* record) {
        __m512 d = load_halves(record), m = load_halves(record + 32);
        return {spread(d, false), spread(d, true), spread(m, false), spread(m, true)};
    }
    INLINE Pair expand(const char* record, int pair, const Scales& s) {
        Pair q = load_bytes(record + 64 + 32 * pair);
        return {_mm512_fmadd_ps(q.low, s.d_low, s.m_low), _mm512_fmadd_ps(q.high, s.d_high, s.m_high)};
    }
};

struct Q8H {
    static constexpr int64_t BYTES = 576;
    struct Scales {
        __m512 first_low, first_high, second_low, second_high;
    };
    INLINE Scales scales(const char* record) {
        __m512 first = load_halves(record), second = load_halves(record + 32);
        return {spread(first, false), spread(first, true), spread(second, false), spread(second, true)};
    }
    INLINE Pair expand(const char* record, int pair, const Scales& s) {
        Pair q = load_bytes(record + 64 + 32 * pair);
        return {_mm512_mul_ps(q.low, pair < 8 ? s.first_low : s.second_low),
                _mm512_mul_ps(q.high, pair < 8 ? s.first_high : s.second_high)};
    }
};

INLINE __m512i round_pair(Pair w) { return (__m512i)_mm512_cvtne2ps_pbh(w.high, w.low); }

// One record to sixteen steps of bfloat16 pairs, `step_stride` bytes apart.
template <class Q>
INLINE void expand_record(bf16, const char* record, char* out, int64_t step_stride) {
    const typename Q::Scales s = Q::scales(record);
#pragma GCC unroll 16
    for (int pair = 0; pair < 16; pair++)
        _mm512_storeu_si512(out + pair * step_stride, round_pair(Q::expand(record, pair, s)));
}

// One record to thirty-two steps of float32.
template <class Q>
INLINE void expand_record(float, const char* record, char* out, int64_t step_stride) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const typename Q::Scales s = Q::scales(record);
#pragma GCC unroll 16
    for (int pair = 0; pair < 16; pair++) {
        Pair w = Q::expand(record, pair, s);
        _mm512_storeu_ps(out + 2 * pair * step_stride, _mm512_permutex2var_ps(w.low, even, w.high));
        _mm512_storeu_ps(out + (2 * pair + 1) * step_stride, _mm512_permutex2var_ps(w.low, odd, w.high));
    }
}
