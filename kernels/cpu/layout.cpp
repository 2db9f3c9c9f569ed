// Where the fields of the structs lie that Python mirrors, so that it can compare; see calls.py.
#include "layout.h"

#include <cstddef>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "calls.h"
#include "replay.h"

namespace {

struct Field {
    const char* name;
    char kind;
    size_t at, size;
};

// p: pointer, f: floating point, i: integer; of an array, its elements.
template <typename T>
constexpr char kind() {
    using Element = std::remove_all_extents_t<T>;
    return std::is_pointer_v<Element> ? 'p' : std::is_floating_point_v<Element> ? 'f' : 'i';
}

void describe(std::string& out, const char* name, size_t size, std::initializer_list<Field> fields) {
    out += std::string(name) + " s 0 " + std::to_string(size) + "\n";
    for (const Field& f : fields)
        out += std::string(name) + "." + f.name + " " + f.kind + " " + std::to_string(f.at) + " " +
               std::to_string(f.size) + "\n";
}

#define F(field) {#field, kind<decltype(T::field)>(), offsetof(T, field), sizeof(T::field)}
#define STRUCT(name, ...)                                                                                              \
    {                                                                                                                  \
        using T = name;                                                                                                \
        describe(out, #name, sizeof(T), {__VA_ARGS__});                                                                \
    }

std::string described() {
    std::string out;
    STRUCT(Weight, F(data), F(type), F(rows), F(bias))
    STRUCT(Matmuls, F(x), F(w), F(add), F(out), F(n), F(k), F(count))
    STRUCT(GateUp, F(x), F(w), F(out), F(n), F(k), F(act))
    STRUCT(Rows, F(w), F(ids), F(out), F(n), F(k), F(scale))
    STRUCT(Put, F(source), F(to), F(at), F(batch), F(heads), F(length), F(row), F(source_strides), F(to_strides))
    STRUCT(Attention, F(q), F(k), F(v), F(out), F(batch), F(heads), F(groups), F(length), F(held), F(d), F(dv),
           F(window), F(halves), F(both_ways), F(k_batch), F(k_head), F(k_stride), F(v_batch), F(v_head), F(v_stride),
           F(scale))
    STRUCT(Rotate, F(q), F(k), F(v), F(q_weight), F(k_weight), F(frequencies), F(offset), F(turned), F(added), F(batch),
           F(length), F(heads), F(groups), F(d), F(dv), F(pairs), F(interleaved), F(magnitude), F(eps), F(later))
    STRUCT(RmsNorm, F(x), F(weight), F(add), F(out), F(rows), F(d), F(eps))
    STRUCT(Gelu, F(x), F(out), F(count))
    STRUCT(SigmoidGate, F(x), F(gate), F(add), F(out), F(rows), F(d))
    STRUCT(Route, F(logits), F(bias), F(ids), F(weights), F(n), F(experts), F(used), F(sigmoid), F(normalise),
           F(groups), F(groups_used), F(scale))
    STRUCT(Gather, F(x), F(w), F(ids), F(out), F(n), F(used), F(experts), F(k), F(count), F(act))
    STRUCT(GatherDown, F(x), F(w), F(ids), F(weights), F(add), F(out), F(n), F(used), F(experts), F(k))
    STRUCT(Call, F(kind), F(arguments))
    return out;
}

} // namespace

const char* layout() {
    static const std::string text = described();
    return text.c_str();
}
