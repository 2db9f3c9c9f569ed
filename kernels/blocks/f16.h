// F16: one weight, not quantized.
#pragma once

struct F16 {
    enum { WEIGHTS = 1, GROUP = 1 };
    half value;
};
