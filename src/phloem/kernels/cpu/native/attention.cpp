// paged_attention and its merge. The arithmetic for one query, head and chunk of keys is the same in every piece, and
// chunks merge in order: a token's result does not depend on how the work was cut (README.md).
//
// args: 0 plan, 1 q [T, H, d], 2 cache, 3 y [T, H*d], 4 block table int32 [R, max_pages], 5 max_pages, 6 H, 7 K, 8 d,
//       9 page size, 10 window or 0, 11 activation type, 12 shared_start, 13 shared_rows, 14 whether bfloat16 products run
//       on AMX; reals: 0 scale
#include "attention_plan.h"
#include "attention_tiles.h"
#include "kv_layout.h"
#include "ops.h"
#include "tile.h"

namespace {

constexpr int64_t MAX_DIM = 256, FEW_QUERIES = 16;

// A thread's working set for QUERY_VECTORS query vectors that share a kv head.
template <class A>
struct Work {
    A q[QUERY_VECTORS * MAX_DIM];
    float scores[QUERY_VECTORS * CHUNK];
    A weights[QUERY_VECTORS * CHUNK];
    float out[QUERY_VECTORS * MAX_DIM];    // of one chunk
    float total[QUERY_VECTORS * MAX_DIM];  // merged so far
    float peak[QUERY_VECTORS], sum[QUERY_VECTORS], total_peak[QUERY_VECTORS], total_sum[QUERY_VECTORS];
    int32_t position[QUERY_VECTORS], token[QUERY_VECTORS], head[QUERY_VECTORS];
    int64_t partial[QUERY_VECTORS];
    A last_values[AMX_KEYS * MAX_DIM];  // of a block that the chunk's keys do not fill
    int64_t size;
};

template <class A>
struct Attention {
    const Instruction& in;
    const AttentionPlan& plan;
    KvLayout<A> layout;
    int64_t heads, group, dim, window;
    float scale;
    bool amx;
    Work<A>& w;
    TileScope tiles;

    Attention(const Instruction& i, Scratch& scratch)
        : in(i), plan(*pointer<AttentionPlan>(i, 0)), layout{i.args[7], i.args[8], i.args[9]}, heads(i.args[6]),
          group(i.args[6] / i.args[7]), dim(i.args[8]), window(i.args[10]), scale(i.reals[0] * LOG2E),
          amx(sizeof(A) == 2 && i.args[14] && i.args[8] % 32 == 0), w(*reinterpret_cast<Work<A>*>(scratch.base)) {
        static_assert(sizeof(Work<A>) <= SCRATCH_BYTES, "working set fits the scratch");
    }

    // ---- gathering query vectors

    void add_query(const Row& row, int32_t token, int64_t head, int64_t chunk) {
        const int64_t i = w.size++;
        memcpy(w.q + i * dim, pointer<A>(in, 1) + (token * heads + head) * dim, size_t(dim) * sizeof(A));
        w.position[i] = row.first_position + (token - row.token_begin);
        w.token[i] = token;
        w.head[i] = int32_t(head);
        const int64_t chunks = row.chunk_end - row.chunk_begin;
        const int64_t slot = row.partial + (token - row.token_begin) * chunks + (chunk - row.chunk_begin);
        w.partial[i] = (slot * heads + head) * partial_floats(dim);
    }

    void add_queries(const Row& row, int32_t token, int64_t kv_head, int64_t chunk) {
        for (int64_t h = 0; h < group; h++) add_query(row, token, kv_head * group + h, chunk);
    }

    // ---- one chunk

