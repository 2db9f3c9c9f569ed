// 256 weights as d s[g] q: a float16 d, a whole scale of either sign for each group of N weights.
#pragma once

#include "scale.h"

// What is searched: scales of a group by itself; then `starts` values of d, and for each `rounds` times whole scales
// that are up to `window` away from the group's own, and a d that suits them.
struct SymmetricSearch {
    Span span;
    int starts, window, rounds;
};

template <typename Code, int N, int LOW, int HIGH>
class SymmetricK {
public:
    static constexpr int GROUPS = 256 / N;

    Floats d{}, s[GROUPS] = {};

    SymmetricK(const Lanes<256>& in, const SymmetricSearch& search) : in_(in), search_(search), best_(repeat(3e38f)) {
        Floats most{};
        for (int g = 0; g < GROUPS; g++) {
            const Floats *x = in.x + N * g, *w = in.w + N * g;
            Floats top = peak<N>(x, w, Code::high - Code::low);
            Scale low = scan<Code, N>(x, w, top, Code::low, search.span);
            Scale high = scan<Code, N>(x, w, top, Code::high, search.span);
            Ints up = high.error < low.error;
            own_[g] = up ? high.a : low.a;
            other_[g] = up ? low.a : high.a;
            put(magnitude(own_[g]) > magnitude(most), most, own_[g]);
        }
        for (int i = 0; i < search.starts; i++) start(most, i);
    }

private:
    const Lanes<256>& in_;
    const SymmetricSearch& search_;
    Floats best_, own_[GROUPS], other_[GROUPS];

    // From a d that gives the largest scale LOW, or HIGH, or one nearer to 0.
    void start(Floats most, int number) {
        int inward = number / 2;
        float end = number % 2 ? HIGH - inward : LOW + inward;
        Floats a = as_half(most * (1 / end), in_.unit, in_.scale);
        Floats found[GROUPS] = {};
        Ints going = a == a; // a lane at rest stays, whatever the others do
        for (int round = 0; round <= search_.rounds && any(going); round++) {
            Floats before = a, inverse = over(repeat(1), a), error{}, au{}, uu{};
            for (int g = 0; g < GROUPS; g++) {
                Floats best = repeat(3e38f);
                if (round) {
                    near(g, a, found[g], 1, best, found[g]);
                } else {
                    near(g, a, whole(clamped(own_[g] * inverse, LOW, HIGH)), search_.window, best, found[g]);
                    near(g, a, whole(clamped(other_[g] * inverse, LOW, HIGH)), search_.window, best, found[g]);
                }
                Rest r = rest<Code, N>(in_.x + N * g, in_.w + N * g, a * found[g]);
                error += best;
                au += found[g] * r.rq;
                uu += found[g] * found[g] * r.qq;
            }
            Ints better = (error < best_) & going;
            put(better, best_, error);
            put(better, d, a);
            for (int g = 0; g < GROUPS; g++) put(better, s[g], found[g]);
            a = as_half(a + over(au, uu), in_.unit, in_.scale);
            going &= a != before;
        }
    }

    // The best whole scale of group g near `center`, given d = a.
    FERRUM_INLINE void near(int g, Floats a, Floats center, int window, Floats& best, Floats& found) {
        for (int step = -window; step <= window; step++) {
            Floats scale = clamped(center + repeat(step), LOW, HIGH);
            Floats error = rest_error<Code, N>(in_.x + N * g, in_.w + N * g, a * scale);
            Ints better = error < best;
            put(better, best, error);
            put(better, found, scale);
        }
    }
};
