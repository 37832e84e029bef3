// Eight tiles of the AMX unit (Intel SDM volume 1, chapter 18), as inline assembly.
//
// Assembly and not intrinsics, because every instruction then carries a memory clobber: gcc 12's _tile_loadconfig tells
// the optimizer that it reads 8 of its 64 bytes, and stores of the rest may move behind it.
// With PHLOEM_EMULATE_AMX the same operations run in plain C++, so that everything but the instructions themselves is
// tested on any processor. So do they, unused, where the compiler (and then likely its assembler) is older than AMX.
#pragma once
#include <cstdint>
#include <cstring>

struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "what ldtilecfg reads");

#if __has_include(<amxbf16intrin.h>)
#define PHLOEM_AMX_ASSEMBLES 1
#else
#define PHLOEM_AMX_ASSEMBLES 0
#endif

#if PHLOEM_AMX_ASSEMBLES && !defined(PHLOEM_EMULATE_AMX)

static inline void tiles_configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
static inline void tiles_release() { asm volatile("tilerelease" : : : "memory"); }

template <int T>
static inline __attribute__((always_inline)) void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T) : "memory");
}
template <int T>
static inline __attribute__((always_inline)) void tile_load(const char* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
static inline __attribute__((always_inline)) void tile_store(char* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A B: rows of bfloat16 pairs against steps of interleaved pairs.
template <int C, int A, int B>
static inline __attribute__((always_inline)) void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B) : "memory");
}

#else

struct EmulatedTiles {
    TileConfig config;
    unsigned char data[8][16][64];
};
static thread_local EmulatedTiles tiles;

// An unconfigured tile faults on a processor that has AMX; here it stops the program as well.
static inline void check_configured(int t) {
    if (!tiles.config.palette || !tiles.config.rows[t] || !tiles.config.bytes_per_row[t]) __builtin_trap();
}
static inline void tiles_configure(const TileConfig& config) {
    for (int t = 0; t < 16; t++)
        if (config.palette != 1 || config.rows[t] > 16 || config.bytes_per_row[t] > 64 || (t > 7 && config.rows[t])) __builtin_trap();
    tiles = EmulatedTiles();
    tiles.config = config;
}
static inline void tiles_release() { tiles = EmulatedTiles(); }

template <int T>
static inline void tile_zero() {
    check_configured(T);
    memset(tiles.data[T], 0, sizeof tiles.data[T]);
}
template <int T>
static inline void tile_load(const char* from, int64_t stride) {
    check_configured(T);
    memset(tiles.data[T], 0, sizeof tiles.data[T]);
    for (int r = 0; r < tiles.config.rows[T]; r++) memcpy(tiles.data[T][r], from + r * stride, tiles.config.bytes_per_row[T]);
}
template <int T>
static inline void tile_store(char* to, int64_t stride) {
    check_configured(T);
    for (int r = 0; r < tiles.config.rows[T]; r++) memcpy(to + r * stride, tiles.data[T][r], tiles.config.bytes_per_row[T]);
}
static inline float emulated_bf16(const unsigned char* p) {
    uint32_t bits = uint32_t(p[0]) << 16 | uint32_t(p[1]) << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
template <int C, int A, int B>
static inline void tile_multiply() {
    check_configured(C);
    check_configured(A);
    check_configured(B);
    const int steps = tiles.config.bytes_per_row[A] / 4, columns = tiles.config.bytes_per_row[C] / 4;
    if (tiles.config.rows[B] != steps || tiles.config.rows[A] != tiles.config.rows[C]) __builtin_trap();
    for (int r = 0; r < tiles.config.rows[C]; r++)
        for (int n = 0; n < columns; n++) {
            float even = 0.0f, odd = 0.0f, sum;
            for (int s = 0; s < steps; s++) {
                const unsigned char *a = tiles.data[A][r] + 4 * s, *b = tiles.data[B][s] + 4 * n;
                even = __builtin_fmaf(emulated_bf16(a), emulated_bf16(b), even);
                odd = __builtin_fmaf(emulated_bf16(a + 2), emulated_bf16(b + 2), odd);
            }
            memcpy(&sum, tiles.data[C][r] + 4 * n, 4);
            sum += even + odd;
            memcpy(tiles.data[C][r] + 4 * n, &sum, 4);
        }
}

#endif
