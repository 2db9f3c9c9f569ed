// Pairs of a token and an expert by expert, each expert's in their order, and the tiles of the grouped product. A
// simdgroup an expert goes through all ids twice, from the cache: to count the lower ones, after which its pairs
// start, then to list its own. No other knows or waits, so there is one launch and no atomic.
//
// Tiles: those of an expert stand from start / SIZE + expert on, which leaves room for all before the next expert's
// and fills n / SIZE + experts + 1 places with at most one empty one behind each expert's. Ids that are no expert's
// are of expert `experts`.
#pragma once

#include "prelude.metal"

// Of expert `expert`: pairs [first, first + count) of the order.
struct Tile {
    int expert, first, count;
};

// One simdgroup: ids (n,) -> its part of order (n,), and of tiles.
template <int SIZE, typename I>
METAL_FUNC void sort_pairs(I ids, device int* order, device Tile* tiles, int n, int experts, int expert, uint lane) {
    int before = 0, own = 0;
    for (int p = lane; p < n; p += 32) {
        long id = ids[p];
        int of = id < 0 || id >= experts ? experts : int(id);
        before += of < expert;
        own += of == expert;
    }
    int start = simd_sum(before), count = simd_sum(own), listed = start;
    for (int p = lane; p < n + int(lane); p += 32) { // all lanes in every turn
        bool mine = false;
        if (p < n) {
            long id = ids[p];
            mine = expert == (id < 0 || id >= experts ? experts : int(id));
        }
        uint votes = uint(ulong(simd_ballot(mine)));
        if (mine) order[listed + popcount(votes & ((1u << lane) - 1))] = p;
        listed += popcount(votes);
    }
    int tile = start / SIZE + expert, next = (start + count) / SIZE + expert + 1;
    for (int t = tile + int(lane); t < next; t += 32) {
        int done = (t - tile) * SIZE;
        tiles[t] = Tile{expert, start + done, clamp(count - done, 0, SIZE)};
    }
}
