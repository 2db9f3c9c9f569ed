// Attention of many rows of a sequence over keys and values in blocks, 128 threads.
//
// A threadgroup takes 32 rows of one sequence: positions times the query heads that share a key head, so that these
// share loads. Each simdgroup keeps 8 rows in registers: queries as halves, sums of values as floats. A step takes
// about 64 8x8 products per simdgroup: 8, 16 or 32 keys, depending on the size of a head. Keys and values of a step are
// staged as halves in threadgroup memory, about 8.5 KiB with heads of 128, so that an M1 core holds three threadgroups.
// Rows of a tile are an odd number of 16 bytes apart, so that neither stores nor matrix loads have bank conflicts.
// Values are loaded during the products of keys, the next keys during those of values. One thread per key looks its
// block up, a step ahead; positions that no row of the tile sees are neither looked up nor loaded, but count as zeros,
// since a weight of 0 times NaN would be NaN.
//
// Scores are exponents of 2. Weights are scaled by 2^15, so that they are normal halves down to 2^-29 of the largest.
#pragma once

#include "numbers.h"

constant constexpr int QUERY_ROWS = 32;         // of a threadgroup
constant constexpr float LARGEST_WEIGHT = 15;   // as a power of 2
constant constexpr float LOWEST_SCORE = -1e38f; // finite, as -inf - -inf would be NaN

template <int D, int DV>
struct HeadTile {
    static constexpr constant int KEYS = D + DV <= 128 ? 32 : D + DV <= 256 ? 16 : 8; // of a step
    static constexpr constant int KEY_STRIDE = D / 8 | 1, VALUE_STRIDE = DV / 8 | 1;  // of rows, in 16 bytes
    static constexpr constant int MEMORY = KEYS * (KEY_STRIDE + VALUE_STRIDE);        // in 16 bytes
};

// keys (blocks, groups, size, d), table (sequences, width). window: positions that a row sees
struct PagedShape {
    int heads, groups, size, width, sequences, window;

    int heads_per_group() const { return heads / groups; }
};

// Rows [row, row + 32) of a sequence, of `rows`: row r is query head r % heads_per_group of position
// first_position + r / heads_per_group.
struct QueryTile {
    int sequence, row, rows;
    int first_query, first_position; // of row 0

    bool is_empty() const { return row >= rows; }
};

// Finds tile `tile` of all sequences, empty past the last one.
template <typename I, typename L>
METAL_FUNC QueryTile find_tile(I starts, L lengths, PagedShape s, int tile) {
    QueryTile found = {0, 0, 0, 0, 0};
    for (int i = 0; i < s.sequences; i++) {
        int first = starts[i], count = starts[i + 1] - first, rows = count * s.heads_per_group();
        int tiles = (rows + QUERY_ROWS - 1) / QUERY_ROWS;
        if (tile < tiles) {
            found = QueryTile{i, tile * QUERY_ROWS, rows, first, int(lengths[i]) - count};
            break;
        }
        tile -= tiles;
    }
    return found;
}

// The positions [begin, end) that at least one row of a tile sees; every row sees [common_begin, common_end).
struct KeyRange {
    int begin, end, common_begin, common_end;
};

METAL_FUNC KeyRange find_keys(QueryTile tile, PagedShape s) {
    int per_group = s.heads_per_group();
    int first = tile.first_position + tile.row / per_group;
    int last = tile.first_position + (min(tile.row + QUERY_ROWS, tile.rows) - 1) / per_group;
    return KeyRange{max(0, first - s.window + 1), last + 1, max(0, last - s.window + 1), first + 1};
}

// The row of a position in keys (blocks * groups * size, d); -1 if no row of the tile sees it.
template <typename I>
METAL_FUNC int find_slot(I table, QueryTile tile, KeyRange range, PagedShape s, int group, int position) {
    if (position >= range.end) return -1;
    int block = table[tile.sequence * s.width + position / s.size];
    return (block * s.groups + group) * s.size + position % s.size;
}

