// Causal attention with an online softmax, keys taken 64 at a time.
// Many query rows: keys are turned once so that a vector holds 16 keys, then eight rows are multiplied
// at a time; all that is added up stays in registers. Few rows: turning would cost more than it saves.
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

// Up to eight query rows, their softmax so far and their part of the output.
struct Rows {
    int count;
    const float* q[ROWS];
    float* out[ROWS];
    int first[ROWS], last[ROWS];
    float largest[16], shrink[16]; // a whole vector
    Floats weights[ROWS];          // 16 sums each
    alignas(64) float score[ROWS][BLOCK];
};

void start(const Attention& a, int bg, long row, long end, Rows& rows) {
    rows.count = int(std::min<long>(ROWS, end - row));
    std::fill_n(rows.largest, 16, -FLT_MAX);
    for (int r = 0; r < ROWS; r++) {
        long i = std::min(row + r, end - 1); // rows that are not there repeat the last
        long at = a.place(bg, i);
        rows.q[r] = a.q + at * a.d;
        rows.out[r] = a.out + at * a.dv;
        rows.first[r] = a.first(i);
        rows.last[r] = a.last(i);
        rows.weights[r] = Floats{};
        if (r < rows.count) std::fill_n(rows.out[r], a.dv, 0.0f);
    }
}

// sums[r] += x[r][i] * row i of y, for i < count; a row: 16 * VECTORS floats.
template <int N, int VECTORS>
void multiply(const float* const* x, const float* y, long stride, int count, Floats (*sums)[VECTORS]) {
    for (int i = 0; i < count; i++, y += stride) {
        Floats row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) row[v] = load_floats(y + 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[r][v] += row[v] * x[r][i];
    }
}

// Scores of keys [from, to), which were turned: (d, 64).
template <int N>
void multiply_turned(const Attention& a, const float* turned, int from, int to, Rows& rows) {
    constexpr int VECTORS = N > 4 ? 2 : 4;
    for (int s = 0; s < to - from; s += 16 * VECTORS) {
        Floats sums[N][VECTORS] = {};
        multiply<N, VECTORS>(rows.q, turned + s, BLOCK, a.d, sums);
        for (int r = 0; r < N; r++)
            for (int v = 0; v < VECTORS; v++) store_floats(rows.score[r] + s + 16 * v, sums[r][v] * a.scale);
    }
}

// Scores of keys [from, to) as they lie in the cache.
void multiply_keys(const Attention& a, const float* k, int from, int to, Rows& rows) {
    for (int r = 0; r < rows.count; r++)
        for (int s = from; s < to; s++) rows.score[r][s - from] = dot(rows.q[r], k + s * a.k_stride, a.d) * a.scale;
}

// Put -infinity where a row does not see a key: outside [first, last], counted from the block's start.
void hide(float* score, int count, int first, int last) {
    for (int s = 0; s < count; s++)
        if (s < first || s > last) score[s] = -INFINITY;
}

float largest_of(const float* score, int count, float largest) {
    Floats most = Floats{} + largest;
    for (int s = 0; s < count; s += 16) {
        Floats v = load_floats(score + s);
        most = v > most ? v : most;
    }
    return ::largest(most);
}

// Scores of keys [from, to) become weights; what is there already is to shrink to the new maximum.
void soften(int from, int to, Rows& rows) {
    int count = (to - from + 15) / 16 * 16;
    Floats before = load_floats(rows.largest);
    for (int r = 0; r < rows.count; r++) {
        int first = rows.first[r] - from, last = rows.last[r] - from;
        if (first > 0 || last < count - 1) hide(rows.score[r], count, first, last);
        rows.largest[r] = largest_of(rows.score[r], count, rows.largest[r]);
    }
    store_floats(rows.shrink, exp16(before - load_floats(rows.largest)));
    for (int r = 0; r < rows.count; r++)
        rows.weights[r] = rows.weights[r] * rows.shrink[r] + exp_sums(rows.score[r], count, rows.largest[r]);
}

// Shrink the output, and add the weighted values of keys [from, to).
template <int N>
void add_values(const Attention& a, const float* v, int from, int to, Rows& rows) {
    constexpr int VECTORS = N > 4 ? 2 : 4, WIDTH = 16 * VECTORS;
    const float* scores[N];
    for (int r = 0; r < N; r++) scores[r] = rows.score[r];
    int i = 0;
    for (; i + WIDTH <= a.dv; i += WIDTH) {
        Floats sums[N][VECTORS] = {};
        multiply<N, VECTORS>(scores, v + from * a.v_stride + i, a.v_stride, to - from, sums);
        for (int r = 0; r < std::min(N, rows.count); r++)
            for (int j = 0; j < VECTORS; j++) {
                float* out = rows.out[r] + i + 16 * j;
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
void turn(const Attention& a, const float* k, int from, float* out) {
    int count = std::min(BLOCK, a.held - from);
    for (int i = 0; i < a.d; i++) {
        for (int s = 0; s < count; s++) out[i * BLOCK + s] = k[(from + s) * a.k_stride + i];
        for (int s = count; s < BLOCK; s++) out[i * BLOCK + s] = 0;
    }
}

// Keys [from, to) for N rows. turned: all keys of the head in blocks of (d, 64), or null.
template <int N>
void attend_block(const Attention& a, int bg, const float* turned, int from, int to, Rows& rows) {
    if (turned)
        multiply_turned<N>(a, turned + long(from) * a.d, from, to, rows);
    else
        multiply_keys(a, a.keys(bg), from, to, rows);
    soften(from, to, rows);
    add_values<N>(a, a.values(bg), from, to, rows);
}

// Rows [row, row + 16) of a key-value head.
void attend_rows(const Attention& a, int bg, long row, const float* turned) {
    long end = std::min(row + PART, a.rows());
    Rows part[PART / ROWS];
    int count = 0, seen = a.last(end - 1) + 1;
    for (long i = row; i < end; i += ROWS) start(a, bg, i, end, part[count++]);
    for (int from = a.first(row) / BLOCK * BLOCK; from < seen; from += BLOCK) {
        int to = std::min(from + BLOCK, seen);
        for (int n = 0; n < count; n++)
            if (part[n].count > 4)
                attend_block<8>(a, bg, turned, from, to, part[n]);
            else
                attend_block<4>(a, bg, turned, from, to, part[n]);
    }
    for (int n = 0; n < count; n++)
        for (int r = 0; r < part[n].count; r++) {
            float whole = 1 / total(part[n].weights[r]);
            for (int i = 0; i < a.dv; i++) part[n].out[r][i] *= whole;
        }
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
