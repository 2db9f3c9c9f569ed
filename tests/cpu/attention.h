// Ragged batches of sequences over keys and values in blocks: append, then attend.
#pragma once

#include <algorithm>
#include <utility>

#include "arguments.h"

namespace {

// A layer's keys and values in blocks, which some sequences take turns to get.
struct Pool {
    int bits, groups, size, d, dv, blocks;
    std::vector<char> keys, values; // nothing lies behind the last block
    Floats key_scales, value_scales;

    Pool(int bits, int groups, int size, int d, int dv, int blocks)
        : bits(bits), groups(groups), size(size), d(d), dv(dv), blocks(blocks), keys(rows() * d * bits / 8),
          values(rows() * dv * bits / 8), key_scales(bits == 8 ? rows() : 0), value_scales(key_scales) {}
    size_t rows() const { return size_t(blocks) * groups * size; }
    const void* scales(const Floats& x) const { return bits == 8 ? x.data() : nullptr; }
};

// Sequences with new rows.
struct Ragged {
    std::vector<int> starts{0}, lengths, positions, table;
    std::vector<long> slots;
    int width = 0;

    // rows: new and held positions of each sequence
    Ragged(Random& random, const std::vector<std::pair<int, int>>& rows, const Pool& pool) {
        std::vector<int> free(pool.blocks);
        for (int i = 0; i < pool.blocks; i++) free[i] = i;
        std::shuffle(free.begin(), free.end(), random);
        for (auto [count, held] : rows) width = std::max(width, (held + count - 1) / pool.size + 1);
        for (auto [count, held] : rows) {
            size_t row = table.size();
            for (int i = 0; i < width; i++)
                if (i * pool.size < held + count)
                    table.push_back(free.back()), free.pop_back();
                else
                    table.push_back(-7); // nobody may look
            for (int p = held; p < held + count; p++) {
                positions.push_back(p);
                slots.push_back(long(table[row + p / pool.size]) * pool.size + p % pool.size);
            }
            starts.push_back(int(positions.size()));
            lengths.push_back(held + count);
        }
    }
    int rows() const { return int(positions.size()); }
};

// The angles of a batch's rows, in `pairs` pairs: out (rows, 2, pairs).
Arguments turn(const Ragged& batch, int pairs, const Floats& frequencies, const void* out) {
    return {"Angles",
            {{"frequencies", frequencies.data()},
             {"positions", batch.positions.data()},
             {"out", out},
             {"rows", batch.rows()},
             {"pairs", pairs},
             {"magnitude", 1.0}}};
}

// x: the keys and values, and with a gate behind each query twice the queries.
Arguments append(Random& random, Pool& p, const Ragged& batch, int heads, const Floats& x, int pairs,
                 const void* angles, const void* turned) {
    int normed = random() % 2, wide = x.size() >= size_t(batch.rows()) * heads * p.d * 2 ? 2 * p.d : p.d;
    const void* weight = normed ? x.data() : nullptr;
    return {"Append",
            {{"q", x.data()},
             {"k", x.data()},
             {"v", x.data()},
             {"q_weight", weight},
             {"k_weight", weight},
             {"angles", angles},
             {"slots", batch.slots.data()},
             {"turned", turned},
             {"keys", p.keys.data()},
             {"values", p.values.data()},
             {"key_scales", p.scales(p.key_scales)},
             {"value_scales", p.scales(p.value_scales)},
             {"rows", batch.rows()},
             {"heads", heads},
             {"wide", wide},
             {"groups", p.groups},
             {"d", p.d},
             {"dv", p.dv},
             {"pairs", pairs},
             {"interleaved", int(random() % 2)},
             {"blocks", p.blocks},
             {"size", p.size},
             {"bits", p.bits},
             {"eps", 1e-5}}};
}

Arguments attend(Random& random, Pool& p, const Ragged& batch, int heads, const Floats& q, const void* out, int window,
                 bool both_ways) {
    const void* sinks = random() % 2 ? q.data() : nullptr;
    return {"Attention",
            {{"q", q.data()},
             {"keys", p.keys.data()},
             {"values", p.values.data()},
             {"key_scales", p.scales(p.key_scales)},
             {"value_scales", p.scales(p.value_scales)},
             {"sinks", sinks},
             {"starts", batch.starts.data()},
             {"lengths", batch.lengths.data()},
             {"table", batch.table.data()},
             {"out", out},
             {"sequences", int(batch.lengths.size())},
             {"width", batch.width},
             {"blocks", p.blocks},
             {"size", p.size},
             {"heads", heads},
             {"groups", p.groups},
             {"d", p.d},
             {"dv", p.dv},
             {"window", window},
             {"bits", p.bits},
             {"both_ways", int(both_ways)},
             {"scale", 0.2},
             {"softcap", random() % 2 ? 3.0 : 0.0}}};
}

void attention(Random& random, int bits, int groups, int per_group, std::vector<std::pair<int, int>> rows, int window,
               bool both_ways = false) {
    static constexpr int sizes[] = {2, 4, 32};
    int size = sizes[random() % 3], d = 1 + int(random() % 40), dv = 1 + int(random() % 40), heads = groups * per_group;
    d += d == 1;
    int blocks = 1;
    for (auto [count, held] : rows) blocks += (count + held - 1) / size + 1;
    Pool pool(bits, groups, size, d, dv, blocks);
    Ragged batch(random, rows, pool);
    Floats q = floats(random, size_t(batch.rows()) * heads * std::max((1 + int(random() % 2)) * d, dv) + heads);
    if (bits != 32) { // keys and values that come from outside of a pool are not appended
        int pairs = 1 + int(random() % (d / 2));
        Output turned(size_t(batch.rows()) * heads * d), angles(size_t(batch.rows()) * 2 * pairs);
        run({turn(batch, pairs, q, angles).call(),
             append(random, pool, batch, heads, q, pairs, angles, turned).call()});
    }
    Output out(size_t(batch.rows()) * heads * dv);
    run({attend(random, pool, batch, heads, q, out, window, both_ways).call()});
}

void all_attention(Random& random) {
    for (int bits : {8, 16})
        for (int window : {0, 1, 70})
            for (int held : {0, 1, 62, 63, 64, 300})
                for (int length : {1, 7, 40}) {
                    attention(random, bits, 1, 3, {{length, held}}, window);
                    attention(random, bits, 3, 1, {{1, held}, {length, 33}, {1, 2}, {5, held / 2}}, window);
                }
    for (int length : {1, 7, 40, 130})
        for (int bits : {16, 32}) attention(random, bits, 2, 1, {{length, 0}, {length / 2 + 1, 0}}, 0, true);
}

// Steps of two sequences by the same calls, which read other positions, lengths, tables and slots each time.
void steps(Random& random, int bits, int window, int room) {
    constexpr int groups = 2, heads = 6, d = 20;
    Pool pool(bits, groups, 4, d, d, room);
    constexpr int pairs = d / 2;
    Floats x = floats(random, 2 * heads * d), turned(x.size()), out(x.size()), angles(2 * 2 * pairs);
    Ragged batch(random, {{1, 0}, {1, 3}}, pool);
    batch.width = room;
    batch.table.assign(2 * room, 0);
    Arguments angle = turn(batch, pairs, x, angles.data());
    Arguments first = append(random, pool, batch, heads, x, pairs, angles.data(), turned.data());
    Arguments second = attend(random, pool, batch, heads, turned, out.data(), window, false);
    for (int step = 0; step < 2 * room - 4; step++) {
        for (int i : {0, 1}) {
            int p = batch.positions[i] = step + 3 * i;
            batch.lengths[i] = p + 1;
            batch.table[i * room + p / 4] = (2 * (p / 4) + i) % room;
            batch.slots[i] = 4L * batch.table[i * room + p / 4] + p % 4;
        }
        run({angle.call(), first.call(), second.call()});
    }
}

} // namespace
