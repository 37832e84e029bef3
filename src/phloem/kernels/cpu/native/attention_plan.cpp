// attention_plan: from the step's metadata to pieces. One item.
//
// args: 0 plan, 1 query_start [R+1], 2 context_len [R], 3 shared_start [G+1], 4 shared_rows, 5 shared_pages [G],
//       6 page size, 7 H, 8 K, 9 d, 10 window or 0
#include "attention_plan.h"

#include <cstdlib>

#include "ops.h"

namespace {

template <class T>
void push(Array<T>& array, const T& item) {
    if (array.size == array.capacity) {
        array.capacity = array.capacity ? 2 * array.capacity : 256;
        array.items = static_cast<T*>(realloc(static_cast<void*>(array.items), size_t(array.capacity) * sizeof(T)));
    }
    array.items[array.size++] = item;
}

struct Planner {
    AttentionPlan& plan;
    const Instruction& in;
    const Dims& dims;
    int64_t window() const { return in.args[10]; }
    const int32_t* array(int index) const { return pointer<int32_t>(in, index); }

    int64_t first_chunk(int64_t position) const {
        return window() > 0 && position >= window() ? (position - window() + 1) / CHUNK : 0;
    }

    void add_rows() {
        int64_t partials = 0;
        for (int64_t r = 0; r < dims.rows; r++) {
            const int32_t begin = array(1)[r], end = array(1)[r + 1], context = array(2)[r];
            const int32_t first = context - (end - begin);
            Row row = {begin, end, first, int32_t(first_chunk(first)), int32_t((context + CHUNK - 1) / CHUNK), partials};
            if (end - begin <= MAX_SPLIT) partials += (end - begin) * (row.chunk_end - row.chunk_begin);
            push(plan.rows, row);
        }
        const int64_t floats = partials * in.args[7] * partial_floats(in.args[9]);
        if (floats <= plan.partial_capacity) return;
        free(plan.partials);
        plan.partials = static_cast<float*>(aligned_alloc(64, size_t(floats) * 4));
        plan.partial_capacity = floats;
    }

    // Long rows: blocks of query tokens, the last (longest) first.
    void add_whole(int32_t r) {
        const Row& row = plan.rows.items[r];
        const int64_t group = in.args[7] / in.args[8];
        int32_t block = int32_t(QUERY_VECTORS / group);
        if (block > 32) block = 32;
        if (block < 1) block = 1;
        const int32_t blocks = (row.token_end - row.token_begin + block - 1) / block;
        for (int32_t b = blocks - 1; b >= 0; b--) {
            const int32_t begin = row.token_begin + b * block;
            const int32_t end = begin + block < row.token_end ? begin + block : row.token_end;
            const int64_t low = row.first_position + (begin - row.token_begin);
            const int64_t high = row.first_position + (end - row.token_begin);
            push(plan.pieces, {PIECE_WHOLE, r, begin, end, int32_t(first_chunk(low)), int32_t((high + CHUNK - 1) / CHUNK)});
        }
    }

    void add_parts(int32_t r, int32_t chunks_done) {
        const Row& row = plan.rows.items[r];
        const int32_t begin = row.chunk_begin > chunks_done ? row.chunk_begin : chunks_done;
        for (int32_t c = begin; c < row.chunk_end; c++)
            push(plan.pieces, {PIECE_PART, r, row.token_begin, row.token_end, c, c + 1});
        for (int32_t t = row.token_begin; t < row.token_end; t++) push(plan.splits, {t, row.chunk_begin, row.chunk_end});
    }

    bool is_split(int32_t r) const {
        const int32_t tokens = plan.rows.items[r].token_end - plan.rows.items[r].token_begin;
        return tokens > 0 && tokens <= MAX_SPLIT;
    }

    // Chunks that lie wholly in pages shared by two or more split rows; returns nothing, marks `done` a row.
    void add_group(int32_t g, int32_t* done) {
        const int32_t chunks = int32_t(int64_t(array(5)[g]) * in.args[6] / CHUNK);
        int32_t members = 0, begin = chunks, end = 0;
        for (int32_t i = array(3)[g]; i < array(3)[g + 1]; i++) {
            const int32_t r = array(4)[i];
            if (!is_split(r)) continue;
            const Row& row = plan.rows.items[r];
            members++;
            if (row.chunk_begin < begin) begin = row.chunk_begin;
            if (row.chunk_end > end) end = row.chunk_end;
        }
        if (members < 2) return;
        if (end > chunks) end = chunks;
        for (int32_t c = begin; c < end; c++) push(plan.pieces, {PIECE_GROUP, g, 0, 0, c, c + 1});
        for (int32_t i = array(3)[g]; i < array(3)[g + 1]; i++) done[array(4)[i]] = end;
    }

    void add_pieces() {
        int32_t* done = static_cast<int32_t*>(calloc(size_t(dims.rows) + 1, 4));  // chunks of a row a group covers
        for (int32_t g = 0; g < dims.groups; g++) add_group(g, done);
        for (int32_t r = 0; r < dims.rows; r++) {
            const Row& row = plan.rows.items[r];
            if (row.token_end <= row.token_begin) continue;
            const bool whole = !is_split(r) || (row.chunk_end - row.chunk_begin <= 1 && done[r] == 0);
            if (whole) add_whole(r);
            else add_parts(r, done[r]);
        }
        free(done);
    }

    void map_tokens() {
        for (int32_t r = 0; r < dims.rows; r++)
            for (int32_t t = plan.rows.items[r].token_begin; t < plan.rows.items[r].token_end; t++)
                push(plan.row_of_token, r);
    }
};

int64_t count(const Instruction&, const Dims&) { return 1; }

void run(const Instruction& in, const Dims& dims, int64_t, int64_t, Scratch&) {
    AttentionPlan& plan = *pointer<AttentionPlan>(in, 0);
    plan.pieces.size = plan.splits.size = plan.rows.size = plan.row_of_token.size = 0;
    Planner planner = {plan, in, dims};
    planner.add_rows();
    planner.add_pieces();
    planner.map_tokens();
}

}  // namespace

const OpKernel ATTENTION_PLAN = {count, run, claim_between<1, 1>};

extern "C" AttentionPlan* phloem_plan_create() { return static_cast<AttentionPlan*>(calloc(1, sizeof(AttentionPlan))); }

extern "C" void phloem_plan_destroy(AttentionPlan* plan) {
    free(plan->pieces.items);
    free(plan->splits.items);
    free(plan->rows.items);
    free(plan->row_of_token.items);
    free(plan->partials);
    free(plan);
}
