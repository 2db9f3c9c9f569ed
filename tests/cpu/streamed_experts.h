// Stacks of experts that are read from a file: the numbers have to be those of the same bytes in memory.
#pragma once

#include <cstdio>
#include <cstring>

#include "arguments.h"
#include "streamed.h"

extern "C" {
Streamed* ferrum_streamed(int count, int slots, int parts, const Source* sources, double age, int apart);
void ferrum_streamed_follow(Streamed* first, Streamed* second);
void ferrum_streamed_free(Streamed* streamed);
int ferrum_streamed_is_whole(Streamed* streamed);
const void* ferrum_streamed_slots(const Streamed* streamed, int source);
}

namespace {

// Bytes in a file that has no name.
class Stored {
public:
    explicit Stored(const std::vector<uchar>& bytes) : file_(std::tmpfile()) {
        if (!file_ || std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size() || std::fflush(file_))
            fail("a file could not be written");
    }
    ~Stored() { std::fclose(file_); }
    int number() const { return fileno(file_); }

private:
    std::FILE* file_;
};

struct Pairs {
    const float* x;       // (n, k)
    const int* ids;       // (n, used)
    const float* weights; // (n, used)
    int n, used, experts, k;
};

// The products of all experts' up with x, and the weighted sums of down with these.
Floats ask(const Pairs& p, const Weight& up, const Weight& down) {
    Floats inner(size_t(p.n) * p.used * up.rows), out(size_t(p.n) * down.rows);
    run("Gather", {{"x", p.x},
                   {"w", &up},
                   {"ids", p.ids},
                   {"out", inner.data()},
                   {"n", p.n},
                   {"used", p.used},
                   {"experts", p.experts},
                   {"k", p.k},
                   {"count", 1},
                   {"act", 0}});
    run("GatherDown", {{"x", inner.data()},
                       {"w", &down},
                       {"ids", p.ids},
                       {"weights", p.weights},
                       {"add", nullptr},
                       {"out", out.data()},
                       {"n", p.n},
                       {"used", p.used},
                       {"experts", p.experts},
                       {"k", int(up.rows)}});
    return out;
}

// Reads of some experts, and of those that a router may choose, begin.
void foresee(const Pairs& p, const Weight& up, const Floats& router) {
    Floats norm(p.k, 1.0f);
    Weight weights[] = {{router.data(), 0, p.experts, nullptr, nullptr, 0, 0}, up};
    run("ExpectExperts", {{"x", p.x},
                          {"norm", norm.data()},
                          {"w", weights},
                          {"bias", nullptr},
                          {"n", p.n},
                          {"k", p.k},
                          {"experts", p.experts},
                          {"used", p.used},
                          {"sigmoid", 0},
                          {"groups", 1},
                          {"groups_used", 1},
                          {"eps", 1e-6f}});
    run("WantExperts", {{"w", &up}, {"ids", p.ids}, {"n", 1}, {"used", p.used}});
}

// Asks a few times, for which matrices are read again.
void compare(const Pairs& p, const Weight& up, const Weight& down, const Floats& wanted) {
    Floats router(size_t(p.experts) * p.k);
    for (int time = 0; time < 6; time++) {
        for (float& x : router) x = float(std::rand() % 64 - 32);
        foresee(p, up, router);
        Floats found = ask(p, up, down);
        for (size_t i = 0; i < found.size(); i++)
            if (as_uint(found[i]) != as_uint(wanted[i])) fail("an expert from disk says something else");
    }
}

// An expert's matrices side by side, with `space` bytes after each.
std::vector<uchar> side_by_side(const std::vector<uchar>& up, const std::vector<uchar>& down, int experts, long space) {
    std::vector<uchar> out;
    for (int e = 0; e < experts; e++)
        for (const std::vector<uchar>* each : {&up, &down}) {
            long nbytes = long(each->size()) / experts;
            out.insert(out.end(), each->begin() + e * nbytes, each->begin() + (e + 1) * nbytes);
            out.resize(out.size() + space);
        }
    return out;
}

// Some numbers, portion by portion, as a GPU asks for them: slots hold what the stack has.
void read_in_portions(Streamed* stack, const std::vector<uchar>& bytes, int experts, Random& random) {
    long nbytes = long(bytes.size()) / experts, opened = 0;
    auto slots = (const uchar*)ferrum_streamed_slots(stack, 0);
    std::vector<int> numbers(experts), places(experts);
    for (int i = 0; i < experts; i++) numbers[i] = i;
    std::shuffle(numbers.begin(), numbers.end(), random);
    int count = 1 + int(random() % experts), done = 0, range[2];
    run("BeginPortions", {{"streamed", stack}, {"numbers", numbers.data()}, {"opened", &opened}, {"count", count}});
    for (;;) {
        run("NextPortion", {{"opened", opened}, {"range", &range[0]}, {"slots", places.data()}});
        if (range[0] == range[1]) break;
        for (; done < range[1]; done++)
            if (std::memcmp(slots + places[done] * nbytes, &bytes[numbers[done] * nbytes], nbytes))
                fail("a slot holds something else");
    }
    run("EndPortions", {{"opened", opened}});
    if (done != count) fail("a portion is missing");
}

// The same stacks with the slots of each in a row.
void apart(const Pairs& p, const Weight& up, const Weight& down, const Source* sources, int slots,
           const std::vector<uchar>& up_bytes, const Floats& wanted) {
    Streamed* ups = ferrum_streamed(p.experts, slots, 1, &sources[0], 0.1, 1);
    Streamed* downs = ferrum_streamed(p.experts, slots, 1, &sources[1], 0.1, 1);
    ferrum_streamed_follow(ups, downs);
    Random random(slots);
    for (int time = 0; time < 9; time++) read_in_portions(ups, up_bytes, p.experts, random);
    compare(p, {nullptr, up.type, up.rows, nullptr, ups, 0, 0}, {nullptr, down.type, down.rows, nullptr, downs, 0, 0},
            wanted);
    if (ferrum_streamed_is_whole(ups) && slots < p.experts) fail("not all experts can be there");
    ferrum_streamed_free(ups);
    ferrum_streamed_free(downs);
}

// up: (experts, rows, k), down: (experts, rows, rows), and their bytes.
void from_disk(const Pairs& p, const Weight& up, const Weight& down, const std::vector<uchar>& up_bytes,
               const std::vector<uchar>& down_bytes) {
    constexpr long SPACE = 96;
    Floats wanted = ask(p, up, down);
    Stored first(up_bytes), second(down_bytes), both(side_by_side(up_bytes, down_bytes, p.experts, SPACE));
    for (int slots : {1, 2, p.experts}) {
        Source sources[] = {{first.number(), 0, up.step, 0, up.step}, {second.number(), 0, down.step, 0, down.step}};
        Streamed* ups = ferrum_streamed(p.experts, slots, 1, &sources[0], 0.1, 0);
        Streamed* downs = ferrum_streamed(p.experts, slots, 1, &sources[1], 0.1, 0);
        ferrum_streamed_follow(ups, downs);
        compare(p, {nullptr, up.type, up.rows, nullptr, ups, 0, 0},
                {nullptr, down.type, down.rows, nullptr, downs, 0, 0}, wanted);
        ferrum_streamed_free(ups);
        ferrum_streamed_free(downs);
        long step = up.step + down.step + 2 * SPACE;
        Source near[] = {{both.number(), 0, up.step, 0, step}, {both.number(), up.step + SPACE, down.step, 0, step}};
        Streamed* all = ferrum_streamed(p.experts, slots, 2, near, 0.1, 0);
        compare(p, {nullptr, up.type, up.rows, nullptr, all, 0, 0}, {nullptr, down.type, down.rows, nullptr, all, 1, 0},
                wanted);
        ferrum_streamed_free(all);
        apart(p, up, down, sources, slots, up_bytes, wanted);
    }
}

} // namespace
