// Calls of the library with random arguments: structs as it describes them, and outputs that have to be written whole.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "calls.h"
#include "prelude.h"

extern "C" {
const char* ferrum_layout();
const char* ferrum_error();
int ferrum_run(const Call* calls, int count);
}

namespace {

constexpr uint UNTOUCHED = 0x7fc0beef;

using Random = std::mt19937;
using Floats = std::vector<float>;

Floats floats(Random& random, size_t count) {
    Floats out(count);
    for (float& x : out) x = std::normal_distribution<float>()(random);
    return out;
}

void fail(const std::string& why) {
    std::fprintf(stderr, "%s\n", why.c_str());
    std::abort();
}

// The kinds of calls as the library describes them, as native.py does.
struct Place {
    char kind;
    size_t offset, size;
};

struct Struct {
    long number;
    size_t size;
    std::map<std::string, Place> fields;
};

std::map<std::string, Struct> described() {
    std::map<std::string, Struct> out;
    std::istringstream lines(ferrum_layout());
    std::string name;
    Place at;
    for (long number = -2; lines >> name >> at.kind >> at.offset >> at.size;) // below 0: Weight and Source, no calls
        if (at.kind == 's')
            out[name] = {number++, at.size, {}};
        else {
            size_t dot = name.find('.');
            out.at(name.substr(0, dot)).fields[name.substr(dot + 1)] = at;
        }
    return out;
}

const Struct& described(const std::string& name) {
    static const std::map<std::string, Struct> all = described();
    return all.at(name);
}

// The value of a field.
struct Value {
    const char* name;
    char kind;
    const void* pointer = nullptr;
    long integer = 0;
    float real = 0;

    Value(const char* name, const void* x) : name(name), kind('p'), pointer(x) {}
    Value(const char* name, std::nullptr_t) : name(name), kind('p') {}
    Value(const char* name, int x) : name(name), kind('i'), integer(x) {}
    Value(const char* name, long x) : name(name), kind('i'), integer(x) {}
    Value(const char* name, double x) : name(name), kind('f'), real(float(x)) {}
};

// A call's arguments; every field has to be given.
class Arguments {
public:
    Arguments(const char* name, std::initializer_list<Value> values) : struct_(described(name)), bytes_(struct_.size) {
        if (values.size() != struct_.fields.size()) fail(std::string(name) + ": not all fields are given");
        for (const Value& v : values) set(v);
    }
    Call call() const { return {struct_.number, bytes_.data()}; }

private:
    void set(const Value& v) {
        const Place& at = struct_.fields.at(v.name);
        if (at.kind != v.kind) fail(std::string(v.name) + ": of another kind");
        int narrow = int(v.integer);
        const void* from = v.kind == 'p' ? (const void*)&v.pointer : v.kind == 'f' ? &v.real : (const void*)&v.integer;
        std::memcpy(&bytes_[at.offset], v.kind == 'i' && at.size == 4 ? &narrow : from, at.size);
    }

    const Struct& struct_;
    std::vector<char> bytes_;
};

void run(const std::vector<Call>& calls) {
    if (ferrum_run(calls.data(), int(calls.size()))) fail(ferrum_error());
}

void run(const char* name, std::initializer_list<Value> values) {
    Arguments arguments(name, values);
    run({arguments.call()});
}

// An output in which values that are never written are seen.
class Output {
public:
    explicit Output(size_t count) : values_(count, as_float(UNTOUCHED)) {}
    ~Output() {
        for (float x : values_)
            if (as_uint(x) == UNTOUCHED) fail("a value was not written");
    }
    operator const void*() { return values_.data(); }

private:
    Floats values_;
};

} // namespace
