// Pairs of a token and an expert by expert, each expert's in their order, and the tiles of the grouped product. A
// simdgroup an expert goes through all ids twice, from the cache: to count the lower ones, after which its pairs
// start, then to list its own. No other knows or waits, so there is one launch and no atomic.
//
// Tiles: those of an expert stand from start / SIZE + expert on, which leaves room for all before the next expert's
// and fills n / SIZE + experts + 1 places with at most one empty one behind each expert's. Ids that are no expert's
// are of expert `experts`.
#pragma once

#include "numbers.h"

// Experts of pairs p, p + 32, p + 64 and p + 96 of n; of what is past the end, a number that none has. Four loads are
// under way at once.
struct Four {
    int of[4];
};

template <typename I>
METAL_FUNC Four experts_of(I ids, int p, int n, int experts) {
    Four out;
    UNROLL for (int j = 0; j < 4; j++) {
        long id = p + 32 * j < n ? long(ids[p + 32 * j]) : -1;
        out.of[j] = p + 32 * j >= n ? experts + 1 : id < 0 || id >= experts ? experts : int(id);
    }
    return out;
}

// One simdgroup: ids (n,) -> its part of order (n,), and of tiles (most, 3): an expert, and the place in the order of
// the first of its pairs and how many there are.
template <int SIZE, typename I>
METAL_FUNC void sort_pairs(I ids, device int* order, device int* tiles, int n, int experts, int expert, uint lane) {
    int before = 0, own = 0;
    for (int p = 0; p < n; p += 128) {
        Four four = experts_of(ids, p + int(lane), n, experts);
        UNROLL for (int j = 0; j < 4; j++) {
            before += four.of[j] < expert;
            own += four.of[j] == expert;
        }
    }
    int start = simd_sum(before), count = simd_sum(own), listed = start;
    for (int p = 0; p < n; p += 128) {
        Four four = experts_of(ids, p + int(lane), n, experts);
        UNROLL for (int j = 0; j < 4; j++) {
            bool mine = four.of[j] == expert;
            uint votes = uint(ulong(simd_ballot(mine)));
            if (mine) order[listed + popcount(votes & ((1u << lane) - 1))] = p + 32 * j + int(lane);
            listed += popcount(votes);
        }
    }
    int tile = start / SIZE + expert, next = (start + count) / SIZE + expert + 1;
    for (int t = tile + int(lane); t < next; t += 32) {
        int done = (t - tile) * SIZE;
        tiles[3 * t] = expert;
        tiles[3 * t + 1] = start + done;
        tiles[3 * t + 2] = clamp(count - done, 0, SIZE);
    }
}
