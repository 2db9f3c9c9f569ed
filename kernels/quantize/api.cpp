// Rows of weights, dealt out to threads in batches of blocks.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "../cpu/describe.h"
#include "quantize.h"

namespace {

// A type that has encoders: of ggml's number, `weights` in `bytes`.
struct Type {
    int id, weights, bytes;
    void (*encode)(const Blocks&);
    void (*convert)(const float*, std::int64_t, std::uint8_t*); // in place of encode
};

constexpr Type TYPES[] = {
    {0, 1, 4, nullptr, convert_f32},        {1, 1, 2, nullptr, convert_f16},      {30, 1, 2, nullptr, convert_bf16},
    {2, 32, 18, encode_q4_0, nullptr},      {3, 32, 20, encode_q4_1, nullptr},    {6, 32, 22, encode_q5_0, nullptr},
    {7, 32, 24, encode_q5_1, nullptr},      {8, 32, 34, encode_q8_0, nullptr},    {10, 256, 84, encode_q2_k, nullptr},
    {11, 256, 110, encode_q3_k, nullptr},   {12, 256, 144, encode_q4_k, nullptr}, {13, 256, 176, encode_q5_k, nullptr},
    {14, 256, 210, encode_q6_k, nullptr},   {15, 256, 292, encode_q8_k, nullptr}, {20, 32, 18, encode_iq4_nl, nullptr},
    {23, 256, 136, encode_iq4_xs, nullptr}, {39, 32, 17, encode_mxfp4, nullptr},
};

constexpr std::int64_t PART = 1 << 15; // weights of a part, a multiple of what LANES blocks hold
constexpr int UNKNOWN = -2, DONE = -1;

} // namespace

// What Python asks for; mirrored in native.py.
struct Quantize {
    const float* x;          // (rows, k)
    const float* importance; // (rows / shared, k), or null
    std::uint8_t* out;       // (rows, bytes of k weights)
    std::int64_t rows, k, shared;
    int type, effort, threads;
    float limit; // what |x| must not exceed
};

namespace {

// The first of x[first .. last) that is further than the limit from 0 or not a number; last if there is none.
std::int64_t first_beyond(const float* x, std::int64_t first, std::int64_t last, float limit) {
    int beyond = 0;
    for (std::int64_t i = first; i < last; i++) beyond |= !(std::abs(x[i]) <= limit);
    while (beyond && first < last && std::abs(x[first]) <= limit) first++;
    return beyond ? first : last;
}

// Weights [first, last) of all rows: whole blocks. Returns the first that is beyond the limit, or DONE.
std::int64_t quantize(const Quantize& job, const Type& type, std::int64_t first, std::int64_t last) {
    if (std::int64_t found = first_beyond(job.x, first, last, job.limit); found < last) return found;
    if (type.convert) {
        type.convert(job.x + first, last - first, job.out + first * type.bytes);
        return DONE;
    }
    Blocks blocks{};
    blocks.weighted = job.importance;
    blocks.effort = Effort(job.effort);
    for (std::int64_t at = first; at < last;) {
        for (blocks.count = 0; blocks.count < LANES && at < last; blocks.count++, at += type.weights) {
            blocks.x[blocks.count] = job.x + at;
            blocks.out[blocks.count] = job.out + at / type.weights * type.bytes;
            if (job.importance)
                blocks.importance[blocks.count] = job.importance + at / job.k / job.shared * job.k + at % job.k;
        }
        type.encode(blocks);
    }
    return DONE;
}

} // namespace

// Returns the index of the first weight that is beyond the limit or not a number; DONE if there is none, UNKNOWN for a
// type without an encoder.
extern "C" std::int64_t ferrum_quantize(const Quantize* job) {
    const Type* type =
        std::find_if(std::begin(TYPES), std::end(TYPES), [&](const Type& t) { return t.id == job->type; });
    if (type == std::end(TYPES)) return UNKNOWN;
    const std::int64_t all = job->rows * job->k, parts = (all + PART - 1) / PART;
    std::atomic<std::int64_t> next{0}, bad{all};
    auto work = [&] {
        for (std::int64_t part; (part = next++) < parts && part * PART < bad;) {
            std::int64_t found = quantize(*job, *type, part * PART, std::min(all, (part + 1) * PART));
            std::int64_t least = bad;
            while (found != DONE && found < least && !bad.compare_exchange_weak(least, found)) {
            }
        }
    };
    std::vector<std::thread> threads;
    for (std::int64_t i = 1; i < std::min<std::int64_t>(job->threads, parts); i++) threads.emplace_back(work);
    work();
    for (auto& thread : threads) thread.join();
    return bad < all ? std::int64_t(bad) : DONE;
}

// See describe.h.
extern "C" const char* ferrum_layout() {
    static const std::string text = [] {
        std::string out;
        STRUCT(out, Quantize, F(x), F(importance), F(out), F(rows), F(k), F(shared), F(type), F(effort), F(threads),
               F(limit))
        return out;
    }();
    return text.c_str();
}
