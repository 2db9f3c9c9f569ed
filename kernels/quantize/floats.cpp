// F32, F16 and BF16: a block is one weight, and a call many of them.
#include "quantize.h"

void convert_f16(const float* x, std::int64_t n, std::uint8_t* out) {
    std::int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_halves((half*)(out + 2 * i), load_floats(x + i));
    for (; i < n; i++) {
        half h = nearest_half(x[i]);
        std::memcpy(out + 2 * i, &h, 2);
    }
}

void convert_bf16(const float* x, std::int64_t n, std::uint8_t* out) {
    for (std::int64_t i = 0; i < n; i++) {
        uint bits = as_uint(x[i]);
        auto upper = std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // ties to even
        std::memcpy(out + 2 * i, &upper, 2);
    }
}

void convert_f32(const float* x, std::int64_t n, std::uint8_t* out) { std::memcpy(out, x, 4 * n); }
