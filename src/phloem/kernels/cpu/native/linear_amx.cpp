// linear on AMX: the same panels, thirty-two columns of x and sixteen steps of a panel at a time.
//
// A tile is 16 rows x 64 bytes. Tiles 0..3 hold sums; a row's sums take the blocks of 32 columns in order, one
// instruction a block, however many rows share the tile: results do not depend on the number of rows.
#include "amx_tiles.h"
#include "linear.h"

namespace {

constexpr int64_t BLOCK_STEPS = 16, BLOCK_BYTES = 64;  // of x: 32 bfloat16

// Sums of up to 32 rows by 2 panels in tiles 0..3 (row block, panel), x in 4 and 5, panels in 6 and 7.
TileConfig square_config(int upper, int lower) {
    TileConfig config = {};
    config.palette = 1;
    const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = uint8_t(rows[t]);
        config.bytes_per_row[t] = rows[t] ? 64 : 0;
    }
    return config;
}

// Sums of up to 16 rows by 4 panels in tiles 0..3, x in 4, a panel in 5.
TileConfig flat_config(int rows) {
    TileConfig config = {};
    config.palette = 1;
    for (int t = 0; t < 6; t++) {
        config.rows[t] = uint8_t(t == 5 ? 16 : rows);
        config.bytes_per_row[t] = 64;
    }
    return config;
}

template <bool LOWER, bool SECOND>
void square(const Linear& l, const Ready& ready, const char* x, const char* b, char* c, int64_t c_bytes) {
    tile_zero<0>();
    if (SECOND) tile_zero<1>();
    if (LOWER) tile_zero<2>();
    if (LOWER && SECOND) tile_zero<3>();
    for (int64_t block = 0; block < l.k / 32; block++, x += BLOCK_BYTES, b += BLOCK_STEPS * ready.step_stride) {
        tile_load<6>(b, ready.step_stride);
        tile_load<4>(x, l.x_stride());
        tile_multiply<0, 4, 6>();
        if (SECOND) tile_load<7>(b + ready.panel_stride, ready.step_stride);
        if (SECOND) tile_multiply<1, 4, 7>();
        if (LOWER) tile_load<5>(x + 16 * l.x_stride(), l.x_stride());
        if (LOWER) tile_multiply<2, 5, 6>();
        if (LOWER && SECOND) tile_multiply<3, 5, 7>();
    }
    tile_store<0>(c, c_bytes);
    if (SECOND) tile_store<1>(c + 64, c_bytes);
    if (LOWER) tile_store<2>(c + 16 * c_bytes, c_bytes);
    if (LOWER && SECOND) tile_store<3>(c + 16 * c_bytes + 64, c_bytes);
}

template <class Q>
void expand_block(const char* weight, int64_t panel_bytes, int panels, char* out) {
    for (int p = 0; p < panels; p++) {
        const char* record = weight + p * panel_bytes;
        for (int64_t line = 0; line < Q::BYTES; line += 64) _mm_prefetch(record + 8 * Q::BYTES + line, _MM_HINT_T0);
        expand_record<Q>(bf16(), record, out + p * 64, MAX_NP * 64);
    }
}

template <int P>
void add_panel(const char* panels) {
    tile_load<5>(panels + P * 64, MAX_NP * 64);
    tile_multiply<P, 4, 5>();
}

// The next block is expanded while the tiles of this one are on their way.
template <class Q>
void few_rows(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels) {
    const int64_t records = l.k / 32, panel_bytes = records * Q::BYTES;
    const char* weight = l.weight + first * panel_bytes;
    const char* x = l.x + row * l.x_stride();
    alignas(64) char expanded[2][BLOCK_STEPS * MAX_NP * 64];
    alignas(64) float c[16 * MAX_NP * 16];
    const TileConfig config = flat_config(int(rows));
    tiles_configure(config);
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    expand_block<Q>(weight, panel_bytes, panels, expanded[0]);
    for (int64_t k = 0; k < records; k++, x += BLOCK_BYTES) {
        if (k + 1 < records) expand_block<Q>(weight + (k + 1) * Q::BYTES, panel_bytes, panels, expanded[(k + 1) % 2]);
        tile_load<4>(x, l.x_stride());
        add_panel<0>(expanded[k % 2]);
        if (panels > 1) add_panel<1>(expanded[k % 2]);
        if (panels > 2) add_panel<2>(expanded[k % 2]);
        if (panels > 3) add_panel<3>(expanded[k % 2]);
    }
    char* out = reinterpret_cast<char*>(c);
    tile_store<0>(out, MAX_NP * 64);
    tile_store<1>(out + 64, MAX_NP * 64);
    tile_store<2>(out + 128, MAX_NP * 64);
    tile_store<3>(out + 192, MAX_NP * 64);
    tiles_release();
    finish(l, c, MAX_NP * 16, row, rows, first, panels);
}

}  // namespace

void multiply_amx(const Linear& l, const Ready& ready, int64_t row, int64_t rows, int64_t first, int panels) {
    alignas(64) float c[32 * MAX_NP * 16];
    int configured = 0;
    for (int64_t done = 0; done < rows; done += 32) {
        const int height = rows - done < 32 ? int(rows - done) : 32, lower = height > 16 ? height - 16 : 0;
        if (height != configured) {
            const TileConfig config = square_config(height - lower, lower);
            tiles_configure(config);
            configured = height;
        }
        ready.ahead.fetch(done / 32, (rows + 31) / 32);
        const char* x = l.x + (row + done) * l.x_stride();
        for (int p = 0; p < panels; p += 2) {
            const char* b = ready.panels + p * ready.panel_stride;
            char* out = reinterpret_cast<char*>(c + p * 16);
            const bool second = p + 1 < panels;
            if (lower && second) square<true, true>(l, ready, x, b, out, MAX_NP * 64);
            if (lower && !second) square<true, false>(l, ready, x, b, out, MAX_NP * 64);
            if (!lower && second) square<false, true>(l, ready, x, b, out, MAX_NP * 64);
            if (!lower && !second) square<false, false>(l, ready, x, b, out, MAX_NP * 64);
        }
        finish(l, c, MAX_NP * 16, row + done, height, first, panels);
    }
    tiles_release();
}

void multiply_few_rows_amx(const Linear& l, int64_t row, int64_t rows, int64_t first, int panels) {
    if (l.storage == STORE_Q4) few_rows<Q4>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8) few_rows<Q8>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8M) few_rows<Q8M>(l, row, rows, first, panels);
    if (l.storage == STORE_Q8H) few_rows<Q8H>(l, row, rows, first, panels);
}
