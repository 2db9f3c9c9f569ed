// The names that Python finds; see native.py.
#include "ahead.h"
#include "bus_error.h"
#include "calls.h"
#include "layout.h"
#include "pool.h"
#include "prelude.h"
#include "replay.h"

extern "C" {

// What the products were compiled for.
const char* ferrum_simd() {
#if defined(FERRUM_AVX512)
    return "AVX-512 with VNNI";
#elif defined(FERRUM_AVX2) && defined(FERRUM_DOT)
    return "AVX2 with VNNI";
#elif defined(FERRUM_AVX2)
    return "AVX2";
#elif defined(FERRUM_NEON) && defined(FERRUM_DOT)
    return "NEON with I8MM";
#elif defined(FERRUM_NEON)
    return "NEON";
#else
    return "portable";
#endif
}

// What compiled this.
const char* ferrum_compiler() {
#if defined(__clang__)
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}

// See layout.h.
const char* ferrum_layout() { return layout(); }

void ferrum_set_threads(int n) {
    explain_bus_errors();
    pool_when_idle(ahead_fetch);
    pool_set_threads(n);
}

void ferrum_matmuls(const Matmuls* a) { run(*a); }
void ferrum_gate_up(const GateUp* a) { run(*a); }
void ferrum_rows(const Rows* a) { run(*a); }
void ferrum_put(const Put* a) { run(*a); }
void ferrum_attend(const Attention* a) { run(*a); }
void ferrum_rotate(const Rotate* a) { run(*a); }
void ferrum_rms_norm(const RmsNorm* a) { run(*a); }
void ferrum_sigmoid_gate(const SigmoidGate* a) { run(*a); }
void ferrum_route(const Route* a) { run(*a); }
void ferrum_gather(const Gather* a) { run(*a); }
void ferrum_gather_down(const GatherDown* a) { run(*a); }
void ferrum_gelu(const Gelu* a) { run(*a); }

// The recorded calls again, `later` positions after those of the recording.
void ferrum_replay(const Call* calls, int count, long later) {
    for (int i = 0; i < count; i++) replay(calls[i], later);
}
}
