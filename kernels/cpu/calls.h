// What Python can ask for: a struct of arguments for each call, and the function that runs it. A file that has such a
// function registers it with CALL; native.py makes its structs from `layout`. Shapes were checked on the other side.
#pragma once

#include <string>
#include <vector>

#include "describe.h"

struct Kind {
    const char* name;
    size_t size;
    std::vector<Field> fields;
    void (*run)(const void*);
};

// Kinds in the order of their numbers, which may be another one in each library.
std::vector<Kind>& kinds();

struct Registered {
    explicit Registered(Kind kind) { kinds().push_back(std::move(kind)); }
};

// Calls of the kind `name` run function(const name&); each field as F(field).
#define CALL(name, function, ...)                                                                                      \
    static const Registered registered_##name([] {                                                                     \
        using T = name;                                                                                                \
        return Kind{#name, sizeof(T), {__VA_ARGS__}, [](const void* a) { function(*(const T*)a); }};                   \
    }());

// One call of several that follow each other.
struct Call {
    long kind;
    const void* arguments;
};

// Makes calls one after another: a single one, or a recorded step over memory whose contents have changed.
void run_calls(const Call* calls, int count);

// The structs as text, see describe.h: Weight and Source, then the kinds in the order of their numbers.
const char* layout();
