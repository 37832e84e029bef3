// linear: y[T, N] = x[T, K] W^T (+ bias). Items are panels of sixteen outputs, within blocks of rows.
// linear.h has the arguments.
#include "linear.h"

namespace {

// Rows that share one expansion of a panel: as many as keep their activations in a part of L2.
constexpr int64_t ROW_BLOCK_BYTES = 512 << 10, MIN_ROW_BLOCK = 64;

RowBlocks row_blocks(const Linear& l, int64_t rows) {
    const int64_t fit = ROW_BLOCK_BYTES / l.x_stride();
    return RowBlocks(rows, fit > MIN_ROW_BLOCK ? fit : MIN_ROW_BLOCK);
}

template <class A>
void multiply(const Linear& l, const Ready& ready, int64_t row, int64_t rows, int64_t first, int panels) {
    if (l.amx && sizeof(A) == 2) return multiply_amx(l, ready, row, rows, first, panels);
    alignas(64) float c[MAX_MR * MAX_NP * 16];
    TileArgs t;
    t.segments = 0;
    add_segment(t, ready.panels, ready.panel_stride, l.k * l.act_bytes / 4);
    t.step_stride = ready.step_stride;
    t.a_stride = l.x_stride();
    t.c = c;
    t.c_stride = MAX_NP * 16;
    const RowBlocks blocks(rows, MAX_MR);
    for (int64_t i = 0; i < blocks.blocks; i++) {
        const int64_t begin = row + blocks.begin(i), size = blocks.size(i);
        t.a = l.x + begin * l.x_stride();
        ready.ahead.fetch(i, blocks.blocks);
        Tiles<A>::pick(int(size), panels)(t);
        finish(l, c, t.c_stride, begin, size, first, panels);
    }
}

// One row, without going through memory: the same rounded weights, the same chain. Records are fetched AHEAD of use,
// at the end of these panels from the NP that follow.

template <class Q, int NP>
void multiply_one_row(const Linear& l, int64_t row, int64_t first) {
    const int64_t records = l.k / 32, panel_bytes = records * Q::BYTES;
    const char* weight = l.weight + first * panel_bytes;
    const char* x = l.x + row * l.x_stride();
    alignas(64) float c[NP * 16];
    __m512 acc[NP];
    for (int p = 0; p < NP; p++) acc[p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < records; k++, weight += Q::BYTES, x += 64) {
        typename Q::Scales scales[NP];
#pragma GCC unroll 4
        for (int p = 0; p < NP; p++) {
            const char* record = weight + p * panel_bytes;
            const char* ahead = record + (k + AHEAD < records ? 0 : (NP - 1) * panel_bytes) + AHEAD * Q::BYTES;
            for (int64_t line = 0; line < Q::BYTES; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
            scales[p] = Q::scales(record);
        }
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; quarter++)
#pragma GCC unroll 4
            for (int p = 0; p < NP; p++)
#pragma GCC unroll 4
                for (int pair = 4 * quarter; pair < 4 * quarter + 4; pair++) {
                    const Pair w = Q::expand(weight + p * panel_bytes, pair, scales[p]);
                    acc[p] = multiply_add(bf16(), acc[p], round_pair(w), x + 4 * pair);
                }
    }
    for (int p = 0; p < NP; p++) _mm512_store_ps(c + p * 16, acc[p]);
    finish(l, c, NP * 16, row, 1, first, NP);
}

template <class Q>
void one_row(const Linear& l, int64_t row, int64_t first, int panels) {
    if (panels == 4) multiply_one_row<Q, 4>(l, row, first);
    if (panels == 3) multiply_one_row<Q, 3>(l, row, first);
    if (panels == 2) multiply_one_row<Q, 2>(l, row, first);
    if (panels == 1) multiply_one_row<Q, 1>(l, row, first);
}

template <class A, class Q>
void quantized(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    if (sizeof(A) == 2 && l.amx && rows <= AMX_FEW_ROWS) return multiply_few_rows_amx(l, row, rows, first, panels);
    if (sizeof(A) == 2 && !l.amx && rows == 1) return one_row<Q>(l, row, first, panels);
    const int64_t records = l.k / 32, step_stride = panels * 64, steps = 32 * sizeof(A) / 4;
    for (int p = 0; p < panels; p++) {
        const char* record = l.weight + (first + p) * records * Q::BYTES;
        char* out = scratch.base + p * 64;
        for (int64_t k = 0; k < records; k++, record += Q::BYTES, out += steps * step_stride) {
            for (int64_t line = 0; line < Q::BYTES; line += 64) _mm_prefetch(record + AHEAD * Q::BYTES + line, _MM_HINT_T0);
            expand_record<Q>(A(), record, out, step_stride);
        }
    }
    const int64_t bytes = panels * records * Q::BYTES;
    const Ahead next = {l.weight + first * records * Q::BYTES + bytes, bytes};
    multiply<A>(l, {scratch.base, 64, step_stride, next}, row, rows, first, panels);
}

// bfloat16 weights under float32 activations: widen the panels first.
void widened(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    const int64_t pairs = l.k / 2, step_stride = panels * 64;
    for (int p = 0; p < panels; p++) {
        const char* weight = l.weight + (first + p) * pairs * 64;
        char* out = scratch.base + p * 64;
        for (int64_t pair = 0; pair < pairs; pair++, out += 2 * step_stride) {
            __m512i both = _mm512_loadu_si512(weight + pair * 64);
            _mm512_storeu_si512(out, _mm512_slli_epi32(both, 16));
            _mm512_storeu_si512(out + step_stride, _mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u))));
        }
    }
    multiply<float>(l, {scratch.base, 64, step_stride, {nullptr, 0}}, row, rows, first, panels);
}

