// rope_table: cos and sin of position * inv_freq, once a step for all layers. One item is one token.
//
// args: 0 positions int32 [T], 1 inv_freq float32 [d/2], 2 table float32 [T, 2, d/2] (cos, then sin), 3 d/2
#include <cmath>

#include "ops.h"

namespace {

int64_t count(const Instruction& in, const Dims& dims) { return row_count(in, dims); }

void run(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    const int64_t half = in.args[3];
    for (int64_t t = begin; t < end; t++) {
        const float position = float(pointer<int32_t>(in, 0)[t]);
        float* cosine = pointer<float>(in, 2) + t * 2 * half;
        for (int64_t i = 0; i < half; i++) {
            const float angle = position * pointer<float>(in, 1)[i];
            cosine[i] = cosf(angle);
            cosine[half + i] = sinf(angle);
        }
    }
}

}  // namespace

const OpKernel ROPE_TABLE = {count, run, claim_between<1, 16>};
