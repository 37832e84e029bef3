// The C ABI of the tape: instructions, step sizes, and how an op plugs into the executor.
// Mirrored by tape.py; change both together.
#pragma once
#include <cstddef>
#include <cstdint>

// One instruction. `args` are pointers and sizes, `reals` floating parameters; their meaning is the op's (see ops.h).
struct Instruction {
    int32_t op;
    int32_t rows;  // RowKind: which of the step's sizes this instruction runs over
    int64_t args[16];
    float reals[4];
};

enum RowKind : int32_t { ROWS_TOKENS = 0, ROWS_LOGITS = 1, ROWS_ONE = 2 };

// What changes from step to step besides the contents of the buffers.
struct Dims {
    int64_t tokens;      // T
    int64_t logit_rows;  // L
    int64_t rows;        // R, sequences of the step
    int64_t groups;      // shared-prefix groups
};

// Memory of one thread, 64-byte aligned; ops carve what they need from the start.
struct Scratch {
    char* base;
    size_t bytes;
};

// How many items a thread takes at once: a fair share of what is left, within these bounds.
struct Claim {
    int64_t least, most;
};
template <int64_t LEAST, int64_t MOST>
Claim claim_between(const Instruction&, const Dims&) {
    return {LEAST, MOST};
}

// An op splits its work into `count` items; the executor hands ranges of items to threads.
struct OpKernel {
    int64_t (*count)(const Instruction&, const Dims&);
    void (*run)(const Instruction&, const Dims&, int64_t begin, int64_t end, Scratch&);
    Claim (*claim)(const Instruction&, const Dims&);
};

inline int64_t row_count(const Instruction& in, const Dims& dims) {
    if (in.rows == ROWS_TOKENS) return dims.tokens;
    return in.rows == ROWS_LOGITS ? dims.logit_rows : 1;
}

template <class T>
T* pointer(const Instruction& in, int index) {
    return reinterpret_cast<T*>(in.args[index]);
}

constexpr size_t SCRATCH_BYTES = size_t(8) << 20;
