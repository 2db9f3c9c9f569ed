// The gated delta rule for many rows, a chunk of them at a time, as products of matrices (Yang et al., "Parallelizing
// Linear Transformers with the Delta Rule over Sequence Length", arXiv:2406.06484; with decays, arXiv:2412.06464).
//
// Let M be the state before a chunk, f[t] the product of the decays of rows 0 to t, f[t, s] that of rows s + 1 to t.
// The changes d of a chunk's rows solve a triangular system:
//     d[t] = beta[t] (v[t] - f[t] Mᵀ k[t] - sum over s < t of f[t, s] (k[t] k[s]) d[s])
// and give the results, and the state after the last of n rows:
//     o[t] = f[t] Mᵀ q[t] + sum over s <= t of f[t, s] (q[t] k[s]) d[s]
//     M = f[n - 1] M + sum over s of f[n - 1, s] k[s] dᵀ[s]
// Decays are only ever multiplied, row by row, so that small ones vanish and nothing overflows.
//
// Columns of M, d and o do not depend on each other: they are computed in strips of two vectors, which stay in the
// cache. Row t reads no number of a later row, be it multiplied by zero: a NaN stays behind.
#pragma once

#include <algorithm>
#include <vector>

#include "gated_delta.h"

namespace {

constexpr int SPAN = 32;            // rows of a chunk
constexpr int TALL = REGISTERS / 4; // rows that are multiplied together
constexpr int WIDE = 2;             // vectors of a strip
constexpr int STRIP = WIDE * LANES; // columns of a strip
constexpr float GONE = 1e-30f;      // what a decay leaves counts as nothing: subnormal numbers are slow

static_assert(SPAN % STRIP == 0 && STRIP % TALL == 0);

typedef Floats Sums[TALL][WIDE];

// sums[r] += x[r][i] * (row i of y), i < count; rows of x are `wide` numbers apart, of y `apart`.
FERRUM_INLINE void multiply(const float* x, long wide, const float* y, long apart, int count, Sums& sums) {
    for (int i = 0; i < count; i++) {
        Floats row[WIDE];
        for (int v = 0; v < WIDE; v++) row[v] = in_register(load_floats(y + i * apart + LANES * v));
#pragma GCC unroll 8
        for (int r = 0; r < TALL; r++)
            for (int v = 0; v < WIDE; v++) sums[r][v] += row[v] * x[r * wide + i];
    }
}

// A row of a strip, of which some columns exist, times scale.
FERRUM_INLINE void copy_strip(const float* from, int columns, float* to, float scale = 1) {
    if (columns == STRIP)
        for (int v = 0; v < WIDE; v++) store_floats(to + LANES * v, load_floats(from + LANES * v) * scale);
    else
        for (int i = 0; i < columns; i++) to[i] = from[i] * scale;
}

// What a thread needs for a chunk of a head. Numbers past `size` are zero, and so are rows past the last.
class DeltaChunks {
public:
    void run(const DeltaHead& h) {
        prepare(h.a.size);
        read_state(h.before());
        for (int t = 0; t < h.rows(); t += SPAN) {
            load(h, t);
            multiply_keys();
            fade(h);
            for (int i = 0; i < strips_; i++) run_strip(h, i);
        }
        write_state(h.after());
    }

private:
    struct alignas(64) Line {
        float numbers[16];
    };

    void prepare(int size) {
        size_ = size, strips_ = (size + STRIP - 1) / STRIP, wide_ = strips_ * STRIP;
        long sizes[] = {long(wide_) * wide_, SPAN * wide_, SPAN * wide_, SPAN * wide_, SPAN * wide_};
        float** parts[] = {&state_, &keys_, &queries_, &across_, &changes_};
        long total = 0;
        for (long each : sizes) total += each;
        memory_.resize((total + 15) / 16);
        float* next = memory_.data()->numbers;
        for (int i = 0; i < 5; i++) *parts[i] = next, next += sizes[i];
    }

    float* state(int strip) const { return state_ + long(strip) * wide_ * STRIP; } // (wide, STRIP)
    float* changes(int strip) const { return changes_ + strip * SPAN * STRIP; }    // (SPAN, STRIP)
    int columns(int strip) const { return std::min(STRIP, size_ - strip * STRIP); }

    void read_state(const float* from) {
        std::fill_n(state_, long(wide_) * wide_, 0.0f);
        for (int n = 0; from && n < strips_; n++)
            for (int i = 0; i < size_; i++)
                copy_strip(from + long(i) * size_ + n * STRIP, columns(n), state(n) + i * STRIP);
    }

    void write_state(float* to) const {
        for (int n = 0; n < strips_; n++)
            for (int i = 0; i < size_; i++)
                copy_strip(state(n) + i * STRIP, columns(n), to + long(i) * size_ + n * STRIP);
    }

    // Unit keys and queries, and values times beta, of rows from `first` on.
    void load(const DeltaHead& h, int first) {
        first_ = first, count_ = std::min(SPAN, h.rows() - first), rows_ = (count_ + TALL - 1) / TALL * TALL;
        std::fill_n(keys_, rows_ * wide_, 0.0f);
        std::fill_n(queries_, rows_ * wide_, 0.0f);
        std::fill_n(changes_, SPAN * wide_, 0.0f);
        for (int t = 0; t < count_; t++) {
            unit(h.key(first + t), size_, h.a.eps, 1, keys_ + t * wide_);
            unit(h.query(first + t), size_, h.a.eps, 1 / std::sqrt(float(size_)), queries_ + t * wide_);
            beta_[t] = h.beta(first + t);
            for (int n = 0; n < strips_; n++)
                copy_strip(h.value(first + t) + n * STRIP, columns(n), changes(n) + t * STRIP, beta_[t]);
        }
    }