    // The keys of the chunk that some gathered query sees: [low, high) as absolute positions, low even; on AMX low begins a
    // block, whose keys below it are in the same page and were written before.
    void visible(int64_t chunk, int64_t& low, int64_t& high) const {
        low = (chunk + 1) * CHUNK;
        high = chunk * CHUNK;
        for (int64_t i = 0; i < w.size; i++) {
            const int64_t first = first_key(i, chunk), last = last_key(i, chunk);
            if (last <= first) continue;
            if (first < low) low = first;
            if (last > high) high = last;
        }
        low &= amx ? -AMX_KEYS : ~int64_t(1);
    }
    int64_t first_key(int64_t i, int64_t chunk) const {
        const int64_t start = chunk * CHUNK, seen = window > 0 ? w.position[i] - window + 1 : 0;
        return seen > start ? seen : start;
    }
    int64_t last_key(int64_t i, int64_t chunk) const {
        const int64_t end = (chunk + 1) * CHUNK, seen = w.position[i] + 1;
        return seen < end ? seen : end;
    }

    A* cache() const { return pointer<A>(in, 2); }
    int64_t page_of(int64_t row, int64_t key) const {
        return pointer<int32_t>(in, 4)[row * in.args[5] + key / layout.page_size];
    }

    // scores[i, key - start] = q_i . k_key, four panels of sixteen keys at a time.
    void score(int64_t row, int64_t kv_head, int64_t start, int64_t low, int64_t high) {
        if (amx) return score_amx(row, kv_head, start, low, high);
        TileArgs t;
        t.a = reinterpret_cast<const char*>(w.q);
        t.a_stride = dim * int64_t(sizeof(A));
        t.step_stride = 64;
        t.segments = 1;
        t.steps[0] = layout.key_steps();
        t.c_stride = CHUNK;
        for (int64_t key = low & ~int64_t(15); key < high;) {
            int panels = 0;
            t.c = w.scores + (key - start);
            for (; panels < MAX_NP && key < high; panels++, key += 16) {
                t.b[0][panels] = key_panel(row, kv_head, key);
            }
            multiply_rows<A>(t, w.size, panels);
        }
    }
    const char* key_panel(int64_t row, int64_t kv_head, int64_t key) const {
        const A* keys = layout.keys(cache(), page_of(row, key), kv_head) + key % layout.page_size * dim;
        return reinterpret_cast<const char*>(keys);
    }
    void score_amx(int64_t row, int64_t kv_head, int64_t start, int64_t low, int64_t high) {
        KeyTiles keys;
        int64_t panels = 0;
        for (int64_t key = low; key < high; key += 16) keys.panels[panels++] = key_panel(row, kv_head, key);
        const int64_t bytes = dim * int64_t(sizeof(A));
        tiles.multiply(reinterpret_cast<const char*>(w.q), bytes, w.size, keys, bytes / TILE_BYTES, panels,
                       w.scores + (low - start), CHUNK);
    }

    // Softmax numerators of query i over [low, high), zero outside its own keys; its peak and sum. On AMX to the end of the
    // last block.
    void weigh(int64_t i, int64_t chunk, int64_t low, int64_t high) {
        if (amx) high = (high + AMX_KEYS - 1) & -AMX_KEYS;
        const int64_t start = chunk * CHUNK, block = (low - start) & ~int64_t(15), end = high - start;
        const int64_t first = first_key(i, chunk) - start, last = last_key(i, chunk) - start;
        const bool sees_all = first <= block && last >= ((end + 15) & ~int64_t(15));
        if (sees_all) weigh_keys<false>(i, block, end, first, last);
        else weigh_keys<true>(i, block, end, first, last);
    }

