// One layer's KV cache: where a key or value lies in a page. A page holds S tokens of every kv head, head by head, keys
// before values. S is a multiple of 32.
//   bfloat16   K [S/16][d/2][16 tokens][2]    V [S/2][d][2 tokens]
//   float32    K [S/16][d][16 tokens]         V [S][d]
// Read as panels of tile.h: sixteen keys are a panel of q k^T whose steps are d; sixteen of d a panel of p v whose steps
// are keys.
#pragma once
#include "simd.h"

template <class A>
struct KvLayout {
    int64_t heads, dim, page_size;
    int64_t block() const { return page_size * dim; }  // elements of one head's keys (or values) in a page
    int64_t page_elements() const { return 2 * heads * block(); }
    A* keys(A* cache, int64_t page, int64_t head) const { return cache + page * page_elements() + 2 * head * block(); }
    A* values(A* cache, int64_t page, int64_t head) const { return keys(cache, page, head) + block(); }
    static constexpr int64_t PER_STEP = 4 / sizeof(A);  // elements a step consumes
    int64_t key_steps() const { return dim / PER_STEP; }
    int64_t key_panel_bytes() const { return key_steps() * 64; }
    int64_t value_step_bytes() const { return dim * 4; }
    // Element offsets of component i of token `offset` within keys() and values().
    int64_t key_at(int64_t offset, int64_t i) const {
        return offset / 16 * 16 * dim + i / PER_STEP * 16 * PER_STEP + offset % 16 * PER_STEP + i % PER_STEP;
    }
    int64_t value_at(int64_t offset, int64_t i) const {
        return offset / PER_STEP * dim * PER_STEP + i * PER_STEP + offset % PER_STEP;
    }
};
