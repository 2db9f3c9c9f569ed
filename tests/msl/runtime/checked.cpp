// Checked mode: clang calls a function before every access to memory, which its address sanitizer provides for.

#include "runtime.h"

// Around each buffer, as tests/msl/native.py has it: memory, and what no other buffer is in.
constexpr std::size_t PAD = 16 << 10, DISTANCE = 1 << 30;

bool Worker::is_own(const char* a) const {
    auto within = [a](const void* low, std::size_t n) {
        return a >= static_cast<const char*>(low) && a < static_cast<const char*>(low) + n;
    };
    return within(stacks, capacity * STRIDE) || within(fibers.data(), fibers.size() * sizeof(Fiber)) ||
           within(run->pointers.data(), run->pointers.size() * sizeof(void*)) ||
           (a >= run->library.first && a < run->library.second);
}

Stamp Worker::stamp(bool device) const {
    const msl_position& p = current->position;
    const Step& step = steps[p.simdgroup_index_in_threadgroup];
    return {group, device ? device_epoch : threadgroup_epoch, device ? step.device : step.threadgroup,
            std::uint16_t(p.thread_index_in_threadgroup), std::uint16_t(p.simdgroup_index_in_threadgroup)};
}

void Worker::access(char* a, std::size_t n, Access how, void* from) {
    if (!current || is_own(a)) return;
    if (access_threadgroup(a, n, how, from) || access_device(a, n, how, from)) return;
    out_of_bounds(a, n, how, from);
}

bool Worker::access_threadgroup(char* a, std::size_t n, Access how, void* from) {
    if (a < arena || a >= arena + ARENA) return false;
    std::size_t at = std::size_t(a - arena);
    for (const Slot& s : slots) {
        if (at < s.offset || at + n > s.offset + s.bytes) continue;
        Verdict v = shadow.access(s.shade + at - s.offset, n, how, stamp(false));
        if (v.kind) run->report(v.kind, from, "threadgroup memory");
        return true;
    }
    run->report("out of bounds", from, std::string(writes(how) ? "write" : "read") + " of threadgroup memory");
    if (at + n > ARENA) stop();
    return true;
}

bool Worker::access_device(char* a, std::size_t n, Access how, void* from) {
    const Launch& launch = *run->launch;
    for (std::uint32_t i = 0; i < launch.buffer_count; i++) {
        const Buffer& b = launch.buffers[i];
        if (a < b.data || a + n > b.data + b.bytes) continue;
        std::string name = "buffer " + std::to_string(i);
        if (b.role != Role::input) {
            Verdict v = run->shadows[i].access(std::size_t(a - b.data), n, how, stamp(true));
            if (v.kind) run->report(v.kind, from, name + (v.between_groups ? ", between threadgroups" : ""));
        } else if (writes(how)) {
            run->report("write to an input", from, name);
        }
        return true;
    }
    return false;
}

void Worker::out_of_bounds(char* a, std::size_t n, Access how, void* from) {
    const char* what = writes(how) ? "write" : "read";
    const Launch& launch = *run->launch;
    for (std::uint32_t i = 0; i < launch.buffer_count; i++) {
        const Buffer& b = launch.buffers[i];
        if (a + n <= b.data - DISTANCE || a >= b.data + b.bytes + DISTANCE) continue;
        run->report("out of bounds", from,
                    std::string(what) + " of buffer " + std::to_string(i) + ", byte " + std::to_string(a - b.data) +
                        " of " + std::to_string(b.bytes));
        if (a < b.data - PAD || a + n > b.data + b.bytes + PAD) stop();
        return;
    }
    run->report("out of bounds", from, std::string(what) + " far from any buffer");
    stop();
}

#define EXPORT extern "C" __attribute__((noinline, visibility("default")))
#define SITE __builtin_return_address(0)

EXPORT void msl_atomic(char* address, std::uint32_t bytes, std::uint32_t how) {
    if (worker->run->launch->checked) worker->access(address, bytes, Access(how), SITE);
}

#define SIZED(N)                                                                                                       \
    EXPORT void __asan_load##N(char* a) { worker->access(a, N, Access::read, SITE); }                                  \
    EXPORT void __asan_store##N(char* a) { worker->access(a, N, Access::write, SITE); }
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
EXPORT void __asan_loadN(char* a, std::size_t n) { worker->access(a, n, Access::read, SITE); }
EXPORT void __asan_storeN(char* a, std::size_t n) { worker->access(a, n, Access::write, SITE); }
EXPORT void* __asan_memcpy(char* to, char* from, std::size_t n) {
    worker->access(from, n, Access::read, SITE);
    worker->access(to, n, Access::write, SITE);
    return std::memcpy(to, from, n);
}
EXPORT void* __asan_memmove(char* to, char* from, std::size_t n) {
    worker->access(from, n, Access::read, SITE);
    worker->access(to, n, Access::write, SITE);
    return std::memmove(to, from, n);
}
EXPORT void* __asan_memset(char* to, int value, std::size_t n) {
    worker->access(to, n, Access::write, SITE);
    return std::memset(to, value, n);
}
EXPORT void __asan_handle_no_return() {}

// clang calls these where it sees the mistake itself; the first argument tells types and places, which the site does.
EXPORT void __ubsan_handle_type_mismatch_v1(void*, std::uintptr_t address) {
    worker->run->report("misaligned", SITE, "the address is " + std::to_string(address % 16) + " modulo 16");
}
EXPORT void __ubsan_handle_out_of_bounds(void*, std::uintptr_t index) {
    worker->run->report("out of bounds", SITE, "index " + std::to_string(std::intptr_t(index)) + " of an array");
}
EXPORT void __ubsan_handle_divrem_overflow(void*, std::uintptr_t, std::uintptr_t) {
    worker->run->report("division by zero", SITE, "of integers");
    worker->stop(); // this processor would trap
}
EXPORT void __ubsan_handle_float_cast_overflow(void*, std::uintptr_t) {
    worker->run->report("undefined conversion", SITE, "the integer type has no such number");
}
#define OVERFLOW(NAME, WHAT)                                                                                           \
    EXPORT void __ubsan_handle_##NAME##_overflow(void*, std::uintptr_t, std::uintptr_t) {                              \
        worker->run->report("signed overflow", SITE, WHAT);                                                            \
    }
OVERFLOW(add, "of a sum")
OVERFLOW(sub, "of a difference")
OVERFLOW(mul, "of a product")
OVERFLOW(negate, "of a negation")
