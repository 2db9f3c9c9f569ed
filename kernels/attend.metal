// Attention of few rows to keys and values in the blocks of a pool. A threadgroup takes a tile of queries of one
// sequence that share a key-value head: heads of its group, rows of the sequence, or both. Its simdgroups take turns at
// tiles of 32 keys with a running softmax each, which are merged at the end. Where contexts are long, several
// threadgroups take a run of keys each, and another launch merges the runs.
#pragma once

#include "numbers.h"

struct AttendShape {
    int heads, groups; // h, g
    int size, width;   // positions of a block; blocks of a row of the table
    int window;        // positions that a row sees; 0: all before it
};

struct AttendFactors {
    float scale, softcap; // softcap 0: scores have no bound
};

// The queries of a threadgroup: `count` from number `first` of those of its sequence and group. Query u is head
// u % (h / g) of the group, of the sequence's row u / (h / g).
struct QueryTile {
    int sequence, group, first, count;
    int first_row;  // of the sequence
    int position;   // of its first row
    int per_group;  // h / g
    int begin, end; // positions that the threadgroup reads

    METAL_FUNC int position_of(int u) const { return position + (first + u) / per_group; }
    METAL_FUNC size_t head_of(int u, int heads) const {
        return size_t(first_row + (first + u) / per_group) * heads + group * per_group + (first + u) % per_group;
    }
};

// Below every score: differences of it and a score are finite.
constant constexpr float LOWEST = -3e38;

// starts (sequences + 1,) and lengths (sequences,); run: of `runs` that divide the keys
template <typename S, typename L>
METAL_FUNC QueryTile query_tile(S starts, L lengths, int sequence, int group, int first, int most, int run, int runs,
                                AttendShape s) {
    QueryTile t;
    int rows = starts[sequence + 1] - starts[sequence];
    t.sequence = sequence;
    t.group = group;
    t.first = first;
    t.first_row = starts[sequence];
    t.position = lengths[sequence] - rows;
    t.per_group = s.heads / s.groups;
    t.count = min(most, rows * t.per_group - first);
    if (t.count <= 0) return t;
    // blocks behind the window of the tile's first row hold anything
    int begin = s.window > 0 ? max(0, t.position_of(0) - s.window + 1) : 0, end = t.position_of(t.count - 1) + 1;
    int tiles = (end - begin + 31) / 32, each = (tiles + runs - 1) / runs;
    t.begin = begin + 32 * each * run;
    t.end = min(end, t.begin + 32 * each);
    return t;
}

// Loads four numbers, of which `left` are a row's; the others are zeros. WHOLE: all four are, at an aligned address
template <bool WHOLE, typename P>
METAL_FUNC float4 load_part(P p, int left) {
    return WHOLE ? load_aligned_floats(p) : load_up_to_4(p, left);
}

// The factor of a row: scales (...) of 8-bit numbers
template <typename S>
METAL_FUNC float row_factor(const device half*, S, int) {
    return 1;
}
template <typename S>
METAL_FUNC float row_factor(const device char*, S scales, int row) {
    return scales[row];
}

METAL_FUNC float4 xor_sum(float4 x, int mask) {
    return float4(x.x + simd_shuffle_xor(x.x, mask), x.y + simd_shuffle_xor(x.y, mask),
                  x.z + simd_shuffle_xor(x.z, mask), x.w + simd_shuffle_xor(x.w, mask));
}

// How a simdgroup reads rows of D numbers: eight lanes share a row of keys, LANES lanes a row of values. Each lane has
// CHUNKS or PARTS times four numbers.
template <int D>
struct RowShape {
    static constexpr constant int CHUNKS = (D + 31) / 32;
    static constexpr constant int LANES = D > 64 ? 32 : D > 32 ? 16 : 8;
    static constexpr constant int PARTS = (D + 4 * LANES - 1) / (4 * LANES);
    static constexpr constant int PADDED = PARTS * LANES; // float4s of a row of values
};

// Scaled queries of a tile as floats: out (QUERIES, 8 CHUNKS), zeros past d and past the tile's count.
template <int D, int QUERIES, typename Q>
METAL_FUNC void load_queries(Q q, float scale, threadgroup float4* out, QueryTile t, int heads, uint thread_index,
                             uint threads) {
    constexpr int WIDTH = 8 * RowShape<D>::CHUNKS;
    for (int i = thread_index; i < QUERIES * WIDTH; i += threads) {
        int u = i / WIDTH, k = 4 * (i % WIDTH);
        out[i] = u < t.count ? load_up_to_4(q + t.head_of(u, heads) * D + k, D - k) * scale : float4(0);
    }
}

// The running softmax of a simdgroup for QUERIES queries over values of DV.
template <int DV, int QUERIES>
struct Softmax {
    float highest[QUERIES];                    // score; the same in all lanes
    float total[QUERIES];                      // of this lane's keys
    float4 sums[QUERIES][RowShape<DV>::PARTS]; // of this lane's values

