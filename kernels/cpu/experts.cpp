// Products with stacks of matrices. Pairs of a token and one of its experts are put in order of experts, so that
// an expert's weights are read once whatever the number of tokens, in the order in which they lie in the file.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "calls.h"
#include "layers.h"
#include "pool.h"
#include "products.h"
#include "streamed.h"

namespace {

constexpr int UNKNOWN = -1; // the expert of pairs whose id is none

// Pairs with one expert.
struct Group {
    int expert, first, count; // pairs [first, first + count) in order
    int place = 0;            // of their rows of x; see Input
};

// The pairs of a call in order of experts, then of tokens.
class Pairs {
public:
    // sharing: how many neighbouring pairs have one row of x.
    Pairs(const int* ids, int n, int used, int experts, int sharing) {
        thread_local std::vector<int> order, rows, ends;
        thread_local std::vector<Group> groups;
        auto key = [&](int i) { return ids[i] < 0 || ids[i] >= experts ? 0 : ids[i] + 1; };
        int count = n * used;
        ends.assign(experts + 2, 0);
        for (int i = 0; i < count; i++) ends[key(i) + 1]++;
        groups.clear();
        for (int e = 0; e <= experts; e++) {
            if (ends[e + 1]) groups.push_back({e - 1, ends[e], ends[e + 1]});
            ends[e + 1] += ends[e];
        }
        order.resize(count);
        for (int i = 0; i < count; i++) order[ends[key(i)]++] = i;
        rows.resize(count);
        for (int i = 0; i < count; i++) rows[i] = order[i] / sharing;
        order_ = order.data(), rows_ = rows.data(), groups_ = &groups;
    }

    // x: (.., k), also as integers if one of the weights is quantized: a set for each expert.
    Input input(const float* x, int k, const Weight* w, int count) {
        thread_local std::vector<Set> sets;
        sets.clear();
        for (const Group& g : *groups_)
            if (g.expert != UNKNOWN) sets.push_back({g.count, rows(g), 0});
        Input in{x, 0, k, integers(x, k, w, count, sets.data(), int(sets.size()))};
        const Set* set = sets.data();
        for (Group& g : *groups_)
            if (g.expert != UNKNOWN) g.place = set++->place;
        return in;
    }

    const std::vector<Group>& groups() const { return *groups_; }

    // Put those first whose weights are there.
    void put_ready_first(const Turn& turn) const {
        std::stable_partition(groups_->begin(), groups_->end(),
                              [&](const Group& g) { return g.expert == UNKNOWN || turn.is_ready(g.expert); });
    }

    // The pairs of a group, as numbers in (n, used).
    const int* of(const Group& g) const { return order_ + g.first; }

    // The row of x of each.
    const int* rows(const Group& g) const { return rows_ + g.first; }

private:
    // kept by the calling thread for its next call
    const int *order_, *rows_;
    std::vector<Group>* groups_;
};

// Groups [first, last).
struct Range {
    int first, last;
};

// Calls run for ranges of groups whose weights are in memory or about to be: in order, or as it is quickest.
template <typename F>
void in_turn(const Weight& stack, const Pairs& pairs, bool in_order, const F& run) {
    const std::vector<Group>& groups = pairs.groups();
    int count = int(groups.size());
    if (!stack.streamed) return run(Range{0, count});
    Turn turn(*stack.streamed);
    if (!in_order) pairs.put_ready_first(turn);
    thread_local std::vector<int> experts;
    experts.clear();
    for (const Group& g : groups)
        if (g.expert != UNKNOWN) experts.push_back(g.expert);
    int unknown = count - int(experts.size()); // the first group, or none
    if (unknown) run(Range{0, unknown});
    turn.begin(experts);
    for (Range r; turn.next(r.first, r.last);) run(Range{unknown + r.first, unknown + r.last});
}

// One expert's part of a stack.
Weight expert_of(const Weight& stack, int expert) {
    Weight w = stack;
    w.data = (const char*)stack.data + expert * stack.step;
    if (w.streamed) w.data = w.streamed->wait(int(w.source), expert);
    if (w.bias) w.bias += expert * stack.rows;
    return w;
}

// Rows [first, last) of what a group needs.
struct Part {
    const Group* group;
    int first, last;

