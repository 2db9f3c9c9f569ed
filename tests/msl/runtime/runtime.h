// A launch as tests/msl/native.py hands it over, and what runs it.
#pragma once

#include "fiber.h"
#include "shadow.h"

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

// A thread's stack, and what is no memory below it.
constexpr std::size_t STACK = 128 << 10, GUARD = 64 << 10, STRIDE = GUARD + STACK;
// Larger than what a GPU has, so that too much can be reported, and so that variables are as far from each other as
// all of them together could be.
constexpr std::size_t ARENA = 64 << 20, SHADED = 256 << 10;
constexpr std::size_t THREADGROUP_LIMIT = 32 << 10;
constexpr std::size_t MARGIN = 64, GAP = 64 << 10;
constexpr int MEM_DEVICE = 1, MEM_THREADGROUP = 2;

inline std::uint32_t count_of(const std::uint32_t* v) { return v[0] * v[1] * v[2]; }

using Entry = void (*)(void** pointers, const msl_position*);

enum class Role : std::uint32_t { input, output, initialised };

struct Buffer {
    char* data;
    std::uint64_t bytes;
    Role role;
};

struct Finding {
    std::uint64_t site; // offset in the library; 0: none
    char kind[40];
    char detail[88];
};

struct Launch {
    Entry entry;
    Buffer* buffers;
    Finding* findings;
    std::uint32_t buffer_count, capacity, finding_count;
    std::uint32_t grid[3], group[3];
    std::uint32_t seed, checked, threads;
    std::uint32_t fill; // the bytes of memory that nothing wrote
    double seconds;     // of an OS thread's time, after which it is stopped
};

// One launch while it runs; shared by the OS threads.
struct Run {
    Launch* launch;
    std::uint32_t group[3], groups[3];
    std::vector<void*> pointers;
    std::vector<Shadow> shadows; // a buffer each
    std::pair<char*, char*> library;
    std::atomic<std::uint32_t> next;
    std::atomic<bool> stopped{false};

    explicit Run(Launch*);
    // Notes a finding, once a kind and place.
    void report(const char* kind, const void* site, const std::string& detail);

private:
    std::mutex mutex;
    std::set<std::pair<std::string, std::uint64_t>> seen;
};

// What one OS thread needs to run threadgroups.
class Worker {
public:
    Run* run = nullptr;
    Fiber* current = nullptr;
    void* scheduler = nullptr;
    void* site = nullptr; // of the simdgroup operation that is being done

    Worker();
    ~Worker();
    void start(Run*, std::uint32_t seed);
    void run_group(std::uint32_t index);
    void* threadgroup_memory(int index, std::size_t bytes, std::size_t align, void* from);
    // An access of a kernel to memory, in checked mode.
    void access(char* address, std::size_t bytes, Access, void* from);
    // Ends the run, from within a kernel.
    [[noreturn]] void stop();
    // Whether memory for threads ends there.
    bool is_guard(const void* address) const;

private:
    struct Slot {
        int index;
        std::size_t offset, bytes, shade; // shade: where its shadow starts
    };
    struct Step {
        std::uint32_t threadgroup, device;
    };
    Shadow shadow; // of threadgroup memory
    char *arena, *stacks;
    std::size_t capacity;
    std::vector<Fiber> fibers;
    int count = 0;
    std::uint32_t group = 0; // threadgroups so far: none has the number of another
    std::uint32_t random = 1;
    std::size_t used = 0, demanded = 0, shaded = 0;
    std::vector<Slot> slots;
    std::uint32_t threadgroup_epoch = 0, device_epoch = 0;
    std::vector<Step> steps; // a simdgroup each

    void place(std::uint32_t index);
    void run_simdgroup(int first, int last);
    bool release(int first, int last);
    void pass_simdgroup_barrier(int simdgroup, int flags, int together, int live);
    bool pass_barrier();
    bool is_own(const char* address) const;
    bool access_threadgroup(char* address, std::size_t bytes, Access, void* from);
    bool access_device(char* address, std::size_t bytes, Access, void* from);
    void out_of_bounds(char* address, std::size_t bytes, Access, void* from);
    Stamp stamp(bool device) const;
    static std::string missing(int n);
    void shuffle(std::vector<int>&);
    std::uint32_t next_random() {
        random ^= random << 13;
        random ^= random >> 17;
        return random ^= random << 5;
    }
};

extern thread_local Worker* worker;
