// Whether AMX may be used: the processor has it, the kernel grants it, and a trial agrees with the AVX-512 kernels.
#include <cpuid.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "amx_tiles.h"
#include "ops.h"

namespace {

constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

bool processor_has_it() {
#ifdef PHLOEM_EMULATE_AMX
    return true;
#else
    unsigned a = 0, b = 0, c = 0, d = 0;
    return PHLOEM_AMX_ASSEMBLES && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
#endif
}

bool kernel_grants_it() {
#ifdef PHLOEM_EMULATE_AMX
    return true;
#else
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
}

struct Trial {
    int64_t rows, n, k, storage;
};

void* zeroed(size_t bytes) {
    void* p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(p, 0, (bytes + 127) / 64 * 64);
    return p;
}

// A few pseudo-random bytes whose 16-bit words are small bfloat16 and float16 numbers of either sign.
void fill(char* p, size_t bytes, uint32_t seed) {
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        seed = seed * 1664525u + 1013904223u;
        const uint16_t word = uint16_t(0x3c00u | (seed >> 16 & 0x83ffu));
        memcpy(p + i, &word, 2);
    }
}

void run_linear(const Trial& t, const char* x, char* weight, float* y, int64_t rows, bool amx) {
    Instruction in = {};
    in.op = OP_LINEAR;
    in.rows = ROWS_TOKENS;
    const int64_t args[] = {int64_t(x), int64_t(y), int64_t(weight), 0, t.k, t.n, t.storage, ACT_BF16, ACT_F32, amx};
    memcpy(in.args, args, sizeof args);
    Scratch scratch = {static_cast<char*>(zeroed(SCRATCH_BYTES / 8)), SCRATCH_BYTES / 8};
    const Dims dims = {rows, 0, 0, 0};
    LINEAR.run(in, dims, 0, LINEAR.count(in, dims), scratch);
    free(scratch.base);
}

bool near(const float* a, const float* b, int64_t count) {
    float largest = 1e-20f, worst = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf(a[i]));
        worst = fmaxf(worst, fabsf(a[i] - b[i]));
        if (!std::isfinite(b[i])) return false;
    }
    return worst < 1e-3f * largest;
}

bool agrees(const Trial& t) {
    const int64_t weight_bytes = (t.n + 15) / 16 * (t.k / 32) * 1024 + 8192;
    char *x = static_cast<char*>(zeroed(size_t(t.rows * t.k * 2))), *weight = static_cast<char*>(zeroed(size_t(weight_bytes)));
    float *plain = static_cast<float*>(zeroed(size_t(t.rows * t.n * 4))), *amx = static_cast<float*>(zeroed(size_t(t.rows * t.n * 4)));
    float* one = static_cast<float*>(zeroed(size_t(t.n * 4)));
    fill(x, size_t(t.rows * t.k * 2), 1);
    fill(weight, size_t(weight_bytes), 2);
    run_linear(t, x, weight, plain, t.rows, false);
    run_linear(t, x, weight, amx, t.rows, true);
    bool good = near(plain, amx, t.rows * t.n);
    for (int64_t r = 0; r < t.rows && good; r += 7) {
        run_linear(t, x + r * t.k * 2, weight, one, 1, true);
        good = memcmp(one, amx + r * t.n, size_t(t.n * 4)) == 0;
    }
    for (void* p : {static_cast<void*>(x), static_cast<void*>(weight), static_cast<void*>(plain), static_cast<void*>(amx),
                    static_cast<void*>(one)})
        free(p);
    return good;
}

bool all_agree() {
    for (int64_t storage : {STORE_Q4, STORE_Q8, STORE_Q8M, STORE_Q8H, STORE_BF16})
        for (int64_t rows : {1, 5, 16, 17, 32, 33, 49})
            for (int64_t n : {16, 40, 64, 112})
                if (!agrees({rows, n, rows % 2 ? 96 : 32, storage})) return false;
    return true;
}

// Its parent's fault handlers would report a crash of the engine: a fault ends the child silently.
[[noreturn]] void try_in_child(int verdict) {
    for (int fault : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP}) signal(fault, SIG_DFL);
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    const char result = all_agree() ? 0 : 3;
    _exit(write(verdict, &result, 1) != 1);
}

// The verdict comes through a pipe: the kernel drops exit statuses where SIGCHLD is ignored.
int32_t try_with_child() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return 4;
    const pid_t child = fork();
    if (child == 0) try_in_child(ends[1]);
    close(ends[1]);
    char result = 4;
    while (child > 0 && read(ends[0], &result, 1) < 0 && errno == EINTR) {
    }
    close(ends[0]);
    while (child > 0 && waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return result;
}

}  // namespace

// Zero if AMX works; 1 the processor has none, 2 the kernel refuses it, 3 the trial's numbers differ, 4 the trial crashed.
// The trial runs in a child process: an instruction that faults ends the child only.
extern "C" int32_t phloem_try_amx() {
    if (!processor_has_it()) return 1;
    if (!kernel_grants_it()) return 2;
    return try_with_child();
}
