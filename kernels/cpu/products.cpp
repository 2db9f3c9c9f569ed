// Products of whole matrices: the input as integers, the rows shared out between the threads.
#include "products.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "calls.h"
#include "floats.h"
#include "layers.h"
#include "pool.h"

namespace {

// Several weights that share x: (n, k). out: (n, rows) of the first, then of the second …
// add: shaped as out, or null.
struct Matmuls {
    const float* x;
    const Weight* w;
    const float* add;
    float* out;
    int n, k, count;
};

// act(x gateᵀ) * (x upᵀ), either with the bias of its weight: x (n, k), w: gate and up -> out (n, rows).
struct GateUp {
    const float* x;
    const Weight* w;
    float* out;
    int n, k, act;
};

// Rows of w at ids: (n,), times scale -> out (n, k).
struct Rows {
    const Weight* w;
    const long* ids;
    float* out;
    int n, k;
    float scale;
};

bool any_quantized(const Weight* w, int count) {
    bool found = false;
    for (int i = 0; i < count; i++)
        with_block(int(w[i].type), [&](auto type) { found = found || !is_float<typename decltype(type)::type>; });
    return found;
}

// Rows [first, last) of one weight.
struct Part {
    const Weight* w;
    int first, last;
    float* out;       // of the whole weight
    const float* add; // shaped as out, or null
};

// Rows [first, last) of n products: row r of product i at out[i * stride + r].
void add_bias(const Weight& w, int n, int first, int last, float* out, long stride) {
    if (!w.bias) return;
    for (int i = 0; i < n; i++)
        for (int r = first; r < last; r++) out[i * stride + r] += w.bias[r];
}

void finish(const Part& p, int n) {
    long rows = p.w->rows;
    add_bias(*p.w, n, p.first, p.last, p.out, rows);
    if (!p.add) return;
    for (int i = 0; i < n; i++)
        for (int r = p.first; r < p.last; r++) p.out[i * rows + r] += p.add[i * rows + r];
}

} // namespace

Input input(const float* x, int n, int k, const Weight* w, int count) {
    Set all{n, nullptr, 0};
    return {x, n, k, integers(x, k, w, count, &all, 1)};
}

const Activations* integers(const float* x, int k, const Weight* w, int count, Set* sets, int n) {
    if (!any_quantized(w, count)) return nullptr;
    thread_local Activations kept;
    Activations& out = kept;
    out.clear(k);
    for (Set* s = sets; s < sets + n; s++) s->place = out.add(s->n, s->rows);
    pool_run(out.places(), [&](int i) { out.quantize(i, x); });
    return &out;
}

int place(int i, int count, int threads) {
    int thread = i % threads;
    return thread * (count / threads) + std::min(thread, count % threads) + i / threads;
}

namespace {

void matmuls(const Matmuls& a) {
    Expected expected(a.w, a.count, a.n, a.k);
    Input in = input(a.x, a.n, a.k, a.w, a.count);
    thread_local std::vector<Part> kept;
    std::vector<Part>& parts = kept;
    parts.clear();
    long done = 0;
    for (const Weight* w = a.w; w < a.w + a.count; done += a.n * w->rows, w++) {
        int step = rows_per_part(w->rows, pool_threads());
        for (int r = 0; r < w->rows; r += step)
            parts.push_back(
                {w, r, int(std::min(w->rows, long(r) + step)), a.out + done, a.add ? a.add + done : nullptr});
    }
    int count = int(parts.size()), threads = pool_threads();
    pool_run(count, [&](int i) {
        const Part& p = parts[place(i, count, threads)];
        multiply_rows(*p.w, in, p.first, p.last, p.out, p.w->rows);
        finish(p, a.n);
    });
}

void gate_up(const GateUp& a) {
    Expected expected(a.w, 2, a.n, a.k);
    Input in = input(a.x, a.n, a.k, a.w, 2);
    long rows = a.w[0].rows;
    int step = rows_per_part(rows, pool_threads());
    int parts = int((rows + step - 1) / step), threads = pool_threads();
    pool_run(parts, [&](int i) {
        int first = place(i, parts, threads) * step, last = int(std::min(rows, long(first) + step)),
            count = last - first;
        thread_local std::vector<float> up;
        up.resize(size_t(a.n) * count);
        multiply_rows(a.w[0], in, first, last, a.out, rows);
        multiply_rows(a.w[1], in, first, last, up.data() - first, count);
        add_bias(a.w[0], a.n, first, last, a.out, rows);
        add_bias(a.w[1], a.n, first, last, up.data() - first, count);
        for (int n = 0; n < a.n; n++) activate(a.out + n * rows + first, up.data() + long(n) * count, count, a.act);
    });
}

void check(const Rows& a) {
    for (int i = 0; i < a.n; i++)
        if (a.ids[i] < 0 || a.ids[i] >= a.w->rows)
            throw std::out_of_range("row ids lie between 0 and " + std::to_string(a.w->rows - 1) + ", found " +
                                    std::to_string(a.ids[i]));
}

void rows(const Rows& a) {
    check(a);
    with_block(int(a.w->type), [&](auto type) {
        using B = typename decltype(type)::type;
        for (int i = 0; i < a.n; i++) {
            float* out = a.out + long(i) * a.k;
            read_row((const B*)a.w->data + a.ids[i] * (a.k / B::WEIGHTS), a.k, out);
            for (int j = 0; j < a.k && a.scale != 1; j++) out[j] *= a.scale;
        }
    });
}

CALL(Matmuls, matmuls, F(x), F(w), F(add), F(out), F(n), F(k), F(count))
CALL(GateUp, gate_up, F(x), F(w), F(out), F(n), F(k), F(act))
CALL(Rows, rows, F(w), F(ids), F(out), F(n), F(k), F(scale))

} // namespace