// Eight numbers of a row as they are stored, and as halves.
template <typename T>
struct Chunk;

template <>
struct Chunk<half> {
    uint4 bits;

    template <typename S>
    void load(const device half* p, S, int) {
        bits = load16<4>((const device uchar*)p);
    }
    void clear() { bits = 0; }
    uint4 halves() const { return bits; }
};

template <>
struct Chunk<int8_t> {
    uint2 codes;
    float scale;

    template <typename S>
    void load(const device int8_t* p, S scales, int slot) {
        codes = uint2(*(const device packed_uint2*)p);
        scale = scales[slot];
    }
    void clear() {
        codes = 0;
        scale = 0;
    }
    uint4 halves() const {
        half4 low = half4(float4(as_type<char4>(codes.x)) * scale);
        half4 high = half4(float4(as_type<char4>(codes.y)) * scale);
        if (abs(scale) > float(LARGEST_HALF) / 128) {
            UNROLL for (int i = 0; i < 4; i++) {
                low[i] = clamp_half(low[i]);
                high[i] = clamp_half(high[i]);
            }
        }
        return uint4(as_type<uint2>(low), as_type<uint2>(high));
    }
};

// What a thread loads of KEYS rows of SIZE numbers: chunks thread_index, thread_index + 128, ...
template <typename T, int SIZE, int KEYS>
struct StagedRows {
    static constexpr constant int PARTS = SIZE / 8, CHUNKS = (KEYS * PARTS + 127) / 128;
    Chunk<T> chunks[CHUNKS];

    template <typename S>
    void load(const device T* rows, S scales, const threadgroup int* slots, int thread_index) {
        UNROLL for (int i = 0; i < CHUNKS; i++) {
            int chunk = thread_index + 128 * i, slot = chunk < KEYS * PARTS ? slots[chunk / PARTS] : -1;
            if (slot >= 0)
                chunks[i].load(rows + size_t(slot) * SIZE + chunk % PARTS * 8, scales, slot);
            else
                chunks[i].clear();
        }
    }

    void store(threadgroup uint4* tile, int thread_index) const {
        UNROLL for (int i = 0; i < CHUNKS; i++) {
            int chunk = thread_index + 128 * i;
            if (chunk < KEYS * PARTS) tile[chunk / PARTS * (PARTS | 1) + chunk % PARTS] = chunks[i].halves();
        }
    }
};

// A lane holds two neighbours in a row of an 8x8 matrix: MLX's kernels rely on the same layout.
METAL_FUNC int matrix_row(int lane) { return (lane >> 2 & 4) | (lane >> 1 & 3); }
METAL_FUNC int matrix_column(int lane) { return (lane >> 1 & 4) | (lane << 1 & 2); }

// The largest of a row's numbers, of which each lane has one.
METAL_FUNC float row_max(float x) {
    x = max(x, simd_shuffle_xor(x, ushort(1)));
    return max(x, simd_shuffle_xor(x, ushort(8)));
}

METAL_FUNC float row_sum(float x) {
    x += simd_shuffle_xor(x, ushort(1));
    return x + simd_shuffle_xor(x, ushort(8));
}

// Makes a score of a product. factors: of the product, of its tanh
template <bool SOFTCAP>
METAL_FUNC float to_score(float product, float2 factors) {
    float x = product * factors.x;
    return SOFTCAP ? factors.y * precise::tanh(x) : x;
}

// Eight rows, as a simdgroup holds them. first, last: what this lane's row sees; largest: its largest score so far;
// sum: its weights in the columns of this lane
template <int D, int DV, bool SOFTCAP>
struct QueryRows {
    static constexpr constant int KEYS = HeadTile<D, DV>::KEYS;
    static constexpr constant int KEY_STRIDE = 8 * HeadTile<D, DV>::KEY_STRIDE; // in halves
    static constexpr constant int VALUE_STRIDE = 8 * HeadTile<D, DV>::VALUE_STRIDE;
    simdgroup_half8x8 q[D / 8], weights[KEYS / 8];
    simdgroup_float8x8 scores[KEYS / 8], out[DV / 8];
    int first, last;
    float largest, sum;