    METAL_FUNC void clear() {
        UNROLL for (int u = 0; u < QUERIES; u++) {
            highest[u] = LOWEST;
            total[u] = 0;
            UNROLL for (int c = 0; c < RowShape<DV>::PARTS; c++) sums[u][c] = 0;
        }
    }

    // Takes the score of this lane's key, -inf where it is not seen; returns its weight.
    METAL_FUNC float add(int u, float score) {
        float most = max(highest[u], simd_max(score)), weight = exp(score - most), shrunk = exp(highest[u] - most);
        highest[u] = most;
        total[u] = total[u] * shrunk + weight;
        UNROLL for (int c = 0; c < RowShape<DV>::PARTS; c++) sums[u][c] *= shrunk;
        return weight;
    }
};

// A simdgroup's threadgroup memory: the rows of 32 keys, and the weights of their values for each query.
struct KeyTile {
    threadgroup int* rows;      // (32,)
    threadgroup float* weights; // (queries, 32)
};

// Products of 32 keys (..., D) with queries (QUERIES, 8 CHUNKS); scores[u]: of this lane's key.
template <int D, int QUERIES, typename K>
METAL_FUNC void score(const device K* keys, threadgroup const float4* queries, KeyTile tile,
                      thread float (&scores)[QUERIES], uint lane) {
    constexpr int CHUNKS = RowShape<D>::CHUNKS;
    int part = lane % 8;
    for (int pass = 0; pass < 8; pass++) {
        const device K* row = keys + size_t(tile.rows[lane - part + pass]) * D;
        float sums[QUERIES];
        UNROLL for (int u = 0; u < QUERIES; u++) sums[u] = 0;
        UNROLL for (int c = 0; c < CHUNKS; c++) {
            int i = 4 * (part + 8 * c);
            float4 key = load_part<D % 32 == 0>(row + i, D - i);
            UNROLL for (int u = 0; u < QUERIES; u++) sums[u] += dot(key, queries[(u * CHUNKS + c) * 8 + part]);
        }
        UNROLL for (int u = 0; u < QUERIES; u++) {
            float sum = sums[u];
            UNROLL for (int mask = 1; mask < 8; mask *= 2) sum += simd_shuffle_xor(sum, mask);
            scores[u] = part == pass ? sum : scores[u];
        }
    }
}

// Adds the first `count` of 32 values (..., DV) by their weights.
template <int DV, int QUERIES, typename V>
METAL_FUNC void add_values(const device V* values, KeyTile tile, int count, thread Softmax<DV, QUERIES>& softmax,
                           uint lane) {
    constexpr int LANES = RowShape<DV>::LANES, PARTS = RowShape<DV>::PARTS;
    int part = lane % LANES;
    for (int key = lane / LANES; key < count; key += 32 / LANES) {
        const device V* row = values + size_t(tile.rows[key]) * DV;
        float4 parts[PARTS];
        UNROLL for (int c = 0; c < PARTS; c++) {
            int i = 4 * (part + LANES * c);
            parts[c] = load_part<DV % (4 * LANES) == 0>(row + i, DV - i);
        }
        UNROLL for (int u = 0; u < QUERIES; u++) {
            float4 weight = tile.weights[32 * u + key];
            UNROLL for (int c = 0; c < PARTS; c++) softmax.sums[u][c] = fma(weight, parts[c], softmax.sums[u][c]);
        }
    }
}