    long size() const { return long(group->count) * (last - first); }
};

// Where a part of a stack begins; null if no weights are read for it, or they are not there yet.
const void* start(const Weight& stack, int k, const Part& p) {
    if (p.group->expert == UNKNOWN) return nullptr;
    if (stack.streamed && !stack.streamed->is_ready(p.group->expert)) return nullptr;
    Weight before = expert_of(stack, p.group->expert);
    const char* data = (const char*)before.data;
    before.rows = p.first;
    return data + matrix_bytes(before, k);
}

// out: (count, last - first), a part of a stack times the group's rows of x, whose numbers are `rows`.
// next: what is read after it.
void multiply(const Weight& stack, Input in, const Part& p, const int* rows, const void* next, float* out) {
    int width = p.last - p.first;
    Weight w{};
    if (p.group->expert != UNKNOWN) w = expert_of(stack, p.group->expert);
    if (!w.data) { // or it could not be read, which the turn will say
        std::fill_n(out, p.size(), NAN);
        return;
    }
    in.n = p.group->count, in.rows = rows, in.place = p.group->place;
    multiply_rows(w, in, p.first, p.last, out - p.first, width, next);
    for (int i = 0; w.bias && i < in.n; i++)
        for (int r = 0; r < width; r++) out[long(i) * width + r] += w.bias[p.first + r];
}

// Parts of about equal work; those that follow each other read weights that do.
void share_out(const Group* groups, int count, long rows, int threads, std::vector<Part>& parts) {
    constexpr int UNIT = 32, SHARE = 8; // rows that are multiplied together at least; parts of a thread
    constexpr int READING = 8;          // in products, what reading and unpacking a weight costs
    long work = 0;
    for (int i = 0; i < count; i++) work += (READING + groups[i].count) * rows;
    parts.clear();
    for (const Group* g = groups; g < groups + count; g++) {
        long wanted = work / (threads * SHARE) / (READING + g->count);
        long step = std::min(rows, std::max(1L, (wanted + UNIT - 1) / UNIT) * UNIT);
        for (long r = 0; r < rows; r += step) parts.push_back({g, int(r), int(std::min(rows, r + step))});
    }
}

// A part of what the experts say. later: the thread's next part.
void answer(const Gather& a, const Input& in, const Pairs& pairs, const Part& p, const Part& later) {
    thread_local std::vector<float> out;
    const int* of = pairs.of(*p.group);
    out.resize(a.count * p.size());
    for (int j = 0; j < a.count; j++) {
        const void* next = j + 1 < a.count ? start(a.w[j + 1], a.k, p) : start(a.w[0], a.k, later);
        multiply(a.w[j], in, p, pairs.rows(*p.group), next, &out[j * p.size()]);
    }
    if (a.count == 2) activate(out.data(), &out[p.size()], p.size(), a.act);
    int width = p.last - p.first;
    for (int i = 0; i < p.group->count; i++)
        std::copy_n(&out[long(i) * width], width, a.out + of[i] * a.w->rows + p.first);
}

// Rows [first, last) of the groups in `range`, so that each sum is made by one thread, in the order of the experts.
void sum_rows(const GatherDown& a, const Input& in, const Pairs& pairs, Range range, int first, int last) {
    long rows = a.w->rows;
    int width = last - first;
    thread_local std::vector<float> out;
    const std::vector<Group>& groups = pairs.groups();
    for (int t = 0; range.first == 0 && t < a.n; t++) std::fill_n(a.out + t * rows + first, width, 0.0f);
    for (int g = range.first; g < range.last; g++) {
        int after = g + 1 < range.last ? g + 1 : range.first;
        Part p{&groups[g], first, last}, later{&groups[after], first, last};
        const int* of = pairs.of(*p.group);
        out.resize(p.size());
        multiply(*a.w, in, p, pairs.rows(*p.group), start(*a.w, a.k, later), out.data());
        for (int j = 0; j < p.group->count; j++) {
            float *sum = a.out + of[j] / a.used * rows + first, weight = a.weights[of[j]];
            for (int r = 0; r < width; r++) sum[r] += weight * out[long(j) * width + r];
        }
    }
    bool is_end = range.last == int(groups.size());
    for (int t = 0; a.add && is_end && t < a.n; t++)
        for (int r = first; r < last; r++) a.out[t * rows + r] += a.add[t * rows + r];
}

} // namespace

void gather(const Gather& a) {
    Expected expected(a.w, 0, a.n, a.k);
    Pairs pairs(a.ids, a.n, a.used, a.experts, a.used);
    Input in = pairs.input(a.x, a.k, a.w, a.count);
    thread_local std::vector<Part> kept;
    std::vector<Part>& parts = kept;
    int threads = pool_threads();
    in_turn(*a.w, pairs, false, [&](Range range) {
        share_out(&pairs.groups()[range.first], range.last - range.first, a.w->rows, threads, parts);
        int count = int(parts.size());
        pool_run(count, [&](int i) {
            const Part& later = parts[place(std::min(i + threads, count - 1), count, threads)];
            answer(a, in, pairs, parts[place(i, count, threads)], later);
        });
    });
}

void gather_down(const GatherDown& a) {
    Expected expected(a.w, 0, a.n, a.k);
    Pairs pairs(a.ids, a.n, a.used, a.experts, 1);
    Input in = pairs.input(a.x, a.k, a.w, 1);
    long rows = a.w->rows;
    int threads = pool_threads(), step = rows_per_part(rows, threads), count = int((rows + step - 1) / step);
    in_turn(*a.w, pairs, true, [&](Range range) {
        pool_run(count, [&](int i) {
            int first = place(i, count, threads) * step;
            sum_rows(a, in, pairs, range, first, int(std::min(rows, long(first) + step)));
        });
    });
}

CALL(Gather, gather, F(x), F(w), F(ids), F(out), F(n), F(used), F(experts), F(k), F(count), F(act))
CALL(GatherDown, gather_down, F(x), F(w), F(ids), F(weights), F(add), F(out), F(n), F(used), F(experts), F(k))
