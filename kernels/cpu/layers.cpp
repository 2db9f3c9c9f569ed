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

// The sine and cosine of each pair at one position; room for a head that is normed, and for a key that is turned.
struct Turn {
    float *cosine, *sine, *normed, *key;
};

// One head x (d,) -> out (d,). weight: (d,), or null for no norm.
void rotate_head(const Rotate& a, const float* x, const float* weight, Turn turn, float* out) {
    if (weight) {
        float scale = rms_scale(x, a.d, a.eps);
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

void put_row(const float* x, int count, half* out, int width) {
    narrow(x, count, out);
    std::fill(out + count, out + width, half{});
}

// All heads of a position, `job` counted through the batch.
void rotate_position(const Rotate& a, int job, Turn turn) {
    int b = job / a.length, l = job % a.length;
    for (int h = 0; h < a.heads; h++) {
        float* out = a.turned + ((long(b) * a.heads + h) * a.length + l) * a.d;
        rotate_head(a, a.q + (long(job) * a.heads + h) * a.d, a.q_weight, turn, out);
    }
    for (int g = 0; g < a.groups; g++) {
        half* out = a.added + ((long(b) * a.groups + g) * a.length + l) * a.width();
        rotate_head(a, a.k + (long(job) * a.groups + g) * a.d, a.k_weight, turn, turn.key);
        put_row(turn.key, a.d, out, a.width());
        out += long(a.batch) * a.groups * a.length * a.width();
        put_row(a.v + (long(job) * a.groups + g) * a.dv, a.dv, out, a.width());
    }
}

Floats activated(Floats x, int act) {
    if (act == SILU) return x * sigmoid(x);
    // GELU in its tanh form: (1 + tanh(y)) / 2 is the sigmoid of 2 y
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

void rotate(const Rotate& a) {
    long jobs = long(a.batch) * a.length;
    shared(jobs, jobs * (a.heads + a.groups) * a.d, [&](int job) {
        thread_local std::vector<float> scratch;
        scratch.resize(2 * (a.pairs + a.d));
        float *cosine = scratch.data(), *sine = cosine + a.pairs, *normed = sine + a.pairs;
        int b = job / a.length, l = job % a.length;
        for (int i = 0; i < a.pairs; i++) {
            float angle = float(a.offset[b] + a.later + l) * a.frequencies[i];
            cosine[i] = std::cos(angle) * a.magnitude;
            sine[i] = std::sin(angle) * a.magnitude;
        }
        rotate_position(a, job, {cosine, sine, normed, normed + a.d});
    });
}

void gelu(const Gelu& a) {
    constexpr int PART = 4096;
    shared((a.count + PART - 1) / PART, a.count * 16, [&](int part) {
        long i = long(part) * PART, end = std::min(i + PART, a.count);
        for (; i + LANES <= end; i += LANES) store_floats(a.out + i, gelu(load_floats(a.x + i)));
        float last[LANES] = {};
        std::copy(a.x + i, a.x + end, last);
        store_floats(last, gelu(load_floats(last)));
        std::copy_n(last, end - i, a.out + i);
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