// The keys of a simdgroup: every `simdgroups`-th tile of 32. queries: scaled; table (sequences, width)
template <int D, int DV, int QUERIES, typename K, typename S, typename T>
METAL_FUNC void attend_keys(const device K* keys, const device K* values, S key_scales, S value_scales, T table,
                            threadgroup const float4* queries, KeyTile tile, QueryTile t, AttendShape s, float softcap,
                            thread Softmax<DV, QUERIES>& softmax, uint simdgroup, uint simdgroups, uint lane) {
    for (int base = t.begin + 32 * int(simdgroup); base < t.end; base += 32 * int(simdgroups)) {
        int count = min(32, t.end - base), position = base + min(int(lane), count - 1);
        int block = table[t.sequence * s.width + position / s.size];
        int row = (block * s.groups + t.group) * s.size + position % s.size;
        tile.rows[lane] = row;
        float key_factor = row_factor(keys, key_scales, row), value_factor = row_factor(values, value_scales, row);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        float scores[QUERIES];
        UNROLL for (int u = 0; u < QUERIES; u++) scores[u] = 0;
        score<D>(keys, queries, tile, scores, lane);
        UNROLL for (int u = 0; u < QUERIES; u++) {
            int behind = t.position_of(u) - position;
            bool seen = int(lane) < count && behind >= 0 && (s.window == 0 || behind < s.window);
            float score = scores[u] * key_factor;
            if (softcap > 0) score = softcap * precise::tanh(score / softcap);
            float weight = softmax.add(u, seen ? score : -INFINITY);
            tile.weights[32 * u + lane] = seen ? weight * value_factor : 0;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        add_values<DV>(values, tile, count, softmax, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Where the result of a head goes. One launch: out (n, h, dv) is divided by the sum of its weights, a sink's included.
// sinks: read if there are any
template <typename Z>
METAL_FUNC void put_head(device half* out, device float*, size_t head, size_t, int i, int dv, float sum, float highest,
                         float total, bool has_sinks, Z sinks, int h) {
    float sink = has_sinks ? float(sinks[h]) : LOWEST, most = max(highest, sink);
    float shrunk = exp(highest - most);
    out[head * dv + i] = clamp_half(half(sum * shrunk / (total * shrunk + (has_sinks ? exp(sink - most) : 0))));
}

// A run of several: out (runs, n, h, dv) is not divided; stats (runs, n, h, 2) are its highest score and its sum.
template <typename Z>
METAL_FUNC void put_head(device float* out, device float* stats, size_t head, size_t before, int i, int dv, float sum,
                         float highest, float total, bool, Z, int) {
    size_t at = before + head;
    out[at * dv + i] = sum;
    if (i == 0) {
        stats[2 * at] = highest;
        stats[2 * at + 1] = total;
    }
}

// Merges the softmaxes of all simdgroups and puts the heads of a tile.
// merged (simdgroups, PADDED), highest and totals (simdgroups, QUERIES): threadgroup memory; n: rows of the batch
template <int DV, int QUERIES, typename O, typename Z>
METAL_FUNC void put_tile(thread Softmax<DV, QUERIES>& softmax, threadgroup float4* merged, threadgroup float* highest,
                         threadgroup float* totals, QueryTile t, AttendShape s, O out, device float* stats,
                         bool has_sinks, Z sinks, size_t before, uint simdgroup, uint simdgroups, uint lane) {
    constexpr int LANES = RowShape<DV>::LANES, PARTS = RowShape<DV>::PARTS, PADDED = RowShape<DV>::PADDED;
    UNROLL for (int u = 0; u < QUERIES; u++) {
        float total = simd_sum(softmax.total[u]);
        if (lane == 0) {
            highest[simdgroup * QUERIES + u] = softmax.highest[u];
            totals[simdgroup * QUERIES + u] = total;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (int u = 0; u < QUERIES; u++) {
        float most = LOWEST, total = 0;
        for (uint i = 0; i < simdgroups; i++) most = max(most, highest[i * QUERIES + u]);
        for (uint i = 0; i < simdgroups; i++) total += totals[i * QUERIES + u] * exp(highest[i * QUERIES + u] - most);
        float shrunk = exp(softmax.highest[u] - most);
        UNROLL for (int c = 0; c < PARTS; c++) {
            float4 sum = softmax.sums[u][c] * shrunk;
            UNROLL for (int mask = LANES; mask < 32; mask *= 2) sum = xor_sum(sum, mask);
            if (int(lane) < LANES) merged[simdgroup * PADDED + lane + LANES * c] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = 32 * simdgroup + lane; u < t.count && 4 * i < DV; i += 32 * int(simdgroups)) {
            float4 sum = merged[i];
            for (uint k = 1; k < simdgroups; k++) sum += merged[k * PADDED + i];
            UNROLL for (int j = 0; j < 4; j++) {
                if (4 * i + j < DV)
                    put_head(out, stats, t.head_of(u, s.heads), before, 4 * i + j, DV, sum[j], most, total, has_sinks,
                             sinks, t.group * t.per_group + (t.first + u) % t.per_group);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Merges runs: sums (runs, n, h, dv) and stats (runs, n, h, 2) -> out (n, h, dv) half. One simdgroup per head.
template <typename R, typename P, typename Z>
METAL_FUNC void merge_runs(R sums, P stats, device half* out, bool has_sinks, Z sinks, int runs, size_t heads,
                           size_t head, int h, int dv, uint lane) {
    float sink = has_sinks ? float(sinks[h]) : LOWEST, most = sink;
    for (int r = 0; r < runs; r++) most = max(most, stats[2 * (heads * r + head)]);
    float total = has_sinks ? exp(sink - most) : 0;
    for (int r = 0; r < runs; r++)
        total += stats[2 * (heads * r + head) + 1] * exp(stats[2 * (heads * r + head)] - most);
    for (int i = lane; i < dv; i += 32) {
        float sum = 0;
        for (int r = 0; r < runs; r++) {
            size_t at = heads * r + head;
            sum = fma(sums[at * dv + i], exp(stats[2 * at] - most), sum);
        }
        out[head * dv + i] = clamp_half(half(sum / total));
    }
}
