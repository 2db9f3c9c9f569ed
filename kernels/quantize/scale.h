// x ~ a q: one scale, of either sign, for N weights whose codes stand for q.
#pragma once

#include "codes.h"

// What a scale leaves, r = x - a q with the codes nearest to x, and the sums that tell a better scale for these codes.
struct Rest {
    Floats error; // sum of w r²
    Floats rq;    // sum of w r q
    Floats qq;    // sum of w q²

    FERRUM_INLINE Floats change() const { return over(rq, qq); }             // of a
    FERRUM_INLINE Floats least() const { return error - over(rq * rq, qq); } // the error after it
};

template <typename Code, int N>
FERRUM_INLINE Rest rest(const Floats* x, const Floats* w, Floats a) {
    Floats inverse = over(repeat(1), a);
    Rest out{};
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
        Floats q = Code::nearest(x[i], inverse), r = x[i] - a * q, wq = w[i] * q;
        out.error += w[i] * r * r;
        out.rq += wq * r;
        out.qq += wq * q;
    }
    return out;
}

// The error alone.
template <typename Code, int N>
FERRUM_INLINE Floats rest_error(const Floats* x, const Floats* w, Floats a) {
    Floats inverse = over(repeat(1), a), even{}, odd{};
#pragma GCC unroll 4
    for (int i = 0; i < N; i += 2) {
        Floats r0 = x[i] - a * Code::nearest(x[i], inverse), r1 = x[i + 1] - a * Code::nearest(x[i + 1], inverse);
        even += w[i] * r0 * r0;
        odd += w[i + 1] * r1 * r1;
    }
    return even + odd;
}

// The weight of largest magnitude, of those whose loss would be felt beside the error of so many levels.
template <int N>
FERRUM_INLINE Floats peak(const Floats* x, const Floats* w, float levels) {
    Floats most{}, out{};
    for (int i = 0; i < N; i++) most = larger(most, w[i] * x[i] * x[i]);
    most *= FELT / (levels * levels);
    for (int i = 0; i < N; i++) put((w[i] * x[i] * x[i] >= most) & (magnitude(x[i]) > magnitude(out)), out, x[i]);
    return out;
}

// Scales that are tried: those that put the peak at `first` to `last` times an end of the codes, in so many steps.
struct Span {
    float first, last;
    int steps;
};

struct Scale {
    Floats a, error;

    FERRUM_INLINE void keep(const Scale& other) {
        Ints better = other.error < error;
        put(better, a, other.a);
        put(better, error, other.error);
    }
};

// The best of a span for one end of the codes, refitted to its codes.
template <typename Code, int N>
inline Scale scan(const Floats* x, const Floats* w, Floats peak, float end, Span span) {
    Scale best{Floats{}, repeat(3e38f)};
    for (int i = 0; i < span.steps; i++) {
        float share = span.steps > 1 ? span.first + (span.last - span.first) * i / (span.steps - 1) : span.first;
        Floats a = peak * (1 / (end * share));
        Rest found = rest<Code, N>(x, w, a);
        best.keep({a + found.change(), found.least()});
    }
    return best;
}

// The best scale for N weights that float16 holds. rounds: of codes for a scale and a scale for the codes
template <typename Code, int N>
Floats half_scale(const Lanes<N>& in, Span span, int rounds) {
    Floats most = peak<N>(in.x, in.w, Code::high - Code::low);
    Scale best = scan<Code, N>(in.x, in.w, most, Code::high, span);
    if (Code::low != -Code::high) best.keep(scan<Code, N>(in.x, in.w, most, Code::low, span));
    Floats a = best.a;
    best.error = repeat(3e38f);
    for (int i = 0; i <= rounds; i++) {
        a = as_half(a, in.unit, in.scale);
        Rest found = rest<Code, N>(in.x, in.w, a);
        best.keep({a, found.error});
        a = a + found.change();
    }
    return best.a;
}
