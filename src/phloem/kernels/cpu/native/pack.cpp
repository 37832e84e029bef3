// Repacks a checkpoint tensor into the panels of storage.h. One item is one panel of sixteen rows; rows beyond N are zero.
#include "ggml_blocks.h"
#include "ops.h"
#include "pool.h"

namespace {

struct Packing {
    Encoding encoding;
    const uint8_t* source;
    int64_t row_bytes, n, k;
    Storage storage;
    uint8_t* out;
};

void put_half(uint8_t* at, int lane, float value) {
    const _Float16 half = _Float16(value);
    memcpy(at + 2 * lane, &half, 2);
}

float round_half(float value) { return float(_Float16(value)); }
int clamp(float value, int low, int high) {
    const int rounded = int(__builtin_rintf(value));
    return rounded < low ? low : (rounded > high ? high : rounded);
}

// ---- quantizing floats (for --quantize): scale and offset are rounded to float16 first, levels fitted to those

void quantize_4(const float* x, Levels& out) {
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    out.m = round_half(low);
    out.d[0] = out.d[1] = round_half((high - out.m) / 15.0f);
    const float inverse = out.d[0] != 0.0f ? 1.0f / out.d[0] : 0.0f;
    for (int i = 0; i < 32; i++) out.q[i] = int8_t(clamp((x[i] - out.m) * inverse, 0, 15));
}

void quantize_8(const float* x, Levels& out) {
    float largest = 0.0f;
    for (int i = 0; i < 32; i++) largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
    out.m = 0.0f;
    out.d[0] = out.d[1] = round_half(largest / 127.0f);
    const float inverse = out.d[0] != 0.0f ? 1.0f / out.d[0] : 0.0f;
    for (int i = 0; i < 32; i++) out.q[i] = int8_t(clamp(x[i] * inverse, -127, 127));
}

bool keeps_levels(Encoding encoding, Storage storage) {
    if (storage == STORE_Q4) return encoding == Q4_0 || encoding == Q4_1 || encoding == Q4_K;
    if (storage == STORE_Q8) return encoding == Q8_0 || encoding == Q5_0;
    if (storage == STORE_Q8M) return is_quantized(encoding) && encoding != Q6_K;
    return encoding == Q6_K;
}

Levels levels_of(const Packing& p, int64_t row, int64_t index) {
    Levels levels = {};
    if (row >= p.n) return levels;
    const uint8_t* source = p.source + row * p.row_bytes;
    if (keeps_levels(p.encoding, p.storage)) {
        decode_levels(p.encoding, source, index, levels);
        return levels;
    }
    float numbers[32];
    decode_floats(p.encoding, source, index, p.k - 32 * index, numbers);
    if (p.storage == STORE_Q4) quantize_4(numbers, levels);
    else quantize_8(numbers, levels);
    return levels;
}

// ---- records

void write_q4(const Levels* rows, uint8_t* record) {
    uint8_t q[32][16];  // [column][row]
    for (int lane = 0; lane < 16; lane++) {
        put_half(record, lane, rows[lane].d[0]);
        put_half(record + 32, lane, rows[lane].m);
        for (int k = 0; k < 32; k++) q[k][lane] = uint8_t(rows[lane].q[k]);
    }
    for (int z = 0; z < 4; z++)
        for (int lane = 0; lane < 16; lane++) {
            uint32_t word = 0;
            for (int j = 0; j < 8; j++) {
                const int pair = 4 * z + j / 2, row = 8 * (j % 2) + lane / 2;
                word |= uint32_t(q[2 * pair + lane % 2][row]) << (4 * j);
            }
            memcpy(record + 64 + 64 * z + 4 * lane, &word, 4);
        }
}

void write_q8(const Levels* rows, Storage storage, uint8_t* record) {
    uint8_t* bytes = record + (storage == STORE_Q8 ? 32 : 64);
    for (int lane = 0; lane < 16; lane++) {
        put_half(record, lane, rows[lane].d[0]);
        if (storage == STORE_Q8M) put_half(record + 32, lane, rows[lane].m);
        if (storage == STORE_Q8H) put_half(record + 32, lane, rows[lane].d[1]);
        for (int k = 0; k < 32; k++) bytes[32 * (k / 2) + 2 * lane + k % 2] = uint8_t(rows[lane].q[k]);
    }
}

int64_t record_bytes(Storage storage) {
    if (storage == STORE_Q4) return 320;
    return storage == STORE_Q8 ? 544 : 576;
}

void quantized_panel(const Packing& p, int64_t panel) {
    const int64_t records = p.k / 32, bytes = record_bytes(p.storage);
    uint8_t* out = p.out + panel * records * bytes;
    for (int64_t i = 0; i < records; i++, out += bytes) {
        Levels rows[16];
        for (int lane = 0; lane < 16; lane++) rows[lane] = levels_of(p, panel * 16 + lane, i);
        if (p.storage == STORE_Q4) write_q4(rows, out);
        else write_q8(rows, p.storage, out);
    }
}

// ---- plain numbers

uint16_t round_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 64);  // NaN stays NaN
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

void plain_panel(const Packing& p, int64_t panel) {
    const int64_t step = p.storage == STORE_BF16 ? 2 : 1;
    uint8_t* out = p.out + panel * p.k / step * 64;
    for (int lane = 0; lane < 16; lane++) {
        const int64_t row = panel * 16 + lane;
        for (int64_t i = 0; i < p.k; i += 32) {
            float numbers[32] = {};
            const int64_t count = p.k - i < 32 ? p.k - i : 32;
            if (row < p.n) decode_floats(p.encoding, p.source + row * p.row_bytes, i / 32, count, numbers);
            for (int64_t k = i; k < i + count; k++) {
                const float number = numbers[k - i];
                const uint16_t rounded = round_bf16(number);
                if (p.storage == STORE_F32) memcpy(out + k * 64 + 4 * lane, &number, 4);
                else memcpy(out + k / 2 * 64 + 4 * lane + 2 * (k % 2), &rounded, 2);
            }
        }
    }
}

void pack_panels(void* context, int64_t begin, int64_t end) {
    const Packing& p = *static_cast<const Packing*>(context);
    for (int64_t panel = begin; panel < end; panel++) {
        if (p.storage >= STORE_BF16) plain_panel(p, panel);
        else quantized_panel(p, panel);
    }
}

}  // namespace

extern "C" void phloem_pack(Pool* pool, int64_t encoding, const void* source, int64_t row_bytes, int64_t n, int64_t k,
                            int64_t storage, void* out) {
    Packing packing = {Encoding(encoding), static_cast<const uint8_t*>(source), row_bytes, n, k, Storage(storage),
                       static_cast<uint8_t*>(out)};
    parallel_for(*pool, (n + 15) / 16, pack_panels, &packing);
}
