// Ragged batches of sequences whose recurrent states lie in slots; and gates.
#pragma once

#include <algorithm>

#include "arguments.h"

namespace {

// Sequences with new rows, some of which begin, and slots of which only the targets may be written.
struct Slotted {
    std::vector<int> starts{0}, sources, targets;

    Slotted(Random& random, const std::vector<int>& counts) {
        int count = int(counts.size());
        for (int i = 0; i < count; i++) {
            starts.push_back(starts.back() + counts[i]);
            sources.push_back(random() % 3 ? i : -1);
            targets.push_back(count + i);
        }
        std::shuffle(targets.begin(), targets.end(), random);
    }
    int sequences() const { return int(sources.size()); }
    int slots() const { return 2 * sequences(); }
    int rows() const { return starts.back(); }
};

// Random numbers that begin where any vector may be written.
struct alignas(64) Line {
    float numbers[16];
};

std::vector<Line> lines(Random& random, size_t count) {
    std::vector<Line> out((count + 15) / 16);
    for (Line& line : out)
        for (float& x : line.numbers) x = std::normal_distribution<float>()(random);
    return out;
}

void convolve(Random& random, const Slotted& batch, int channels, int kernel) {
    Floats x = floats(random, size_t(batch.rows()) * channels), weight = floats(random, size_t(channels) * kernel);
    Floats columns = floats(random, size_t(batch.slots()) * (kernel - 1) * channels);
    run("ShortConv", {{"x", x.data()},
                      {"weight", weight.data()},
                      {"starts", batch.starts.data()},
                      {"sources", batch.sources.data()},
                      {"targets", batch.targets.data()},
                      {"columns", columns.data()},
                      {"out", Output(x.size())},
                      {"sequences", batch.sequences()},
                      {"slots", batch.slots()},
                      {"channels", channels},
                      {"kernel", kernel}});
}

void delta(Random& random, const Slotted& batch, int key_heads, int per_key, int size) {
    int heads = key_heads * per_key, rows = batch.rows();
    Floats qkv = floats(random, size_t(rows) * (2 * key_heads + heads) * size);
    Floats gates = floats(random, size_t(rows) * heads), decay = floats(random, heads);
    for (float& x : decay) x = -std::fabs(x);
    std::vector<Line> matrices = lines(random, size_t(batch.slots()) * heads * size * size);
    for (int is_tiled : {0, 1})
        run("GatedDelta", {{"qkv", qkv.data()},
                           {"a", gates.data()},
                           {"b", gates.data()},
                           {"decay", decay.data()},
                           {"dt", decay.data()},
                           {"starts", batch.starts.data()},
                           {"sources", batch.sources.data()},
                           {"targets", batch.targets.data()},
                           {"matrices", matrices.data()},
                           {"out", Output(size_t(rows) * heads * size)},
                           {"sequences", batch.sequences()},
                           {"slots", batch.slots()},
                           {"heads", heads},
                           {"key_heads", key_heads},
                           {"size", size},
                           {"is_tiled", is_tiled},
                           {"eps", 1e-6}});
}

void gates(Random& random, long rows, int d) {
    Floats x = floats(random, rows * d), weight = floats(random, d), pairs = floats(random, 2 * rows * d);
    run("GatedNorm", {{"x", x.data()},
                      {"weight", weight.data()},
                      {"gate", x.data()},
                      {"out", Output(rows * d)},
                      {"rows", rows},
                      {"d", d},
                      {"eps", 1e-5}});
    run("Gate", {{"x", x.data()}, {"pairs", pairs.data()}, {"out", Output(rows * d)}, {"rows", rows}, {"d", d}});
}

void all_recurrent(Random& random) {
    const std::vector<int> batches[] = {{1}, {1, 1, 1}, {0, 3}, {70}, {4, 1, 33, 2}};
    for (const std::vector<int>& counts : batches) {
        Slotted batch(random, counts);
        for (int channels : {1, 40, 300})
            for (int kernel : {2, 4}) convolve(random, batch, channels, kernel);
        for (int size : {1, 8, 16, 24, 64})
            for (int per_key : {1, 3}) delta(random, batch, 2, per_key, size);
    }
    delta(random, Slotted(random, {1, 1, 2, 1}), 2, 2, 128); // large enough to be written past the caches
    for (long rows : {1, 7, 300})
        for (int d : {1, 33, 64}) gates(random, rows, d);
}

} // namespace