    template <typename Q>
    void load(const device Q* row, int lane) {
        UNROLL for (int part = 0; part < D / 8; part++) {
            UNROLL for (int i = 0; i < 2; i++) q[part].thread_elements()[i] =
                clamp_half(half(row[8 * part + matrix_column(lane) + i]));
        }
        UNROLL for (int part = 0; part < DV / 8; part++) out[part] = make_filled_simdgroup_matrix<float, 8, 8>(0);
        largest = LOWEST_SCORE;
        sum = 0;
    }

    // Adds a key without a value, of which only the score counts.
    void add_sink(float score, int lane) {
        largest = max(largest, score);
        if (matrix_column(lane) == 0) sum = exp2(LARGEST_WEIGHT);
    }

    // Turns scores, products with the keys from `position` on, into weights. masked: whether some row does not see all
    void update_weights(int position, bool masked, float2 factors, int lane) {
        float highest = largest;
        UNROLL for (int j = 0; j < KEYS / 8; j++) {
            UNROLL for (int i = 0; i < 2; i++) {
                float score = to_score<SOFTCAP>(scores[j].thread_elements()[i], factors);
                int key = position + 8 * j + matrix_column(lane) + i;
                if (masked && (key < first || key > last)) score = -INFINITY;
                scores[j].thread_elements()[i] = score;
                highest = max(highest, score);
            }
        }
        highest = row_max(highest);
        rescale(exp2(largest - highest));
        largest = highest;
        UNROLL for (int j = 0; j < KEYS / 8; j++) {
            UNROLL for (int i = 0; i < 2; i++) {
                float weight = exp2(scores[j].thread_elements()[i] - (highest - LARGEST_WEIGHT));
                weights[j].thread_elements()[i] = half(weight);
                sum += weight;
            }
        }
    }

    void rescale(float factor) {
        if (!simd_any(factor != 1)) return;
        sum *= factor;
        UNROLL for (int part = 0; part < DV / 8; part++) {
            UNROLL for (int i = 0; i < 2; i++) out[part].thread_elements()[i] *= factor;
        }
    }

    void add_keys(const threadgroup half* keys, int position, bool masked, float2 factors, int lane) {
        UNROLL for (int j = 0; j < KEYS / 8; j++) scores[j] = make_filled_simdgroup_matrix<float, 8, 8>(0);
        UNROLL for (int part = 0; part < D / 8; part++) {
            simdgroup_barrier(mem_flags::mem_none); // keeps the compiler from loading all matrices first
            UNROLL for (int j = 0; j < KEYS / 8; j++) {
                simdgroup_half8x8 k;
                simdgroup_load(k, keys + 8 * j * KEY_STRIDE + 8 * part, KEY_STRIDE, ulong2(0, 0), true);
                simdgroup_multiply_accumulate(scores[j], q[part], k, scores[j]);
            }
        }
        update_weights(position, masked, factors, lane);
    }

    // Neighbouring products add to different sums, so that none waits for the last.
    void add_values(const threadgroup half* values) {
        UNROLL for (int j = 0; j < KEYS / 8; j++) {
            UNROLL for (int part = 0; part < DV / 8; part++) {
                if (part % 4 == 0) simdgroup_barrier(mem_flags::mem_none);
                simdgroup_half8x8 v;
                simdgroup_load(v, values + 8 * j * VALUE_STRIDE + 8 * part, VALUE_STRIDE);
                simdgroup_multiply_accumulate(out[part], weights[j], v, out[part]);
            }
        }
    }

    // All lanes take part, those with is_row write.
    void store(device half* row, bool is_row, int lane) {
        float total = row_sum(sum);
        if (!is_row) return;
        UNROLL for (int part = 0; part < DV / 8; part++) {
            half2 y;
            UNROLL for (int i = 0; i < 2; i++) y[i] = clamp_half(half(out[part].thread_elements()[i] / total));
            *(device half2*)(row + 8 * part + matrix_column(lane)) = y;
        }
    }
};

