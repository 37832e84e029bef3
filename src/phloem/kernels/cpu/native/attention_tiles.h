// The keys and values of a chunk as AMX tiles (kv_layout.h has where they lie).
#pragma once
#include "amx_multiply.h"
#include "attention_plan.h"

constexpr int64_t AMX_KEYS = 32;  // keys of one AMX tile of values

// Tiles of the keys of a chunk: a panel is sixteen keys, a block 32 of d.
struct KeyTiles {
    const char* panels[CHUNK / 16];
    const char* tile(int64_t k, int64_t p) const { return panels[p] + k * B_TILE; }
    int64_t stride() const { return TILE_BYTES; }
};

// Tiles of the values of a chunk: a panel is sixteen of d, a block 32 keys.
struct ValueTiles {
    const char* blocks[CHUNK / AMX_KEYS];
    int64_t step_bytes;
    const char* tile(int64_t k, int64_t p) const { return blocks[k] + p * TILE_BYTES; }
    int64_t stride() const { return step_bytes; }
};
