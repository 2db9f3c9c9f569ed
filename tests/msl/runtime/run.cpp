// A launch: its buffers, its findings, and the OS threads that share its threadgroups.

#include "faults.h"
#include "runtime.h"

#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {
// Within, subnormal floats count as zero, as on the GPU.
struct FlushSubnormals {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    std::uint64_t before;
    FlushSubnormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | 1ull << 24));
    }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

int library_end(dl_phdr_info* info, std::size_t, void* data) {
    auto* range = static_cast<std::pair<char*, char*>*>(data);
    if (reinterpret_cast<char*>(info->dlpi_addr) != range->first) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD)
            range->second = std::max(range->second, range->first + header.p_vaddr + header.p_memsz);
    }
    return 1;
}
} // namespace

Run::Run(Launch* l) : launch(l), next(0) {
    for (int i = 0; i < 3; i++) {
        group[i] = std::min(l->group[i], l->grid[i]);
        groups[i] = (l->grid[i] + group[i] - 1) / group[i];
    }
    Dl_info info;
    dladdr(reinterpret_cast<void*>(l->entry), &info);
    library = {static_cast<char*>(info.dli_fbase), static_cast<char*>(info.dli_fbase)};
    dl_iterate_phdr(library_end, &library);
    for (std::uint32_t i = 0; i < l->buffer_count; i++) {
        const Buffer& b = l->buffers[i];
        pointers.push_back(b.data);
        bool shadowed = l->checked && b.role != Role::input;
        shadows.emplace_back(shadowed ? b.bytes : 0, b.role == Role::initialised, false);
    }
}

void Run::report(const char* kind, const void* site, const std::string& detail) {
    std::lock_guard<std::mutex> lock(mutex);
    std::uint64_t offset = site ? std::uint64_t(static_cast<const char*>(site) - library.first) : 0;
    if (!seen.insert({kind, offset}).second || launch->finding_count == launch->capacity) return;
    Finding& f = launch->findings[launch->finding_count++];
    f.site = offset;
    std::snprintf(f.kind, sizeof f.kind, "%s", kind);
    std::snprintf(f.detail, sizeof f.detail, "%s", detail.c_str());
}

namespace {
void work(Run* run, Worker* w, std::uint32_t seed) {
    FlushSubnormals flush;
    FaultStack faults;
    w->start(run, seed);
    Watchdog watchdog(run->launch->seconds);
    std::uint32_t total = count_of(run->groups);
    while (!run->stopped) {
        std::uint32_t i = run->next++;
        if (i >= total) break;
        // with a seed, threadgroups go backwards every other time
        w->run_group(seed & 1 ? total - 1 - i : i);
    }
    worker = nullptr;
}

void report_unwritten(Run& run) {
    const Launch& launch = *run.launch;
    for (std::uint32_t i = 0; i < launch.buffer_count; i++) {
        const Buffer& b = launch.buffers[i];
        if (b.role != Role::output) continue;
        std::size_t at = run.shadows[i].first_unwritten();
        if (at < b.bytes)
            run.report("unwritten output", nullptr,
                       "buffer " + std::to_string(i) + ", first at byte " + std::to_string(at));
    }
}
} // namespace

extern "C" __attribute__((visibility("default"))) void msl_run(Launch* launch) {
    static Worker workers[16]; // kept, for their stacks
    Run run(launch);
    FaultsAreFindings within;
    std::uint32_t threads = std::min({launch->threads, count_of(run.groups), 16u});
    std::vector<std::thread> others;
    for (std::uint32_t i = 1; i < threads; i++) others.emplace_back(work, &run, &workers[i], launch->seed + i * 2);
    work(&run, &workers[0], launch->seed);
    for (std::thread& t : others) t.join();
    if (launch->checked && !run.stopped) report_unwritten(run);
}
