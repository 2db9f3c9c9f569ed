// What becomes of queries, keys and values before attention: norm of heads, rotation, and storing in the pool.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "calls.h"
#include "floats.h"
#include "shared.h"
#include "stored.h"

namespace {

// q (rows, heads, wide) -> turned (rows, heads, d); k (rows, groups, d) and v (rows, groups, dv) -> keys and values
// (blocks, groups, size, d or dv) of 16 or 8 bits, the latter with a scale for each row of a head. Queries and keys:
// RMS norm, if there are weights (d,), then rotation of the first 2 pairs values by the angles. The query is the first
// d numbers of a head of q.
struct Append {
    const float *q, *k, *v, *q_weight, *k_weight;
    const float* angles; // (rows, 2, pairs): cosines and sines
    const long* slots;   // (rows,), block * size + the position within the block
    float* turned;
    void *keys, *values;
    float *key_scales, *value_scales; // (blocks, groups, size), or null
    int rows, heads, wide, groups, d, dv, pairs, interleaved, blocks, size, bits;
    float eps;
};

// Cosines and sines of rows' positions times frequencies (pairs,), times magnitude: out (rows, 2, pairs).
struct Angles {
    const float* frequencies;
    const int* positions; // (rows,)
    float* out;
    int rows, pairs;
    float magnitude;
};

void angles(const Angles& a) {
    share(long(a.rows) * a.pairs * 32 >= SMALL, a.rows, [&](int row) {
        float *cosine = a.out + 2L * row * a.pairs, *sine = cosine + a.pairs;
        for (int i = 0; i < a.pairs; i++) {
            float angle = float(a.positions[row]) * a.frequencies[i];
            cosine[i] = std::cos(angle) * a.magnitude;
            sine[i] = std::sin(angle) * a.magnitude;
        }
    });
}

// The angles of a row; room for a head that is normed, and for a key that is turned.
struct Turn {
    const float *cosine, *sine;
    float *normed, *key;
};

// One head x (d,) -> out (d,). weight: (d,), or null for no norm.
void turn_head(const Append& a, const float* x, const float* weight, Turn turn, float* out) {
    if (weight) {
        float scale = 1 / std::sqrt(dot(x, x, a.d) / float(a.d) + a.eps);
        for (int i = 0; i < a.d; i++) turn.normed[i] = x[i] * scale * weight[i];
        x = turn.normed;
    }
    int step = a.interleaved ? 2 : 1, apart = a.interleaved ? 1 : a.pairs;
    for (int i = 0; i < a.pairs; i++) {
        float first = x[i * step], second = x[i * step + apart];
        out[i * step] = first * turn.cosine[i] - second * turn.sine[i];
        out[i * step + apart] = first * turn.sine[i] + second * turn.cosine[i];
    }
    std::copy(x + 2 * a.pairs, x + a.d, out + 2 * a.pairs);
}

// x / scale as whole numbers of 8 bits; the scale. A NaN makes the scale NaN, and with it all that is read.
float narrow_to_bytes(const float* x, int count, std::int8_t* out) {
    float most = 0;
    for (int i = 0; i < count; i++) most = std::max(most, std::fabs(x[i])) + (x[i] - x[i]);
    float inverse = most > 0 ? 127 / most : 0;
    for (int i = 0; i < count; i++) out[i] = std::int8_t(std::lrint(std::isfinite(inverse) ? x[i] * inverse : 0));
    return most / 127;
}

// A row x (count,) of key-value head g into the pool.
void store(const Append& a, const float* x, int count, long slot, int g, void* pool, float* scales) {
    long row = (slot / a.size * a.groups + g) * a.size + slot % a.size;
    if (a.bits == 8)
        scales[row] = narrow_to_bytes(x, count, (std::int8_t*)pool + row * count);
    else
        narrow(x, count, (half*)pool + row * count);
}

void append_row(const Append& a, int row, Turn turn) {
    for (int h = 0; h < a.heads; h++) {
        long at = long(row) * a.heads + h;
        turn_head(a, a.q + at * a.wide, a.q_weight, turn, a.turned + at * a.d);
    }
    for (int g = 0; g < a.groups; g++) {
        turn_head(a, a.k + (long(row) * a.groups + g) * a.d, a.k_weight, turn, turn.key);
        store(a, turn.key, a.d, a.slots[row], g, a.keys, a.key_scales);
        store(a, a.v + (long(row) * a.groups + g) * a.dv, a.dv, a.slots[row], g, a.values, a.value_scales);
    }
}

void check(const Append& a) {
    for (int row = 0; row < a.rows; row++)
        if (a.slots[row] < 0 || a.slots[row] >= long(a.blocks) * a.size)
            throw std::out_of_range("append: row " + std::to_string(row) + " goes to slot " +
                                    std::to_string(a.slots[row]) + ", expected 0 to " +
                                    std::to_string(long(a.blocks) * a.size - 1));
}

void append(const Append& a) {
    check(a);
    bool is_shared = long(a.rows) * (a.heads + a.groups) * a.d >= SMALL;
    share(is_shared, a.rows, [&](int row) {
        thread_local std::vector<float> scratch;
        scratch.resize(2 * a.d);
        const float* cosine = a.angles + 2L * row * a.pairs;
        append_row(a, row, {cosine, cosine + a.pairs, scratch.data(), scratch.data() + a.d});
    });
}

CALL(Angles, angles, F(frequencies), F(positions), F(out), F(rows), F(pairs), F(magnitude))
CALL(Append, append, F(q), F(k), F(v), F(q_weight), F(k_weight), F(angles), F(slots), F(turned), F(keys), F(values),
     F(key_scales), F(value_scales), F(rows), F(heads), F(wide), F(groups), F(d), F(dv), F(pairs), F(interleaved),
     F(blocks), F(size), F(bits), F(eps))

} // namespace