    template <bool MASKED>
    void weigh_keys(int64_t i, int64_t block, int64_t end, int64_t first, int64_t last) {
        const float* scores = w.scores + i * CHUNK;
        A* weights = w.weights + i * CHUNK;
        const __m512 lowest = _mm512_set1_ps(-__builtin_inff()), scaling = _mm512_set1_ps(scale);
        __m512 peak = lowest;
        for (int64_t k = block; k < end; k += 16) {
            const __mmask16 own = MASKED ? own_keys(k, first, last) : __mmask16(0xffff);
            peak = _mm512_mask_max_ps(peak, own, peak, _mm512_loadu_ps(scores + k));
        }
        w.peak[i] = last > first ? _mm512_reduce_max_ps(peak) * scale : -__builtin_inff();
        const __m512 top = _mm512_set1_ps(w.peak[i]);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = block; k < end; k += 16) {
            __m512 p = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + k), scaling, top));
            if (MASKED) p = _mm512_maskz_mov_ps(own_keys(k, first, last), p);
            sum = _mm512_add_ps(sum, p);
            store_act(weights + k, p, 0xffff);
        }
        w.sum[i] = _mm512_reduce_add_ps(sum);
    }
    // Which of the keys k..k+15 lie in [first, last).
    INLINE __mmask16 own_keys(int64_t k, int64_t first, int64_t last) {
        const uint32_t below = last - k >= 16 ? 0xffffu : (last <= k ? 0u : (1u << (last - k)) - 1u);
        const uint32_t before = first <= k ? 0u : (first - k >= 16 ? 0xffffu : (1u << (first - k)) - 1u);
        return __mmask16(below & ~before);
    }

    // out[i] = weights[i] . values over [low, high); the chunk's pages are the segments.
    void gather_values(int64_t row, int64_t kv_head, int64_t start, int64_t low, int64_t high) {
        if (amx) return gather_values_amx(row, kv_head, start, low, high);
        TileArgs t;
        t.a = reinterpret_cast<const char*>(w.weights + (low - start));
        t.a_stride = CHUNK * int64_t(sizeof(A));
        t.step_stride = layout.value_step_bytes();
        t.c_stride = dim;
        for (int64_t p = 0; p < dim / 16; p += MAX_NP) {
            t.segments = 0;
            for (int64_t key = low; key < high;) {
                const int64_t page_end = (key / layout.page_size + 1) * layout.page_size;
                const int64_t end = high < page_end ? high : page_end;
                const char* b = value_step(row, kv_head, key);
                add_segment(t, b + p * 64, 64, (end - key + layout.PER_STEP - 1) / layout.PER_STEP);
                key = end;
            }
            t.c = w.out + p * 16;
            multiply_rows<A>(t, w.size, dim / 16 - p < MAX_NP ? int(dim / 16 - p) : MAX_NP);
        }
    }

    const char* value_step(int64_t row, int64_t kv_head, int64_t key) const {
        const A* values = layout.values(cache(), page_of(row, key), kv_head);
        return reinterpret_cast<const char*>(values + layout.value_at(key % layout.page_size, 0));
    }
    // Weights beyond `high` are zero, but memory beyond it may hold NaN: a last block that is not full is read from a copy
    // with zeros there.
    void gather_values_amx(int64_t row, int64_t kv_head, int64_t start, int64_t low, int64_t high) {
        ValueTiles values;
        values.step_bytes = layout.value_step_bytes();
        int64_t blocks = 0;
        for (int64_t key = low; key < high; key += AMX_KEYS) {
            const char* first = value_step(row, kv_head, key);
            const int64_t used = (high - key + 1) / 2 * values.step_bytes, all = AMX_KEYS / 2 * values.step_bytes;
            if (used < all) {
                char* copy = reinterpret_cast<char*>(w.last_values);
                memcpy(copy, first, size_t(used));
                memset(copy + used, 0, size_t(all - used));
                first = copy;
            }
            values.blocks[blocks++] = first;
        }
        tiles.multiply(reinterpret_cast<const char*>(w.weights + (low - start)), CHUNK * int64_t(sizeof(A)), w.size, values,
                       blocks, dim / 16, w.out, dim);
    }

    // Few queries leave scoring bound by memory: the values, contiguous in each page, may as well be on their way.
    void fetch_values(int64_t row, int64_t kv_head, int64_t low, int64_t high) const {
        for (int64_t key = low & ~int64_t(15); key < high; key += 16) {
            const A* values = layout.values(cache(), page_of(row, key), kv_head) + key % layout.page_size * dim;
            const char* line = reinterpret_cast<const char*>(values);
            for (int64_t i = 0; i < layout.key_panel_bytes(); i += 64) _mm_prefetch(line + i, _MM_HINT_T1);
        }
    }

    void attend(int64_t row, int64_t kv_head, int64_t chunk) {
        int64_t low, high;
        visible(chunk, low, high);
        if (high <= low) {
            for (int64_t i = 0; i < w.size; i++) w.peak[i] = -__builtin_inff();
            return;
        }
        if (w.size <= FEW_QUERIES) fetch_values(row, kv_head, low, high);
        score(row, kv_head, chunk * CHUNK, low, high);
        for (int64_t i = 0; i < w.size; i++) weigh(i, chunk, low, high);
        gather_values(row, kv_head, chunk * CHUNK, low, high);
    }

    // ---- merging (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 3)

    void clear_total(int64_t i) {
        w.total_peak[i] = -__builtin_inff();
        w.total_sum[i] = 0.0f;
        memset(w.total + i * dim, 0, size_t(dim) * 4);
    }

    // How much of the totals to keep and of the new results to take, for sixteen queries from i on.
    struct Shares {
        alignas(64) float keep[16], take[16];
        __mmask16 seen;
    };
    Shares merge_sums(int64_t i, const float* peaks, const float* sums) {
        Shares s;
        const __mmask16 valid = tail_mask(w.size - i);
        const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
        const __m512 old = load_act(w.total_peak + i, valid), peak = _mm512_mask_loadu_ps(lowest, valid, peaks + i);
        s.seen = _mm512_cmp_ps_mask(peak, lowest, _CMP_NEQ_OQ);
        const __m512 top = _mm512_max_ps(old, peak), total = load_act(w.total_sum + i, valid);
        const __m512 keep = exp2_ps(_mm512_sub_ps(old, top)), take = exp2_ps(_mm512_sub_ps(peak, top));
        const __m512 sum = _mm512_fmadd_ps(load_act(sums + i, valid), take, _mm512_mul_ps(total, keep));
        store_act(w.total_sum + i, sum, s.seen);
        store_act(w.total_peak + i, top, s.seen);
        _mm512_store_ps(s.keep, keep);
        _mm512_store_ps(s.take, take);
        return s;
    }

    // Merges a chunk's results [size, dim] into the totals; queries that saw none of its keys stay as they are.
    void merge(const float* out, const float* peaks, const float* sums) {
        for (int64_t block = 0; block < w.size; block += 16) {
            const Shares shares = merge_sums(block, peaks, sums);
            for (int64_t i = block; i < block + 16 && i < w.size; i++) {
                if (!(shares.seen >> (i - block) & 1)) continue;
                const __m512 keep = _mm512_set1_ps(shares.keep[i - block]), take = _mm512_set1_ps(shares.take[i - block]);
                float* total = w.total + i * dim;
                for (int64_t j = i * dim; j < (i + 1) * dim; j += 16, total += 16) {
                    const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(total), keep);
                    _mm512_storeu_ps(total, _mm512_fmadd_ps(_mm512_loadu_ps(out + j), take, kept));
                }
            }
        }
    }

    void write_output(int64_t i, int64_t token, int64_t head) {
        const __m512 sum = _mm512_set1_ps(w.total_sum[i]);
        A* y = pointer<A>(in, 3) + (token * heads + head) * dim;
        for (int64_t j = 0; j < dim; j += 16)
            store_act(y + j, _mm512_div_ps(_mm512_loadu_ps(w.total + i * dim + j), sum), 0xffff);
    }

    void store_partials() {
        for (int64_t i = 0; i < w.size; i++) {
            float* partial = plan.partials + w.partial[i];
            memcpy(partial, w.out + i * dim, size_t(dim) * 4);
            partial[dim] = w.peak[i];
            partial[dim + 1] = w.sum[i];
        }
    }

    // ---- pieces

    void whole(const Piece& piece, int64_t kv_head) {
        const Row& row = plan.rows.items[piece.row];
        w.size = 0;
        for (int32_t t = piece.token_begin; t < piece.token_end; t++) add_queries(row, t, kv_head, row.chunk_begin);
        for (int64_t i = 0; i < w.size; i++) clear_total(i);
        for (int32_t c = piece.chunk_begin; c < piece.chunk_end; c++) {
            attend(piece.row, kv_head, c);
            merge(w.out, w.peak, w.sum);
        }
        for (int64_t i = 0; i < w.size; i++) write_output(i, w.token[i], w.head[i]);
    }

    void flush(int64_t row, int64_t kv_head, int64_t chunk) {
        if (w.size) attend(row, kv_head, chunk);
        store_partials();
        w.size = 0;
    }

    void part(const Piece& piece, int64_t kv_head) {
        const Row& row = plan.rows.items[piece.row];
        w.size = 0;
        for (int32_t t = piece.token_begin; t < piece.token_end; t++) {
            if (w.size + group > QUERY_VECTORS) flush(piece.row, kv_head, piece.chunk_begin);
            add_queries(row, t, kv_head, piece.chunk_begin);
        }
        flush(piece.row, kv_head, piece.chunk_begin);
    }

    void group_part(const Piece& piece, int64_t kv_head) {
        const int32_t *start = pointer<int32_t>(in, 12), *rows = pointer<int32_t>(in, 13);
        int32_t any = rows[start[piece.row]];
        w.size = 0;
        for (int32_t m = start[piece.row]; m < start[piece.row + 1]; m++) {
            const Row& row = plan.rows.items[rows[m]];
            if (row.token_end - row.token_begin > MAX_SPLIT) continue;
            if (piece.chunk_begin < row.chunk_begin || piece.chunk_begin >= row.chunk_end) continue;
            for (int32_t t = row.token_begin; t < row.token_end; t++) {
                if (w.size + group > QUERY_VECTORS) flush(any, kv_head, piece.chunk_begin);
                add_queries(row, t, kv_head, piece.chunk_begin);
            }
        }
        flush(any, kv_head, piece.chunk_begin);
    }

    void run(int64_t item) {
        const Piece& piece = plan.pieces.items[item / layout.heads];
        const int64_t kv_head = item % layout.heads;
        if (piece.kind == PIECE_WHOLE) whole(piece, kv_head);
        if (piece.kind == PIECE_PART) part(piece, kv_head);
        if (piece.kind == PIECE_GROUP) group_part(piece, kv_head);
    }

    void merge_token(const Split& split) {
        const Row& row = plan.rows.items[plan.row_of_token.items[split.token]];
        for (int64_t h = 0; h < heads; h++) {
            w.size = 0;
            add_query(row, split.token, h, row.chunk_begin);
            clear_total(0);
            for (int32_t c = split.chunk_begin; c < split.chunk_end; c++) {
                const float* partial = plan.partials + w.partial[0] + (c - split.chunk_begin) * heads * partial_floats(dim);
                merge(partial, partial + dim, partial + dim + 1);
            }
            write_output(0, split.token, h);
        }
    }
};

