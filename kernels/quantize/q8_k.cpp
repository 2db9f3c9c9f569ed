// Q8_K: 256 weights with a float32 scale, and sums of 16 codes each.
#include "quantize.h"
#include "scale.h"

namespace {

constexpr Span SPANS[] = {{1, 1, 1}, {0.99f, 1.001f, 4}, {0.95f, 1.005f, 40}};

} // namespace

void encode_q8_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats most = peak<256>(in.x, in.w, 254);
    Scale found = scan<Whole<-127, 127>, 256>(in.x, in.w, most, 127, SPANS[blocks.effort]);
    for (int n = 0; n < blocks.count; n++) {
        float d = found.a[n] * in.unit[n];
        std::uint8_t* out = blocks.out[n];
        std::memcpy(out, &d, 4);
        for (int g = 0; g < 16; g++) {
            float x[16];
            std::uint8_t q[16];
            for (int i = 0; i < 16; i++) x[i] = in.scale[n] * blocks.x[n][16 * g + i];
            Whole<-127, 127>::codes(x, 16, d * in.scale[n], 0, q);
            std::int16_t sum = 0;
            for (int i = 0; i < 16; i++) {
                sum = std::int16_t(sum + q[i] - 127);
                out[4 + 16 * g + i] = std::uint8_t(q[i] - 127);
            }
            std::memcpy(out + 260 + 2 * g, &sum, 2);
        }
    }
}
