// What a step's attention does, worked out once for all layers of one window: a list of pieces for threads to take.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int64_t CHUNK = 128;        // keys of one partial result; chunks start at multiples of it
constexpr int64_t MAX_SPLIT = 8;      // rows with at most this many tokens are split over chunks (decode)
constexpr int64_t QUERY_VECTORS = 96; // query vectors (tokens x heads of one kv head) that one thread works on at once

enum PieceKind : int32_t {
    PIECE_WHOLE,  // query tokens of one row, all their chunks one after another: writes the output
    PIECE_PART,   // all query tokens of one row, one chunk: writes partial results
    PIECE_GROUP,  // all query tokens of all split rows of a shared group, one chunk of the shared pages: partial results
};

struct Piece {
    int32_t kind, row;  // row, or group
    int32_t token_begin, token_end;
    int32_t chunk_begin, chunk_end;
};

// A token whose chunks were computed apart.
struct Split {
    int32_t token, chunk_begin, chunk_end;
};

struct Row {
    int32_t token_begin, token_end, first_position, chunk_begin, chunk_end;
    int64_t partial;  // where token_begin's partials start, in units of (one chunk, all heads)
};

template <class T>
struct Array {
    T* items;
    int64_t size, capacity;
};

struct AttentionPlan {
    Array<Piece> pieces;
    Array<Split> splits;
    Array<Row> rows;
    Array<int32_t> row_of_token;
    float* partials;
    int64_t partial_capacity;  // floats
};

// Floats of one partial result: the weighted sum of values, then the largest score and the sum of weights.
inline int64_t partial_floats(int64_t dim) { return dim + 16; }
