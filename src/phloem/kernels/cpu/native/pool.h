// The thread pool that executes tapes.
#pragma once
#include "abi.h"

class Pool;

// `count` items of `work` spread over the pool's threads; returns when all are done. For loading (pack.cpp).
using Work = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(Pool& pool, int64_t count, Work work, void* context);
