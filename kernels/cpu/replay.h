// Recorded calls of one decode step, run again for a later position: nothing differs but where keys
// and values are put, how many of them are seen, and by how much queries and keys are turned.
#pragma once

struct Call {
    long kind;             // as in KINDS of calls.py
    const void* arguments; // the struct of that kind, see calls.h
};

void replay(const Call& call, long later);
