// F32: one weight, not quantized.
#pragma once

struct F32 {
    enum { WEIGHTS = 1, GROUP = 1 };
    float value;
};
