// quantize: rows of bfloat16 to int8 levels with a scale for each 32 columns (int8_rows.h). One item is one row.
//
// args: 0 x bfloat16 [T, K], 1 y, 2 K, 3 level order
#include "int8_rows.h"
#include "ops.h"

namespace {

int64_t count(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

void run(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t k = in.args[2];
    const __m256i order = level_shuffle(in.args[3]);
    for (int64_t r = begin; r < end; r++) {
        const bf16* x = pointer<bf16>(in, 0) + r * k;
        char* y = pointer<char>(in, 1) + r * int8_row_bytes(k);
        BlockScale* scales = block_scales(y, k);
        for (int64_t i = 0; i < k; i += 32)
            quantize_block(load_act(x + i, 0xffff), load_act(x + i + 16, 0xffff), y + i, scales[i / 32], order);
    }
}

}  // namespace

const OpKernel QUANTIZE = {count, run, claim_between<1, 16>};
