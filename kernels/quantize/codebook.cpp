// IQ4_NL and IQ4_XS: 16 levels that lie closer together near 0.
#include "quantize.h"
#include "symmetric_k.h"

namespace {

constexpr Span SPANS[] = {{0.9f, 1.1f, 3}, {0.85f, 1.2f, 8}, {0.6f, 1.3f, 71}};
constexpr int ROUNDS[] = {1, 2, 4};
constexpr SymmetricSearch IQ4_XS[] = {
    {{0.9f, 1.1f, 3}, 1, 1, 1}, {{0.85f, 1.2f, 8}, 3, 3, 2}, {{0.7f, 1.2f, 26}, 8, 5, 3}};

} // namespace

void encode_iq4_nl(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats d = half_scale<Curve, 32>(in, SPANS[blocks.effort], ROUNDS[blocks.effort]) * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[32];
        Curve::codes(blocks.x[n], 32, d[n], q);
        put_half(d[n], blocks.out[n]);
        nibbles(q, q + 16, 16, blocks.out[n] + 2);
    }
}

void encode_iq4_xs(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    SymmetricK<Curve, 32, -32, 31> fit(in, IQ4_XS[blocks.effort]);
    Floats d = fit.d * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t *out = blocks.out[n], low[8];
        uint high = 0;
        for (int g = 0; g < 8; g++) {
            std::uint8_t q[32];
            Curve::codes(blocks.x[n] + 32 * g, 32, d[n] * fit.s[g][n], q);
            nibbles(q, q + 16, 16, out + 8 + 16 * g);
            int s = int(fit.s[g][n]) + 32;
            low[g] = std::uint8_t(s & 15);
            high |= uint(s >> 4) << 2 * g;
        }
        put_half(d[n], out);
        std::memcpy(out + 2, &high, 2);
        for (int i = 0; i < 4; i++) out[4 + i] = std::uint8_t(low[2 * i] | low[2 * i + 1] << 4);
    }
}
