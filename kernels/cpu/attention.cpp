// Causal attention with an online softmax, keys taken 64 at a time.
// Many query rows: keys are turned once so that a vector holds 16 keys, then four rows are multiplied
// at a time; all that is added up stays in registers. Few rows: turning would cost more than it saves.
#include "attention.h"

#include <cfloat>
#include <vector>

#include "exp.h"
#include "floats.h"
#include "pool.h"

namespace {

constexpr int BLOCK = 64; // keys
constexpr int QUAD = 4;   // query rows multiplied together
constexpr int PART = 16;  // query rows of a part of the job
constexpr int MANY = 16;  // query rows from which on keys are turned
constexpr int VECTORS = BLOCK / 16;

// Up to four query rows, their softmax so far and their part of the output.
struct Quad {
    int count;
    const float* q[QUAD];
    float* out[QUAD];
    int first[QUAD], last[QUAD];
    float largest[QUAD], weights[QUAD];
    alignas(64) float score[QUAD][BLOCK];
};

Quad start(const Attention& a, int bg, long row, long end) {
    Quad quad;
    quad.count = int(std::min<long>(QUAD, end - row));
    for (int r = 0; r < QUAD; r++) {
        long i = std::min(row + r, end - 1); // rows that are not there repeat the last
        long at = a.place(bg, i);
        quad.q[r] = a.q + at * a.d;
        quad.out[r] = a.out + at * a.dv;
        quad.first[r] = a.first(i);
        quad.last[r] = a.last(i);
        quad.largest[r] = -FLT_MAX;
        quad.weights[r] = 0;
        if (r < quad.count) std::fill_n(quad.out[r], a.dv, 0.0f);
    }
    return quad;
}

// Scores of 64 keys that were turned: (d, 64).
void multiply_keys(const Attention& a, const float* turned, Quad& quad) {
    Floats sums[QUAD][VECTORS] = {};
    for (int i = 0; i < a.d; i++) {
        Floats key[VECTORS];
        for (int v = 0; v < VECTORS; v++) key[v] = load_floats(turned + i * BLOCK + 16 * v);
        for (int r = 0; r < QUAD; r++)
            for (int v = 0; v < VECTORS; v++) sums[r][v] += key[v] * quad.q[r][i];
    }
    for (int r = 0; r < QUAD; r++)
        for (int v = 0; v < VECTORS; v++) {
            Floats scaled = sums[r][v] * a.scale;
            std::memcpy(quad.score[r] + 16 * v, &scaled, sizeof scaled);
        }
}

// Scores of keys [from, to) as they lie in the cache.
void multiply_keys(const Attention& a, const float* k, int from, int to, Quad& quad) {
    for (int r = 0; r < quad.count; r++)
        for (int s = from; s < to; s++) quad.score[r][s - from] = dot(quad.q[r], k + s * a.k_stride, a.d) * a.scale;
}

// Put -infinity where a row does not see a key: outside [first, last], counted from the block's start.
void hide(float* score, int first, int last) {
    for (int s = 0; s < BLOCK; s++)
        if (s < first || s > last) score[s] = -INFINITY;
}

float largest_of(const float* score, float largest) {
    Floats most = Floats{} + largest;
    for (int s = 0; s < BLOCK; s += 16) {
        Floats v = load_floats(score + s);
        most = v > most ? v : most;
    }
    return ::largest(most);
}

// Scores of keys [from, to) become weights; what is there already shrinks to the new maximum.
void soften(const Attention& a, int from, int to, Quad& quad) {
    for (int r = 0; r < quad.count; r++) {
        float* score = quad.score[r];
        int first = quad.first[r] - from, last = std::min(quad.last[r], to - 1) - from;
        if (first > 0 || last < BLOCK - 1) hide(score, first, last);
        float largest = largest_of(score, quad.largest[r]);
        float shrink = std::exp(quad.largest[r] - largest);
        quad.weights[r] = quad.weights[r] * shrink + exp_sum(score, BLOCK, largest);
        quad.largest[r] = largest;
        if (shrink != 1)
            for (int i = 0; i < a.dv; i++) quad.out[r][i] *= shrink;
    }
}

// Add the weighted values of keys [from, to), 64 floats of the output at a time.
void add_values(const Attention& a, const float* v, int from, int to, Quad& quad) {
    int i = 0;
    for (; i + BLOCK <= a.dv; i += BLOCK) {
        Floats sums[QUAD][VECTORS] = {};
        for (int s = from; s < to; s++) {
            Floats value[VECTORS];
            for (int j = 0; j < VECTORS; j++) value[j] = load_floats(v + s * a.v_stride + i + 16 * j);
            for (int r = 0; r < QUAD; r++)
                for (int j = 0; j < VECTORS; j++) sums[r][j] += value[j] * quad.score[r][s - from];
        }
        for (int r = 0; r < quad.count; r++)
            for (int j = 0; j < VECTORS; j++) {
                Floats whole = load_floats(quad.out[r] + i + 16 * j) + sums[r][j];
                std::memcpy(quad.out[r] + i + 16 * j, &whole, sizeof whole);
            }
    }
    for (; i < a.dv; i++)
        for (int s = from; s < to; s++)
            for (int r = 0; r < quad.count; r++) quad.out[r][i] += quad.score[r][s - from] * v[s * a.v_stride + i];
}

// Keys [from, from + 64) of a head as (d, 64); those that are not there are zero.
void turn(const Attention& a, const float* k, int from, float* out) {
    int count = std::min(BLOCK, a.held - from);
    for (int i = 0; i < a.d; i++) {
        for (int s = 0; s < count; s++) out[i * BLOCK + s] = k[(from + s) * a.k_stride + i];
        for (int s = count; s < BLOCK; s++) out[i * BLOCK + s] = 0;
    }
}

// Rows [row, row + 16) of a key-value head. turned: its keys in blocks of (d, 64), or null.
void attend_rows(const Attention& a, int bg, long row, const float* turned) {
    long end = std::min(row + PART, a.rows());
    const float *k = a.keys(bg), *v = a.values(bg);
    Quad quads[PART / QUAD];
    int count = 0;
    for (long i = row; i < end; i += QUAD) quads[count++] = start(a, bg, i, end);
    for (int from = a.first(row) / BLOCK * BLOCK; from <= a.last(end - 1); from += BLOCK) {
        int to = std::min(from + BLOCK, a.held);
        for (int n = 0; n < count; n++) {
            if (turned)
                multiply_keys(a, turned + long(from) * a.d, quads[n]);
            else
                multiply_keys(a, k, from, to, quads[n]);
            soften(a, from, to, quads[n]);
            add_values(a, v, from, to, quads[n]);
        }
    }
    for (int n = 0; n < count; n++)
        for (int r = 0; r < quads[n].count; r++)
            for (int i = 0; i < a.dv; i++) quads[n].out[r][i] /= quads[n].weights[r];
}

} // namespace

void attend(const Attention& a) {
    int heads = a.batch * a.groups, blocks = (a.held + BLOCK - 1) / BLOCK;
    int parts = int((a.rows() + PART - 1) / PART);
    long work = a.rows() * heads * a.held * a.d;
    thread_local std::vector<float> kept;
    std::vector<float>& turned = kept;
    long size = long(blocks) * BLOCK * a.d;
    bool many = a.rows() >= MANY;
    if (many) {
        turned.resize(std::max(turned.size(), size_t(size) * heads));
        pool_run(heads * blocks, [&](int job) {
            int bg = job / blocks, from = job % blocks * BLOCK;
            turn(a, a.keys(bg), from, turned.data() + bg * size + long(from) * a.d);
        });
    }
    auto part = [&](int job) {
        int bg = job / parts;
        long row = long(parts - 1 - job % parts) * PART; // the longest first
        attend_rows(a, bg, row, many ? turned.data() + bg * size : nullptr);
    };
    if (work < SMALL)
        for (int job = 0; job < parts * heads; job++) part(job);
    else
        pool_run(parts * heads, part);
}
