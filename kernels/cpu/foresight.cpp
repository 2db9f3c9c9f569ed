// Reads of experts that begin before their products do: of those that are chosen, and of those that the next layer is
// likely to choose.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "calls.h"
#include "experts.h"
#include "floats.h"
#include "pool.h"
#include "products.h"
#include "streamed.h"

namespace {

// Experts of the stack w are used next; ids: (n, used).
struct WantExperts {
    const Weight* w;
    const int* ids;
    int n, used;
};

// What the router of a layer would choose if the layer before it changed nothing; the other fields are those of Route.
struct ExpectExperts {
    const float *x, *norm; // x: (n, k), before the norm; norm: (k,)
    const Weight* w;       // of the router, and a stack of the layer
    const float* bias;
    int n, k, experts, used, sigmoid, groups, groups_used;
    float eps;
};

// Each once, without those of no expert.
const std::vector<int>& distinct(const int* ids, int count, int experts) {
    thread_local std::vector<int> found;
    found.clear();
    std::copy_if(ids, ids + count, std::back_inserter(found), [=](int id) { return 0 <= id && id < experts; });
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

void want_experts(const WantExperts& a) { a.w->streamed->want(distinct(a.ids, a.n * a.used, a.w->streamed->count())); }

// logits: (n, experts)
void ask_router(const ExpectExperts& a, float* logits) {
    thread_local std::vector<float> normed;
    normed.resize(size_t(a.n) * a.k);
    for (int i = 0; i < a.n; i++) {
        const float* x = a.x + long(i) * a.k;
        float scale = 1 / std::sqrt(dot(x, x, a.k) / float(a.k) + a.eps);
        for (int j = 0; j < a.k; j++) normed[long(i) * a.k + j] = x[j] * scale * a.norm[j];
    }
    Input in = input(normed.data(), a.n, a.k, a.w, 1);
    int step = rows_per_part(a.experts, pool_threads()), parts = (a.experts + step - 1) / step;
    pool_run(parts,
             [&](int i) { multiply_rows(*a.w, in, i * step, std::min(a.experts, (i + 1) * step), logits, a.experts); });
}

void expect_experts(const ExpectExperts& a) {
    int count = a.n * a.used;
    if (!a.w[1].streamed->predicts(count)) return;
    thread_local std::vector<float> logits, weights;
    thread_local std::vector<int> ids;
    logits.resize(size_t(a.n) * a.experts), weights.resize(count), ids.resize(count);
    ask_router(a, logits.data());
    route({logits.data(), a.bias, ids.data(), weights.data(), a.n, a.experts, a.used, a.sigmoid, 0, a.groups,
           a.groups_used, 1});
    a.w[1].streamed->expect(distinct(ids.data(), count, a.experts));
}

CALL(WantExperts, want_experts, F(w), F(ids), F(n), F(used))
CALL(ExpectExperts, expect_experts, F(x), F(norm), F(w), F(bias), F(n), F(k), F(experts), F(used), F(sigmoid),
     F(groups), F(groups_used), F(eps))

} // namespace
