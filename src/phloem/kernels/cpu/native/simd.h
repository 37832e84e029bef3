// AVX-512 vocabulary shared by the kernels. Include first in a kernel file: everything after is compiled for AVX-512
// with BF16 and VNNI, so a kernel file includes no standard templates (their inline code would leak those instructions).
#pragma once
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 tail_mask(int64_t left) { return left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1); }

// Sixteen activations as float32, of which only `mask` are read.
INLINE __m512 load_act(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
INLINE __m512 load_act(const bf16* p, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
INLINE void store_act(float* p, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, v); }
INLINE void store_act(bf16* p, __m512 v, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

// 2^x = 2^floor(x) * p(x - floor(x)), p the degree-5 minimax polynomial on [0, 1) with p(0) = 1: relative error 8e-8
// before rounding; 2^0 is exactly 1, 2^-inf exactly 0.
INLINE __m512 exp2_ps(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.867131563e-03f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.017026983e-03f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.579991639e-02f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.401644439e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931512952e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}
constexpr float LOG2E = 1.44269504088896340736f;
