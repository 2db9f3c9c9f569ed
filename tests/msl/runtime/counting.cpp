// Counting: how often code runs, and which lines of memory a simdgroup touches. The calls are put into a kernel's LLVM
// text by tests/msl/llvm.py. One OS thread; threadgroups run one after another, and each is added up when it is over.

#include "fiber.h"

#include <algorithm>
#include <tuple>
#include <vector>

constexpr std::uint64_t LINE = 128;

// As in tests/msl/counting.py.
struct Site { // a load or store in the text
    std::uint32_t block, writes;
};
struct Range { // a buffer; its start counts as the start of a line, as MLX's buffers start on a page
    const char* data;
    std::uint64_t bytes;
};
struct BlockCount {       // of a basic block
    std::uint64_t issued; // by simdgroups: as often as the lane that runs it most
    std::uint64_t run;    // by threads
};
struct SiteCount {
    std::uint64_t accesses;     // by simdgroups
    std::uint64_t lines, least; // that an access touches; that its bytes would fill
    std::uint64_t bytes;        // that threads ask for
    std::uint64_t buffer;       // the last that was touched, and from 1 on
};
struct BufferCount {
    std::uint64_t steps;           // runs of a block by a simdgroup that touch the buffer
    std::uint64_t lines, bytes;    // different ones of a step
    std::uint64_t group_bytes;     // different ones of a threadgroup
    std::uint64_t simdgroup_bytes; // different ones of a simdgroup
};
struct Counting {
    const std::uint8_t* wanted; // a threadgroup each
    const Site* sites;
    const Range* ranges;
    BlockCount* blocks;
    SiteCount* site_counts;
    BufferCount* buffers; // those of reads, then those of writes
    std::uint32_t block_count, site_count, range_count;
};

namespace {
struct Record {
    std::uint32_t buffer, simdgroup, block, turn, site; // turn: which run of the block by its thread
    std::uint32_t bytes;
    std::uint64_t start; // in the buffer
};

Counting* counting;
std::uint64_t group = ~0ull;      // that is being counted
std::vector<std::uint32_t> turns; // (thread, block): runs
std::vector<Record> records;

std::uint64_t index_of(const msl_position* p) {
    const Uint3 &at = p->threadgroup_position_in_grid, &of = p->threadgroups_per_grid;
    return at.x + std::uint64_t(of.x) * (at.y + std::uint64_t(of.y) * at.z);
}

struct Extent {
    std::uint64_t bytes = 0, lines = 0;
};

// Of the union of accesses in the order of their starts.
Extent extent(const Record* from, const Record* to) {
    Extent out;
    std::uint64_t end = 0, next_line = 0;
    for (; from != to; from++) {
        std::uint64_t stop = from->start + from->bytes;
        if (stop > end) out.bytes += stop - std::max(end, from->start);
        end = std::max(end, stop);
        std::uint64_t first = std::max(from->start / LINE, next_line), last = (stop - 1) / LINE + 1;
        if (last > first) out.lines += last - first;
        next_line = std::max(next_line, last);
    }
    return out;
}

// Calls f(first, last) for each run of records with one key.
template <typename K, typename F>
void each(K key, F f) {
    std::sort(records.begin(), records.end(), [&](const Record& a, const Record& b) {
        auto x = key(a), y = key(b);
        return x != y ? x < y : a.start < b.start;
    });
    for (std::size_t i = 0, j; i < records.size(); i = j) {
        for (j = i; j < records.size() && key(records[j]) == key(records[i]);) j++;
        f(records.data() + i, records.data() + j);
    }
}

void add_blocks() {
    std::uint32_t blocks = counting->block_count;
    std::size_t threads = turns.size() / blocks;
    for (std::size_t first = 0; first < threads; first += 32)
        for (std::uint32_t b = 0; b < blocks; b++) {
            std::uint32_t most = 0;
            for (std::size_t t = first; t < std::min(first + 32, threads); t++) {
                most = std::max(most, turns[t * blocks + b]);
                counting->blocks[b].run += turns[t * blocks + b];
            }
            counting->blocks[b].issued += most;
        }
}

void add_records() {
    auto step = [](const Record& r) { return std::make_tuple(r.buffer, r.simdgroup, r.block, r.turn); };
    each([&](const Record& r) { return std::tuple_cat(step(r), std::make_tuple(r.site)); },
         [](const Record* from, const Record* to) {
             SiteCount& c = counting->site_counts[from->site];
             Extent e = extent(from, to);
             c.accesses++;
             c.buffer = from->buffer % counting->range_count + 1;
             c.lines += e.lines;
             c.least += (e.bytes + LINE - 1) / LINE;
         });
    each(step, [](const Record* from, const Record* to) {
        BufferCount& c = counting->buffers[from->buffer];
        Extent e = extent(from, to);
        c.steps++;
        c.lines += e.lines;
        c.bytes += e.bytes;
    });
    each([](const Record& r) { return std::make_tuple(r.buffer, r.simdgroup); },
         [](const Record* from, const Record* to) {
             counting->buffers[from->buffer].simdgroup_bytes += extent(from, to).bytes;
         });
    each([](const Record& r) { return r.buffer; },
         [](const Record* from, const Record* to) {
             counting->buffers[from->buffer].group_bytes += extent(from, to).bytes;
         });
}

void finish_group() {
    if (!turns.empty()) add_blocks();
    add_records();
    turns.clear();
    records.clear();
}

std::uint32_t& turn_of(const msl_position* p, std::uint32_t block) {
    std::size_t at = std::size_t(p->thread_index_in_threadgroup) * counting->block_count + block;
    if (at >= turns.size()) turns.resize((std::size_t(p->thread_index_in_threadgroup) + 1) * counting->block_count);
    return turns[at];
}
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void msl_count_start(Counting* c) {
    counting = c;
    group = ~0ull;
}
EXPORT void msl_count_finish() { finish_group(); }

// Called by kernels: does this thread run?
EXPORT bool msl_count_wanted(const msl_position* p) {
    std::uint64_t index = index_of(p);
    if (index != group) finish_group();
    group = index;
    return counting->wanted[index];
}
EXPORT void msl_count_block(const msl_position* p, std::uint32_t block) { turn_of(p, block)++; }
EXPORT void msl_count_access(const msl_position* p, std::uint32_t site, const char* address, std::uint32_t bytes) {
    const Site& s = counting->sites[site];
    counting->site_counts[site].bytes += bytes;
    for (std::uint32_t i = 0; i < counting->range_count; i++) {
        const Range& r = counting->ranges[i];
        if (address < r.data || address >= r.data + r.bytes) continue;
        std::uint32_t buffer = i + (s.writes ? counting->range_count : 0);
        records.push_back({buffer, p->thread_index_in_threadgroup / 32, s.block, turn_of(p, s.block), site, bytes,
                           std::uint64_t(address - r.data)});
    }
}
