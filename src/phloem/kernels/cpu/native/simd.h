// AVX-512 vocabulary shared by the kernels. Include first in a kernel file: everything after is compiled for AVX-512
// with BF16, so a kernel file includes no standard templates (their inline code would leak those instructions).
#pragma once
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
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

// 2^x by a degree-6 polynomial on [-0.5, 0.5], error under 2 ulp; 2^0 is exactly 1, and below 2^-126 (no denormals)
// exactly 0.
INLINE __m512 exp2_ps(__m512 x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(normal, p, whole);
}
constexpr float LOG2E = 1.44269504088896340736f;

INLINE float exp2_one(float x) { return _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(x))); }
