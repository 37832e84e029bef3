// Decoders of the ggml block formats, 32 numbers at a time, to levels and scales: number = d * level + m.
#pragma once
#include <cstdint>
#include <cstring>

enum Encoding : int64_t { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

// Thirty-two numbers: d[0], m for all, except that Q6_K has d[1] for the last sixteen.
struct Levels {
    int8_t q[32];
    float d[2], m;
};

inline float widen_half(const uint8_t* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    _Float16 value;
    memcpy(&value, &bits, 2);
    return float(value);
}

inline void low_high(const uint8_t* packed, int8_t* q, int bias) {
    for (int i = 0; i < 16; i++) {
        q[i] = int8_t((packed[i] & 15) - bias);
        q[i + 16] = int8_t((packed[i] >> 4) - bias);
    }
}

inline void add_fifth_bits(const uint8_t* bits, int8_t* q) {
    for (int i = 0; i < 32; i++) q[i] = int8_t(q[i] + ((bits[i / 8] >> (i % 8) & 1) << 4));
}

// The scale and offset of sub-block s (of eight) of a Q4_K or Q5_K block.
inline void k_scale(const uint8_t* block, int s, Levels& out) {
    const uint8_t* p = block + 4;
    const int scale = s < 4 ? p[s] & 63 : (p[s + 4] & 15) | (p[s - 4] >> 6 << 4);
    const int offset = s < 4 ? p[s + 4] & 63 : (p[s + 4] >> 4) | (p[s] >> 6 << 4);
    out.d[0] = out.d[1] = widen_half(block) * float(scale);
    out.m = -widen_half(block + 2) * float(offset);
}

inline void k_nibbles(const uint8_t* packed, int s, int8_t* q) {
    for (int i = 0; i < 32; i++) q[i] = int8_t(packed[s / 2 * 32 + i] >> (s % 2 * 4) & 15);
}

inline void decode_q4_k(const uint8_t* block, int s, Levels& out) {
    k_scale(block, s, out);
    k_nibbles(block + 16, s, out.q);
}

inline void decode_q5_k(const uint8_t* block, int s, Levels& out) {
    k_scale(block, s, out);
    k_nibbles(block + 48, s, out.q);
    for (int i = 0; i < 32; i++) out.q[i] = int8_t(out.q[i] + ((block[16 + i] >> s & 1) << 4));
}

inline void decode_q6_k(const uint8_t* block, int s, Levels& out) {
    const int half = s / 4, quarter = s % 4;
    const uint8_t *low = block + 64 * half + 32 * (quarter % 2), *high = block + 128 + 32 * half;
    for (int i = 0; i < 32; i++) {
        const int level = (low[i] >> (quarter / 2 * 4) & 15) | ((high[i] >> (2 * quarter) & 3) << 4);
        out.q[i] = int8_t(level - 32);
    }
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + 2 * s;
    const float d = widen_half(block + 208);
    out.d[0] = d * float(scales[0]);
    out.d[1] = d * float(scales[1]);
    out.m = 0.0f;
}

inline void decode_small(Encoding encoding, const uint8_t* block, Levels& out) {
    out.d[0] = out.d[1] = widen_half(block);
    const bool offset = encoding == Q4_1 || encoding == Q5_1;
    out.m = offset ? widen_half(block + 2) : 0.0f;
    if (encoding == Q8_0) memcpy(out.q, block + 2, 32);
    if (encoding == Q4_0) {
        low_high(block + 2, out.q, 0);
        out.m = -8.0f * out.d[0];
    }
    if (encoding == Q4_1) low_high(block + 4, out.q, 0);
    if (encoding == Q5_0) {
        low_high(block + 6, out.q, 16);
        add_fifth_bits(block + 2, out.q);
    }
    if (encoding == Q5_1) {
        low_high(block + 8, out.q, 0);
        add_fifth_bits(block + 4, out.q);
    }
}

inline bool is_quantized(Encoding encoding) { return encoding >= Q4_0; }

// Numbers 32*index .. 32*index+31 of a row of a quantized encoding.
inline void decode_levels(Encoding encoding, const uint8_t* row, int64_t index, Levels& out) {
    switch (encoding) {
        case Q4_0: return decode_small(encoding, row + index * 18, out);
        case Q4_1: return decode_small(encoding, row + index * 20, out);
        case Q5_0: return decode_small(encoding, row + index * 22, out);
        case Q5_1: return decode_small(encoding, row + index * 24, out);
        case Q8_0: return decode_small(encoding, row + index * 34, out);
        case Q4_K: return decode_q4_k(row + index / 8 * 144, int(index % 8), out);
        case Q5_K: return decode_q5_k(row + index / 8 * 176, int(index % 8), out);
        case Q6_K: return decode_q6_k(row + index / 8 * 210, int(index % 8), out);
        default: return;
    }
}

inline float plain_number(Encoding encoding, const uint8_t* row, int64_t i) {
    float value = 0.0f;
    if (encoding == F32) memcpy(&value, row + 4 * i, 4);
    if (encoding == F16) value = widen_half(row + 2 * i);
    if (encoding == BF16) memcpy(reinterpret_cast<uint8_t*>(&value) + 2, row + 2 * i, 2);
    return value;
}

// `count` (at most 32) numbers of a row from 32*index on, whatever the encoding; the rest of `out` is zero.
inline void decode_floats(Encoding encoding, const uint8_t* row, int64_t index, int64_t count, float* out) {
    if (is_quantized(encoding)) {
        Levels levels;
        decode_levels(encoding, row, index, levels);
        for (int i = 0; i < 32; i++) out[i] = levels.d[i / 16] * float(levels.q[i]) + levels.m;
        return;
    }
    for (int i = 0; i < 32; i++) out[i] = i < count ? plain_number(encoding, row, 32 * index + i) : 0.0f;
}
