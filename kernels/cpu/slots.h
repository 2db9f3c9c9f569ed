// Slots in which recurrent states lie: a pass reads those of its sequences in sources, and writes them to targets.
#pragma once

#include <stdexcept>
#include <string>

inline void check_slot(const char* call, const char* what, int slot, int least, int slots) {
    if (slot < least || slot >= slots)
        throw std::out_of_range(std::string(call) + ": " + what + " slot " + std::to_string(slot) + ", expected " +
                                std::to_string(least) + " to " + std::to_string(slots - 1));
}

// Slots that the arguments of a call name exist.
template <typename Arguments>
void check_slots(const char* call, const Arguments& a) {
    for (int i = 0; i < a.sequences; i++) {
        check_slot(call, "source", a.sources[i], -1, a.slots);
        check_slot(call, "target", a.targets[i], 0, a.slots);
    }
}
