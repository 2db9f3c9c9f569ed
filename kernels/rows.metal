// Rows of a matrix by their number, as floats, each weight with the bits of its definition: embeddings, and whole
// small tensors. A thread takes a run of 16, of which it stores four times four.
#pragma once

#include "runs.metal"

template <typename B>
METAL_FUNC void row_run(const device B* row, device float* y, int run, float scale) {
    constexpr int RUNS = B::WEIGHTS / 16;
    const device B& b = row[run / RUNS];
    int i = run % RUNS;
    float2 a = affine(b, i * 16 / B::GROUP);
    uint4 words = codes(b, i);
    device float4* out = (device float4*)y + 4 * run;
    UNROLL for (int j = 0; j < 4; j++) {
        float4 code = float4(as_type<uchar4>(words[j]));
        out[j] = scale * fma(float4(a.x), code, float4(a.y)); // with one rounding, as products are exact
    }
}

// Thread i of n ids and their runs, or numbers: w (rows, k), ids (n,) -> y (n, k); of an id that is none, NaN.
template <typename B, typename I>
METAL_FUNC void take_rows(const device B* w, I ids, device float* y, int rows, int k, float scale, uint i) {
    constexpr int PART = B::WEIGHTS == 1 ? 1 : 16;
    int parts = k / PART, part = i % parts, n = i / parts;
    long id = ids[n];
    device float* out = y + size_t(n) * k;
    if (id < 0 || id >= rows) {
        for (int j = part * PART; j < (part + 1) * PART; j++) out[j] = as_float(0x7fc00000);
        return;
    }
    const device B* row = w + size_t(id) * (k / B::WEIGHTS);
    if constexpr (B::WEIGHTS == 1)
        out[part] = scale * float(row[part].value);
    else
        row_run(row, out, part, scale);
}
