// Keys and values of many sequences, in blocks of a pool.
#pragma once

#include "stored.h"

// Arrays (blocks, heads, size, width). Block table[n] holds positions [n * size, (n + 1) * size) of a sequence.
struct Blocks {
    int heads, size, width;

    template <typename T>
    const T* at(const void* start, const int* table, int head, int position) const {
        long row = (long(table[position / size]) * heads + head) * size + position % size;
        return (const T*)start + row * width;
    }

    // Addresses of positions [from, to) of a head.
    template <typename T>
    void collect(const void* start, const int* table, int head, int from, int to, const T** out) const {
        while (from < to) {
            int end = std::min(to, (from / size + 1) * size);
            const T* p = at<T>(start, table, head, from);
            for (; from < end; from++, p += width) *out++ = p;
        }
    }
};
