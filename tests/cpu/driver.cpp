// Makes every kind of call of the CPU library on random bytes over odd shapes, from two threads at once.
// Buffers are exactly as large as they are said to be, so that a sanitizer sees any step outside;
// the numbers are the business of the Python tests.
#include <algorithm>
#include <cmath>
#include <thread>

#include "arguments.h"
#include "attention.h"
#include "blocks.h"
#include "linear.h"
#include "recurrent.h"
#include "streamed_experts.h"

extern "C" {
const char* ferrum_simd();
void ferrum_set_threads(int n);
}

namespace {

constexpr int TYPES = 64; // ids are smaller

struct Matrix {
    std::vector<uchar> bytes;
    Weight weight;
};

// Rows of `blocks` blocks, of random bytes.
template <typename B>
Matrix matrix(Random& random, int id, int rows, int blocks) {
    Matrix m{std::vector<uchar>(sizeof(B) * rows * blocks), {nullptr, id, rows, nullptr}};
    for (uchar& byte : m.bytes) byte = uchar(random());
    m.weight.data = m.bytes.data();
    return m;
}

// `count` matrices of `rows` rows, with `space` bytes after each.
template <typename B>
Matrix stack(Random& random, int id, int count, int rows, int blocks, int space = 0) {
    Matrix one = matrix<B>(random, id, rows, blocks), all{{}, one.weight};
    all.weight.step = long(one.bytes.size()) + space;
    all.bytes.resize(size_t(all.weight.step) * count - space);
    for (uchar& byte : all.bytes) byte = uchar(random());
    all.weight.data = all.bytes.data();
    return all;
}

template <typename B>
void products(Random& random, int id, int n, int rows, int blocks) {
    int k = blocks * B::WEIGHTS;
    Floats x = floats(random, size_t(n) * k);
    Matrix a = matrix<B>(random, id, rows, blocks), b = matrix<B>(random, id, rows, blocks);
    Matrix floating = matrix<F16>(random, 1, rows + 2, k);
    Floats bias = floats(random, rows), add = floats(random, size_t(n) * (3 * rows + 2));
    b.weight.bias = bias.data();
    Weight three[] = {a.weight, floating.weight, b.weight}, two[] = {a.weight, b.weight};
    run("Matmuls", {{"x", x.data()},
                    {"w", three},
                    {"add", n % 2 ? add.data() : nullptr},
                    {"out", Output(add.size())},
                    {"n", n},
                    {"k", k},
                    {"count", 3}});
    run("GateUp", {{"x", x.data()}, {"w", two}, {"out", Output(size_t(n) * rows)}, {"n", n}, {"k", k}, {"act", n % 2}});
    std::vector<long> ids(n);
    for (long& row : ids) row = random() % rows;
    run("Rows", {{"w", &a.weight},
                 {"ids", ids.data()},
                 {"out", Output(size_t(n) * k)},
                 {"n", n},
                 {"k", k},
                 {"scale", n % 2 ? 1.0 : 3.0}});
}

void all_products(Random& random) {
    for (int id = 0; id < TYPES; id++)
        with_block(id, [&](auto type) {
            using B = typename decltype(type)::type;
            int width = std::max(1, 32 / B::WEIGHTS); // floats: 32 weights stand for a block
            for (int n : {1, 3, 18})
                for (int rows : {1, 37})
                    for (int blocks : {1, 8, 9}) products<B>(random, id, n, rows, blocks * width - (width > 1));
        });
}

void norms(Random& random, long rows, int d) {
    Floats x = floats(random, rows * d), weight = floats(random, d);
    for (const float* add : {(const float*)nullptr, (const float*)x.data()})
        run("RmsNorm", {{"x", x.data()},
                        {"weight", weight.data()},
                        {"add", add},
                        {"out", Output(rows * d)},
                        {"rows", rows},
                        {"d", d},
                        {"eps", 1e-5}});
    run("SigmoidGate", {{"x", x.data()},
                        {"gate", x.data()},
                        {"add", d % 2 ? x.data() : nullptr},
                        {"out", Output(rows * d)},
                        {"rows", rows},
                        {"d", d}});
    run("Gelu", {{"x", x.data()}, {"out", Output(rows * d)}, {"count", rows * d}});
    run("Softcap", {{"x", x.data()}, {"out", Output(rows * d)}, {"count", rows * d}, {"cap", 5.0}});
    for (float odd : {0.0f, INFINITY, NAN}) {
        x[random() % x.size()] = odd;
        std::vector<int> ids(rows, -1);
        run("Choose",
            {{"logits", x.data()}, {"ids", ids.data()}, {"ranges", Output(2 * rows)}, {"n", int(rows)}, {"k", d}});
        for (int id : ids)
            if (id < 0 || id >= d) fail("a token outside the vocabulary");
    }
}

void all_norms(Random& random) {
    for (int rows : {1, 5, 30, 420})
        for (int d : {1, 33, 64}) norms(random, rows, d);
    norms(random, 2, 9001);
}

// Experts of a token, of which some are none: outside the stack nothing may be read.
std::vector<int> chosen(Random& random, int count, int experts, bool one) {
    std::vector<int> ids(count);
    for (int& id : ids) id = one ? experts - 1 : int(random() % (experts + 2)) - 1;
    return ids;
}

template <typename B>
void experts(Random& random, int id, int n, int rows, int blocks) {
    constexpr int count = 5, used = 2;
    int k = blocks * B::WEIGHTS;
    Floats x = floats(random, size_t(n) * used * k), weights = floats(random, size_t(n) * used);
    Floats bias = floats(random, count * rows), add = floats(random, size_t(n) * rows);
    Matrix a = stack<B>(random, id, count, rows, blocks, n % 2 ? 0 : 64);
    Matrix b = stack<Q8_0>(random, 8, count, rows, k / 32, rows % 2 ? 0 : 64);
    Weight one[] = {a.weight}, two[] = {a.weight, k % 32 ? a.weight : b.weight};
    one[0].bias = n % 2 ? bias.data() : nullptr;
    for (bool same : {false, true}) {
        std::vector<int> ids = chosen(random, n * used, count, same);
        for (const Weight* w : {one, two})
            run("Gather", {{"x", x.data()},
                           {"w", w},
                           {"ids", ids.data()},
                           {"out", Output(size_t(n) * used * rows)},
                           {"n", n},
                           {"used", used},
                           {"experts", count},
                           {"k", k},
                           {"count", w == one ? 1 : 2},
                           {"act", w == one ? 0 : n % 2}});
        run("GatherDown", {{"x", x.data()},
                           {"w", &a.weight},
                           {"ids", ids.data()},
                           {"weights", weights.data()},
                           {"add", n % 2 ? add.data() : nullptr},
                           {"out", Output(size_t(n) * rows)},
                           {"n", n},
                           {"used", used},
                           {"experts", count},
                           {"k", k}});
    }
}

// Experts that are read from files, of 64 rows of 64 weights.
void streamed_experts(Random& random, int n) {
    constexpr int count = 5, used = 2, size = 64;
    Floats x = floats(random, size_t(n) * size), weights = floats(random, size_t(n) * used);
    Matrix up = stack<F16>(random, 1, count, size, size), down = stack<F16>(random, 1, count, size, size);
    for (Matrix* m : {&up, &down})
        for (size_t i = 1; i < m->bytes.size(); i += 2) m->bytes[i] &= 0xbb; // no number is infinite or NaN
    for (bool same : {false, true}) {
        std::vector<int> ids = chosen(random, n * used, count, same);
        Pairs pairs{x.data(), ids.data(), weights.data(), n, used, count, size};
        from_disk(pairs, up.weight, down.weight, up.bytes, down.bytes);
    }
}

void all_experts(Random& random) {
    for (int n : {1, 3, 40}) streamed_experts(random, n);
    for (int id = 0; id < TYPES; id++)
        with_block(id, [&](auto type) {
            using B = typename decltype(type)::type;
            int width = std::max(1, 32 / B::WEIGHTS);
            for (int n : {1, 3, 40})
                for (int rows : {1, 37})
                    for (int blocks : {1, 9}) experts<B>(random, id, n, rows, blocks * width - (width > 1));
        });
}

// Logits of which some are infinite or NaN.
void routes(Random& random, int n, int count, int used, int groups) {
    Floats logits = floats(random, size_t(n) * count), bias = floats(random, count);
    for (int i = 0; i < n; i++)
        for (float odd : {NAN, INFINITY, -INFINITY})
            if (random() % 4 == 0) logits[random() % logits.size()] = odd;
    for (int sigmoid : {0, 1})
        for (const float* added : {(const float*)nullptr, (const float*)bias.data()}) {
            std::vector<int> ids(size_t(n) * used, -1);
            Output weights(ids.size());
            run("Route", {{"logits", logits.data()},
                          {"bias", added},
                          {"ids", ids.data()},
                          {"weights", weights},
                          {"n", n},
                          {"experts", count},
                          {"used", used},
                          {"sigmoid", sigmoid},
                          {"normalise", n % 2},
                          {"groups", groups},
                          {"groups_used", (groups + 1) / 2},
                          {"scale", 2.0}});
            for (int id : ids)
                if (id < 0 || id >= count) std::abort();
        }
}

void all_routes(Random& random) {
    for (int n : {1, 2, 50}) {
        routes(random, n, 1, 1, 1);
        routes(random, n, 7, 7, 1);
        routes(random, n, 60, 4, 6);
        routes(random, n, 512, 16, 1);
        routes(random, n, 8, 8, 8);
    }
}

// Recorded calls whose experts are others each time.
void expert_steps(Random& random) {
    constexpr int count = 9, used = 3, d = 256, wide = 70;
    Floats x = floats(random, d), logits(count), weights(used), h(used * d), out(d);
    Matrix a = stack<Q4_K>(random, 12, count, wide, 1), b = stack<Q6_K>(random, 14, count, d, 1);
    Matrix router = matrix<F32>(random, 0, count, d);
    Weight two[] = {a.weight, a.weight};
    std::vector<int> ids(used);
    Arguments score("Matmuls", {{"x", x.data()},
                                {"w", &router.weight},
                                {"add", nullptr},
                                {"out", logits.data()},
                                {"n", 1},
                                {"k", d},
                                {"count", 1}});
    Arguments choose("Route", {{"logits", logits.data()},
                               {"bias", nullptr},
                               {"ids", ids.data()},
                               {"weights", weights.data()},
                               {"n", 1},
                               {"experts", count},
                               {"used", used},
                               {"sigmoid", 0},
                               {"normalise", 1},
                               {"groups", 1},
                               {"groups_used", 1},
                               {"scale", 1.0}});
    Arguments up("Gather", {{"x", x.data()},
                            {"w", two},
                            {"ids", ids.data()},
                            {"out", h.data()},
                            {"n", 1},
                            {"used", used},
                            {"experts", count},
                            {"k", d},
                            {"count", 2},
                            {"act", 0}});
    Arguments down("GatherDown", {{"x", h.data()},
                                  {"w", &b.weight},
                                  {"ids", ids.data()},
                                  {"weights", weights.data()},
                                  {"add", x.data()},
                                  {"out", out.data()},
                                  {"n", 1},
                                  {"used", used},
                                  {"experts", count},
                                  {"k", d}});
    Arguments gate(
        "SigmoidGate",
        {{"x", out.data()}, {"gate", weights.data()}, {"add", x.data()}, {"out", out.data()}, {"rows", 1}, {"d", d}});
    for (int step = 0; step < 20; step++) {
        for (float& weight : x) weight = std::normal_distribution<float>()(random);
        run({score.call(), choose.call(), up.call(), down.call(), gate.call()});
    }
}

void everything(unsigned seed) {
    Random random(seed);
    all_norms(random);
    all_attention(random);
    for (int window : {0, 1, 70})
        for (int bits : {8, 16}) steps(random, bits, window, 50);
    all_recurrent(random);
    all_products(random);
    all_routes(random);
    all_experts(random);
    expert_steps(random);
}

} // namespace

int main() {
    std::thread other(everything, 1);
    everything(2);
    for (int threads : {1, 2, 5, 3}) {
        ferrum_set_threads(threads);
        Random random(threads);
        all_attention(random);
    }
    other.join();
    std::printf("%s\n", ferrum_simd());
}
