// Every op of the tape, in the order of tape.py's Op.
#pragma once
#include "abi.h"

enum Op : int32_t {
    OP_EMBED,
    OP_RMS_NORM,
    OP_ADD_RMS_NORM,
    OP_LINEAR,
    OP_ROPE_TABLE,
    OP_ROPE_KV_WRITE,
    OP_ATTENTION_PLAN,
    OP_ATTENTION,
    OP_ATTENTION_MERGE,
    OP_SILU_MUL,
    OP_SELECT_ROWS,
    OP_ARGMAX,
    OP_QUANTIZE,
    OP_CALL,  // pool.cpp's own
    NUM_OPS
};

// Activation types and weight storages, as tape.py and pack.py number them.
// The last two are rows of int8_rows.h in one of its level orders, which row-wise ops may write for a linear to read.
enum Act : int64_t { ACT_BF16 = 0, ACT_F32 = 1, ACT_INT8 = 2, ACT_INT8_EVEN_ODD = 3 };
// How linear multiplies: the activation type as it is, bfloat16 on AMX, or int8 rows that quantize made.
enum Product : int64_t { PRODUCT_PLAIN = 0, PRODUCT_AMX = 1, PRODUCT_INT8 = 2 };
enum Storage : int64_t { STORE_Q4 = 0, STORE_Q8 = 1, STORE_Q8M = 2, STORE_Q8H = 3, STORE_BF16 = 4, STORE_F32 = 5, NUM_STORAGES };

extern const OpKernel EMBED, RMS_NORM, ADD_RMS_NORM, LINEAR, ROPE_TABLE, ROPE_KV_WRITE;
extern const OpKernel ATTENTION_PLAN, ATTENTION, ATTENTION_MERGE, SILU_MUL, SELECT_ROWS, ARGMAX, QUANTIZE;
