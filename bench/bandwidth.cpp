// Read memory with several threads at once, and do nothing else: the most that decoding could reach.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Eight sums, so that no load waits for an addition.
uint64_t sum(const uint64_t* words, size_t count) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; j++) sums[j] += words[i + j];
    uint64_t total = 0;
    for (uint64_t s : sums) total += s;
    return total;
}

} // namespace

// Read all of `bytes` at `data` `passes` times; each thread has its own part. Returns the sum, so that it is needed.
extern "C" uint64_t read_memory(const void* data, size_t bytes, int threads, int passes) {
    const uint64_t* words = static_cast<const uint64_t*>(data);
    const size_t part = bytes / sizeof(uint64_t) / threads;
    std::vector<uint64_t> totals(threads);
    std::vector<std::thread> running;
    for (int t = 0; t < threads; t++)
        running.emplace_back([&, t] {
            uint64_t total = 0;
            for (int p = 0; p < passes; p++) {
                asm volatile("" ::: "memory"); // or the passes would be made one
                total += sum(words + t * part, part);
            }
            totals[t] = total;
        });
    uint64_t total = 0;
    for (int t = 0; t < threads; t++) {
        running[t].join();
        total += totals[t];
    }
    return total;
}