int64_t count(const Instruction& in, const Dims&) { return pointer<AttentionPlan>(in, 0)->pieces.size * in.args[7]; }

// Kv heads of a page lie side by side: a thread reads on where it stopped.
Claim claim(const Instruction& in, const Dims&) { return {1, 2 * in.args[7]}; }

template <class A>
void run_items(const Instruction& in, int64_t begin, int64_t end, Scratch& scratch) {
    Attention<A> attention(in, scratch);
    for (int64_t item = begin; item < end; item++) attention.run(item);
}

void run(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch& scratch) {
    if (in.args[11] == ACT_BF16) run_items<bf16>(in, begin, end, scratch);
    else run_items<float>(in, begin, end, scratch);
}

int64_t count_splits(const Instruction& in, const Dims&) { return pointer<AttentionPlan>(in, 0)->splits.size; }

void run_merge(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch& scratch) {
    const AttentionPlan& plan = *pointer<AttentionPlan>(in, 0);
    for (int64_t item = begin; item < end; item++) {
        if (in.args[11] == ACT_BF16) Attention<bf16>(in, scratch).merge_token(plan.splits.items[item]);
        else Attention<float>(in, scratch).merge_token(plan.splits.items[item]);
    }
}

}  // namespace

const OpKernel ATTENTION = {count, run, claim};
const OpKernel ATTENTION_MERGE = {count_splits, run_merge, claim_between<1, 8>};
