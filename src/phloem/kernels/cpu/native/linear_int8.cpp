// linear on int8 activations and quantized weights, by integer dot products (VNNI).
//
//   y = sum over blocks of 32 columns:  (d_w * d_x) * sum(level_w * level_x)  +  offset_w * (d_x * sum(level_x))
//
// Levels of weights are unsigned for the instruction: nibbles as they are, bytes plus 128, which the offset takes back.
// The integer sum is exact, so any order of its parts gives the same bits; the floating-point sums run over the blocks in
// order, whatever the number of rows. A block is held in eight registers while it meets up to MAX_ROWS rows.
#include "int8_rows.h"
#include "linear.h"

namespace {

constexpr int MAX_ROWS = 16, FEW_ROWS = 32;

// Scales and offsets of sixteen rows in a block of 32 columns: one of each, or two, for sixteen columns each (q8h).
struct Factors {
    __m512 scale[2], offset[2];
};

INLINE __m512i bytes_of(const char* p) { return _mm512_loadu_si512(p); }

// Lane i of `even_lanes`/`odd_lanes` of (low, high): rows 0..7 lie in pairs of lanes of `low`, rows 8..15 in those of `high`.
INLINE __m512i even_lanes(__m512i low, __m512i high) {
    return _mm512_permutex2var_epi32(low, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), high);
}
INLINE __m512i odd_lanes(__m512i low, __m512i high) {
    return _mm512_permutex2var_epi32(low, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), high);
}

// Bytes 64s..64s+63 of a q8 record hold two columns of sixteen rows, then two more: to four columns a lane, plus 128.
INLINE __m512i unsigned_step(const char* bytes, int step) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_xor_si512(_mm512_permutexvar_epi16(order, bytes_of(bytes + 64 * step)), _mm512_set1_epi8(char(0x80)));
}
INLINE __m512 minus_128(__m512 scale) { return _mm512_mul_ps(scale, _mm512_set1_ps(-128.0f)); }

// What a storage says of itself: Q is its record (storage.h), PARTS its scales a block.
struct Int8Q4 {
    using Q = Q4;
    static constexpr int PARTS = 1;
    INLINE Factors factors(const char* record) {
        Factors f;
        f.scale[0] = load_halves(record);
        f.offset[0] = load_halves(record + 32);
        return f;
    }
    INLINE void expand(const char* record, __m512i* steps) {
        const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int z = 0; z < 4; z++) {
            const __m512i word = bytes_of(record + 64 + 64 * z);
            const __m512i low = _mm512_and_si512(word, mask), high = _mm512_and_si512(_mm512_srli_epi16(word, 4), mask);
            steps[2 * z] = even_lanes(low, high);
            steps[2 * z + 1] = odd_lanes(low, high);
        }
    }
    // One row: lanes stay as they lie in the record, even ones meeting even columns, odd ones odd columns.
    INLINE void dots(const char* record, const char* x, __m512i* sum) {
        const __m512i mask = _mm512_set1_epi8(15);
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int z = 0; z < 4; z++) {
            int64_t levels;
            memcpy(&levels, x + 8 * z, 8);
            const __m512i word = bytes_of(record + 64 + 64 * z), eight = _mm512_set1_epi64(levels);
            low = _mm512_dpbusd_epi32(low, _mm512_and_si512(word, mask), eight);
            high = _mm512_dpbusd_epi32(high, _mm512_and_si512(_mm512_srli_epi16(word, 4), mask), eight);
        }
        sum[0] = _mm512_add_epi32(even_lanes(low, high), odd_lanes(low, high));
    }
};

// The byte storages differ in their header and its meaning only.
template <class Storage, int COUNT, int64_t HEADER>
struct Int8Bytes {
    using Q = Storage;
    static constexpr int PARTS = COUNT;
    INLINE Factors factors(const char* record) {
        Factors f;
        for (int part = 0; part < PARTS; part++) {
            f.scale[part] = load_halves(record + 32 * part);
            f.offset[part] = minus_128(f.scale[part]);
        }
        if (HEADER == 64 && PARTS == 1) f.offset[0] = _mm512_add_ps(f.offset[0], load_halves(record + 32));
        return f;
    }
    INLINE void expand(const char* record, __m512i* steps) {
#pragma GCC unroll 8
        for (int step = 0; step < 8; step++) steps[step] = unsigned_step(record + HEADER, step);
    }
    INLINE void dots(const char* record, const char* x, __m512i* sum) {
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) {
            sum[part] = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int step = part * 8 / PARTS; step < (part + 1) * 8 / PARTS; step++) {
                int32_t levels;
                memcpy(&levels, x + 4 * step, 4);
                sum[part] = _mm512_dpbusd_epi32(sum[part], unsigned_step(record + HEADER, step), _mm512_set1_epi32(levels));
            }
        }
    }
};
using Int8Q8 = Int8Bytes<Q8, 1, 32>;
using Int8Q8M = Int8Bytes<Q8M, 1, 64>;
using Int8Q8H = Int8Bytes<Q8H, 2, 64>;

