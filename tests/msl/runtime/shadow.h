// Who touched each byte last, so that two accesses without order between them are found whatever the schedule was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

enum class Access { read, write, atomic_read, atomic_write, atomic_modify };

inline bool is_atomic(Access a) { return a >= Access::atomic_read; }
inline bool reads(Access a) { return a == Access::read || a == Access::atomic_read || a == Access::atomic_modify; }
inline bool writes(Access a) { return a == Access::write || a == Access::atomic_write || a == Access::atomic_modify; }

// When and by whom. Barriers that order this kind of memory are counted: `epoch` those of the threadgroup, `step`
// those of the simdgroup. group 0: never.
struct Stamp {
    std::uint32_t group = 0, epoch = 0, step = 0;
    std::uint16_t thread = 0, simdgroup = 0;

    bool unordered(const Stamp& now) const {
        if (group == 0) return false;
        if (group != now.group) return true;
        if (thread == now.thread || epoch != now.epoch) return false;
        return simdgroup != now.simdgroup || step == now.step;
    }
};

struct Cell {
    Stamp write, atomic, read[2];
    std::uint32_t initialised = 0; // by this threadgroup; device memory: by any

    // Two readers are enough: of different threads, and where there are any, of different simdgroups.
    void add_reader(const Stamp& now) {
        if (read[0].unordered(now)) {
            bool other_kept = read[1].unordered(now) && read[1].simdgroup != now.simdgroup;
            if (read[0].simdgroup != now.simdgroup || !other_kept) read[1] = read[0];
        }
        read[0] = now;
    }
};

// What is wrong with an access; nullptr: nothing
struct Verdict {
    const char* kind = nullptr;
    bool between_groups = false;
};

// Memory of one kind. private_to_group: threadgroup memory, which starts uninitialised in every threadgroup.
class Shadow {
public:
    Shadow(std::size_t bytes, bool initialised, bool private_to_group)
        : cells(bytes), private_to_group(private_to_group) {
        if (initialised)
            for (Cell& c : cells) c.initialised = 1;
    }

    Verdict access(std::size_t at, std::size_t n, Access how, const Stamp& now) {
        Verdict found;
        for (std::size_t i = at; i < at + n; i++) {
            Verdict v = one(cells[i], how, now);
            if (v.kind && !found.kind) found = v;
        }
        return found;
    }

    std::size_t size() const { return cells.size(); }

    // The first byte that nothing wrote, or the size.
    std::size_t first_unwritten() const {
        auto empty = [](const Cell& c) { return !c.initialised; };
        return std::size_t(std::find_if(cells.begin(), cells.end(), empty) - cells.begin());
    }

private:
    std::vector<Cell> cells;
    bool private_to_group;

    Verdict one(Cell& c, Access how, const Stamp& now) {
        Verdict v = race(c, how, now);
        std::uint32_t mark = private_to_group ? now.group : 1;
        if (reads(how) && c.initialised != mark) v = {"uninitialised read"};
        if (writes(how)) c.initialised = mark;
        if (is_atomic(how))
            c.atomic = now;
        else if (how == Access::write)
            c.write = now;
        else
            c.add_reader(now);
        return v;
    }

    Verdict race(const Cell& c, Access how, const Stamp& now) const {
        if (differs(c.write, now)) return {"race", c.write.group != now.group};
        if (!is_atomic(how) && differs(c.atomic, now)) return {"race", c.atomic.group != now.group};
        for (const Stamp& r : c.read)
            if (writes(how) && differs(r, now)) return {"race", r.group != now.group};
        return {};
    }

    bool differs(const Stamp& before, const Stamp& now) const {
        if (private_to_group && before.group != now.group) return false;
        return before.unordered(now);
    }
};
