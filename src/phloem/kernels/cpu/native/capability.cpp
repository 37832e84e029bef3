// What this processor offers, asked before any kernel runs.
#include <cstdint>

#include "abi.h"

// Zero if the kernels can run; otherwise which requirement fails (library.py has the words).
extern "C" int32_t phloem_missing_capability() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? 0 : 2;
}

// Sizes that tape.py must agree on.
extern "C" int32_t phloem_abi_version() { return 3 << 16 | int32_t(sizeof(Instruction)); }
