// 256 weights as d s[g] q - dmin m[g]: float16 d and dmin, a whole scale and minimum for each group of N weights.
#pragma once

#include "line.h"

// What is searched: lines of a group by itself; then `starts` pairs of d and dmin, and for each `rounds` times whole
// scales up to `window` away from the group's own, minimums up to `slack` from what suits the scale, and a d and dmin
// that suit them.
struct AffineSearch {
    Corners corners;
    int starts, window, slack, rounds;
    bool both; // also the weights' negatives, with d and dmin below 0
};

// TOP: the largest code; MOST: the largest whole scale and minimum
template <int TOP, int N, int MOST>
class AffineK {
public:
    static constexpr int GROUPS = 256 / N, CHOICES = MOST > 15 ? 16 : 8;

    Floats d{}, dmin{}, s[GROUPS] = {}, m[GROUPS] = {};

    AffineK(Lanes<256>& in, const AffineSearch& search) : in_(in), search_(search), best_(repeat(3e38f)) {
        run(1);
        if (search.both) {
            negate();
            run(-1);
            negate();
        }
    }

private:
    Lanes<256>& in_;
    const AffineSearch& search_;
    Floats best_, own_a_[GROUPS], own_b_[GROUPS], slope_[GROUPS], spread_[GROUPS], weight_[GROUPS];

    struct Found {
        Floats error, s, m;
        LineRest rest;
    };

    void negate() {
        for (Floats& x : in_.x) x = -x;
    }

    void run(float sign) {
        Floats most_a{}, most_b{};
        for (int g = 0; g < GROUPS; g++) {
            const Floats *x = in_.x + N * g, *w = in_.w + N * g;
            Floats low, high;
            weight_[g] = sum<N>(w);
            range<N>(x, w, weight_[g], TOP, low, high);
            low = smaller(low, Floats{});
            Line line = scan_lines<TOP, N>(x, w, low, high, search_.corners, true);
            LineRest at = line_rest<TOP, N>(x, w, line.a, line.b);
            own_a_[g] = line.a;
            own_b_[g] = line.b;
            slope_[g] = at.q / weight_[g];
            spread_[g] = at.qq - at.q * slope_[g];
            most_a = larger(most_a, line.a);
            most_b = larger(most_b, line.b);
        }
        for (int i = 0; i < search_.starts; i++) start(most_a, most_b, sign, i);
    }

    void start(Floats most_a, Floats most_b, float sign, int number) {
        Floats a{}, b{};
        choose(most_a, most_b, number, a, b);
        Found found[GROUPS] = {};
        Ints going = a == a; // a lane at rest stays, whatever the others do
        for (int round = 0; round <= search_.rounds && any(going); round++) {
            Floats before_a = a, before_b = b, error{};
            for (int g = 0; g < GROUPS; g++) {
                if (round)
                    again(g, a, b, found[g]);
                else
                    first(g, a, b, found[g]);
                found[g].rest = line_rest<TOP, N>(in_.x + N * g, in_.w + N * g, a * found[g].s, b * found[g].m);
                error += found[g].error;
            }
            keep((error < best_) & going, error, a, b, sign, found);
            refit(found, a, b);
            going &= (a != before_a) | (b != before_b);
        }
    }

    // The a and b whose multiples are nearest to the groups' own scales and minimums, of those that give the largest
    // of these MOST, or somewhat less. Each start has choices of its own.
    void choose(Floats most_a, Floats most_b, int number, Floats& best_a, Floats& best_b) const {
        Floats least = repeat(3e38f);
        for (int i = number; i < CHOICES; i += search_.starts) {
            Floats a = as_half(most_a * (1.0f / (MOST - i)), in_.unit, in_.scale), inverse = over(repeat(1), a);
            Floats off{}, suits[GROUPS];
            for (int g = 0; g < GROUPS; g++) {
                Floats change = a * whole(clamped(own_a_[g] * inverse, 0, MOST)) - own_a_[g];
                suits[g] = own_b_[g] + change * slope_[g];
                off += change * change * spread_[g];
            }
            for (int j = 0; j < CHOICES; j++) {
                Floats b = as_half(most_b * (1.0f / (MOST - j)), in_.unit, in_.scale), sum = off;
                inverse = over(repeat(1), b);
                for (int g = 0; g < GROUPS; g++) {
                    Floats change = b * whole(clamped(suits[g] * inverse, 0, MOST)) - suits[g];
                    sum += change * change * weight_[g];
                }
                put(sum < least, best_a, a);
                put(sum < least, best_b, b);
                least = smaller(least, sum);
            }
        }
    }

    void keep(Ints better, Floats error, Floats a, Floats b, float sign, const Found* found) {
        put(better, best_, error);
        put(better, d, a * sign);
        put(better, dmin, b * sign);
        for (int g = 0; g < GROUPS; g++) put(better, s[g], found[g].s), put(better, m[g], found[g].m);
    }

    // Along the valley: a larger scale with a larger minimum.
    void first(int g, Floats a, Floats b, Found& best) {
        Floats inverse_a = over(repeat(1), a), inverse_b = over(repeat(1), b);
        Floats center = whole(clamped(own_a_[g] * inverse_a, 0, MOST));
        best.error = repeat(3e38f);
        for (int i = -search_.window; i <= search_.window; i++) {
            Floats s = clamped(center + repeat(i), 0, MOST);
            Floats suits = own_b_[g] + (s * a - own_a_[g]) * slope_[g];
            Floats m = whole(clamped(suits * inverse_b, 0, MOST));
            for (int j = -search_.slack; j <= search_.slack; j++)
                attempt(g, a, b, s, clamped(m + repeat(j), 0, MOST), best);
        }
    }

    void again(int g, Floats a, Floats b, Found& best) {
        Floats s = best.s, m = best.m;
        best.error = repeat(3e38f);
        for (int i = -1; i <= 1; i++)
            for (int j = -1; j <= 1; j++)
                attempt(g, a, b, clamped(s + repeat(i), 0, MOST), clamped(m + repeat(j), 0, MOST), best);
    }

    FERRUM_INLINE void attempt(int g, Floats a, Floats b, Floats s, Floats m, Found& best) {
        Floats error = line_error<TOP, N>(in_.x + N * g, in_.w + N * g, a * s, b * m);
        Ints better = error < best.error;
        put(better, best.error, error);
        put(better, best.s, s);
        put(better, best.m, m);
    }

    // The d and dmin that suit these whole numbers best.
    void refit(const Found* found, Floats& a, Floats& b) const {
        Floats uu{}, uv{}, vv{}, ru{}, rv{};
        for (int g = 0; g < GROUPS; g++) {
            const Found& f = found[g];
            uu += f.s * f.s * f.rest.qq;
            uv += f.s * f.m * f.rest.q;
            vv += f.m * f.m * weight_[g];
            ru += f.s * f.rest.rq;
            rv += f.m * f.rest.r;
        }
        Floats determinant = uu * vv - uv * uv;
        Ints apart = determinant > 1e-6f * uu * vv;
        a += apart ? (ru * vv - rv * uv) / determinant : over(ru, uu);
        b += apart ? (ru * uv - rv * uu) / determinant : Floats{};
        a = as_half(a, in_.unit, in_.scale);
        b = as_half(b, in_.unit, in_.scale);
    }
};
