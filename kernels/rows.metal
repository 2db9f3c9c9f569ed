// Gathers rows of a matrix by their ids as floats, for embeddings and small tensors. Each weight has exactly the bits
// that the block format defines. A thread dequantizes a run of 16 and stores it as four vectors.
#pragma once

#include "runs.metal"

// Stores a chunk of a row, times scale, at its place in y (k,): one weight.
template <typename B>
METAL_FUNC enable_if_t<B::WEIGHTS == 1> store_chunk(const device B* row, device float* y, int i, float scale) {
    y[i] = scale * to_float(row[i].value);
}

// The same for a run of 16.
template <typename B>
METAL_FUNC enable_if_t<(B::WEIGHTS > 1)> store_chunk(const device B* row, device float* y, int run, float scale) {
    constexpr int RUNS = B::WEIGHTS / 16;
    const device B& b = row[run / RUNS];
    int i = run % RUNS;
    float2 a = affine(b, i * 16 / B::GROUP);
    uint4 words = codes(b, i);
    device float4* out = (device float4*)y + 4 * run;
    UNROLL for (int j = 0; j < 4; j++) {
        float4 code = float4(as_type<uchar4>(words[j]));
        out[j] = scale * fma(float4(a.x), code, float4(a.y)); // rounds once, as the product is exact
    }
}

// Thread i, numbered across the ids and the chunks of their rows: w (rows, k), ids (n,) -> y (n, k); NaN for an id out
// of range.
template <typename B, typename I>
METAL_FUNC void gather_rows(const device B* w, I ids, device float* y, int rows, int k, float scale, uint i) {
    constexpr int CHUNK = B::WEIGHTS == 1 ? 1 : 16;
    int chunks = k / CHUNK, chunk = i % chunks, n = i / chunks;
    long id = ids[n];
    device float* out = y + size_t(n) * k;
    if (id < 0 || id >= rows) {
        for (int j = chunk * CHUNK; j < (chunk + 1) * CHUNK; j++) out[j] = as_float(0x7fc00000);
        return;
    }
    store_chunk(w + size_t(id) * (k / B::WEIGHTS), out, chunk, scale);
}
