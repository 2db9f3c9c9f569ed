// The gated delta rule over the rows of each sequence. Per value head, with a matrix M (SIZE, SIZE), keys along its
// rows and values along its columns: M *= g; d = beta (v - Mᵀ k); M += k dᵀ; o = Mᵀ q.
//
// A threadgroup takes 32 columns of one head and keeps them in registers over all rows of the sequence: a lane has a
// column, and each simdgroup ROWS rows of it. With u = Mᵀ k and w = Mᵀ q of M before a row, d = beta (v - g u) and
// o = g w + (k q) d, so simdgroups exchange their parts of u and w once a row. Keys, queries, values and factors of
// CHUNK rows are staged together.
//
// Decoding reads and writes the state once, so it is memory-bound. Prompts take 7.4 cycles of a lane for a number of
// the state and a row (bench/metal_cost.py, an M1's); the 8x8 products of a chunked form alone would take 4.2 (chunks
// of 16 rows) to 5.3 (of 64).
#pragma once

#include "activation.metal"

// How SIZE rows of a matrix are divided: the last simdgroup has fewer where ROWS does not divide SIZE.
template <int SIZE>
struct DeltaTile {
    static constexpr constant int SIMDGROUPS = (SIZE + 31) / 32;
    static constexpr constant int ROWS = (SIZE + 4 * SIMDGROUPS - 1) / (4 * SIMDGROUPS) * 4;
    static constexpr constant int PADDED = SIMDGROUPS * ROWS;
};

// Staged rows. keys, queries: (CHUNK, PADDED), normalised, zeros from SIZE on; values: (CHUNK, 32)
// factors: (CHUNK,) of g, beta, k q
// parts: (2, SIMDGROUPS, 32) of u and w, in turns, so that a row's may be written while others read those before
struct DeltaStage {
    threadgroup float* keys;
    threadgroup float* queries;
    threadgroup float* values;
    threadgroup float4* factors;
    threadgroup float2* parts;
};

// What a threadgroup computes: columns [32 slab, 32 slab + 32) of a value head of one sequence.
struct DeltaHead {
    int head, key_head, slab;
    int key_heads, value_heads;

    METAL_FUNC int channels(int size) const { return (2 * key_heads + value_heads) * size; }
};

// Value heads read key heads in turns if `tiled`, else each key head serves adjacent value heads. place: of slabs
// within heads; channels: of a row of q, k and v
METAL_FUNC DeltaHead delta_head(int place, int value_heads, int channels, int size, bool tiled) {
    int slabs = (size + 31) / 32, head = place / slabs, key_heads = (channels / size - value_heads) / 2;
    int key_head = tiled ? head % key_heads : head / (value_heads / key_heads);
    return DeltaHead{head, key_head, place % slabs, key_heads, value_heads};
}

// decay: negative, multiplies softplus(a + dt) in the exponent of g
struct DeltaFactors {
    float decay, dt, eps;
};

// One simdgroup stages row t: x (channels,) of q, k and v, and this head's a and b.
template <int SIZE, typename X>
METAL_FUNC void stage_row(X x, float a, float b, DeltaFactors f, DeltaHead h, DeltaStage s, int t, uint lane) {
    constexpr int PADDED = DeltaTile<SIZE>::PADDED, EACH = (PADDED + 31) / 32;
    X q = x + h.key_head * SIZE, k = x + (h.key_heads + h.key_head) * SIZE;
    float keys[EACH], queries[EACH], key_squares = 0, query_squares = 0, product = 0;
    UNROLL for (int n = 0; n < EACH; n++) {
        int i = 32 * n + lane;
        keys[n] = i < SIZE ? float(k[i]) : 0;
        queries[n] = i < SIZE ? float(q[i]) : 0;
        key_squares = fma(keys[n], keys[n], key_squares);
        query_squares = fma(queries[n], queries[n], query_squares);
        product = fma(keys[n], queries[n], product);
    }
    float key_scale = precise::rsqrt(simd_sum(key_squares) + f.eps);
    float query_scale = precise::rsqrt(simd_sum(query_squares) + f.eps) * precise::rsqrt(float(SIZE));
    UNROLL for (int n = 0; n < EACH; n++) {
        int i = 32 * n + lane;
        if (PADDED % 32 && i >= PADDED) continue;
        s.keys[t * PADDED + i] = keys[n] * key_scale;
        s.queries[t * PADDED + i] = queries[n] * query_scale;
    }
    int j = 32 * h.slab + lane;
    s.values[32 * t + lane] = j < SIZE ? float(x[(2 * h.key_heads + h.head) * SIZE + j]) : 0;
    product = simd_sum(product) * key_scale * query_scale;
    if (lane == 0) s.factors[t] = float4(exp(f.decay * softplus(a + f.dt)), sigmoid(b), product, 0);
}

