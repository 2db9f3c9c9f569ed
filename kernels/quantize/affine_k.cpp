// Q2_K, Q4_K and Q5_K.
#include "affine_k.h"
#include "length.h"

#include "quantize.h"

namespace {

using Q2 = AffineK<3, 16, 15>;
using Q4 = AffineK<15, 32, 63>;
using Q5 = AffineK<31, 32, 63>;

constexpr AffineSearch Q2_K[] = {
    {{-0.2f, 0.7f, 4}, 1, 1, 1, 1, false}, {{-0.2f, 0.7f, 4}, 2, 2, 1, 2, true}, {{-0.3f, 0.9f, 6}, 8, 3, 2, 4, true}};
constexpr AffineSearch Q4_K[] = {
    {{-0.2f, 0.9f, 4}, 1, 2, 1, 1, false}, {{-0.2f, 0.9f, 4}, 2, 6, 1, 3, true}, {{-1, 1.5f, 11}, 8, 8, 2, 6, true}};
constexpr AffineSearch Q5_K[] = {
    {{-0.2f, 0.9f, 4}, 1, 2, 1, 1, false}, {{-0.2f, 0.9f, 4}, 2, 6, 1, 3, true}, {{-1, 2, 13}, 8, 8, 2, 6, true}};

// 12 bytes of 8 scales and 8 minimums, 6 bits each, as Q4_K and Q5_K have them.
void put_scales(const std::uint8_t* s, const std::uint8_t* m, std::uint8_t* to) {
    for (int i = 0; i < 4; i++) {
        to[i] = std::uint8_t(s[i] | s[i + 4] >> 4 << 6);
        to[i + 4] = std::uint8_t(m[i] | m[i + 4] >> 4 << 6);
        to[i + 8] = std::uint8_t((s[i + 4] & 15) | m[i + 4] << 4);
    }
}

// The codes of a block with the scale d s[g] and the minimum dmin m[g] of its groups; and s, m.
template <int TOP, int N, int MOST>
void put_codes(const AffineK<TOP, N, MOST>& fit, const Lanes<256>& in, const float* x, int lane, std::uint8_t* q,
               std::uint8_t* s, std::uint8_t* m) {
    for (int g = 0; g < 256 / N; g++) {
        float a = fit.d[lane] * in.unit[lane] * fit.s[g][lane], b = fit.dmin[lane] * in.unit[lane] * fit.m[g][lane];
        Whole<0, TOP>::codes(x + N * g, N, a, b, q + N * g);
        s[g] = std::uint8_t(fit.s[g][lane]);
        m[g] = std::uint8_t(fit.m[g][lane]);
    }
}

// Codes, and the 16 bytes that Q4_K and Q5_K begin with: d, dmin, scales and minimums.
template <int TOP>
void put_head(const AffineK<TOP, 32, 63>& fit, const Lanes<256>& in, const float* x, int lane, std::uint8_t* q,
              std::uint8_t* out) {
    std::uint8_t s[8], m[8];
    put_codes(fit, in, x, lane, q, s, m);
    put_half(fit.d[lane] * in.unit[lane], out);
    put_half(fit.dmin[lane] * in.unit[lane], out + 2);
    put_scales(s, m, out + 4);
}

} // namespace

void encode_q2_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Q2 fit(in, Q2_K[blocks.effort]);
    Floats factor = lengthening(in, [&](int i) {
        Floats a = fit.d * fit.s[i / 16], b = fit.dmin * fit.m[i / 16];
        return a * Whole<0, 3>::nearest(in.x[i] + b, over(repeat(1), a)) - b;
    });
    Floats d = as_half(fit.d * factor, in.unit, in.scale), dmin = as_half(fit.dmin * factor, in.unit, in.scale);
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[256], s[16], m[16], *scales = blocks.out[n], *qs = scales + 16;
        put_codes(fit, in, blocks.x[n], n, q, s, m);
        nibbles(s, m, 16, scales);
        for (int i = 0; i < 64; i++) {
            const std::uint8_t* p = q + i / 32 * 128 + i % 32;
            qs[i] = std::uint8_t(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
        }
        put_half(d[n] * in.unit[n], qs + 64);
        put_half(dmin[n] * in.unit[n], qs + 66);
    }
}

void encode_q4_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Q4 fit(in, Q4_K[blocks.effort]);
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[256], *out = blocks.out[n];
        put_head(fit, in, blocks.x[n], n, q, out);
        for (int run = 0; run < 4; run++) nibbles(q + 64 * run, q + 64 * run + 32, 32, out + 16 + 32 * run);
    }
}

void encode_q5_k(const Blocks& blocks) {
    Lanes<256> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Q5 fit(in, Q5_K[blocks.effort]);
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[256], *out = blocks.out[n];
        put_head(fit, in, blocks.x[n], n, q, out);
        for (int i = 0; i < 32; i++) {
            uint high = 0;
            for (int g = 0; g < 8; g++) high |= uint(q[32 * g + i] >> 4) << g;
            out[16 + i] = std::uint8_t(high);
        }
        for (int run = 0; run < 4; run++) nibbles(q + 64 * run, q + 64 * run + 32, 32, out + 48 + 32 * run);
    }
}
