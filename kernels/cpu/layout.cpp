// The structs that calls.py mirrors.
#include "layout.h"

#include "calls.h"
#include "describe.h"
#include "replay.h"

namespace {

std::string described() {
    std::string out;
    STRUCT(out, Weight, F(data), F(type), F(rows), F(bias))
    STRUCT(out, Matmuls, F(x), F(w), F(add), F(out), F(n), F(k), F(count))
    STRUCT(out, GateUp, F(x), F(w), F(out), F(n), F(k), F(act))
    STRUCT(out, Rows, F(w), F(ids), F(out), F(n), F(k), F(scale))
    STRUCT(out, Put, F(source), F(to), F(at), F(batch), F(heads), F(length), F(row), F(source_strides), F(to_strides))
    STRUCT(out, Attention, F(q), F(k), F(v), F(out), F(batch), F(heads), F(groups), F(length), F(held), F(d), F(dv),
           F(window), F(halves), F(both_ways), F(k_batch), F(k_head), F(k_stride), F(v_batch), F(v_head), F(v_stride),
           F(scale))
    STRUCT(out, Rotate, F(q), F(k), F(v), F(q_weight), F(k_weight), F(frequencies), F(offset), F(turned), F(added),
           F(batch), F(length), F(heads), F(groups), F(d), F(dv), F(pairs), F(interleaved), F(magnitude), F(eps),
           F(later))
    STRUCT(out, RmsNorm, F(x), F(weight), F(add), F(out), F(rows), F(d), F(eps))
    STRUCT(out, Gelu, F(x), F(out), F(count))
    STRUCT(out, SigmoidGate, F(x), F(gate), F(add), F(out), F(rows), F(d))
    STRUCT(out, Route, F(logits), F(bias), F(ids), F(weights), F(n), F(experts), F(used), F(sigmoid), F(normalise),
           F(groups), F(groups_used), F(scale))
    STRUCT(out, Gather, F(x), F(w), F(ids), F(out), F(n), F(used), F(experts), F(k), F(count), F(act))
    STRUCT(out, GatherDown, F(x), F(w), F(ids), F(weights), F(add), F(out), F(n), F(used), F(experts), F(k))
    STRUCT(out, Call, F(kind), F(arguments))
    return out;
}

} // namespace

const char* layout() {
    static const std::string text = described();
    return text.c_str();
}
