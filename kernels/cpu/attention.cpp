// Attention, causal or both ways, with an online softmax, keys taken 64 at a time.
// Many query rows: keys are turned once so that vectors hold a number of several keys, then eight rows are multiplied
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
constexpr int ROWS = 8;   // query rows multiplied together
constexpr int PART = 16;  // query rows of a part of the job
constexpr int MANY = 16;  // query rows from which on keys are turned

// Vectors that N rows are multiplied with at a time: half of the registers hold sums.
template <int N>
constexpr int SIDE_BY_SIDE = REGISTERS / (N > 4 ? 16 : 8);

constexpr int WHOLE = std::max(ROWS, LANES); // a number of each row, in whole vectors

// Up to eight query rows, their softmax so far and their part of the output.
struct Rows {
    int count;
    const float* q[ROWS];
    float* out[ROWS];
    int first[ROWS], last[ROWS];
    float largest[WHOLE], shrink[WHOLE];
    Floats weights[ROWS]; // LANES sums each
    alignas(64) float score[ROWS][BLOCK];
};

// Rows [row, row + 8) of [0, end). parts: where row 0 goes, in rows of dv + 2; null: their place in a.out.
void start(const Attention& a, int bg, long row, long end, float* parts, Rows& rows) {
    rows.count = int(std::min<long>(ROWS, end - row));
    std::fill_n(rows.largest, WHOLE, -FLT_MAX);
    for (int r = 0; r < ROWS; r++) {
        long i = std::min(row + r, end - 1); // rows that are not there repeat the last
        long at = a.place(bg, i);
        rows.q[r] = a.q + at * a.d;
        rows.out[r] = parts ? parts + i * (a.dv + 2) : a.out + at * a.dv;
        rows.first[r] = a.first(i);
        rows.last[r] = a.last(i);
        rows.weights[r] = Floats{};
        if (r < rows.count) std::fill_n(rows.out[r], a.dv, 0.0f);
    }
}

// sums[r] += x[r][i] * row i of y, for i < count; a row: VECTORS vectors.
template <int N, int VECTORS, typename T>
void multiply(const float* const* x, const T* y, long stride, int count, Floats (*sums)[VECTORS]) {
    for (int i = 0; i < count; i++, y += stride) {
        Floats row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) row[v] = load_floats(y + LANES * v);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[r][v] += row[v] * x[r][i];
    }
}

// Scores of keys [from, to), which were turned: (d, 64).
template <int N>
void multiply_turned(const Attention& a, const float* turned, int from, int to, Rows& rows) {
    constexpr int VECTORS = SIDE_BY_SIDE<N>;
    for (int s = 0; s < to - from; s += LANES * VECTORS) {
        Floats sums[N][VECTORS] = {};
        multiply<N, VECTORS>(rows.q, turned + s, BLOCK, a.d, sums);
        for (int r = 0; r < N; r++)
            for (int v = 0; v < VECTORS; v++) store_floats(rows.score[r] + s + LANES * v, sums[r][v] * a.scale);
    }
}

// Scores of keys [from, to) as they lie in the cache, LANES of them side by side.
template <typename T>
void multiply_keys(const Attention& a, const T* k, int from, int to, Rows& rows) {
    for (int s = from; s < to; s += LANES) {
        const T* key[LANES]; // those that are not there repeat the last
        for (int j = 0; j < LANES; j++) key[j] = k + std::min(s + j, to - 1) * a.k_stride;
        for (int r = 0; r < rows.count; r++) {
            Floats sums[LANES] = {};
            int i = 0;
            for (; i + LANES <= a.d; i += LANES) {
                Floats q = load_floats(rows.q[r] + i);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) sums[j] += q * load_floats(key[j] + i);
            }
            Floats score = totals(sums);
            for (; i < a.d; i++)
                for (int j = 0; j < LANES; j++) score[j] += rows.q[r][i] * key[j][i];
            store_floats(rows.score[r] + s - from, score * a.scale);
        }
    }
}

// Put -infinity where a row does not see a key: outside [first, last], counted from the block's start.
void hide(float* score, int count, int first, int last) {
    for (int s = 0; s < count; s++)
        if (s < first || s > last) score[s] = -INFINITY;
}

float largest_of(const float* score, int count, float largest) {
    Floats most = repeat(largest);
    for (int s = 0; s < count; s += LANES) {
        Floats v = load_floats(score + s);
        most = v > most ? v : most;
    }
    return ::largest(most);
}

