// Types of 32 weights with a float16 scale, and a float16 minimum or none. Q8_K: 256 weights with a float32 scale.
#include "line.h"
#include "quantize.h"
#include "scale.h"

namespace {

template <int TOP, int N>
Line half_line(const Lanes<N>& in, const Corners& corners, int rounds) {
    Floats low, high;
    Floats weight = sum<N>(in.w);
    range<N>(in.x, in.w, weight, TOP, low, high);
    Line line = scan_lines<TOP, N>(in.x, in.w, low, high, corners, false);
    Line best{Floats{}, Floats{}, repeat(3e38f)};
    for (int i = 0; i <= rounds; i++) {
        Floats a = as_half(line.a, in.unit, in.scale), b = as_half(line.b, in.unit, in.scale);
        LineRest found = line_rest<TOP, N>(in.x, in.w, a, b);
        best.keep({a, b, found.error});
        line = found.refit({a, b, found.error}, weight, false);
    }
    return best;
}

constexpr Span Q4_0[] = {{0.8f, 1.1f, 4}, {0.85f, 1.15f, 7}, {0.6f, 1.25f, 66}};
constexpr Span Q5_0[] = {{0.92f, 1.04f, 4}, {0.91f, 1.06f, 6}, {0.7f, 1.12f, 85}};
constexpr Span Q8_0[] = {{1, 1, 1}, {0.97f, 1, 7}, {0.9f, 1, 81}};
constexpr int ROUNDS[] = {1, 1, 4};

template <int WIDTH>
void put_fifth_bits(const std::uint8_t* q, std::uint8_t* to) {
    uint bits = 0;
    for (int i = 0; i < WIDTH; i++) bits |= uint(q[i] >> 4) << i;
    std::memcpy(to, &bits, 4);
}

} // namespace

void encode_q4_0(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats d = half_scale<Whole<-8, 7>, 32>(in, Q4_0[blocks.effort], ROUNDS[blocks.effort]) * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[32];
        Whole<-8, 7>::codes(blocks.x[n], 32, d[n], 0, q);
        put_half(d[n], blocks.out[n]);
        nibbles(q, q + 16, 16, blocks.out[n] + 2);
    }
}

void encode_q5_0(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats d = half_scale<Whole<-16, 15>, 32>(in, Q5_0[blocks.effort], ROUNDS[blocks.effort]) * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[32];
        Whole<-16, 15>::codes(blocks.x[n], 32, d[n], 0, q);
        put_half(d[n], blocks.out[n]);
        put_fifth_bits<32>(q, blocks.out[n] + 2);
        nibbles(q, q + 16, 16, blocks.out[n] + 6);
    }
}

namespace {

constexpr Corners Q4_1[] = {{-0.2f, 0.7f, 3}, {-0.4f, 1.2f, 5}, {-0.6f, 1.8f, 10}};
constexpr Corners Q5_1[] = {{-0.2f, 0.7f, 3}, {-0.4f, 1.2f, 5}, {-1, 2, 10}};

} // namespace

void encode_q4_1(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Line line = half_line<15, 32>(in, Q4_1[blocks.effort], ROUNDS[blocks.effort]);
    Floats d = line.a * in.unit, b = line.b * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[32];
        Whole<0, 15>::codes(blocks.x[n], 32, d[n], b[n], q);
        put_half(d[n], blocks.out[n]);
        put_half(-b[n], blocks.out[n] + 2);
        nibbles(q, q + 16, 16, blocks.out[n] + 4);
    }
}

void encode_q5_1(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Line line = half_line<31, 32>(in, Q5_1[blocks.effort], ROUNDS[blocks.effort]);
    Floats d = line.a * in.unit, b = line.b * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        std::uint8_t q[32];
        Whole<0, 31>::codes(blocks.x[n], 32, d[n], b[n], q);
        put_half(d[n], blocks.out[n]);
        put_half(-b[n], blocks.out[n] + 2);
        put_fifth_bits<32>(q, blocks.out[n] + 4);
        nibbles(q, q + 16, 16, blocks.out[n] + 8);
    }
}

namespace {

template <int N>
void put_bytes(const float* x, float d, std::uint8_t* to) {
    std::uint8_t q[N];
    Whole<-127, 127>::codes(x, N, d, 0, q);
    for (int i = 0; i < N; i++) to[i] = std::uint8_t(q[i] - 127);
}

} // namespace

void encode_q8_0(const Blocks& blocks) {
    Lanes<32> in;
    in.load(blocks.x, blocks.weights(), blocks.count);
    Floats d = half_scale<Whole<-127, 127>, 32>(in, Q8_0[blocks.effort], ROUNDS[blocks.effort]) * in.unit;
    for (int n = 0; n < blocks.count; n++) {
        put_half(d[n], blocks.out[n]);
        put_bytes<32>(blocks.x[n], d[n], blocks.out[n] + 2);
    }
}