// The rows of a column that a lane has.
template <int SIZE>
struct StateColumn {
    float4 rows[DeltaTile<SIZE>::ROWS / 4];

    // matrix (SIZE, SIZE): this simdgroup's first row, this lane's column; `live`: whether there are such
    METAL_FUNC void load(const device float* matrix, int first, bool live) {
        UNROLL for (int i = 0; i < DeltaTile<SIZE>::ROWS; i++) rows[i / 4][i % 4] =
            live && has(first + i) ? matrix[i * SIZE] : 0;
    }
    METAL_FUNC void store(device float* matrix, int first, bool live) const {
        UNROLL for (int i = 0; i < DeltaTile<SIZE>::ROWS; i++) {
            if (live && has(first + i)) matrix[i * SIZE] = rows[i / 4][i % 4];
        }
    }
    METAL_FUNC bool has(int row) const { return DeltaTile<SIZE>::PADDED == SIZE || row < SIZE; }

    // This simdgroup's part of the column's products with a key and a query, of which the rows are given.
    METAL_FUNC float2 products(threadgroup const float4* key, threadgroup const float4* query) const {
        float4 with_key = 0, with_query = 0;
        UNROLL for (int i = 0; i < DeltaTile<SIZE>::ROWS / 4; i++) {
            with_key = fma(rows[i], key[i], with_key);
            with_query = fma(rows[i], query[i], with_query);
        }
        return float2(with_key.x + with_key.y + (with_key.z + with_key.w),
                      with_query.x + with_query.y + (with_query.z + with_query.w));
    }
    METAL_FUNC void update(threadgroup const float4* key, float decay, float change) {
        UNROLL for (int i = 0; i < DeltaTile<SIZE>::ROWS / 4; i++) rows[i] =
            fma(rows[i], float4(decay), key[i] * change);
    }
};

// Row t of the stage: updates the column and returns its output. simdgroup: this one's number
template <int SIZE>
METAL_FUNC float delta_step(thread StateColumn<SIZE>& column, DeltaStage s, int t, int simdgroup, uint lane) {
    constexpr int SIMDGROUPS = DeltaTile<SIZE>::SIMDGROUPS, ROWS = DeltaTile<SIZE>::ROWS;
    int at = (t * SIMDGROUPS + simdgroup) * ROWS;
    threadgroup const float4* key = (threadgroup const float4*)(s.keys + at);
    threadgroup float2* parts = s.parts + t % 2 * SIMDGROUPS * 32 + lane;
    parts[32 * simdgroup] = column.products(key, (threadgroup const float4*)(s.queries + at));
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float2 sums = 0;
    UNROLL for (int n = 0; n < SIMDGROUPS; n++) sums += parts[32 * n];
    float4 f = s.factors[t];
    float change = f.y * (s.values[32 * t + lane] - f.x * sums.x);
    column.update(key, f.x, change);
    return fma(f.x, sums.y, f.z * change);
}

// Rows [begin, end) of a sequence, all simdgroups together: qkv (n, channels), a, b (n, value_heads), matrices and
// stored (slots, value_heads, SIZE, SIZE), of which slot source is read, zeros if it is negative, and slot target is
// written -> o (n, value_heads, SIZE).
template <int SIZE, int CHUNK, typename X, typename A, typename B>
METAL_FUNC void delta_rows(X qkv, A a, B b, const device float* matrices, device float* stored, device float* o,
                           DeltaFactors f, DeltaHead h, DeltaStage s, int begin, int end, int source, int target,
                           int simdgroup, uint lane) {
    constexpr int SIMDGROUPS = DeltaTile<SIZE>::SIMDGROUPS;
    int row = simdgroup * DeltaTile<SIZE>::ROWS, j = 32 * h.slab + lane;
    bool live = SIZE % 32 == 0 || j < SIZE;
    size_t within = (size_t(h.head) * SIZE + row) * SIZE + j, matrix = size_t(h.value_heads) * SIZE * SIZE;
    StateColumn<SIZE> column;
    column.load(matrices + (source < 0 ? 0 : source) * matrix + within, row, live && source >= 0);
    for (int first = begin; first < end; first += CHUNK) {
        int count = min(CHUNK, end - first);
        if (first > begin) threadgroup_barrier(mem_flags::mem_threadgroup); // the last chunk is still read
        for (int t = simdgroup; t < count; t += SIMDGROUPS) {
            size_t at = size_t(first + t) * h.value_heads + h.head;
            stage_row<SIZE>(qkv + size_t(first + t) * h.channels(SIZE), float(a[at]), float(b[at]), f, h, s, t, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int t = 0; t < count; t++) {
            float out = delta_step<SIZE>(column, s, t, simdgroup, lane);
            if (live && t % SIMDGROUPS == simdgroup) o[(size_t(first + t) * h.value_heads + h.head) * SIZE + j] = out;
        }
    }
    column.store(stored + target * matrix + within, row, live);
}
