// A Metal thread: a stack of its own, switched to and from by hand.
#pragma once

#include <cstdint>
#include <cstring>

#define VECTOR Uint3
#define SCALAR std::uint32_t
struct alignas(16) Uint3 {
    std::uint32_t x, y, z;
};
#include "../include/position.h"
#undef VECTOR
#undef SCALAR

// Saves the registers that a call keeps on this stack, and its top in *from; goes on where `to` was left.
extern "C" void msl_switch(void** from, void* to);
#if defined(__x86_64__)
constexpr int FRAME = 8, RETURN = 6; // words; a called function finds its stack 8 bytes off 16
#elif defined(__aarch64__)
constexpr int FRAME = 20, RETURN = 11;
#else
#error "the host runs on x86-64 and arm64"
#endif

enum class State { ready, collective, barrier, simdgroup_barrier, done };

using Collective = void (*)(void** records, std::uint32_t mask);

struct Fiber {
    void* top; // of its stack, while it waits
    State state;
    void* site; // where it waits: the return address
    Collective function;
    void* record;
    void* operands[4]; // the record of an operation that passes them one by one
    int flags;         // of the barrier
    msl_position position;
};

// A stack on which msl_switch starts `boot`; `size` bytes from `low`.
inline void* fresh_stack(char* low, std::size_t size, void (*boot)()) {
    auto high = reinterpret_cast<std::uintptr_t>(low + size) & ~std::uintptr_t(63);
    auto* words = reinterpret_cast<void**>(high) - FRAME;
    std::memset(words, 0, FRAME * sizeof *words);
    words[RETURN] = reinterpret_cast<void*>(boot);
    return words;
}
