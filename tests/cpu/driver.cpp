// Calls every function of the CPU library on random bytes over odd shapes, from two threads at once.
// Buffers are exactly as large as they are said to be, so that a sanitizer sees any step outside;
// the numbers are the business of the Python tests.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "blocks.h"
#include "calls.h"
#include "replay.h"

extern "C" {
const char* ferrum_simd();
void ferrum_set_threads(int n);
void ferrum_replay(const Call* calls, int count, long later);
}

namespace {

constexpr int TYPES = 64; // ids are smaller
constexpr uint UNTOUCHED = 0x7fc0beef;

using Random = std::mt19937;
using Floats = std::vector<float>;

Floats floats(Random& random, size_t count) {
    Floats out(count);
    for (float& x : out) x = std::normal_distribution<float>()(random);
    return out;
}

// An output in which values that are never written are seen.
class Output {
public:
    explicit Output(size_t count) : values_(count, as_float(UNTOUCHED)) {}
    ~Output() {
        for (float x : values_)
            if (as_uint(x) == UNTOUCHED) {
                std::fprintf(stderr, "a value was not written\n");
                std::abort();
            }
    }
    operator float*() { return values_.data(); }
    half* halves() { return (half*)values_.data(); }

private:
    Floats values_;
};

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

template <typename B>
void products(Random& random, int id, int n, int rows, int blocks) {
    int k = blocks * B::WEIGHTS;
    Floats x = floats(random, size_t(n) * k);
    Matrix a = matrix<B>(random, id, rows, blocks), b = matrix<B>(random, id, rows, blocks);
    Matrix floating = matrix<F16>(random, 1, rows + 2, k);
    Floats bias = floats(random, rows), add = floats(random, size_t(n) * (3 * rows + 2));
    b.weight.bias = bias.data();
    Weight three[] = {a.weight, floating.weight, b.weight}, two[] = {a.weight, b.weight};
    run(Matmuls{x.data(), three, n % 2 ? add.data() : nullptr, Output(add.size()), n, k, 3});
    run(GateUp{x.data(), two, Output(size_t(n) * rows), n, k, n % 2});
    std::vector<long> ids(n);
    for (long& row : ids) row = random() % rows;
    run(Rows{&a.weight, ids.data(), Output(size_t(n) * k), n, k, n % 2 ? 1.0f : 3.0f});
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

// One layer's attention over a cache with room for more than it holds; T: float or half.
template <typename T>
void attention(Random& random, int groups, int per_group, int length, int held, int window, bool both_ways = false) {
    constexpr int batch = 2, d = 20, dv = 36;
    int heads = groups * per_group, room = held + 3;
    Floats q = floats(random, size_t(batch) * heads * length * d);
    // nothing lies behind the last position that is held
    std::vector<T> k(size_t(batch) * groups * room * d - 3 * d), v(size_t(batch) * groups * room * dv - 3 * dv);
    Output out(size_t(batch) * heads * length * dv);
    Attention a{q.data(), k.data(), v.data(), out, batch, heads, groups, length, held, d, dv, window};
    a.halves = sizeof(T) == 2, a.both_ways = both_ways;
    a.k_stride = d, a.k_head = long(room) * d, a.k_batch = groups * a.k_head;
    a.v_stride = dv, a.v_head = long(room) * dv, a.v_batch = groups * a.v_head;
    a.scale = 0.2f;
    run(a);
}

void all_attention(Random& random) {
    for (int window : {0, 1, 70})
        for (int held : {1, 63, 64, 65, 300})
            for (int length : {1, 7, 40})
                if (length <= held) {
                    attention<float>(random, 1, 3, length, held, window);
                    attention<half>(random, 3, 1, length, held, window);
                }
    for (int length : {1, 7, 40, 130}) attention<float>(random, 2, 1, length, length, 0, true);
}

void norms(Random& random, long rows, int d) {
    Floats x = floats(random, rows * d), weight = floats(random, d);
    for (const float* add : {(const float*)nullptr, (const float*)x.data()})
        run(RmsNorm{x.data(), weight.data(), add, Output(rows * d), rows, d, 1e-5f});
    run(SigmoidGate{x.data(), x.data(), d % 2 ? x.data() : nullptr, Output(rows * d), rows, d});
    run(Gelu{x.data(), Output(rows * d), rows * d});
}

// Outputs of halves are seen as floats, two each.
void rotation(Random& random, int length, int pairs, int dv) {
    constexpr int batch = 2, heads = 6, groups = 3, d = 33;
    int width = std::max(d, dv), positions = batch * length;
    Floats q = floats(random, positions * heads * d), k = floats(random, positions * groups * d);
    Floats v = floats(random, positions * groups * dv), weight = floats(random, d), frequencies = floats(random, pairs);
    std::vector<long> offset = {0, 1000};
    for (int interleaved : {0, 1})
        for (const float* w : {(const float*)nullptr, (const float*)weight.data()}) {
            Output turned(q.size()), added(size_t(positions) * groups * width);
            Rotate a{q.data(), k.data(), v.data(), w, w, frequencies.data(), offset.data(), turned, added.halves()};
            a.batch = batch, a.length = length, a.heads = heads, a.groups = groups, a.d = d, a.dv = dv;
            a.pairs = pairs, a.interleaved = interleaved, a.magnitude = 1, a.eps = 1e-5f;
            run(a);
        }
}

void all_norms(Random& random) {
    for (int length : {1, 5, 70}) {
        norms(random, 6 * length, 33);
        for (int pairs : {1, 7, 16})
            for (int dv : {20, 33, 48}) rotation(random, length, pairs, dv);
    }
}

// A cache of `room` positions that is filled by replaying the first: turn, put, then attend.
template <typename T>
void steps(Random& random, int room, int window) {
    constexpr int groups = 2, d = 20, heads = 3 * groups, row = d * sizeof(T);
    Floats q = floats(random, heads * d), fresh = floats(random, groups * d), out(q.size());
    std::vector<half> added(2 * groups * d);
    std::vector<T> source(2 * groups * d), stored(size_t(2) * groups * room * d);
    long head = long(room) * d, offset = 5, at = head * sizeof(T);
    Rotate turn{q.data(),     fresh.data(), fresh.data(), nullptr,     nullptr,
                fresh.data(), &offset,      out.data(),   added.data()};
    turn.batch = turn.length = 1, turn.heads = heads, turn.groups = groups, turn.d = turn.dv = d, turn.pairs = d / 2;
    Put put{(const char*)source.data(),
            (char*)stored.data(),
            0,
            1,
            groups,
            1,
            row,
            {groups * row, groups * row, row, row},
            {groups * at, groups * at, at, row}};
    Attention a{q.data(), stored.data(), stored.data() + groups * head, out.data(), 1, heads, groups, 1, 1, d,
                d,        window};
    a.k_batch = a.v_batch = groups * head, a.k_head = a.v_head = head, a.k_stride = a.v_stride = d, a.scale = 0.2f;
    a.halves = sizeof(T) == 2;
    Call calls[] = {{5, &turn}, {3, &put}, {4, &a}};
    for (long later = 0; later < room; later++) ferrum_replay(calls, 3, later);
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
    Matrix a = matrix<B>(random, id, count * rows, blocks), b = matrix<Q8_0>(random, 8, count * rows, k / 32);
    a.weight.rows = b.weight.rows = rows;
    Weight one[] = {a.weight}, two[] = {a.weight, k % 32 ? a.weight : b.weight};
    one[0].bias = n % 2 ? bias.data() : nullptr;
    for (bool same : {false, true}) {
        std::vector<int> ids = chosen(random, n * used, count, same);
        run(Gather{x.data(), one, ids.data(), Output(size_t(n) * used * rows), n, used, count, k, 1, 0});
        run(Gather{x.data(), two, ids.data(), Output(size_t(n) * used * rows), n, used, count, k, 2, n % 2});
        run(GatherDown{x.data(), &a.weight, ids.data(), weights.data(), n % 2 ? add.data() : nullptr,
                       Output(size_t(n) * rows), n, used, count, k});
    }
}

void all_experts(Random& random) {
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
            Route a{logits.data(), added, ids.data(), weights, n, count, used, sigmoid, n % 2, groups};
            a.groups_used = (groups + 1) / 2, a.scale = 2;
            run(a);
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
    Matrix a = matrix<Q4_K>(random, 12, count * wide, 1), b = matrix<Q6_K>(random, 14, count * d, 1);
    Matrix router = matrix<F32>(random, 0, count, d);
    a.weight.rows = wide, b.weight.rows = d;
    Weight two[] = {a.weight, a.weight};
    std::vector<int> ids(used);
    Matmuls score{x.data(), &router.weight, nullptr, logits.data(), 1, d, 1};
    Route choose{logits.data(), nullptr, ids.data(), weights.data(), 1, count, used, 0, 1, 1, 1, 1};
    Gather up{x.data(), two, ids.data(), h.data(), 1, used, count, d, 2, 0};
    GatherDown down{h.data(), &b.weight, ids.data(), weights.data(), x.data(), out.data(), 1, used, count, d};
    SigmoidGate gate{out.data(), weights.data(), x.data(), out.data(), 1, d};
    Call calls[] = {{0, &score}, {8, &choose}, {9, &up}, {10, &down}, {7, &gate}};
    for (int step = 0; step < 20; step++) {
        for (float& weight : x) weight = std::normal_distribution<float>()(random);
        ferrum_replay(calls, 5, step);
    }
}

void everything(unsigned seed) {
    Random random(seed);
    all_norms(random);
    all_attention(random);
    for (int window : {0, 1, 70, 100}) {
        steps<float>(random, 100, window);
        steps<half>(random, 100, window);
    }
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
