// Rows of weights times rows of activations.
#pragma once

#include "floats.h"

// A weight matrix in the file: rows of k weights of a ggml type; bias: (rows,), or null.
struct Weight {
    const void* data;
    long type;
    long rows;
    const float* bias;
};

// What is multiplied: n rows of k floats, and the same as integers (only for quantized weights).
struct Input {
    const float* x;
    int n, k;
    const Activations* integers;
};

// out[i * stride + r] = row r of w times row i of the input, for rows [first, last).
void multiply_rows(const Weight& w, const Input& in, int first, int last, float* out, long stride);

// Rows that one part of a job takes: enough to be worth the sharing, few enough to share evenly.
int rows_per_part(long rows, int threads);
