// Rows of weights times rows of activations.
#pragma once

class Activations;
class Streamed;

// A weight matrix in the file: rows of k weights of a ggml type; bias: (rows,), or null.
// streamed: of a stack that is not read through `data`: its source number `source`; else null.
// step: bytes from a matrix of a stack to the next one.
struct Weight {
    const void* data;
    long type;
    long rows;
    const float* bias;
    Streamed* streamed;
    long source;
    long step;
};

// The bytes of a matrix whose rows have k weights.
long matrix_bytes(const Weight& w, int k);

// What is multiplied: n rows of k floats, and the same as integers (only for quantized weights).
struct Input {
    const float* x;
    int n, k;
    const Activations* integers;
    int place = 0;             // where they begin in `integers`
    const int* rows = nullptr; // their numbers in x; null: the first ones

    const float* floats(int i) const { return x + long(rows ? rows[i] : i) * k; }
};

// out[i * stride + r] = row r of w times row i of the input, for rows [first, last).
// next: what the thread will read after these rows, if that is elsewhere.
void multiply_rows(const Weight& w, const Input& in, int first, int last, float* out, long stride,
                   const void* next = nullptr);

// Rows that one part of a job takes: enough to be worth the sharing, few enough to share evenly.
int rows_per_part(long rows, int threads);
