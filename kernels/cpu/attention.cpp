// Attention over keys and values in blocks, causal or both ways, for the rows of several sequences at once: an online
// softmax, with keys taken 64 at a time.
// Sequences with many query rows: keys are transposed once, so that a vector holds one number of several keys, then
// eight rows are multiplied at a time, with all sums in registers. Sequences with few rows: transposing would cost more
// than it saves; their keys are split into runs instead, so that one long sequence and many short ones both use all
// threads, and the softmaxes of the runs are merged.
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_rows.h"
#include "calls.h"
#include "pool.h"
#include "shared.h"

namespace {

constexpr int MANY = 16; // query rows from which on keys are transposed

// Keys of a tile as (d, 64), times their scales; those past the last are zero.
template <typename T>
void transpose(const Head& h, int from, float* out) {
    const Attention& a = h.a;
    int count = std::min(TILE, h.held() - from);
    const T* key[TILE];
    const float* scale[TILE];
    a.key_blocks().collect(a.keys, h.table(), h.group, from, from + count, key);
    if (a.bits == 8) a.scale_blocks().collect(a.key_scales, h.table(), h.group, from, from + count, scale);
    for (int i = 0; i < a.d; i++) {
        for (int s = 0; s < count; s++) out[i * TILE + s] = float(key[s][i]) * (a.bits == 8 ? *scale[s] : 1);
        for (int s = count; s < TILE; s++) out[i * TILE + s] = 0;
    }
}

// The work of a call: for a sequence with many rows `transpose` a tile, then `attend_rows`; with few rows `attend_run`.
struct Job {
    Head head;
    long first;    // the first row, or the first position
    int last;      // the end of a run
    float* memory; // transposed keys of the head; or the parts of a run, null for the only one
};

// The runs of a head with few rows, if there are several.
struct Runs {
    Head head;
    int count, length;
    long at; // of their parts, in floats
};

// What the calling thread keeps for its next call.
struct Plan {
    std::vector<Job> tiles, jobs;
    std::vector<Runs> runs;
    std::vector<float> transposed, parts;
};

template <typename F>
void each_head(const Attention& a, const F& f) {
    for (int s = 0; s < a.sequences; s++)
        for (int g = 0; g < a.groups; g++)
            if (Head h{a, s, g}; h.length() > 0) f(h);
}

void plan_many(const Attention& a, Plan& plan) {
    size_t size = 0;
    auto each = [&](auto f) { each_head(a, [&](const Head& h) { h.rows() < MANY ? void() : f(h); }); };
    each([&](const Head& h) { size += size_t(h.tiles()) * TILE * a.d; });
    if (plan.transposed.size() < size) plan.transposed.resize(size);
    float* memory = plan.transposed.data();
    each([&](const Head& h) {
        for (int n = 0; n < h.tiles(); n++)
            plan.tiles.push_back({h, h.begin() + n * TILE, 0, memory + long(n) * TILE * a.d});
        for (long row = (h.rows() - 1) / PART * PART; row >= 0; row -= PART) // those that see most come first
            plan.jobs.push_back({h, row, 0, memory});
        memory += long(h.tiles()) * TILE * a.d;
    });
}

// threads: among which the runs are to be shared; 1 for work too small to share
void plan_few(const Attention& a, Plan& plan, int threads, long work) {
    long share = threads > 1 ? std::max(1L, work / (4 * threads)) : work; // of a run
    long size = 0;
    each_head(a, [&](const Head& h) {
        if (h.rows() >= MANY) return;
        int runs = int(std::min<long>(h.tiles(), (h.work() + share - 1) / share));
        int length = (h.tiles() + runs - 1) / runs;
        runs = (h.tiles() + length - 1) / length;
        if (runs <= 1) return plan.jobs.push_back({h, h.begin(), h.held(), nullptr});
        plan.runs.push_back({h, runs, length * TILE, size});
        size += h.rows() * (a.dv + 2) * runs;
    });
    if (plan.parts.size() < size_t(size)) plan.parts.resize(size);
    for (const Runs& r : plan.runs)
        for (int n = 0; n < r.count; n++) {
            int from = r.head.begin() + n * r.length, to = std::min(from + r.length, r.head.held());
            float* parts = plan.parts.data() + r.at + n * r.head.rows() * (a.dv + 2);
            plan.jobs.push_back({r.head, from, to, parts});
        }
}

template <typename T>
void run_job(const Job& job) {
    if (job.head.rows() < MANY)
        attend_run<T>(job.head, int(job.first), job.last, job.memory);
    else
        attend_rows<T>(job.head, job.first, job.memory);
}

template <typename T>
void attend_as(const Attention& a) {
    thread_local Plan kept;
    Plan& plan = kept;
    plan.tiles.clear(), plan.jobs.clear(), plan.runs.clear();
    long few = 0, many = 0;
    each_head(a, [&](const Head& h) { (h.rows() < MANY ? few : many) += h.work(); });
    bool is_shared = few + many >= 2 * SMALL;
    plan_many(a, plan);
    plan_few(a, plan, is_shared ? pool_threads() : 1, few);
    share(is_shared, plan.tiles.size(),
          [&](int i) { transpose<T>(plan.tiles[i].head, int(plan.tiles[i].first), plan.tiles[i].memory); });
    share(is_shared, plan.jobs.size(), [&](int i) { run_job<T>(plan.jobs[i]); });
    for (const Runs& r : plan.runs)
        for (long i = 0; i < r.head.rows(); i++)
            merge(r.head, i, plan.parts.data() + r.at + i * (a.dv + 2), r.count, r.head.rows() * (a.dv + 2));
}

// The blocks that a sequence sees lie in the pool.
void check(const Attention& a, int sequence) {
    Head h{a, sequence, 0};
    int first = h.length() > 0 ? h.begin() / a.size : 0, end = (h.held() + a.size - 1) / a.size;
    if (h.length() > 0 && (end > a.width || h.length() > h.held()))
        throw std::out_of_range("attend: a sequence of " + std::to_string(h.held()) + " positions, expected at most " +
                                std::to_string(long(a.width) * a.size));
    for (int i = first; h.length() > 0 && i < end; i++)
        if (h.table()[i] < 0 || h.table()[i] >= a.blocks)
            throw std::out_of_range("attend: block " + std::to_string(h.table()[i]) + ", expected 0 to " +
                                    std::to_string(a.blocks - 1));
}

void attend(const Attention& a) {
    for (int s = 0; s < a.sequences; s++) check(a, s);
    with_stored(a.bits, [&](auto* stored) { attend_as<std::remove_pointer_t<decltype(stored)>>(a); });
}

CALL(Attention, attend, F(q), F(keys), F(values), F(key_scales), F(value_scales), F(sinks), F(starts), F(lengths),
     F(table), F(out), F(sequences), F(width), F(blocks), F(size), F(heads), F(groups), F(d), F(dv), F(window), F(bits),
     F(both_ways), F(scale), F(softcap))

} // namespace