    // Products of each row's key, and of its query, with the keys up to it; keys across: (wide, SPAN).
    void multiply_keys() {
        for (int i = 0; i < wide_; i += LANES)
            for (int t = 0; t < SPAN; t += LANES) {
                Floats block[LANES] = {};
                for (int j = 0; j < LANES && t + j < rows_; j++) block[j] = load_floats(keys_ + (t + j) * wide_ + i);
                registers::transpose(block);
                for (int j = 0; j < LANES; j++) store_floats(across_ + (i + j) * SPAN + t, block[j]);
            }
        for (int t = 0; t < rows_; t += TALL)
            for (int s = 0; s < t + TALL; s += STRIP) {
                Sums by_key = {}, by_query = {};
                multiply(keys_ + t * wide_, wide_, across_ + s, SPAN, wide_, by_key);
                multiply(queries_ + t * wide_, wide_, across_ + s, SPAN, wide_, by_query);
                for (int r = 0; r < TALL; r++)
                    for (int v = 0; v < WIDE; v++) {
                        store_floats(by_key_[t + r] + s + LANES * v, by_key[r][v]);
                        store_floats(by_query_[t + r] + s + LANES * v, by_query[r][v]);
                    }
            }
    }

    // Multiplies all by the decays that it has gone through, and with the sign and the beta that it has in the sums.
    void fade(const DeltaHead& h) {
        alignas(64) float left[SPAN] = {}; // of each row, after row t
        float all = 1;                     // of the state before the chunk
        for (int t = 0; t < count_; t++) {
            float decay = h.decay(first_ + t);
            all = lasting(all * decay);
            for (int s = 0; s < t; s++) left[s] = lasting(left[s] * decay);
            left[t] = 1;
            for (int s = 0; s < t; s++) by_key_[t][s] *= left[s] * -beta_[t];
            for (int s = 0; s <= t; s++) by_query_[t][s] *= left[s];
            for (int i = 0; i < size_; i++) keys_[t * wide_ + i] *= all * -beta_[t];
            for (int i = 0; i < size_; i++) queries_[t * wide_ + i] *= all;
        }
        for (int i = 0; i < size_; i++)
            for (int s = 0; s < SPAN; s += LANES) {
                float* at = across_ + i * SPAN + s;
                store_floats(at, load_floats(at) * load_floats(left + s));
            }
        decay_ = all;
    }

    static float lasting(float x) { return x < GONE ? 0 : x; } // a NaN stays

    void run_strip(const DeltaHead& h, int strip) {
        for (int t = 0; t < rows_; t += TALL) solve(strip, t);
        for (int t = 0; t < rows_; t += TALL) answer(h, strip, t);
        update(strip);
    }

    // Changes of rows [t, t + TALL), whose values are there already.
    void solve(int strip, int t) {
        Sums sums;
        float* own = changes(strip) + t * STRIP;
        for (int r = 0; r < TALL; r++)
            for (int v = 0; v < WIDE; v++) sums[r][v] = load_floats(own + r * STRIP + LANES * v);
        multiply(keys_ + t * wide_, wide_, state(strip), STRIP, size_, sums);
        multiply(by_key_[t], SPAN, changes(strip), STRIP, t, sums);
#pragma GCC unroll 8
        for (int r = 0; r < TALL; r++) {
#pragma GCC unroll 8
            for (int s = 0; s < r; s++)
                for (int v = 0; v < WIDE; v++) sums[r][v] += sums[s][v] * by_key_[t + r][t + s];
            for (int v = 0; v < WIDE; v++) store_floats(own + r * STRIP + LANES * v, sums[r][v]);
        }
    }

    // Results of rows [t, t + TALL).
    void answer(const DeltaHead& h, int strip, int t) const {
        Sums sums = {};
        multiply(queries_ + t * wide_, wide_, state(strip), STRIP, size_, sums);
        multiply(by_query_[t], SPAN, changes(strip), STRIP, t, sums);
        for (int r = 0; r < TALL && t + r < count_; r++) {
            alignas(64) float out[STRIP];
            for (int s = 0; s <= r; s++)
                for (int v = 0; v < WIDE; v++) {
                    Floats change = load_floats(changes(strip) + (t + s) * STRIP + LANES * v);
                    sums[r][v] += change * by_query_[t + r][t + s];
                }
            for (int v = 0; v < WIDE; v++) store_floats(out + LANES * v, sums[r][v]);
            copy_strip(out, columns(strip), h.out(first_ + t + r) + strip * STRIP);
        }
    }

    // The state after the chunk.
    void update(int strip) {
        for (int i = 0; i < size_; i += TALL) {
            float* at = state(strip) + i * STRIP;
            Sums sums;
            for (int r = 0; r < TALL; r++)
                for (int v = 0; v < WIDE; v++) sums[r][v] = load_floats(at + r * STRIP + LANES * v) * decay_;
            multiply(across_ + i * SPAN, SPAN, changes(strip), STRIP, count_, sums);
            for (int r = 0; r < TALL; r++)
                for (int v = 0; v < WIDE; v++) store_floats(at + r * STRIP + LANES * v, sums[r][v]);
        }
    }

    std::vector<Line> memory_;
    float* state_;           // strips of (wide, STRIP)
    float *keys_, *queries_; // (SPAN, wide)
    float* across_;          // (wide, SPAN), keys
    float* changes_;         // strips of (SPAN, STRIP)
    alignas(64) float by_key_[SPAN][SPAN], by_query_[SPAN][SPAN];
    float beta_[SPAN], decay_;
    int size_, strips_, wide_, first_, count_, rows_; // rows: the count, whole times TALL
};

} // namespace