// The steps over all keys that a tile sees. memory: HeadTile::MEMORY, slots: 2 * KEYS
template <int D, int DV, bool SOFTCAP, typename T, typename S, typename I>
METAL_FUNC void attend_keys(thread QueryRows<D, DV, SOFTCAP>& rows, const device T* keys, const device T* values,
                            S key_scales, S value_scales, I table, QueryTile tile, PagedShape s, int group,
                            float2 factors, threadgroup uint4* memory, threadgroup int* slots, int thread_index) {
    constexpr int KEYS = HeadTile<D, DV>::KEYS;
    threadgroup uint4* value_memory = memory + KEYS * HeadTile<D, DV>::KEY_STRIDE;
    KeyRange range = find_keys(tile, s);
    bool looks_up = thread_index < KEYS, has_rows = tile.row + thread_index / 32 * 8 < tile.rows;
    int next = range.begin + thread_index, slot = -1;
    if (looks_up) {
        slots[thread_index] = find_slot(table, tile, range, s, group, next);
        slot = find_slot(table, tile, range, s, group, next + KEYS);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    StagedRows<T, D, KEYS> staged_keys;
    StagedRows<T, DV, KEYS> staged_values;
    staged_keys.load(keys, key_scales, slots, thread_index);
    for (int position = range.begin; position < range.end; position += KEYS) {
        int turn = (position - range.begin) / KEYS % 2;
        staged_keys.store(memory, thread_index);
        if (looks_up) slots[(1 - turn) * KEYS + thread_index] = slot;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        staged_values.load(values, value_scales, slots + turn * KEYS, thread_index);
        bool masked = position < range.common_begin || position + KEYS > range.common_end;
        if (has_rows) rows.add_keys((const threadgroup half*)memory, position, masked, factors, thread_index % 32);
        staged_values.store(value_memory, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        staged_keys.load(keys, key_scales, slots + (1 - turn) * KEYS, thread_index);
        next += KEYS;
        if (looks_up) slot = find_slot(table, tile, range, s, group, next + KEYS);
        if (has_rows) rows.add_values((const threadgroup half*)value_memory);
    }
}

// One threadgroup: tile `index` of all sequences, for the query heads of a key head: q (n, heads, d) ->
// y (n, heads, dv). key_scales, value_scales (blocks, groups, size): only of 8-bit numbers; sinks (heads,): if SINKS
template <int D, int DV, bool SOFTCAP, bool SINKS, typename Q, typename T, typename S, typename I, typename L,
          typename B, typename Z>
METAL_FUNC void attend_rows(const device Q* q, const device T* keys, const device T* values, S key_scales,
                            S value_scales, I starts, L lengths, B table, Z sinks, device half* y, PagedShape s,
                            float2 factors, int index, threadgroup uint4* memory, threadgroup int* slots,
                            int thread_index) {
    int group = index % s.groups, lane = thread_index % 32;
    QueryTile tile = find_tile(starts, lengths, s, index / s.groups);
    if (tile.is_empty()) return;
    int r = tile.row + thread_index / 32 * 8 + matrix_row(lane), row = min(r, tile.rows - 1);
    int query = row / s.heads_per_group(), head = group * s.heads_per_group() + row % s.heads_per_group();
    size_t at = size_t(tile.first_query + query) * s.heads + head;
    QueryRows<D, DV, SOFTCAP> rows;
    rows.load(q + at * D, lane);
    if (SINKS) rows.add_sink(float(sinks[head]) * M_LOG2E_F, lane);
    rows.last = tile.first_position + query;
    rows.first = rows.last - s.window + 1;
    attend_keys(rows, keys, values, key_scales, value_scales, table, tile, s, group, factors, memory, slots,
                thread_index);
    rows.store(y + at * DV, r < tile.rows, lane);
}
