// One pass over memory each; only long prompts are worth sharing between threads.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "calls.h"
#include "exp.h"
#include "floats.h"
#include "shared.h"

namespace {

float rms_scale(const float* x, int d, float eps) { return 1 / std::sqrt(dot(x, x, d) / float(d) + eps); }

Floats activated(Floats x, int act) {
    if (act == SILU) return x * sigmoid(x);
    // GELU in its tanh form: (1 + tanh(y)) / 2 is the sigmoid of 2 y
    return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

// out = f(x, gate) of vectors of x and gate: (count,); the last ones are padded.
template <typename F>
void map_pairs(const float* x, const float* gate, long count, float* out, const F& f) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) store_floats(out + i, f(load_floats(x + i), load_floats(gate + i)));
    if (i == count) return;
    float last[2][LANES] = {};
    std::copy(x + i, x + count, last[0]);
    std::copy(gate + i, gate + count, last[1]);
    store_floats(last[0], f(load_floats(last[0]), load_floats(last[1])));
    std::copy_n(last[0], count - i, out + i);
}

// out[i] = x[i] / rms(x[i]) * weight + add[i], rows of d; add: shaped as x, or null.
struct RmsNorm {
    const float *x, *weight, *add;
    float* out;
    long rows;
    int d;
    float eps;
};

void rms_norm(const RmsNorm& a) {
    share(a.rows * a.d >= SMALL, a.rows, [&](int r) {
        long at = long(r) * a.d;
        float scale = rms_scale(a.x + at, a.d, a.eps);
        for (int i = 0; i < a.d; i++) a.out[at + i] = a.x[at + i] * scale * a.weight[i];
        if (a.add)
            for (int i = 0; i < a.d; i++) a.out[at + i] += a.add[at + i];
    });
}

// out[i] = x[i] * sigmoid(gate[row]) + add[i], rows of d; gate: (rows,); add: shaped as x, or null.
struct SigmoidGate {
    const float *x, *gate, *add;
    float* out;
    long rows;
    int d;
};

void sigmoid_gate(const SigmoidGate& a) {
    share(a.rows * a.d >= SMALL, a.rows, [&](int r) {
        long at = long(r) * a.d;
        float gate = sigmoid(repeat(a.gate[r]))[0];
        for (int i = 0; i < a.d; i++) a.out[at + i] = a.x[at + i] * gate;
        if (a.add)
            for (int i = 0; i < a.d; i++) a.out[at + i] += a.add[at + i];
    });
}

// out[i] = x[i] / rms(x[i]) * weight * silu(gate[i]), rows of d.
struct GatedNorm {
    const float *x, *weight, *gate;
    float* out;
    long rows;
    int d;
    float eps;
};

void gated_norm(const GatedNorm& a) {
    share(a.rows * a.d * 8 >= SMALL, a.rows, [&](int r) {
        long at = long(r) * a.d;
        float scale = rms_scale(a.x + at, a.d, a.eps), *out = a.out + at;
        for (int i = 0; i < a.d; i++) out[i] = a.x[at + i] * scale * a.weight[i];
        map_pairs(out, a.gate + at, a.d, out, [](Floats x, Floats gate) { return x * gate * sigmoid(gate); });
    });
}

// out[i] = x[i] * sigmoid(the second half of pairs[i]), rows of d, and of 2 d.
struct Gate {
    const float *x, *pairs;
    float* out;
    long rows;
    int d;
};

void gate(const Gate& a) {
    share(a.rows * a.d * 8 >= SMALL, a.rows, [&](int r) {
        map_pairs(a.x + long(r) * a.d, a.pairs + (2L * r + 1) * a.d, a.d, a.out + long(r) * a.d,
                  [](Floats x, Floats gate) { return x * sigmoid(gate); });
    });
}

// out[i] = the exact GELU of x[i], i < count.
struct Gelu {
    const float* x;
    float* out;
    long count;
};

// f(out, x) of each vector of x: (count,), on all threads where x is long; cost: multiply-adds of a number.
template <typename F>
void map(const float* x, float* out, long count, int cost, const F& f) {
    constexpr int PART = 4096;
    share(count * cost >= SMALL, (count + PART - 1) / PART, [&](int part) {
        long i = long(part) * PART, end = std::min(i + PART, count);
        for (; i + LANES <= end; i += LANES) store_floats(out + i, f(load_floats(x + i)));
        float last[LANES] = {};
        std::copy(x + i, x + end, last);
        store_floats(last, f(load_floats(last)));
        std::copy_n(last, end - i, out + i);
    });
}

void run_gelu(const Gelu& a) {
    map(a.x, a.out, a.count, 16, [](Floats x) { return gelu(x); });
}

// out[i] = cap tanh(x[i] / cap), i < count.
struct Softcap {
    const float* x;
    float* out;
    long count;
    float cap;
};

void softcap(const Softcap& a) {
    map(a.x, a.out, a.count, 12, [&](Floats x) { return a.cap * tanh_floats(x / a.cap); });
}

CALL(RmsNorm, rms_norm, F(x), F(weight), F(add), F(out), F(rows), F(d), F(eps))
CALL(SigmoidGate, sigmoid_gate, F(x), F(gate), F(add), F(out), F(rows), F(d))
CALL(GatedNorm, gated_norm, F(x), F(weight), F(gate), F(out), F(rows), F(d), F(eps))
CALL(Gate, gate, F(x), F(pairs), F(out), F(rows), F(d))
CALL(Gelu, run_gelu, F(x), F(out), F(count))
CALL(Softcap, softcap, F(x), F(out), F(count), F(cap))

} // namespace

void activate(float* gate, const float* up, long count, int act) {
    map_pairs(gate, up, count, gate, [=](Floats g, Floats u) { return activated(g, act) * u; });
}
