// C[rows, panels*16] = A[rows, blocks*32] * B on AMX tiles, for B whose tiles lie anywhere (tile.h has the form).
//
// An output is one chain over the blocks of 32 along k in order, and a row of C depends on its own row of A alone: neither
// the number of rows nor the shape in which tiles are combined changes a bit.
#pragma once
#include "amx_tiles.h"
#include "simd.h"

constexpr int64_t TILE_ROWS = 16, TILE_BYTES = 64, B_TILE = TILE_ROWS * TILE_BYTES;

// A thread's use of the tiles until the end of its scope. Nothing outlives it: other libraries configure tiles as they
// like, and released tiles cost a context switch nothing.
//
// Sums are in tmm0..3, A in tmm4 and tmm5, B in tmm6 and tmm7. Two tiles of rows by two panels: the sum of (r, p) is
// tmm[2r + p]. One tile of rows by up to four panels: tmm[p].
class TileScope {
public:
    ~TileScope() {
        if (upper_) tiles_release();
    }

    // Rows of tmm0, tmm1, tmm4 and of tmm2, tmm3, tmm5; tiles of B are full.
    void configure(int64_t upper, int64_t lower) {
        if (upper == upper_ && lower == lower_) return;
        upper_ = upper;
        lower_ = lower;
        TileConfig config = {};
        config.palette = 1;
        const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS};
        for (int t = 0; t < 8; t++) {
            config.rows[t] = uint8_t(rows[t]);
            config.bytes_per_row[t] = TILE_BYTES;
        }
        tiles_configure(config);
    }

    // B::tile(k, p) is the tile of block k and panel p, its sixteen steps B::stride() bytes apart. c_stride in floats.
    template <class B>
    void multiply(const char* a, int64_t a_stride, int64_t rows, const B& b, int64_t blocks, int64_t panels, float* c,
                  int64_t c_stride) {
        for (; rows > 0; rows -= 2 * TILE_ROWS, a += 2 * TILE_ROWS * a_stride, c += 2 * TILE_ROWS * c_stride) {
            const Product<B> product = {a, a_stride, b, blocks, c, c_stride};
            if (rows > TILE_ROWS) {
                configure(TILE_ROWS, rows < 2 * TILE_ROWS ? rows - TILE_ROWS : TILE_ROWS);
                int64_t p = 0;
                for (; p + 2 <= panels; p += 2) product.template square<2>(p);
                if (p < panels) product.template square<1>(p);
            } else {
                configure(rows, rows);
                int64_t p = 0;
                for (; p + 4 <= panels; p += 4) product.template flat<4>(p);
                if (panels - p == 3) product.template flat<3>(p);
                if (panels - p == 2) product.template flat<2>(p);
                if (panels - p == 1) product.template flat<1>(p);
            }
        }
    }

private:
    template <class B>
    struct Product {
        const char* a;
        int64_t a_stride;
        const B& b;
        int64_t blocks;
        float* c;
        int64_t c_stride;

        // Two tiles of rows by P panels from panel p on.
        template <int P>
        void square(int64_t p) const {
            tile_zero<0>();
            tile_zero<2>();
            if (P > 1) tile_zero<1>();
            if (P > 1) tile_zero<3>();
            for (int64_t k = 0; k < blocks; k++) {
                tile_load<6>(b.tile(k, p), b.stride());
                tile_load<4>(a + k * TILE_BYTES, a_stride);
                tile_multiply<0, 4, 6>();
                if (P > 1) tile_load<7>(b.tile(k, p + 1), b.stride());
                if (P > 1) tile_multiply<1, 4, 7>();
                tile_load<5>(a + k * TILE_BYTES + TILE_ROWS * a_stride, a_stride);
                tile_multiply<2, 5, 6>();
                if (P > 1) tile_multiply<3, 5, 7>();
            }
            store<0>(0, p);
            store<2>(TILE_ROWS, p);
            if (P > 1) store<1>(0, p + 1);
            if (P > 1) store<3>(TILE_ROWS, p + 1);
        }

        // One tile of rows by P panels from panel p on.
        template <int P>
        void flat(int64_t p) const {
            tile_zero<0>();
            if (P > 1) tile_zero<1>();
            if (P > 2) tile_zero<2>();
            if (P > 3) tile_zero<3>();
            for (int64_t k = 0; k < blocks; k++) {
                tile_load<4>(a + k * TILE_BYTES, a_stride);
                add<0, 6>(k, p);
                if (P > 1) add<1, 7>(k, p + 1);
                if (P > 2) add<2, 6>(k, p + 2);
                if (P > 3) add<3, 7>(k, p + 3);
            }
            store<0>(0, p);
            if (P > 1) store<1>(0, p + 1);
            if (P > 2) store<2>(0, p + 2);
            if (P > 3) store<3>(0, p + 3);
        }

        template <int SUM, int TILE>
        void add(int64_t k, int64_t p) const {
            tile_load<TILE>(b.tile(k, p), b.stride());
            tile_multiply<SUM, 4, TILE>();
        }

        template <int SUM>
        void store(int64_t row, int64_t p) const {
            tile_store<SUM>(reinterpret_cast<char*>(c + row * c_stride + p * 16), 4 * c_stride);
        }
    };

    int64_t upper_ = 0, lower_ = 0;
};
