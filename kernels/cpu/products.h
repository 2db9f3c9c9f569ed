// What products of whole matrices share: the input as integers, and how parts go to threads.
#pragma once

#include "ahead.h"

// Rows of x that are multiplied at once: those numbered `rows`, or the first n. place: see Input.
struct Set {
    int n;
    const int* rows;
    int place;
};

// Sets of rows of x: (.., k) as integers, quantized on all threads, if one of the weights is quantized, else null; they
// last until the thread's next call. Writes the places of the sets.
const Activations* integers(const float* x, int k, const Weight* w, int count, Set* sets, int n);

// All n rows of x: (n, k), likewise.
Input input(const float* x, int n, int k, const Weight* w, int count);

// While it lives, a product runs; after it, the next one's weights are fetched. Only where reading
// weights is what takes the time.
class Expected {
public:
    // count: of the weights that will be read whole; with none, nothing is fetched for this product.
    Expected(const Weight* w, int count, int n, int k) : few_(n <= 8) {
        if (few_) ahead_begin(w, count, k);
    }
    ~Expected() {
        if (few_) ahead_end();
    }

private:
    bool few_;
};

// The part that is taken as number i of `count`: threads that take turns each walk along a stretch of memory.
int place(int i, int count, int threads);
