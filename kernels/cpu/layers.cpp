// One pass over memory each; only long prompts are worth sharing between threads.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"
#include "exp.h"
#include "floats.h"
#include "pool.h"

namespace {

float rms_scale(const float* x, int d, float eps) { return 1 / std::sqrt(dot(x, x, d) / float(d) + eps); }

// Run part(i) for i < count, on all threads if the whole takes long.
template <typename F>
void shared(long count, long work, const F& part) {
    if (work < SMALL)
        for (long i = 0; i < count; i++) part(int(i));
    else
        pool_run(int(count), part);
}

void rotate(const NormRope& a, const float* x, const float* cosine, const float* sine, float* out) {
    int step = a.interleaved ? 2 : 1, apart = a.interleaved ? 1 : a.pairs;
    for (int i = 0; i < a.pairs; i++) {
        float first = x[i * step], second = x[i * step + apart];
        out[i * step] = first * cosine[i] - second * sine[i];
        out[i * step + apart] = first * sine[i] + second * cosine[i];
    }
    for (int i = 2 * a.pairs; i < a.d; i++) out[i] = x[i];
}

Floats activated(Floats x, int act) {
    if (act == 0) return x * sigmoid(x);
    // (1 + tanh(y)) / 2 is the sigmoid of 2 y
    return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

} // namespace

void rms_norm(const RmsNorm& a) {
    shared(a.rows, a.rows * a.d, [&](int r) {
        long at = long(r) * a.d;
        float scale = rms_scale(a.x + at, a.d, a.eps);
        for (int i = 0; i < a.d; i++) a.out[at + i] = a.x[at + i] * scale * a.weight[i];
        if (a.add)
            for (int i = 0; i < a.d; i++) a.out[at + i] += a.add[at + i];
    });
}

void sigmoid_gate(const SigmoidGate& a) {
    shared(a.rows, a.rows * a.d, [&](int r) {
        long at = long(r) * a.d;
        float gate = sigmoid(repeat(a.gate[r]))[0];
        for (int i = 0; i < a.d; i++) a.out[at + i] = a.x[at + i] * gate;
        if (a.add)
            for (int i = 0; i < a.d; i++) a.out[at + i] += a.add[at + i];
    });
}

void norm_rope(const NormRope& a) {
    shared(long(a.batch) * a.length, long(a.batch) * a.length * a.heads * a.d, [&](int job) {
        thread_local std::vector<float> scratch;
        scratch.resize(2 * a.pairs + a.d);
        float *cosine = scratch.data(), *sine = cosine + a.pairs, *normed = sine + a.pairs;
        int b = job / a.length, l = job % a.length;
        for (int i = 0; i < a.pairs; i++) {
            float angle = float(a.offset[b] + a.later + l) * a.frequencies[i];
            cosine[i] = std::cos(angle) * a.magnitude;
            sine[i] = std::sin(angle) * a.magnitude;
        }
        for (int h = 0; h < a.heads; h++) {
            const float* x = a.x + (long(job) * a.heads + h) * a.d;
            if (a.weight) {
                float scale = rms_scale(x, a.d, a.eps);
                for (int i = 0; i < a.d; i++) normed[i] = x[i] * scale * a.weight[i];
                x = normed;
            }
            long at = (long(b) * a.heads + h) * a.length + l;
            rotate(a, x, cosine, sine, a.out + at * a.d);
        }
    });
}

void activate(float* gate, const float* up, long count, int act) {
    auto next = [=](float* g, const float* u) { store_floats(g, activated(load_floats(g), act) * load_floats(u)); };
    long i = 0;
    for (; i + LANES <= count; i += LANES) next(gate + i, up + i);
    if (i == count) return;
    float last[2][LANES] = {};
    std::copy_n(gate + i, count - i, last[0]);
    std::copy_n(up + i, count - i, last[1]);
    next(last[0], last[1]);
    std::copy_n(last[0], count - i, gate + i);
}
