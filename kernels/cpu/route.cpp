// The router: scores of all experts, of which the best are kept in order while one passes over them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "calls.h"
#include "exp.h"
#include "experts.h"
#include "pool.h"

namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr float LEAST_SUM = 1e-20f; // of weights that are divided by it; sigmoids can all be 0
constexpr int SHARE = 16;           // tokens worth a part of the job

// The highest of the scores that were offered, highest first; of equal ones the first that came.
class Best {
public:
    void clear(int most) {
        most_ = most, count_ = 0;
        kept_.resize(most + 1);
    }

    void offer(int id, float score) {
        if (count_ == most_ && !(score > kept_[most_ - 1].score)) return;
        int at = count_;
        for (; at > 0 && score > kept_[at - 1].score; at--) kept_[at] = kept_[at - 1];
        kept_[at] = {score, id};
        count_ = std::min(count_ + 1, most_);
    }

    int count() const { return count_; }
    int id(int i) const { return kept_[i].id; }
    float score(int i) const { return kept_[i].score; }

private:
    struct Entry {
        float score;
        int id;
    };

    int most_ = 0, count_ = 0;
    std::vector<Entry> kept_; // one more than are kept, which may be shifted out
};

// Softmax or sigmoids of the logits. out: of `padded`, whole vectors.
void score(const Route& a, const float* logits, std::vector<float>& out) {
    int padded = (a.experts + LANES - 1) / LANES * LANES;
    out.assign(padded, NEVER);
    std::copy_n(logits, a.experts, out.begin());
    if (a.sigmoid) {
        for (int i = 0; i < padded; i += LANES) {
            Floats x = load_floats(&out[i]);
            store_floats(&out[i], sigmoid(x));
        }
        return;
    }
    float most = *std::max_element(logits, logits + a.experts);
    float sum = total(exp_sums(out.data(), padded, most));
    for (float& x : out) x /= sum;
}

// Experts outside the best groups can only come after all others.
void keep_best_groups(const Route& a, std::vector<float>& chosen_by, Best& best) {
    int size = a.experts / a.groups;
    thread_local std::vector<float> sums;
    sums.resize(a.groups);
    for (int g = 0; g < a.groups; g++) {
        best.clear(std::min(2, size));
        for (int i = 0; i < size; i++) best.offer(i, chosen_by[g * size + i]);
        sums[g] = best.score(0) + (size > 1 ? best.score(1) : 0);
    }
    best.clear(a.groups_used);
    for (int g = 0; g < a.groups; g++) best.offer(g, sums[g]);
    thread_local std::vector<char> kept;
    kept.assign(a.groups, false);
    for (int i = 0; i < best.count(); i++) kept[best.id(i)] = true;
    for (int i = 0; i < a.experts; i++)
        if (!kept[i / size]) chosen_by[i] = NEVER;
}

void route_token(const Route& a, const float* logits, int* ids, float* weights) {
    thread_local std::vector<float> scores, chosen_by;
    thread_local Best best;
    score(a, logits, scores);
    // softmax keeps the order, and logits are finer; groups are compared by sums, which it changes
    const float* from = a.sigmoid || a.bias || a.groups > 1 ? scores.data() : logits;
    chosen_by.assign(from, from + a.experts);
    for (int i = 0; i < a.experts; i++) {
        if (a.bias) chosen_by[i] += a.bias[i];
        if (std::isnan(chosen_by[i])) chosen_by[i] = NEVER;
    }
    if (a.groups > 1) keep_best_groups(a, chosen_by, best);
    best.clear(a.used);
    for (int i = 0; i < a.experts; i++) best.offer(i, chosen_by[i]);
    float sum = 0;
    for (int i = 0; i < a.used; i++) {
        ids[i] = best.id(i);
        weights[i] = scores[ids[i]];
        sum += weights[i];
    }
    float factor = a.normalise ? a.scale / (sum + LEAST_SUM) : a.scale;
    for (int i = 0; i < a.used; i++) weights[i] *= factor;
}

} // namespace

void route(const Route& a) {
    pool_run((a.n + SHARE - 1) / SHARE, [&](int part) {
        for (int i = part * SHARE; i < std::min(a.n, (part + 1) * SHARE); i++) {
            long at = long(i) * a.used;
            route_token(a, a.logits + long(i) * a.experts, a.ids + at, a.weights + at);
        }
    });
}

CALL(Route, route, F(logits), F(bias), F(ids), F(weights), F(n), F(experts), F(used), F(sigmoid), F(normalise),
     F(groups), F(groups_used), F(scale))