// The floating-point part of one block for one row, in the one order there is.
template <int PARTS>
INLINE __m512 accumulate(__m512 acc, const __m512i* sum, const Factors& f, const BlockScale& x) {
    const __m512 d = _mm512_set1_ps(x.d);
    if (PARTS == 1) {
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0]), _mm512_mul_ps(f.scale[0], d), acc);
        return _mm512_fmadd_ps(f.offset[0], _mm512_set1_ps(x.sum), acc);
    }
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0]), _mm512_mul_ps(f.scale[0], d), acc);
    acc = _mm512_fmadd_ps(f.offset[0], _mm512_set1_ps(x.first), acc);
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1]), _mm512_mul_ps(f.scale[1], d), acc);
    return _mm512_fmadd_ps(f.offset[1], _mm512_set1_ps(x.second), acc);
}

// ---- several rows

// Where a tile finds its blocks: in records as they are packed, or expanded once for many rows.
template <class Storage>
struct Packed {
    using S = Storage;
    static constexpr int64_t BYTES = S::Q::BYTES;
    INLINE void load(const char* block, __m512i* steps, Factors& f) {
        for (int64_t line = 0; line < BYTES; line += 64) _mm_prefetch(block + AHEAD * BYTES + line, _MM_HINT_T0);
        S::expand(block, steps);
        f = S::factors(block);
    }
};
template <class Storage>
struct Expanded {
    using S = Storage;
    static constexpr int64_t BYTES = 64 * (8 + 2 * S::PARTS);
    INLINE void load(const char* block, __m512i* steps, Factors& f) {
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) steps[s] = _mm512_load_si512(block + 64 * s);
#pragma GCC unroll 2
        for (int part = 0; part < S::PARTS; part++) {
            f.scale[part] = _mm512_load_ps(block + 512 + 128 * part);
            f.offset[part] = _mm512_load_ps(block + 576 + 128 * part);
        }
    }
    INLINE void store(char* block, const char* record) {
        __m512i steps[8];
        S::expand(record, steps);
        const Factors f = S::factors(record);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) _mm512_store_si512(block + 64 * s, steps[s]);
#pragma GCC unroll 2
        for (int part = 0; part < S::PARTS; part++) {
            _mm512_store_ps(block + 512 + 128 * part, f.scale[part]);
            _mm512_store_ps(block + 576 + 128 * part, f.offset[part]);
        }
    }
};

struct Tile {
    const char* panel;
    int64_t blocks;
    const char* x;
    int64_t x_stride, k;
    float* c;
    int64_t c_stride;
};

// acc + weights * four levels. Written out because gcc 12 does not fold the broadcast into the instruction.
INLINE __m512i dot_step(__m512i acc, __m512i weights, const char* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(x)));
    return acc;
}

template <class From, int ROWS>
void tile(const Tile& t) {
    constexpr int PARTS = From::S::PARTS;
    __m512 acc[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) acc[r] = _mm512_setzero_ps();
    const char *x = t.x, *scales = t.x + t.k, *block = t.panel;
    const int64_t x_stride = t.x_stride;
    for (int64_t b = 0; b < t.blocks; b++, block += From::BYTES, x += 32, scales += sizeof(BlockScale)) {
        __m512i w[8];
        Factors f;
        From::load(block, w, f);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const char* row = x + r * x_stride;
            __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int s = 0; s < 4; s++) {
                first = dot_step(first, w[s], row + 4 * s);
                second = dot_step(second, w[s + 4], row + 4 * s + 16);
            }
            const __m512i sums[2] = {PARTS == 1 ? _mm512_add_epi32(first, second) : first, second};
            acc[r] = accumulate<PARTS>(acc[r], sums, f, *reinterpret_cast<const BlockScale*>(scales + r * x_stride));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(t.c + r * t.c_stride, acc[r]);
}

