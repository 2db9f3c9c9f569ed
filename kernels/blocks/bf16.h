// BF16: one weight, not quantized.
#pragma once

struct BF16 {
    enum { WEIGHTS = 1, GROUP = 1 };
    bfloat value;
};
