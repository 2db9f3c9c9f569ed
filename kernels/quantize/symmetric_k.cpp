// Q3_K and Q6_K.
#include "symmetric_k.h"

#include "length.h"
#include "quantize.h"

namespace {

using Q3 = SymmetricK<Whole<-4, 3>, 16, -32, 31>;
using Q6 = SymmetricK<Whole<-32, 31>, 16, -128, 127>;

constexpr SymmetricSearch Q3_K[] = {
    {{0.8f, 1.4f, 4}, 1, 1, 1}, {{0.8f, 1.4f, 7}, 2, 1, 1}, {{0.6f, 1.6f, 21}, 16, 4, 4}};
constexpr SymmetricSearch Q6_K[] = {{{0.97f, 1, 2}, 1, 6, 1}, {{0.94f, 1, 2}, 2, 12, 2}, {{0.8f, 1.04f, 13}, 4, 40, 3}};

} // namespace

void encode_q3_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Q3 fit(in, Q3_K[blocks.effort]);
    Floats factor = lengthening(in, [&](int i) {
        Floats a = fit.d * fit.s[i / 16];
        return a * Whole<-4, 3>::nearest(in.x[i], over(repeat(1), a));
    });
    Floats d = fit.d * in.unit, longer = as_half(fit.d * factor, in.unit, in.scale) * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[256], s[16], *hmask = blocks.out[n], *qs = hmask + 32, *scales = qs + 64;
        for (int g = 0; g < 16; g++) {
            s[g] = std::uint8_t(int(fit.s[g][n]) + 32);
            Whole<-4, 3>::codes(blocks.x[n] + 16 * g, 16, d[n] * fit.s[g][n], 0, q + 16 * g);
        }
        for (int i = 0; i < 32; i++) {
            uint high = 0;
            for (int j = 0; j < 8; j++) high |= uint(q[32 * j + i] >> 2) << j;
            hmask[i] = std::uint8_t(high);
        }
        for (int i = 0; i < 64; i++) {
            const std::uint8_t* p = q + i / 32 * 128 + i % 32;
            qs[i] = std::uint8_t((p[0] & 3) | (p[32] & 3) << 2 | (p[64] & 3) << 4 | (p[96] & 3) << 6);
        }
        nibbles(s, s + 8, 8, scales);
        for (int i = 0; i < 4; i++)
            scales[8 + i] = std::uint8_t(s[i] >> 4 | s[i + 4] >> 4 << 2 | s[i + 8] >> 4 << 4 | s[i + 12] >> 4 << 6);
        put_half(longer[n], scales + 12);
    }
}

void encode_q6_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Q6 fit(in, Q6_K[blocks.effort]);
    Floats d = fit.d * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[256], *ql = blocks.out[n], *qh = ql + 128, *scales = qh + 64;
        for (int g = 0; g < 16; g++) {
            scales[g] = std::uint8_t(int(fit.s[g][n]));
            Whole<-32, 31>::codes(blocks.x[n] + 16 * g, 16, d[n] * fit.s[g][n], 0, q + 16 * g);
        }
        for (int h = 0; h < 2; h++) {
            nibbles(q + 128 * h, q + 128 * h + 64, 64, ql + 64 * h);
            for (int i = 0; i < 32; i++) {
                const std::uint8_t* p = q + 128 * h + i;
                qh[32 * h + i] = std::uint8_t(p[0] >> 4 | p[32] >> 4 << 2 | p[64] >> 4 << 4 | p[96] >> 4 << 6);
            }
        }
        put_half(d[n], scales + 16);
    }
}
