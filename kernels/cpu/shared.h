// Work that is shared between the threads only where that pays.
#pragma once

#include <cstddef>

#include "pool.h"

constexpr long SMALL = 1 << 16; // multiply-adds below which threads cost more than they save

// Runs part(i) for i < count, on all threads if `all`.
template <typename F>
void share(bool all, size_t count, const F& part) {
    if (all)
        pool_run(int(count), part);
    else
        for (size_t i = 0; i < count; i++) part(int(i));
}
