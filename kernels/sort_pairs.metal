// Sorts (token, expert) pairs by expert, stably, and lists the tiles of the grouped product. One simdgroup per expert
// reads all ids twice, from the cache: first to count the pairs of lower experts, which gives the start of its own,
// then to list its own. Simdgroups do not communicate, so there is one launch and there are no atomics.
//
// The tiles of an expert are stored from index start / SIZE + expert on, which is past those of the previous expert.
// All n / SIZE + experts + 1 entries are written; at most one tile per expert has no pairs. Ids out of range are
// treated as expert `experts`.
#pragma once

#include "numbers.h"

// Expert ids of pairs p, p + 32, p + 64 and p + 96 of n; past the end, experts + 1, which matches none. The four loads
// are in flight together.
struct ExpertIds4 {
    int v[4];
};

template <typename I>
METAL_FUNC ExpertIds4 load_expert_ids(I ids, int p, int n, int experts) {
    ExpertIds4 out;
    UNROLL for (int j = 0; j < 4; j++) {
        long id = p + 32 * j < n ? long(ids[p + 32 * j]) : -1;
        out.v[j] = p + 32 * j >= n ? experts + 1 : id < 0 || id >= experts ? experts : int(id);
    }
    return out;
}

// One simdgroup: ids (n,) -> its share of order (n,) and of tiles (n / SIZE + experts + 1, 3): an expert, the index in
// order of its first pair, and the number of pairs.
template <int SIZE, typename I>
METAL_FUNC void sort_pairs(I ids, device int* order, device int* tiles, int n, int experts, int expert, uint lane) {
    int lower = 0, equal = 0;
    for (int p = 0; p < n; p += 128) {
        ExpertIds4 expert_ids = load_expert_ids(ids, p + int(lane), n, experts);
        UNROLL for (int j = 0; j < 4; j++) {
            lower += expert_ids.v[j] < expert;
            equal += expert_ids.v[j] == expert;
        }
    }
    int start = simd_sum(lower), count = simd_sum(equal), next = start;
    for (int p = 0; p < n; p += 128) {
        ExpertIds4 expert_ids = load_expert_ids(ids, p + int(lane), n, experts);
        UNROLL for (int j = 0; j < 4; j++) {
            bool match = expert_ids.v[j] == expert;
            uint votes = uint(ulong(simd_ballot(match)));
            if (match) order[next + popcount(votes & ((1u << lane) - 1))] = p + 32 * j + int(lane);
            next += popcount(votes);
        }
    }
    int tile = start / SIZE + expert, end = (start + count) / SIZE + expert + 1;
    for (int t = tile + int(lane); t < end; t += 32) {
        int skipped = (t - tile) * SIZE;
        tiles[3 * t] = expert;
        tiles[3 * t + 1] = start + skipped;
        tiles[3 * t + 2] = clamp(count - skipped, 0, SIZE);
    }
}
