// Included before every source of the library that tests build: emulated tiles whose products can be made to go wrong.
#pragma once
#include <cmath>  // before the macro below renames what it is made of

__attribute__((weak)) int emulated_fault = 0;  // 0 right, 1 one percent off, 2 another rounding each time, 3 illegal instruction

static inline float faulty_fma(float a, float b, float c) {
    static thread_local unsigned calls = 0;
    if (emulated_fault == 1) b *= 1.01f;
    if (emulated_fault == 2) b *= 1.0f + 1e-6f * float(calls++ / 4096 % 7);
    if (emulated_fault == 3) __builtin_trap();
    return __builtin_fmaf(a, b, c);
}
#define __builtin_fmaf(a, b, c) faulty_fma(a, b, c)
