// The names that Python finds; see native.py.
#include <exception>
#include <new>
#include <string>

#include "ahead.h"
#include "bus_error.h"
#include "calls.h"
#include "errors.h"
#include "pool.h"
#include "prelude.h"

namespace {

thread_local std::string error;

enum Status { DONE, REFUSED, OUT_OF_MEMORY, NOT_READ }; // as in native.py

// Runs f, and notes what it throws: no exception may reach Python.
template <typename F>
int guarded(const F& f) {
    try {
        f();
        return DONE;
    } catch (const std::bad_alloc&) {
        error = "out of memory";
        return OUT_OF_MEMORY;
    } catch (const ReadError& e) {
        error = e.what();
        return NOT_READ;
    } catch (const std::exception& e) {
        error = e.what();
        return REFUSED;
    }
}

} // namespace

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

// See calls.h.
const char* ferrum_layout() { return layout(); }

void ferrum_set_threads(int n) {
    explain_bus_errors();
    pool_when_idle(ahead_fetch);
    pool_set_threads(n);
}

// Makes calls one after another, up to the first that fails; ferrum_error says why. A Status.
int ferrum_run(const Call* calls, int count) {
    return guarded([&] { run_calls(calls, count); });
}

// Why the last call of this thread failed.
const char* ferrum_error() { return error.c_str(); }
}