template <class From, int ROWS = MAX_ROWS>
void tile_of(const Tile& t, int64_t rows) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) return tile<From, ROWS>(t);
        tile_of<From, ROWS - 1>(t, rows);
    }
}

template <class From>
void several_rows(const Linear& l, const char* panels_at, int64_t row, int64_t rows, int64_t first, int panels, const Ahead& ahead) {
    const int64_t blocks = l.k / 32;
    alignas(64) float c[MAX_ROWS * MAX_NP * 16];
    const RowBlocks heights(rows, MAX_ROWS);
    for (int64_t i = 0; i < heights.blocks; i++) {
        const int64_t begin = row + heights.begin(i), size = heights.size(i);
        ahead.fetch(i, heights.blocks);
        for (int p = 0; p < panels; p++)
            tile_of<From>({panels_at + p * blocks * From::BYTES, blocks, l.x + begin * l.x_stride(), l.x_stride(), l.k, c + p * 16,
                           MAX_NP * 16}, size);
        finish(l, c, MAX_NP * 16, begin, size, first, panels);
    }
}

template <class S>
void many_rows(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    const int64_t bytes = panels * (l.k / 32) * S::Q::BYTES;
    const char *record = l.weight + first * (l.k / 32) * S::Q::BYTES, *end = record + bytes;
    for (char* block = scratch.base; record < end; record += S::Q::BYTES, block += Expanded<S>::BYTES) {
        for (int64_t line = 0; line < S::Q::BYTES; line += 64) _mm_prefetch(record + AHEAD * S::Q::BYTES + line, _MM_HINT_T0);
        Expanded<S>::store(block, record);
    }
    several_rows<Expanded<S>>(l, scratch.base, row, rows, first, panels, {end, bytes});
}

// ---- one row, straight from the records

template <class S, int NP>
void one_row(const Linear& l, int64_t row, int64_t first) {
    using Q = typename S::Q;
    const int64_t records = l.k / 32, panel_bytes = records * Q::BYTES;
    const char *weight = l.weight + first * panel_bytes, *x = l.x + row * l.x_stride();
    const BlockScale* scales = block_scales(x, l.k);
    alignas(64) float c[NP * 16];
    __m512 acc[NP];
    for (int p = 0; p < NP; p++) acc[p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < records; k++, weight += Q::BYTES, x += 32) {
        const int64_t ahead = (k + AHEAD < records ? 0 : (NP - 1) * panel_bytes) + AHEAD * Q::BYTES;
#pragma GCC unroll 4
        for (int p = 0; p < NP; p++) {
            const char* record = weight + p * panel_bytes;
            for (int64_t line = 0; line < Q::BYTES; line += 64) _mm_prefetch(record + ahead + line, _MM_HINT_T0);
            __m512i sum[S::PARTS];
            S::dots(record, x, sum);
            acc[p] = accumulate<S::PARTS>(acc[p], sum, S::factors(record), scales[k]);
        }
    }
    for (int p = 0; p < NP; p++) _mm512_store_ps(c + p * 16, acc[p]);
    finish(l, c, NP * 16, row, 1, first, NP);
}

template <class S>
void rows_of(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    if (rows > FEW_ROWS) return many_rows<S>(l, row, rows, first, panels, scratch);
    if (rows > 1)
        return several_rows<Packed<S>>(l, l.weight + first * (l.k / 32) * S::Q::BYTES, row, rows, first, panels, {nullptr, 0});
    if (panels == 4) one_row<S, 4>(l, row, first);
    if (panels == 3) one_row<S, 3>(l, row, first);
    if (panels == 2) one_row<S, 2>(l, row, first);
    if (panels == 1) one_row<S, 1>(l, row, first);
}

}  // namespace

void multiply_int8(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels, Scratch& scratch) {
    switch (l.storage) {
        case STORE_Q4: return rows_of<Int8Q4>(l, row, rows, first, panels, scratch);
        case STORE_Q8: return rows_of<Int8Q8>(l, row, rows, first, panels, scratch);
        case STORE_Q8M: return rows_of<Int8Q8M>(l, row, rows, first, panels, scratch);
        case STORE_Q8H: return rows_of<Int8Q8H>(l, row, rows, first, panels, scratch);
        default: return;
    }
}
