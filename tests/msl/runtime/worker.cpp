// Runs a compiled kernel: threadgroups one after another on each OS thread, their threads as fibers.
//
// The threads of a simdgroup run until each waits. Those that wait for a simdgroup operation at one place take part
// in it together. Where some wait at another place, who would meet whom on a GPU hangs on where branches come
// together, which is not known here: that is reported. When all wait at a barrier, the threadgroup goes on.

#include "runtime.h"

#include <cstdlib>
#include <sys/mman.h>

thread_local Worker* worker;

namespace {
void wait(State state, void* site) {
    Fiber* fiber = worker->current;
    fiber->state = state;
    fiber->site = site;
    msl_switch(&fiber->top, worker->scheduler);
}

void boot() {
    Fiber* fiber = worker->current;
    const Launch& launch = *worker->run->launch;
    launch.entry(worker->run->pointers.data(), &fiber->position);
    wait(State::done, nullptr);
    std::abort(); // a finished thread is never resumed
}
} // namespace

namespace {
char* reserve(std::size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (found == MAP_FAILED) std::abort();
    return static_cast<char*>(found);
}

char* reserve_stacks(std::size_t threads) {
    char* found = reserve(threads * STRIDE);
    for (std::size_t i = 0; i < threads; i++)
        if (mprotect(found + i * STRIDE, GUARD, PROT_NONE)) std::abort();
    return found;
}
} // namespace

Worker::Worker() : shadow(0, false, true), arena(reserve(ARENA)), stacks(nullptr), capacity(0) {}

Worker::~Worker() {
    munmap(arena, ARENA);
    if (stacks) munmap(stacks, capacity * STRIDE);
}

void Worker::start(Run* r, std::uint32_t seed) {
    run = r;
    random = seed * 2654435761u | 1;
    std::size_t threads = count_of(r->group);
    if (threads > capacity) {
        if (stacks) munmap(stacks, capacity * STRIDE);
        stacks = reserve_stacks(threads);
        capacity = threads;
    }
    fibers.resize(threads);
    if (r->launch->checked && shadow.size() == 0) shadow = Shadow(SHADED, false, true);
    worker = this;
}

void Worker::place(std::uint32_t index) {
    const std::uint32_t* groups = run->groups;
    Uint3 at = {index % groups[0], index / groups[0] % groups[1], index / (groups[0] * groups[1])};
    const std::uint32_t *grid = run->launch->grid, *full = run->group;
    // the last threadgroup of an axis is smaller where the grid is no multiple of it
    Uint3 size = {std::min(full[0], grid[0] - at.x * full[0]), std::min(full[1], grid[1] - at.y * full[1]),
                  std::min(full[2], grid[2] - at.z * full[2])};
    count = int(size.x * size.y * size.z);
    msl_position p = {};
    p.dispatch_threads_per_threadgroup = {full[0], full[1], full[2]};
    p.grid_size = p.threads_per_grid = {grid[0], grid[1], grid[2]};
    p.threadgroup_position_in_grid = at;
    p.threadgroups_per_grid = {groups[0], groups[1], groups[2]};
    p.threads_per_threadgroup = size;
    p.dispatch_simdgroups_per_threadgroup = (count_of(full) + 31) / 32;
    p.dispatch_quadgroups_per_threadgroup = (count_of(full) + 3) / 4;
    p.simdgroups_per_threadgroup = std::uint32_t(count + 31) / 32;
    p.quadgroups_per_threadgroup = std::uint32_t(count + 3) / 4;
    p.thread_execution_width = p.threads_per_simdgroup = 32;
    for (std::uint32_t i = 0; i < std::uint32_t(count); i++) {
        Uint3 in = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        p.thread_position_in_threadgroup = in;
        p.thread_position_in_grid = {at.x * full[0] + in.x, at.y * full[1] + in.y, at.z * full[2] + in.z};
        p.thread_index_in_threadgroup = i;
        p.thread_index_in_simdgroup = i % 32;
        p.simdgroup_index_in_threadgroup = i / 32;
        p.thread_index_in_quadgroup = i % 4;
        p.quadgroup_index_in_threadgroup = i / 4;
        fibers[i].position = p;
        fibers[i].state = State::ready;
        // neighbours start on other cache lines than each other
        fibers[i].top = fresh_stack(stacks + i * STRIDE + GUARD, STACK - i % 16 * 320, boot);
    }
}

void Worker::run_group(std::uint32_t index) {
    place(index);
    group++;
    used = demanded = shaded = 0;
    slots.clear();
    threadgroup_epoch = device_epoch = 0;
    int simdgroups = (count + 31) / 32;
    steps.assign(std::size_t(simdgroups), {0, 0});
    std::vector<int> order;
    for (int i = 0; i < simdgroups; i++) order.push_back(i);
    do {
        shuffle(order);
        for (int s : order) {
            run_simdgroup(s * 32, std::min(s * 32 + 32, count));
            if (run->stopped) return;
        }
    } while (pass_barrier());
    if (demanded > THREADGROUP_LIMIT)
        run->report("threadgroup memory", nullptr, std::to_string(demanded) + " bytes, 32768 is the limit");
}

void Worker::run_simdgroup(int first, int last) {
    std::vector<int> order;
    for (int i = first; i < last; i++) order.push_back(i);
    for (;;) {
        shuffle(order);
        for (int i : order) {
            if (fibers[i].state != State::ready) continue;
            current = &fibers[i];
            msl_switch(&scheduler, current->top);
            current = nullptr;
            if (run->stopped) return;
        }
        if (!release(first, last)) return;
    }
}

// With a seed.
void Worker::shuffle(std::vector<int>& order) {
    if (!run->launch->seed) return;
    for (std::size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[next_random() % i]);
}

