#include "ahead.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace {

constexpr int MOST = 4;             // weights of a product
constexpr long STEP = 4 << 10;      // bytes fetched between two looks for work
constexpr long FETCHED = 768 << 10; // bytes of a product: what a second-level cache holds

// Where the weights of a product lie. Never changed once it can be seen, never freed: there are as
// many as a model has products.
struct Plan {
    int count;
    const char* from[MOST];
    long size[MOST];
    std::atomic<const Plan*> next{nullptr};

    bool same(const Weight* w, int n, int k) const;
};

long bytes(const Weight& w, int k) {
    long size = 0;
    with_block(int(w.type), [&](auto type) {
        using B = typename decltype(type)::type;
        size = w.rows * (k / B::WEIGHTS) * long(sizeof(B));
    });
    return size;
}

bool Plan::same(const Weight* w, int n, int k) const {
    if (count != n) return false;
    for (int i = 0; i < n; i++)
        if (from[i] != w[i].data || size[i] != bytes(w[i], k)) return false;
    return true;
}

std::mutex plans_mutex;
std::unordered_map<const void*, Plan*> plans; // by the first weight
thread_local Plan* current = nullptr;
std::atomic<const Plan*> wanted{nullptr};
std::atomic<long> fetched{0};

Plan* plan_of(const Weight* w, int count, int k) {
    std::lock_guard<std::mutex> lock(plans_mutex);
    Plan*& plan = plans[w[0].data];
    if (plan && plan->same(w, count, k)) return plan;
    plan = new Plan;
    plan->count = count;
    for (int i = 0; i < count; i++) {
        plan->from[i] = (const char*)w[i].data;
        plan->size[i] = bytes(w[i], k);
    }
    return plan;
}

} // namespace

void ahead_begin(const Weight* w, int count, int k) {
    wanted.store(nullptr);
    if (count > MOST) return;
    Plan* plan = plan_of(w, count, k);
    if (current) current->next.store(plan);
    current = plan;
}

void ahead_end() {
    fetched.store(0);
    if (current) wanted.store(current->next.load());
}

void ahead_fetch() {
    const Plan* plan = wanted.load(std::memory_order_relaxed);
    if (!plan) return;
    long at = fetched.fetch_add(STEP, std::memory_order_relaxed);
    if (at >= FETCHED) return;
    for (int i = 0; i < plan->count; at -= plan->size[i++])
        if (at < plan->size[i]) {
            long end = plan->size[i] < at + STEP ? plan->size[i] : at + STEP;
            for (long line = at; line < end; line += 64) __builtin_prefetch(plan->from[i] + line, 0, 2);
            return;
        }
}
