// Turns of those who read slots themselves, such as a GPU: which slot has which matrix, once it is read.
#include <vector>

#include "calls.h"
#include "streamed.h"

namespace {

// A turn and what it needs to live.
struct Portions {
    Portions(Streamed& streamed, const int* ids, int count) : turn(streamed), numbers(ids, ids + count) {
        turn.begin(numbers);
    }
    Turn turn;
    const std::vector<int> numbers;
};

// Reads of some numbers, each once, begin; nobody else uses the slots until EndPortions. opened: what was begun.
struct BeginPortions {
    Streamed* streamed;
    const int* numbers;
    long* opened;
    int count;
};

// Waits for the next of them: range[0] to range[1], and where they are; none after the last.
struct NextPortion {
    long opened;
    int *range, *slots;
};

struct EndPortions {
    long opened;
};

void begin_portions(const BeginPortions& a) { *a.opened = long(new Portions(*a.streamed, a.numbers, a.count)); }

void next_portion(const NextPortion& a) {
    Portions& p = *(Portions*)a.opened;
    int &first = a.range[0], &last = a.range[1];
    if (!p.turn.next(first, last)) return;
    p.turn.finish(first, last);
    for (int i = first; i < last; i++) a.slots[i] = p.turn.slot_of(p.numbers[i]);
}

void end_portions(const EndPortions& a) { delete (Portions*)a.opened; }

CALL(BeginPortions, begin_portions, F(streamed), F(numbers), F(opened), F(count))
CALL(NextPortion, next_portion, F(opened), F(range), F(slots))
CALL(EndPortions, end_portions, F(opened))

} // namespace
