// Ops that treat each row alone: rms_norm, add_rms_norm, silu_mul, select_rows, argmax. One item is one row.
#include "int8_rows.h"
#include "ops.h"
#include "simd.h"

namespace {

int64_t count_rows(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

// 1 / sqrt(mean(x^2) + eps) of a row, in two chains of lanes.
float inverse_rms(const float* x, int64_t n, float eps) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 32) {
        __m512 a = load_act(x + i, tail_mask(n - i));
        even = _mm512_fmadd_ps(a, a, even);
        if (n - i <= 16) break;
        __m512 b = load_act(x + i + 16, tail_mask(n - i - 16));
        odd = _mm512_fmadd_ps(b, b, odd);
    }
    const float mean = _mm512_reduce_add_ps(_mm512_add_ps(even, odd)) / float(n);
    return 1.0f / __builtin_sqrtf(mean + eps);
}

template <class A>
void normalize(const float* x, const float* weight, A* y, int64_t n, float eps) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(x, n, eps));
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(n - i);
        __m512 v = _mm512_mul_ps(load_act(x + i, mask), scale);
        store_act(y + i, _mm512_mul_ps(v, load_act(weight + i, mask)), mask);
    }
}

// The same to int8 (n a multiple of 32), rounded from float32.
void normalize_int8(const float* x, const float* weight, char* y, int64_t n, float eps, __m256i order) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(x, n, eps));
    BlockScale* scales = block_scales(y, n);
    for (int64_t i = 0; i < n; i += 32) {
        const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale), high = _mm512_mul_ps(_mm512_loadu_ps(x + i + 16), scale);
        quantize_block(_mm512_mul_ps(low, _mm512_loadu_ps(weight + i)), _mm512_mul_ps(high, _mm512_loadu_ps(weight + i + 16)), y + i,
                       scales[i / 32], order);
    }
}

// Row r of y, whatever its type.
void normalize_row(const float* x, const float* weight, char* y, int64_t type, int64_t r, int64_t n, float eps) {
    if (type == ACT_BF16) normalize(x, weight, reinterpret_cast<bf16*>(y) + r * n, n, eps);
    else if (type == ACT_F32) normalize(x, weight, reinterpret_cast<float*>(y) + r * n, n, eps);
    else normalize_int8(x, weight, y + r * int8_row_bytes(n), n, eps, level_shuffle(type - ACT_INT8));
}

// args: 0 x float32 [T, D], 1 weight [D], 2 y [T, D], 3 D, 4 type of y; reals: 0 eps
void rms_norm(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t n = in.args[3];
    for (int64_t r = begin; r < end; r++)
        normalize_row(pointer<float>(in, 0) + r * n, pointer<float>(in, 1), pointer<char>(in, 2), in.args[4], r, n, in.reals[0]);
}

template <class A>
void add_row(const A* x, const float* residual, float* sum, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(n - i);
        store_act(sum + i, _mm512_add_ps(load_act(residual + i, mask), load_act(x + i, mask)), mask);
    }
}

// args: 0 x [T, D], 1 residual float32, 2 weight, 3 y, 4 new residual (may be the residual itself), 5 D, 6 type of x,
//       7 type of y
void add_rms_norm(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t n = in.args[5];
    for (int64_t r = begin; r < end; r++) {
        const float *residual = pointer<float>(in, 1) + r * n, *weight = pointer<float>(in, 2);
        float* sum = pointer<float>(in, 4) + r * n;
        if (in.args[6] == ACT_BF16) add_row(pointer<bf16>(in, 0) + r * n, residual, sum, n);
        else add_row(pointer<float>(in, 0) + r * n, residual, sum, n);
        normalize_row(sum, weight, pointer<char>(in, 3), in.args[7], r, n, in.reals[0]);
    }
}

INLINE __m512 silu_times(__m512 gate, __m512 up) {
    const __m512 decay = exp2_ps(_mm512_min_ps(_mm512_mul_ps(gate, _mm512_set1_ps(-LOG2E)), _mm512_set1_ps(126.0f)));
    return _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1.0f), decay)), up);
}

template <class A>
void silu_row(const A* gate, const A* up, A* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = tail_mask(n - i);
        store_act(y + i, silu_times(load_act(gate + i, mask), load_act(up + i, mask)), mask);
    }
}

// bfloat16 to int8 (n a multiple of 32), rounded from float32.
void silu_row_int8(const bf16* gate, const bf16* up, char* y, int64_t n, __m256i order) {
    BlockScale* scales = block_scales(y, n);
    for (int64_t i = 0; i < n; i += 32) {
        const __m512 low = silu_times(load_act(gate + i, 0xffff), load_act(up + i, 0xffff));
        const __m512 high = silu_times(load_act(gate + i + 16, 0xffff), load_act(up + i + 16, 0xffff));
        quantize_block(low, high, y + i, scales[i / 32], order);
    }
}

// args: 0 gate_up [T, 2F], 1 y [T, F], 2 F, 3 activation type, 4 type of y: that, or int8
void silu_mul(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t n = in.args[2];
    for (int64_t r = begin; r < end; r++) {
        if (in.args[3] == ACT_F32) {
            const float* gate = pointer<float>(in, 0) + 2 * r * n;
            silu_row(gate, gate + n, pointer<float>(in, 1) + r * n, n);
            continue;
        }
        const bf16* gate = pointer<bf16>(in, 0) + 2 * r * n;
        if (in.args[4] == ACT_BF16) silu_row(gate, gate + n, pointer<bf16>(in, 1) + r * n, n);
        else silu_row_int8(gate, gate + n, pointer<char>(in, 1) + r * int8_row_bytes(n), n, level_shuffle(in.args[4] - ACT_INT8));
    }
}

// args: 0 x, 1 index int32 [L], 2 y, 3 bytes a row
void select_rows(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t bytes = in.args[3];
    for (int64_t r = begin; r < end; r++)
        memcpy(pointer<char>(in, 2) + r * bytes, pointer<char>(in, 0) + pointer<int32_t>(in, 1)[r] * bytes, bytes);
}

// The first of the largest numbers of a row: (index, value).
void argmax_row(const float* x, int64_t n, int32_t* index, float* value) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 best = lowest;
    __m512i where = _mm512_setzero_si512();
    __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 v = _mm512_mask_loadu_ps(lowest, tail_mask(n - i), x + i);
        const __mmask16 better = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, better, v);
        where = _mm512_mask_mov_epi32(where, better, here);
        here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
    }
    *value = _mm512_reduce_max_ps(best);
    const __mmask16 ties = _mm512_cmp_ps_mask(best, _mm512_set1_ps(*value), _CMP_EQ_OQ);
    *index = ties ? _mm512_mask_reduce_min_epi32(ties, where) : 0;
}

// args: 0 x float32 [L, V], 1 index int32 [L], 2 value float32 [L], 3 V
void argmax(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t n = in.args[3];
    for (int64_t r = begin; r < end; r++)
        argmax_row(pointer<float>(in, 0) + r * n, n, pointer<int32_t>(in, 1) + r, pointer<float>(in, 2) + r);
}

}  // namespace

const OpKernel RMS_NORM = {count_rows, rms_norm, claim_between<1, 16>};
const OpKernel ADD_RMS_NORM = {count_rows, add_rms_norm, claim_between<1, 16>};
const OpKernel SILU_MUL = {count_rows, silu_mul, claim_between<1, 16>};
const OpKernel SELECT_ROWS = {count_rows, select_rows, claim_between<1, 16>};
const OpKernel ARGMAX = {count_rows, argmax, claim_between<1, 4>};
