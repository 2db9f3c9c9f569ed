// x ~ a q - b: a scale and a minimum for N weights with codes q from 0 to TOP.
#pragma once

#include "codes.h"

struct Line {
    Floats a, b, error;

    FERRUM_INLINE void keep(const Line& other) {
        Ints better = other.error < error;
        put(better, a, other.a);
        put(better, b, other.b);
        put(better, error, other.error);
    }
};

// What a line leaves, r = x - a q + b with the codes nearest to x, and the sums that tell a better one for these codes.
struct LineRest {
    Floats error; // sum of w r²
    Floats r, rq; // sums of w r, w r q
    Floats q, qq; // sums of w q, w q²

    // The best line for the codes. w: sum of w; positive: whether b must not be less than 0
    FERRUM_INLINE Line refit(const Line& at, Floats w, bool positive) const {
        Floats determinant = qq * w - q * q;
        Ints apart = determinant > 1e-6f * qq * w; // else all codes are the same
        Floats a = apart ? (rq * w - r * q) / determinant : Floats{};
        Floats b = apart ? (rq * q - r * qq) / determinant : over(-r, w);
        if (positive) {
            Ints below = at.b + b < 0;
            put(below, b, -at.b);
            put(below, a, over(rq + b * q, qq));
        }
        Floats gain = 2 * (a * rq - b * r) - a * a * qq + 2 * a * b * q - b * b * w;
        return {at.a + a, at.b + b, error - gain};
    }
};

template <int TOP, int N>
FERRUM_INLINE LineRest line_rest(const Floats* x, const Floats* w, Floats a, Floats b) {
    Floats inverse = over(repeat(1), a);
    LineRest out{};
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
        Floats above = x[i] + b, q = Whole<0, TOP>::nearest(above, inverse), r = above - a * q;
        Floats wr = w[i] * r, wq = w[i] * q;
        out.error += wr * r;
        out.r += wr;
        out.rq += wr * q;
        out.q += wq;
        out.qq += wq * q;
    }
    return out;
}

// The error alone.
template <int TOP, int N>
FERRUM_INLINE Floats line_error(const Floats* x, const Floats* w, Floats a, Floats b) {
    Floats inverse = over(repeat(1), a), even{}, odd{};
#pragma GCC unroll 4
    for (int i = 0; i < N; i += 2) {
        Floats x0 = x[i] + b, r0 = x0 - a * Whole<0, TOP>::nearest(x0, inverse);
        Floats x1 = x[i + 1] + b, r1 = x1 - a * Whole<0, TOP>::nearest(x1, inverse);
        even += w[i] * r0 * r0;
        odd += w[i + 1] * r1 * r1;
    }
    return even + odd;
}

template <int N>
FERRUM_INLINE Floats sum(const Floats* v) {
    Floats total{};
    for (int i = 0; i < N; i++) total += v[i];
    return total;
}

// The range of the weights whose loss would be felt beside the error of so many levels. total: of w
template <int N>
FERRUM_INLINE void range(const Floats* x, const Floats* w, Floats total, float levels, Floats& low, Floats& high) {
    Floats mean{}, most{};
    for (int i = 0; i < N; i++) mean += w[i] * x[i];
    mean /= total;
    for (int i = 0; i < N; i++) most = larger(most, w[i] * (x[i] - mean) * (x[i] - mean));
    most *= FELT / (levels * levels);
    low = high = mean;
    for (int i = 0; i < N; i++) {
        Ints felt = w[i] * (x[i] - mean) * (x[i] - mean) >= most;
        put(felt, low, smaller(low, x[i]));
        put(felt, high, larger(high, x[i]));
    }
}

// Lines that are tried: those that leave out so many steps of the range at its low and at its high end.
struct Corners {
    float first, last;
    int steps;

    float at(int i) const { return steps > 1 ? first + (last - first) * i / (steps - 1) : first; }
};

// The best of them, refitted to its codes.
template <int TOP, int N>
inline Line scan_lines(const Floats* x, const Floats* w, Floats low, Floats high, Corners corners, bool positive) {
    Line best{Floats{}, Floats{}, repeat(3e38f)};
    Floats step = (high - low) * (1.0f / TOP), weight = sum<N>(w);
    for (int i = 0; i < corners.steps; i++) {
        for (int j = 0; j < corners.steps; j++) {
            Floats b = -low - step * corners.at(i);
            if (positive) b = larger(b, Floats{});
            Floats a = (high - step * corners.at(j) + b) * (1.0f / TOP);
            LineRest found = line_rest<TOP, N>(x, w, a, b);
            best.keep(found.refit({a, b, found.error}, weight, positive));
        }
    }
    return best;
}
