// Causal attention with an online softmax, keys taken 64 at a time.
// Many query rows: keys are turned once so that a vector holds 16 keys, then four rows are multiplied
// at a time; all that is added up stays in registers. Few rows: turning would cost more than it saves;
// the keys are shared out between the threads instead, and their softmaxes merged.
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

// Rows [row, row + 4) of [0, end). out: where row 0 goes, in rows of `stride`; null: their place in a.out.
Quad start(const Attention& a, int bg, long row, long end, float* out, int stride) {
    Quad quad;
    quad.count = int(std::min<long>(QUAD, end - row));
    for (int r = 0; r < QUAD; r++) {
        long i = std::min(row + r, end - 1); // rows that are not there repeat the last
        long at = a.place(bg, i);
        quad.q[r] = a.q + at * a.d;
        quad.out[r] = out ? out + i * stride : a.out + at * a.dv;
        quad.first[r] = a.first(i);
        quad.last[r] = a.last(i);
        quad.largest[r] = -FLT_MAX;
        quad.weights[r] = 0;
        if (r < quad.count) std::fill_n(quad.out[r], a.dv, 0.0f);
    }
    return quad;
}

// Scores of 64 keys that were turned: (d, 64).
void multiply_turned(const Attention& a, const float* turned, Quad& quad) {
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

// Scores of keys [from, to) as they lie in the cache, 16 keys side by side.
template <typename T>
void multiply_keys(const Attention& a, const T* k, int from, int to, Quad& quad) {
    for (int s = from; s < to; s += 16) {
        const T* key[16]; // those that are not there repeat the last
        for (int j = 0; j < 16; j++) key[j] = k + std::min(s + j, to - 1) * a.k_stride;
        for (int r = 0; r < quad.count; r++) {
            Floats sums[16] = {};
            int i = 0;
            for (; i + 16 <= a.d; i += 16) {
                Floats q = load_floats(quad.q[r] + i);
#pragma GCC unroll 16
                for (int j = 0; j < 16; j++) sums[j] += q * load_floats(key[j] + i);
            }
            Floats score = totals(sums);
            for (; i < a.d; i++)
                for (int j = 0; j < 16; j++) score[j] += quad.q[r][i] * key[j][i];
            score *= a.scale;
            std::memcpy(quad.score[r] + s - from, &score, sizeof score);
        }
    }
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
template <typename T>
void add_values(const Attention& a, const T* v, int from, int to, Quad& quad) {
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
template <typename T>
void turn(const Attention& a, const T* k, int from, float* out) {
    int count = std::min(BLOCK, a.held - from);
    for (int i = 0; i < a.d; i++) {
        for (int s = 0; s < count; s++) out[i * BLOCK + s] = k[(from + s) * a.k_stride + i];
        for (int s = count; s < BLOCK; s++) out[i * BLOCK + s] = 0;
    }
}

// A run of keys, from the first of a block.
struct Keys {
    int from, to;
    const float* turned; // in blocks of (d, 64), or null
};

template <typename T>
void attend_keys(const Attention& a, int bg, const Keys& keys, Quad* quads, int count) {
    const T *k = a.keys<T>(bg), *v = a.values<T>(bg);
    for (int from = keys.from; from < keys.to; from += BLOCK) {
        int to = std::min(from + BLOCK, a.held);
        for (Quad* quad = quads; quad < quads + count; quad++) {
            if (keys.turned)
                multiply_turned(a, keys.turned + long(from) * a.d, *quad);
            else
                multiply_keys(a, k, from, to, *quad);
            soften(a, from, to, *quad);
            add_values(a, v, from, to, *quad);
        }
    }
}

// Rows [row, row + 16) of a key-value head over all keys that they see.
template <typename T>
void attend_rows(const Attention& a, int bg, long row, const float* turned) {
    long end = std::min(row + PART, a.rows());
    Quad quads[PART / QUAD];
    int count = 0;
    for (long i = row; i < end; i += QUAD) quads[count++] = start(a, bg, i, end, nullptr, 0);
    attend_keys<T>(a, bg, {a.first(row) / BLOCK * BLOCK, a.last(end - 1) + 1, turned}, quads, count);
    for (Quad* quad = quads; quad < quads + count; quad++)
        for (int r = 0; r < quad->count; r++)
            for (int i = 0; i < a.dv; i++) quad->out[r][i] /= quad->weights[r];
}

template <typename T>
void attend_many(const Attention& a) {
    int heads = a.batch * a.groups, blocks = (a.held + BLOCK - 1) / BLOCK;
    int parts = int((a.rows() + PART - 1) / PART);
    thread_local std::vector<float> kept;
    std::vector<float>& turned = kept;
    long size = long(blocks) * BLOCK * a.d;
    turned.resize(std::max(turned.size(), size_t(size) * heads));
    pool_run(heads * blocks, [&](int job) {
        int bg = job / blocks, from = job % blocks * BLOCK;
        turn(a, a.keys<T>(bg), from, turned.data() + bg * size + long(from) * a.d);
    });
    pool_run(parts * heads, [&](int job) {
        int bg = job / parts;
        long row = long(parts - 1 - job % parts) * PART; // the longest first
        attend_rows<T>(a, bg, row, turned.data() + bg * size);
    });
}

// One row's softmax over several runs of keys: `parts` of dv values, the largest score and the sum of
// weights, `apart` floats from each other.
void merge(const float* parts, int count, long apart, int dv, float* out) {
    float largest = -FLT_MAX, weights = 0;
    for (int n = 0; n < count; n++) largest = std::max(largest, parts[n * apart + dv]);
    std::fill_n(out, dv, 0.0f);
    for (int n = 0; n < count; n++) {
        const float* part = parts + n * apart;
        float share = std::exp(part[dv] - largest);
        weights += share * part[dv + 1];
        for (int i = 0; i < dv; i++) out[i] += share * part[i];
    }
    for (int i = 0; i < dv; i++) out[i] /= weights;
}

// All rows of a key-value head over a run of keys, for `merge`.
template <typename T>
void attend_run(const Attention& a, int bg, const Keys& keys, float* parts) {
    int stride = a.dv + 2;
    for (long i = 0; i < a.rows(); i += QUAD) {
        Quad quad = start(a, bg, i, a.rows(), parts, stride);
        attend_keys<T>(a, bg, keys, &quad, 1);
        for (int r = 0; r < quad.count; r++) {
            quad.out[r][a.dv] = quad.largest[r];
            quad.out[r][a.dv + 1] = quad.weights[r];
        }
    }
}

template <typename T>
void attend_few(const Attention& a) {
    int heads = a.batch * a.groups, begin = a.first(0) / BLOCK * BLOCK, blocks = (a.held - begin + BLOCK - 1) / BLOCK;
    bool shared = a.rows() * heads * (a.held - begin) * a.d >= SMALL;
    int runs = shared ? std::min(blocks, (4 * pool_threads() + heads - 1) / heads) : 1;
    int length = (blocks + runs - 1) / runs * BLOCK;
    runs = (blocks * BLOCK + length - 1) / length;
    thread_local std::vector<float> kept;
    std::vector<float>& parts = kept;
    long apart = a.rows() * (a.dv + 2);
    parts.resize(size_t(apart) * runs * heads);
    auto run = [&](int job) {
        int from = begin + job % runs * length;
        attend_run<T>(a, job / runs, {from, std::min(from + length, a.held), nullptr}, parts.data() + job * apart);
    };
    if (shared)
        pool_run(runs * heads, run);
    else
        for (int job = 0; job < runs * heads; job++) run(job);
    for (int bg = 0; bg < heads; bg++)
        for (long i = 0; i < a.rows(); i++)
            merge(parts.data() + bg * runs * apart + i * (a.dv + 2), runs, apart, a.dv, a.out + a.place(bg, i) * a.dv);
}

template <typename T>
void attend_as(const Attention& a) {
    a.rows() < MANY ? attend_few<T>(a) : attend_many<T>(a);
}

} // namespace

void attend(const Attention& a) { a.halves ? attend_as<half>(a) : attend_as<float>(a); }
