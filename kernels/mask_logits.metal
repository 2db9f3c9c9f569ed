// Logits of tokens whose bit is 0 become -inf. A thread processes four adjacent tokens, whose bits lie in one word.
#pragma once

#include "numbers.h"

// Tokens [i, i + 4) of a row: logits (k,), bits (ceil(k / 32),), the lowest bit first -> y (k,).
template <typename X, typename B>
METAL_FUNC void mask_logits(X logits, B bits, device float* y, int k, int i) {
    int count = min(k - i, 4);
    float4 v = load_up_to_4(logits + i, count);
    uint allowed = uint(bits[i / 32]) >> (i % 32);
    UNROLL for (int j = 0; j < 4; j++) {
        if (j < count) y[i + j] = (allowed >> j) & 1 ? v[j] : -INFINITY;
    }
}
