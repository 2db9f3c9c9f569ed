#include "ahead.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>

namespace {

constexpr int MOST = 4;             // weights of a product
constexpr long STEP = 4 << 10;      // bytes fetched between two looks for work
constexpr long FETCHED = 768 << 10; // bytes of a product: what a second-level cache holds

// Where the weights of a product lie. Never freed, as other threads may be reading it: when its address
// comes to hold another weight, it is written anew, and a mixture at worst fetches what nobody needs.
struct Plan {
    std::atomic<int> count{0};
    std::atomic<const char*> from[MOST];
    std::atomic<long> size[MOST];
    std::atomic<const Plan*> next{nullptr};

    bool same(const Weight* w, int n, int k) const;
    void set(const Weight* w, int n, int k);
};

bool Plan::same(const Weight* w, int n, int k) const {
    if (count != n) return false;
    for (int i = 0; i < n; i++)
        if (from[i] != w[i].data || size[i] != matrix_bytes(w[i], k)) return false;
    return true;
}

void Plan::set(const Weight* w, int n, int k) {
    next = nullptr;
    count = n;
    for (int i = 0; i < n; i++) {
        from[i] = (const char*)w[i].data;
        size[i] = matrix_bytes(w[i], k);
    }
}

std::mutex plans_mutex;
std::unordered_map<const void*, Plan> plans; // by the first weight
thread_local Plan* current = nullptr;
std::atomic<const Plan*> wanted{nullptr};
std::atomic<long> fetched{0};

Plan* plan_of(const Weight* w, int count, int k) {
    std::lock_guard<std::mutex> lock(plans_mutex);
    Plan& plan = plans[w[0].data];
    if (!plan.same(w, count, k)) plan.set(w, count, k);
    return &plan;
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
    for (int i = 0, count = plan->count; i < count; i++) {
        long size = plan->size[i];
        if (at < size) {
            const char* from = plan->from[i] + at;
            for (long line = 0; line < std::min(size - at, STEP); line += 64) __builtin_prefetch(from + line, 0, 2);
            return;
        }
        at -= size;
    }
}
