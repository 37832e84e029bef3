// linear on AMX: the same panels, thirty-two columns of x and sixteen steps of a panel at a time.
//
// A row's sums take the blocks of 32 columns in order, one instruction a block, however many rows share the tile and
// whichever function below computes them: results do not depend on the number of rows.
#include "linear.h"

namespace {

constexpr int64_t BLOCK_STEPS = 16;

struct PanelTiles {
    const Ready& ready;
    const char* tile(int64_t k, int64_t p) const {
        return ready.panels + k * BLOCK_STEPS * ready.step_stride + p * ready.panel_stride;
    }
    int64_t stride() const { return ready.step_stride; }
};

// A block of P panels to bfloat16; records are fetched AHEAD of use, at the end of these panels from those that follow.
template <class Q, int P>
void expand_block(const char* weight, int64_t panel_bytes, bool last, char* out) {
    constexpr int64_t AHEAD = 8;
    for (int p = 0; p < P; p++) {
        const char* record = weight + p * panel_bytes;
        const char* ahead = record + (last ? (P - 1) * panel_bytes : 0) + AHEAD * Q::BYTES;
        for (int64_t line = 0; line < Q::BYTES; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
        expand_record<Q>(bf16(), record, out + p * B_TILE, TILE_BYTES);
    }
}

template <int T, int P>
void add_panel(const char* expanded) {
    tile_load<T>(expanded + P * B_TILE, TILE_BYTES);
    tile_multiply<P, 4, T>();
}

// The next block is expanded while the tiles of this one are on their way.
template <class Q, int P>
void few_rows(const Linear& l, int64_t row, int64_t rows, int64_t first) {
    const int64_t records = l.k / 32, panel_bytes = records * Q::BYTES;
    const char* weight = l.weight + first * panel_bytes;
    const char* x = l.x + row * l.x_stride();
    alignas(64) char expanded[2][P * B_TILE];
    alignas(64) float c[TILE_ROWS * P * 16];
    l.tiles->configure(rows, rows);
    tile_zero<0>();
    if (P > 1) tile_zero<1>();
    if (P > 2) tile_zero<2>();
    if (P > 3) tile_zero<3>();
    expand_block<Q, P>(weight, panel_bytes, records <= 8, expanded[0]);
    for (int64_t k = 0; k < records; k++, x += TILE_BYTES) {
        const char* now = expanded[k % 2];
        weight += Q::BYTES;
        if (k + 1 < records) expand_block<Q, P>(weight, panel_bytes, k + 9 >= records, expanded[(k + 1) % 2]);
        tile_load<4>(x, l.x_stride());
        add_panel<6, 0>(now);
        if (P > 1) add_panel<7, 1>(now);
        if (P > 2) add_panel<6, 2>(now);
        if (P > 3) add_panel<7, 3>(now);
    }
    char* out = reinterpret_cast<char*>(c);
    tile_store<0>(out, P * TILE_BYTES);
    if (P > 1) tile_store<1>(out + TILE_BYTES, P * TILE_BYTES);
    if (P > 2) tile_store<2>(out + 2 * TILE_BYTES, P * TILE_BYTES);
    if (P > 3) tile_store<3>(out + 3 * TILE_BYTES, P * TILE_BYTES);
    finish(l, c, P * 16, row, rows, first, P);
}

template <class Q>
void few_rows(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels) {
    if (panels == 4) few_rows<Q, 4>(l, row, rows, first);
    if (panels == 3) few_rows<Q, 3>(l, row, rows, first);
    if (panels == 2) few_rows<Q, 2>(l, row, rows, first);
    if (panels == 1) few_rows<Q, 1>(l, row, rows, first);
}

}  // namespace

void multiply_amx(const Linear& l, const Ready& ready, int64_t row, int64_t rows, int64_t first, int panels) {
    constexpr int64_t HEIGHT = 2 * TILE_ROWS;
    alignas(64) float c[HEIGHT * MAX_NP * 16];
    for (int64_t done = 0; done < rows; done += HEIGHT) {
        const int64_t height = rows - done < HEIGHT ? rows - done : HEIGHT;
        const char* x = l.x + (row + done) * l.x_stride();
        ready.ahead.fetch(done / HEIGHT, (rows + HEIGHT - 1) / HEIGHT);
        l.tiles->multiply(x, l.x_stride(), height, PanelTiles{ready}, l.k / 32, panels, c, MAX_NP * 16);
        finish(l, c, MAX_NP * 16, row + done, height, first, panels);
    }
}

void multiply_few_rows_amx(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels) {
    if (l.storage == STORE_Q4) few_rows<Q4>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8) few_rows<Q8>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8M) few_rows<Q8M>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8H) few_rows<Q8H>(l, row, rows, first, panels);
}
