// Keys and values of many sequences, in blocks of a pool.
#pragma once

#include "stored.h"

// Block `table[n]` holds positions [n * size, (n + 1) * size) of a sequence; positions of a head lie `row` numbers apart.
struct Blocks {
    int size;
    long block, head, row; // strides in numbers

    template <typename T>
    const T* at(const void* start, const int* table, int head_index, int position) const {
        return (const T*)start + table[position / size] * block + head_index * head + position % size * row;
    }

    // Addresses of positions [from, to).
    template <typename T>
    void collect(const void* start, const int* table, int head_index, int from, int to, const T** out) const {
        while (from < to) {
            int end = std::min(to, (from / size + 1) * size);
            const T* p = at<T>(start, table, head_index, from);
            for (; from < end; from++, p += row) *out++ = p;
        }
    }
};
