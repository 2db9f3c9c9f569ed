// The pool. Between the jobs of one token there are only microseconds, in which waking a thread
// would cost more than the job: a worker spins for a while before it sleeps.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define relax() _mm_pause()
#elif defined(__aarch64__)
#define relax() asm volatile("yield")
#else
#define relax() std::this_thread::yield()
#endif

namespace {

constexpr auto SPIN = std::chrono::microseconds(200);
std::atomic<void (*)()> idle{nullptr};

class Pool {
public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
    }

    ~Pool() {
        stop_ = true;
        publish(0);
        for (auto& worker : workers_) worker.join();
    }

    int threads() const { return int(workers_.size()) + 1; }

    // Waits for the parts, not for the workers: one that the system has put aside holds nobody up
    // unless it has a part in hand.
    void run(int parts, const std::function<void(int)>& part) {
        part_ = &part;
        parts_ = parts;
        done_.store(0, std::memory_order_relaxed);
        take_parts(publish(parts));
        while (done_.load(std::memory_order_acquire) < parts) relax();
    }

private:
    // Start the next job; its number.
    unsigned publish(int parts) {
        unsigned next = job() + 1;
        ticket_.store((unsigned long long)next << 32 | unsigned(parts));
        if (sleeping_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        return next;
    }

    // A ticket is a job's number and how many of its parts nobody has taken, in one word: a late
    // worker cannot take a part of another job. Until a taken part is done, part_ and parts_ stay.
    void take_parts(unsigned job) {
        unsigned long long ticket = ticket_.load();
        while (unsigned(ticket >> 32) == job && unsigned(ticket)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1)) continue;
            (*part_)(parts_ - int(unsigned(ticket)));
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load();
        }
    }

    void work() {
        for (unsigned seen = 0; !stop_;) take_parts(seen = wait_for_job(seen));
    }

    unsigned job() const { return unsigned(ticket_.load() >> 32); }

    unsigned wait_for_job(unsigned seen) {
        auto until = std::chrono::steady_clock::now() + SPIN;
        do {
            for (int i = 0; i < 64; i++) {
                if (job() != seen) return job();
                if (auto work = idle.load(std::memory_order_relaxed)) work();
                relax();
            }
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return job() != seen; });
        sleeping_.fetch_sub(1);
        return job();
    }

    const std::function<void(int)>* part_ = nullptr;
    int parts_ = 0;
    std::atomic<int> done_{0}, sleeping_{0};
    std::atomic<unsigned long long> ticket_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

std::mutex in_use;
int wanted = int(std::max(1u, std::thread::hardware_concurrency()));
// Never destroyed: at exit the process ends with the workers asleep.
Pool* pool = nullptr;

} // namespace

int pool_threads() {
    std::lock_guard<std::mutex> lock(in_use);
    return wanted;
}

void pool_set_threads(int n) {
    std::lock_guard<std::mutex> lock(in_use);
    wanted = std::max(1, n);
    if (pool && pool->threads() != wanted) {
        delete pool;
        pool = nullptr;
    }
}

void pool_when_idle(void (*work)()) { idle = work; }

void pool_run(int parts, const std::function<void(int)>& part) {
    std::lock_guard<std::mutex> lock(in_use);
    if (parts <= 1 || wanted == 1) {
        for (int i = 0; i < parts; i++) part(i);
        return;
    }
    if (!pool) pool = new Pool(wanted);
    pool->run(parts, part);
}
