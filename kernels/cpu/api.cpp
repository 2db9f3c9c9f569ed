// What Python calls, by ctypes. Pointers are to contiguous float32 unless said otherwise; shapes were
// checked on the other side.
#include <vector>

#include "ahead.h"
#include "attention.h"
#include "layers.h"
#include "linear.h"
#include "pool.h"

namespace {

// x as integers, quantized on all threads; kept by the calling thread for its next call.
const Activations& integers(const float* x, int n, int k) {
    thread_local Activations kept;
    Activations& out = kept;
    out.resize(n, k);
    if (n < 8)
        for (int i = 0; i < n; i++) out.quantize(i, x + long(i) * k, k);
    else
        pool_run(n, [&](int i) { out.quantize(i, x + long(i) * k, k); });
    return out;
}

bool any_quantized(const Weight* w, int count) {
    bool found = false;
    for (int i = 0; i < count; i++)
        with_block(int(w[i].type), [&](auto type) { found = found || !is_float<typename decltype(type)::type>; });
    return found;
}

Input input(const float* x, int n, int k, const Weight* w, int count) {
    return {x, n, k, any_quantized(w, count) ? &integers(x, n, k) : nullptr};
}

// While it lives, a product runs; after it, the next one's weights are fetched. Only where reading
// weights is what takes the time.
class Expected {
public:
    Expected(const Weight* w, int count, int n, int k) : few_(n <= 8) {
        if (few_) ahead_begin(w, count, k);
    }
    ~Expected() {
        if (few_) ahead_end();
    }

private:
    bool few_;
};

} // namespace

extern "C" {

// What the products were compiled for.
const char* ferrum_simd() {
#if defined(FERRUM_VNNI)
    return "AVX-512 with VNNI";
#elif defined(__AVX2__) && !defined(FERRUM_PORTABLE)
    return "AVX2";
#else
    return "portable";
#endif
}

void ferrum_set_threads(int n) {
    pool_when_idle(ahead_fetch);
    pool_set_threads(n);
}

// Several weights that share x: (n, k). out: (n, rows) of the first, then of the second …
void ferrum_matmuls(const float* x, int n, int k, const Weight* w, int count, float* out) {
    Expected expected(w, count, n, k);
    Input in = input(x, n, k, w, count);
    struct Part {
        const Weight* w;
        int first, last;
        float* out;
    };
    thread_local std::vector<Part> kept;
    std::vector<Part>& parts = kept;
    parts.clear();
    for (int i = 0; i < count; out += n * w[i].rows, i++) {
        int step = rows_per_part(w[i].rows, pool_threads());
        for (int r = 0; r < w[i].rows; r += step)
            parts.push_back({w + i, r, int(std::min(w[i].rows, long(r) + step)), out});
    }
    pool_run(int(parts.size()), [&](int i) {
        const Part& p = parts[i];
        multiply_rows(*p.w, in, p.first, p.last, p.out, p.w->rows);
    });
}

// act(x gateᵀ) * (x upᵀ): x (n, k), w: gate and up -> out (n, rows).
void ferrum_gate_up(const float* x, int n, int k, const Weight* w, int act, float* out) {
    Expected expected(w, 2, n, k);
    Input in = input(x, n, k, w, 2);
    long rows = w[0].rows;
    int step = rows_per_part(rows, pool_threads());
    pool_run(int((rows + step - 1) / step), [&](int part) {
        int first = part * step, last = int(std::min(rows, long(first) + step)), count = last - first;
        thread_local std::vector<float> up;
        up.resize(size_t(n) * count);
        multiply_rows(w[0], in, first, last, out, rows);
        multiply_rows(w[1], in, first, last, up.data() - first, count);
        for (int i = 0; i < n; i++) activate(out + i * rows + first, up.data() + long(i) * count, count, act);
    });
}

// Rows of w at ids: (n,) -> out (n, k).
void ferrum_rows(const Weight* w, const long* ids, int n, int k, float* out) {
    with_block(int(w->type), [&](auto type) {
        using B = typename decltype(type)::type;
        for (int i = 0; i < n; i++) read_row((const B*)w->data + ids[i] * (k / B::WEIGHTS), k, out + long(i) * k);
    });
}

void ferrum_attend(const Attention* a) { attend(*a); }

void ferrum_norm_rope(const NormRope* a) { norm_rope(*a); }

void ferrum_rms_norm(const float* x, const float* weight, long rows, int d, float eps, float* out) {
    rms_norm(x, weight, rows, d, eps, out);
}
}
