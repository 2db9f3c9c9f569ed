#include "replay.h"

#include <algorithm>

#include "calls.h"

namespace {

template <typename T>
T moved(T a, long) {
    return a;
}

template <>
Put moved(Put a, long later) {
    a.at += later;
    return a;
}

template <>
Rotate moved(Rotate a, long later) {
    a.later += later;
    return a;
}

// The keys end `later` positions further on; a full window begins further on, too.
template <>
Attention moved(Attention a, long later) {
    long held = a.held + later;
    if (a.window > 0) held = std::min(held, long(a.window));
    long dropped = a.held + later - held;
    a.held = int(held);
    long size = a.halves ? sizeof(short) : sizeof(float);
    a.k = (const char*)a.k + dropped * a.k_stride * size;
    a.v = (const char*)a.v + dropped * a.v_stride * size;
    return a;
}

template <typename T>
void run_later(const void* arguments, long later) {
    run(moved(*(const T*)arguments, later));
}

constexpr void (*RUN[])(const void*, long) = {run_later<Matmuls>, run_later<GateUp>,      run_later<Rows>,
                                              run_later<Put>,     run_later<Attention>,   run_later<Rotate>,
                                              run_later<RmsNorm>, run_later<SigmoidGate>, run_later<Route>,
                                              run_later<Gather>,  run_later<GatherDown>,  run_later<Gelu>};

} // namespace

void replay(const Call& call, long later) { RUN[call.kind](call.arguments, later); }
