// Structs that Python fills, described as text: a line for each struct and each of its fields with name, kind, offset
// and size. Names are "Struct" and "Struct.field"; kinds are s (struct), p (pointer),
// f (floating point) and i (integer); of an array, the kind of its elements. See calls.py.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

struct Field {
    const char* name;
    char kind;
    size_t at, size;
};

template <typename T>
constexpr char kind() {
    using Element = std::remove_all_extents_t<T>;
    return std::is_pointer_v<Element> ? 'p' : std::is_floating_point_v<Element> ? 'f' : 'i';
}

inline void describe(std::string& out, const char* name, size_t size, const std::vector<Field>& fields) {
    out += std::string(name) + " s 0 " + std::to_string(size) + "\n";
    for (const Field& f : fields)
        out += std::string(name) + "." + f.name + " " + f.kind + " " + std::to_string(f.at) + " " +
               std::to_string(f.size) + "\n";
}

#define F(field) {#field, kind<decltype(T::field)>(), offsetof(T, field), sizeof(T::field)}
// Describe struct `name` at the end of `out`; each field as F(field).
#define STRUCT(out, name, ...)                                                                                         \
    {                                                                                                                  \
        using T = name;                                                                                                \
        describe(out, #name, sizeof(T), {__VA_ARGS__});                                                                \
    }