template <class A>
void panels_of(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    switch (l.storage) {
        case STORE_Q4: return quantized<A, Q4>(l, row, rows, first, panels, scratch);
        case STORE_Q8: return quantized<A, Q8>(l, row, rows, first, panels, scratch);
        case STORE_Q8M: return quantized<A, Q8M>(l, row, rows, first, panels, scratch);
        case STORE_Q8H: return quantized<A, Q8H>(l, row, rows, first, panels, scratch);
        case STORE_BF16:
            if (sizeof(A) == 4) return widened(l, row, rows, first, panels, scratch);
            break;
        default: break;
    }
    const int64_t panel_stride = l.k * l.act_bytes / 4 * 64;  // stored in the activation's own type
    multiply<A>(l, {l.weight + first * panel_stride, panel_stride, 64, {nullptr, 0}}, row, rows, first, panels);
}

// One row is bound by memory and wants an even split; several rows are bound by arithmetic, which wants whole tiles. Both
// want a thread to stay on neighbouring panels, whose memory it has fetched ahead.
Claim claim(const Instruction& in, const Dims& dims) {
    // Tiles of int8 are one panel wide.
    return row_count(in, dims) == 1 || in.args[9] == PRODUCT_INT8 ? Claim{1, 4 * MAX_NP} : Claim{MAX_NP, 4 * MAX_NP};
}

int64_t count(const Instruction& in, const Dims& dims) {
    const Linear l = decode(in);
    return row_blocks(l, row_count(in, dims)).blocks * l.panels();
}

void run(const Instruction& in, const Dims& dims, int64_t begin, int64_t end, Scratch& scratch) {
    TileScope tiles;
    const Linear l = decode(in, &tiles);
    const RowBlocks blocks = row_blocks(l, row_count(in, dims));
    const int64_t panels = l.panels();
    while (begin < end) {
        const int64_t block = begin / panels, first = begin % panels;
        int64_t np = end - begin < panels - first ? end - begin : panels - first;
        if (np > MAX_NP) np = MAX_NP;
        if (l.int8) multiply_int8(l, blocks.begin(block), blocks.size(block), first, int(np), scratch);
        else if (in.args[7] == ACT_BF16) panels_of<bf16>(l, blocks.begin(block), blocks.size(block), first, int(np), scratch);
        else panels_of<float>(l, blocks.begin(block), blocks.size(block), first, int(np), scratch);
        begin += np;
    }
}

}  // namespace

const OpKernel LINEAR = {count, run, claim};
