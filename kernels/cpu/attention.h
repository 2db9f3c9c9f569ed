// The arguments of attention, and one key-value head of one sequence.
#pragma once

#include "paging.h"

// q: (rows, heads, d), out: (rows, heads, dv), the rows of all sequences one after another. Keys and values: (blocks,
// groups, size, d or dv), `bits` of 32 (float), 16 (half) or 8. A row sees its own position and those before it, the
// last `window` of them unless that is 0; with `both_ways` it sees all positions, and there is no window.
struct Attention {
    const float* q;
    const void *keys, *values;
    const float *key_scales, *value_scales; // (blocks, groups, size), of 8-bit numbers; else null
    const float* sinks;                     // (heads,), a logit that every row sees besides the keys; or null
    const int* starts;                      // (sequences + 1,), the first row of each
    const int* lengths;                     // (sequences,), positions held; the rows are the last of them
    const int* table;                       // (sequences, width), blocks
    float* out;
    int sequences, width, blocks, size, heads, groups, d, dv, window, bits, both_ways;
    float scale;   // multiplies scores
    float softcap; // bounds scores: c tanh(score / c); or 0

    Blocks key_blocks() const { return {groups, size, d}; }
    Blocks value_blocks() const { return {groups, size, dv}; }
    Blocks scale_blocks() const { return {groups, size, 1}; }
};

constexpr int TILE = 64; // keys

// A key-value head of a sequence. Its query rows are counted position by position, so that neighbours see much the
// same.
struct Head {
    const Attention& a;
    int sequence, group;

    int per_group() const { return a.heads / a.groups; }
    int length() const { return a.starts[sequence + 1] - a.starts[sequence]; }
    int held() const { return a.lengths[sequence]; }
    long rows() const { return long(per_group()) * length(); }
    const int* table() const { return a.table + long(sequence) * a.width; }
    int head(long i) const { return group * per_group() + int(i % per_group()); }
    // Where row i lies in q and out, in rows of d or dv.
    long place(long i) const { return (a.starts[sequence] + i / per_group()) * a.heads + head(i); }
    // The positions that row i sees: [first, last].
    int last(long i) const { return a.both_ways ? held() - 1 : held() - length() + int(i / per_group()); }
    int first(long i) const { return a.window > 0 ? std::max(0, last(i) - a.window + 1) : 0; }
    // The first tile that any row sees.
    int begin() const { return first(0) / TILE * TILE; }
    int tiles() const { return (held() - begin() + TILE - 1) / TILE; }
    long work() const { return rows() * (held() - begin()) * (a.d + a.dv); }
};
