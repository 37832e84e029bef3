// quantize: rows of bfloat16 to int8 levels with a scale for each 32 columns (int8_rows.h). One item is one row.
//
// args: 0 x bfloat16 [T, K], 1 y, 2 K, 3 level order
#include "int8_rows.h"
#include "ops.h"

namespace {

int64_t count(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

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
INLINE void quantize_block(const bf16* x, char* levels, BlockScale& scale, __m256i order) {
    const __m512 low = load_act(x, 0xffff), high = load_act(x + 16, 0xffff), zero = _mm512_setzero_ps();
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

void run(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t k = in.args[2];
    const __m128i natural = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m256i order = _mm256_broadcastsi128_si256(in.args[3] == ORDER_EVEN_ODD ? even_odd : natural);
    for (int64_t r = begin; r < end; r++) {
        const bf16* x = pointer<bf16>(in, 0) + r * k;
        char* y = pointer<char>(in, 1) + r * int8_row_bytes(k);
        BlockScale* scales = reinterpret_cast<BlockScale*>(y + k);
        for (int64_t i = 0; i < k; i += 32) quantize_block(x + i, y + i, scales[i / 32], order);
    }
}

}  // namespace

const OpKernel QUANTIZE = {count, run, claim_between<1, 16>};