// Scores of keys [from, to) become weights; what is there already is to shrink to the new maximum.
void soften(int from, int to, Rows& rows) {
    int count = (to - from + LANES - 1) / LANES * LANES;
    float before[WHOLE];
    std::copy_n(rows.largest, WHOLE, before);
    for (int r = 0; r < rows.count; r++) {
        int first = rows.first[r] - from, last = rows.last[r] - from;
        if (first > 0 || last < count - 1) hide(rows.score[r], count, first, last);
        rows.largest[r] = largest_of(rows.score[r], count, rows.largest[r]);
    }
    for (int i = 0; i < WHOLE; i += LANES)
        store_floats(rows.shrink + i, exp_floats(load_floats(before + i) - load_floats(rows.largest + i)));
    for (int r = 0; r < rows.count; r++)
        rows.weights[r] = rows.weights[r] * rows.shrink[r] + exp_sums(rows.score[r], count, rows.largest[r]);
}

// Shrink the output, and add the weighted values of keys [from, to).
template <int N, typename T>
void add_values(const Attention& a, const T* v, int from, int to, Rows& rows) {
    constexpr int VECTORS = SIDE_BY_SIDE<N>, WIDTH = LANES * VECTORS;
    const float* scores[N];
    for (int r = 0; r < N; r++) scores[r] = rows.score[r];
    int i = 0;
    for (; i + WIDTH <= a.dv; i += WIDTH) {
        Floats sums[N][VECTORS] = {};
        multiply<N, VECTORS>(scores, v + from * a.v_stride + i, a.v_stride, to - from, sums);
        for (int r = 0; r < std::min(N, rows.count); r++)
            for (int j = 0; j < VECTORS; j++) {
                float* out = rows.out[r] + i + LANES * j;
                store_floats(out, load_floats(out) * rows.shrink[r] + sums[r][j]);
            }
    }
    for (; i < a.dv; i++)
        for (int r = 0; r < rows.count; r++) {
            float sum = rows.out[r][i] * rows.shrink[r];
            for (int s = from; s < to; s++) sum += rows.score[r][s - from] * v[s * a.v_stride + i];
            rows.out[r][i] = sum;
        }
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

// Keys [from, to) for N rows. turned: all keys of the head in blocks of (d, 64), or null.
template <typename T, int N>
void attend_block(const Attention& a, int bg, const float* turned, int from, int to, Rows& rows) {
    if (turned)
        multiply_turned<N>(a, turned + long(from) * a.d, from, to, rows);
    else
        multiply_keys(a, a.keys<T>(bg), from, to, rows);
    soften(from, to, rows);
    add_values<N>(a, a.values<T>(bg), from, to, rows);
}

// Keys [from, to), from the first of a block, for several times eight rows.
template <typename T>
void attend_keys(const Attention& a, int bg, const float* turned, int from, int to, Rows* part, int count) {
    for (; from < to; from += BLOCK)
        for (int n = 0; n < count; n++) {
            auto attend = part[n].count > 4 ? attend_block<T, 8> : attend_block<T, 4>;
            attend(a, bg, turned, from, std::min(from + BLOCK, to), part[n]);
        }
}

// Rows [row, row + 16) of a key-value head over all keys that they see.
template <typename T>
void attend_rows(const Attention& a, int bg, long row, const float* turned) {
    long end = std::min(row + PART, a.rows());
    Rows part[PART / ROWS];
    int count = 0;
    for (long i = row; i < end; i += ROWS) start(a, bg, i, end, nullptr, part[count++]);
    attend_keys<T>(a, bg, turned, a.first(row) / BLOCK * BLOCK, a.last(end - 1) + 1, part, count);
    for (int n = 0; n < count; n++)
        for (int r = 0; r < part[n].count; r++) {
            float whole = 1 / total(part[n].weights[r]);
            for (int i = 0; i < a.dv; i++) part[n].out[r][i] *= whole;
        }
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

// All rows of a key-value head over keys [from, to), for `merge`: dv values, the largest score, the weights.
template <typename T>
void attend_run(const Attention& a, int bg, int from, int to, float* parts) {
    for (long i = 0; i < a.rows(); i += ROWS) {
        Rows rows;
        start(a, bg, i, a.rows(), parts, rows);
        attend_keys<T>(a, bg, nullptr, from, to, &rows, 1);
        for (int r = 0; r < rows.count; r++) {
            rows.out[r][a.dv] = rows.largest[r];
            rows.out[r][a.dv + 1] = total(rows.weights[r]);
        }
    }
}

// One row's softmax over several runs of keys, `apart` floats from each other.
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
        attend_run<T>(a, job / runs, from, std::min(from + length, a.held), parts.data() + job * apart);
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
