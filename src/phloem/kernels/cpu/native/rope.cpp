// rope_kv_write: normalize (optionally) and rotate q and k of each token, write k and v to the cache. One item is one
// token.
//
// args: 0 qkv [T, (H+2K)d], 1 q out [T, H, d], 2 cos/sin table, 3 slots int32 [T], 4 cache, 5 q_norm or 0, 6 k_norm or 0,
//       7 H, 8 K, 9 d, 10 page size, 11 activation type; reals: 0 eps of the norms
#include "kv_layout.h"
#include "ops.h"

namespace {

constexpr int MAX_DIM = 512;

struct Rotation {
    const float *cosine, *sine;
    int64_t half;
};

// One head as float32, normalized if `norm` is given.
template <class A>
void load_head(const A* x, const float* norm, float eps, int64_t dim, float* out) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < dim; i += 16) {
        const __mmask16 mask = tail_mask(dim - i);
        const __m512 v = load_act(x + i, mask);
        squares = _mm512_fmadd_ps(v, v, squares);
        store_act(out + i, v, mask);
    }
    if (!norm) return;
    const float mean = _mm512_reduce_add_ps(squares) / float(dim);
    const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
    for (int64_t i = 0; i < dim; i += 16) {
        const __mmask16 mask = tail_mask(dim - i);
        const __m512 v = _mm512_mul_ps(load_act(out + i, mask), scale);
        store_act(out + i, _mm512_mul_ps(v, load_act(norm + i, mask)), mask);
    }
}

// Half-split rotation (Su et al., RoFormer, in GPT-NeoX's order): (a, b) -> (a cos - b sin, b cos + a sin).
template <class A>
void rotate(const float* x, const Rotation& r, A* y) {
    for (int64_t i = 0; i < r.half; i += 16) {
        const __mmask16 mask = tail_mask(r.half - i);
        const __m512 a = load_act(x + i, mask), b = load_act(x + r.half + i, mask);
        const __m512 c = load_act(r.cosine + i, mask), s = load_act(r.sine + i, mask);
        store_act(y + i, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)), mask);
        store_act(y + r.half + i, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)), mask);
    }
}

void write_key(const KvLayout<bf16>& at, const bf16* k, bf16* keys, int64_t offset) {
    for (int64_t i = 0; i < at.dim; i += 2) memcpy(keys + at.key_at(offset, i), k + i, 4);
}
void write_key(const KvLayout<float>& at, const float* k, float* keys, int64_t offset) {
    for (int64_t i = 0; i < at.dim; i++) keys[at.key_at(offset, i)] = k[i];
}

// A value shares its 32-bit lanes with its neighbour. Unless the neighbour is written in this same step (perhaps by
// another thread), the first of a pair clears it: attention multiplies it by zero, and a recycled page may hold NaN.
void write_value(const KvLayout<bf16>& at, const bf16* v, bf16* values, int64_t offset, bool clear_neighbour) {
    bf16* out = values + at.value_at(offset, 0);
    for (int64_t i = 0; i < at.dim; i++) {
        out[2 * i] = v[i];
        if (clear_neighbour) out[2 * i + 1] = 0;
    }
}
void write_value(const KvLayout<float>& at, const float* v, float* values, int64_t offset, bool) {
    memcpy(values + at.value_at(offset, 0), v, size_t(at.dim) * 4);
}

template <class A>
void one_token(const Instruction& in, int64_t t, bool neighbour_follows) {
    const int64_t heads = in.args[7];
    const KvLayout<A> at = {in.args[8], in.args[9], in.args[10]};
    const Rotation rotation = {pointer<float>(in, 2) + t * at.dim, pointer<float>(in, 2) + t * at.dim + at.dim / 2,
                               at.dim / 2};
    const A* qkv = pointer<A>(in, 0) + t * (heads + 2 * at.heads) * at.dim;
    alignas(64) float head[MAX_DIM];
    for (int64_t h = 0; h < heads; h++) {
        load_head(qkv + h * at.dim, pointer<float>(in, 5), in.reals[0], at.dim, head);
        rotate(head, rotation, pointer<A>(in, 1) + (t * heads + h) * at.dim);
    }
    const int64_t slot = pointer<int32_t>(in, 3)[t];
    if (slot < 0) return;
    const int64_t page = slot / at.page_size, offset = slot % at.page_size;
    const A *k = qkv + heads * at.dim, *v = k + at.heads * at.dim;
    alignas(64) A key[MAX_DIM];
    for (int64_t h = 0; h < at.heads; h++) {
        load_head(k + h * at.dim, pointer<float>(in, 6), in.reals[0], at.dim, head);
        rotate(head, rotation, key);
        write_key(at, key, at.keys(pointer<A>(in, 4), page, h), offset);
        const bool clear = offset % 2 == 0 && !neighbour_follows;
        write_value(at, v + h * at.dim, at.values(pointer<A>(in, 4), page, h), offset, clear);
    }
}

int64_t count(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

void run(const Instruction& in, const Dims& dims, int64_t begin, int64_t end, Scratch&) {
    const int32_t* slots = pointer<int32_t>(in, 3);
    for (int64_t t = begin; t < end; t++) {
        const bool follows = t + 1 < dims.tokens && slots[t + 1] == slots[t] + 1;
        if (in.args[11] == ACT_BF16) one_token<bf16>(in, t, follows);
        else one_token<float>(in, t, follows);
    }
}

}  // namespace

const OpKernel ROPE_KV_WRITE = {count, run, claim_between<1, 8>};
