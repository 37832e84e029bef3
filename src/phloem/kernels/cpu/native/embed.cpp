// embed: rows of a packed weight, gathered and dequantized to float32. One item is one token.
//
// args: 0 token ids int32 [T], 1 packed weight, 2 y float32 [T, K], 3 K, 4 storage
#include "storage.h"

namespace {

float half(const char* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return _cvtsh_ss(bits);
}

// Columns 0..31 of row `lane` of a q4 record; see storage.h for the order.
void q4_row(const char* record, int lane, float* y) {
    const float d = half(record + 2 * lane), m = half(record + 32 + 2 * lane);
    for (int pair = 0; pair < 16; pair++)
        for (int side = 0; side < 2; side++) {
            uint32_t word;
            memcpy(&word, record + 64 + 64 * (pair / 4) + 4 * (2 * (lane % 8) + side), 4);
            const uint32_t level = word >> (4 * (2 * (pair % 4) + lane / 8)) & 15;
            y[2 * pair + side] = __builtin_fmaf(d, float(level), m);
        }
}

void bytes_row(const char* bytes, int lane, float d_first, float d_second, float m, float* y) {
    for (int k = 0; k < 32; k++) {
        const int8_t level = int8_t(bytes[32 * (k / 2) + 2 * lane + k % 2]);
        y[k] = __builtin_fmaf(k < 16 ? d_first : d_second, float(level), m);
    }
}

void quantized_row(int64_t storage, const char* record, int lane, float* y) {
    const float d = half(record + 2 * lane), second = half(record + 32 + 2 * lane);
    if (storage == STORE_Q4) q4_row(record, lane, y);
    if (storage == STORE_Q8) bytes_row(record + 32, lane, d, d, 0.0f, y);
    if (storage == STORE_Q8M) bytes_row(record + 64, lane, d, d, second, y);
    if (storage == STORE_Q8H) bytes_row(record + 64, lane, d, second, 0.0f, y);
}

void plain_row(int64_t storage, const char* panel, int lane, float* y, int64_t k) {
    for (int64_t i = 0; i < k; i++) {
        if (storage == STORE_F32) {
            memcpy(y + i, panel + 64 * i + 4 * lane, 4);
            continue;
        }
        uint32_t bits = 0;
        memcpy(reinterpret_cast<char*>(&bits) + 2, panel + 64 * (i / 2) + 4 * lane + 2 * (i % 2), 2);
        memcpy(y + i, &bits, 4);
    }
}

int64_t count(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

void run(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    static constexpr int64_t record_bytes[4] = {Q4::BYTES, Q8::BYTES, Q8M::BYTES, Q8H::BYTES};
    const int64_t k = in.args[3], storage = in.args[4];
    for (int64_t t = begin; t < end; t++) {
        const int64_t token = pointer<int32_t>(in, 0)[t];
        const int lane = int(token % 16);
        float* y = pointer<float>(in, 2) + t * k;
        if (storage >= STORE_BF16) {
            const int64_t panel_bytes = storage == STORE_BF16 ? k / 2 * 64 : k * 64;
            plain_row(storage, pointer<char>(in, 1) + token / 16 * panel_bytes, lane, y, k);
            continue;
        }
        const char* record = pointer<char>(in, 1) + token / 16 * (k / 32) * record_bytes[storage];
        for (int64_t i = 0; i < k; i += 32, record += record_bytes[storage]) quantized_row(storage, record, lane, y + i);
    }
}

}  // namespace

const OpKernel EMBED = {count, run, claim_between<1, 8>};