bool Worker::release(int first, int last) {
    Fiber* leader = nullptr;
    int live = 0, waiting = 0, together = 0;
    for (int i = first; i < last; i++) {
        Fiber& f = fibers[i];
        live += f.state != State::done;
        bool waits = f.state == State::collective || f.state == State::simdgroup_barrier;
        waiting += waits;
        if (waits && (!leader || f.site < leader->site)) leader = &f;
    }
    if (!leader) return false;
    std::uint32_t mask = 0;
    void* records[32] = {};
    for (int i = first; i < last; i++) {
        Fiber& f = fibers[i];
        if (f.state != leader->state || f.site != leader->site || f.function != leader->function) continue;
        mask |= 1u << (i - first);
        records[i - first] = f.record;
        together++;
    }
    site = leader->site;
    if (together != waiting) run->report("divergent simd operation", site, "other threads wait for another one");
    if (leader->state == State::collective)
        leader->function(records, mask);
    else
        pass_simdgroup_barrier(first / 32, leader->flags, together, live);
    for (int i = first; i < last; i++)
        if (mask >> (i - first) & 1) fibers[i].state = State::ready;
    return true;
}

void Worker::pass_simdgroup_barrier(int simdgroup, int flags, int together, int live) {
    if (together != live) run->report("divergent simdgroup_barrier", site, missing(live - together));
    auto& step = steps[std::size_t(simdgroup)];
    step.threadgroup += flags & MEM_THREADGROUP ? 1 : 0;
    step.device += flags & MEM_DEVICE ? 1 : 0;
}

bool Worker::pass_barrier() {
    Fiber* first = nullptr;
    int finished = 0;
    for (int i = 0; i < count; i++) {
        if (fibers[i].state == State::done)
            finished++;
        else if (!first)
            first = &fibers[i];
    }
    if (!first) return false;
    if (finished) run->report("divergent barrier", first->site, missing(finished));
    for (int i = 0; i < count; i++) {
        if (fibers[i].state == State::done) continue;
        if (fibers[i].site != first->site) run->report("divergent barrier", first->site, "others wait elsewhere");
        fibers[i].state = State::ready;
    }
    threadgroup_epoch += first->flags & MEM_THREADGROUP ? 1 : 0;
    device_epoch += first->flags & MEM_DEVICE ? 1 : 0;
    return true;
}

std::string Worker::missing(int n) {
    return std::to_string(n) + (n == 1 ? " thread does" : " threads do") + " not come";
}

void* Worker::threadgroup_memory(int index, std::size_t bytes, std::size_t align, void* from) {
    for (const Slot& s : slots)
        if (s.index == index) return arena + s.offset;
    // what is read or written past a variable's ends is in no other
    std::size_t offset = (used + GAP + align - 1) / align * align;
    demanded = (demanded + align - 1) / align * align + bytes;
    if (offset + bytes + GAP > ARENA || shaded + bytes > SHADED) {
        run->report("threadgroup memory", from, std::to_string(demanded) + " bytes, 32768 is the limit");
        stop();
    }
    used = offset + bytes;
    slots.push_back({index, offset, bytes, shaded});
    shaded += bytes;
    std::memset(arena + offset - MARGIN, int(run->launch->fill), bytes + 2 * MARGIN);
    return arena + offset;
}

bool Worker::is_guard(const void* address) const {
    auto* a = static_cast<const char*>(address);
    return stacks && a >= stacks && a < stacks + capacity * STRIDE && std::size_t(a - stacks) % STRIDE < GUARD;
}

void Worker::stop() {
    run->stopped = true;
    msl_switch(&current->top, scheduler);
    std::abort(); // the run is over
}

#define EXPORT extern "C" __attribute__((noinline, visibility("default")))
#define SITE __builtin_return_address(0)

EXPORT void msl_collective(Collective function, void* record) {
    worker->current->function = function;
    worker->current->record = record;
    wait(State::collective, SITE);
}
EXPORT void msl_collective_of(Collective function, void* a, void* b, void* c, void* d) {
    void** operands = worker->current->operands;
    operands[0] = a, operands[1] = b, operands[2] = c, operands[3] = d;
    worker->current->function = function;
    worker->current->record = operands;
    wait(State::collective, SITE);
}
EXPORT void msl_barrier(int flags) {
    worker->current->flags = flags;
    wait(State::barrier, SITE);
}
EXPORT void msl_simdgroup_barrier(int flags) {
    worker->current->function = nullptr;
    worker->current->flags = flags;
    wait(State::simdgroup_barrier, SITE);
}
EXPORT std::uint32_t msl_lane() { return worker->current->position.thread_index_in_simdgroup; }
EXPORT void* msl_threadgroup(int index, std::size_t bytes, std::size_t align) {
    return worker->threadgroup_memory(index, bytes, align, SITE);
}
EXPORT void msl_inactive(int lane) {
    worker->run->report("inactive lane", worker->site, "lane " + std::to_string(lane) + " takes no part");
}
EXPORT void msl_no_lane(int lane) {
    worker->run->report("no such lane", worker->site, std::to_string(lane) + " is outside");
}
EXPORT void msl_lanes_differ() {
    worker->run->report("lanes differ", worker->site, "the second argument has to be the same for all threads");
}

// Called where clang rounds to bfloat; returned as the low half of the register that a float is returned in.
EXPORT float __truncsfbf2(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bool quiet = (bits & 0x7fffffff) > 0x7f800000; // rounding could make an infinity of a NaN
    bits = quiet ? (bits >> 16) | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    std::memcpy(&x, &bits, 4);
    return x;
}
