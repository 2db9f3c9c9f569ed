// Selects the experts of each token and their weights. One simdgroup per token; its lanes hold the scores of experts
// lane, lane + 32, … in registers. The best expert is removed `used` times, each time by two reductions: the highest
// score, then the lowest id that has it. Scores are compared as integers, so that NaN and zeros of either sign are
// ordered independently of the compiler's floating-point optimizations.
#pragma once

#include "numbers.h"

enum { SOFTMAX, SIGMOID };

constant constexpr int INFINITY_BITS = 0x7f800000; // the bits of a float
constant constexpr int NO_KEY = -0x7fffffff;       // lower than any key
constant constexpr float MIN_SUM = 1e-20f;         // avoids division by 0: sigmoids can all be 0
constant constexpr int NO_EXPERT = 0x7fffffff;     // higher than any id

struct RouteShape {
    int experts, used, groups, groups_used;
};

// Maps a float to an integer key of the same order: 0 for both zeros, NaN as -infinity.
METAL_FUNC int float_to_key(float x) {
    int bits = as_type<int>(x), size = bits & 0x7fffffff;
    if (size > INFINITY_BITS) return -INFINITY_BITS;
    return bits < 0 ? -size : size;
}

// Keys of experts or expert groups lane + 32 j.
template <int PER_LANE>
struct Keys {
    int v[PER_LANE];
};

// Removes the highest key of all lanes, of equal ones that with the lowest id, and returns its id in every lane.
template <int PER_LANE>
METAL_FUNC int pop_max(thread Keys<PER_LANE>& keys, uint lane) {
    int best = NO_KEY, id = NO_EXPERT;
    UNROLL for (int j = 0; j < PER_LANE; j++) {
        if (keys.v[j] > best) {
            best = keys.v[j];
            id = 32 * j + lane;
        }
    }
    id = simd_min(best == simd_max(best) ? id : NO_EXPERT);
    UNROLL for (int j = 0; j < PER_LANE; j++) {
        if (id == 32 * j + int(lane)) keys.v[j] = NO_KEY;
    }
    return id;
}

// Turns a logit into a score. highest, sum: the maximum and the denominator of the softmax
template <int GATING>
struct Scorer {
    float highest, sum;

    float operator()(float logit) const {
        return GATING == SOFTMAX ? exp(logit - highest) / sum : 1 / (1 + exp(-logit));
    }
};

template <int GATING, typename X>
METAL_FUNC Scorer<GATING> make_scorer(X logits, int experts, uint lane) {
    if (GATING == SIGMOID) return Scorer<GATING>{0, 1};
    float highest = -INFINITY, sum = 0;
    for (int e = lane; e < experts; e += 32) highest = max(highest, float(logits[e]));
    highest = simd_max(highest);
    for (int e = lane; e < experts; e += 32) sum += exp(float(logits[e]) - highest);
    return Scorer<GATING>{highest, simd_sum(sum)};
}

// The sum of the two highest of n scores; of one score, the score.
METAL_FUNC float sum_top_two(const threadgroup float* scores, int n) {
    float first = scores[0], second = -INFINITY;
    for (int i = 1; i < n; i++) {
        second = max(second, min(first, scores[i]));
        first = max(first, scores[i]);
    }
    return n > 1 ? first + second : first;
}

// Sets the keys of experts outside the best groups to that of -infinity. scores: (experts,)
template <int PER_LANE>
METAL_FUNC void keep_best_groups(thread Keys<PER_LANE>& keys, const threadgroup float* scores, RouteShape s,
                                 uint lane) {
    int size = s.experts / s.groups;
    Keys<PER_LANE> groups;
    UNROLL for (int j = 0; j < PER_LANE; j++) {
        int g = 32 * j + lane;
        groups.v[j] = g < s.groups ? float_to_key(sum_top_two(scores + g * size, size)) : NO_KEY;
    }
    uint kept = 0; // bit j: keep key j
    for (int i = 0; i < s.groups_used; i++) {
        int first = pop_max(groups, lane) * size;
        UNROLL for (int j = 0; j < PER_LANE; j++) {
            int e = 32 * j + lane;
            if (e >= first && e < first + size) kept |= 1u << j;
        }
    }
    UNROLL for (int j = 0; j < PER_LANE; j++) {
        if (keys.v[j] != NO_KEY && !(kept >> j & 1)) keys.v[j] = -INFINITY_BITS;
    }
}

// One token: logits, bias: (experts,), bias read if BIAS -> ids, weights: (used,), used at most 32.
// scores: (experts,), used if GROUPED
template <int PER_LANE, int GATING, bool NORMALISE, bool BIAS, bool GROUPED, typename X, typename P>
METAL_FUNC void route(X logits, P bias, device int* ids, device float* weights, RouteShape s, float scale,
                      threadgroup float* scores, uint lane) {
    Scorer<GATING> scorer = make_scorer<GATING>(logits, s.experts, lane);
    Keys<PER_LANE> keys;
    UNROLL for (int j = 0; j < PER_LANE; j++) {
        int e = 32 * j + lane;
        keys.v[j] = NO_KEY;
        if (e >= s.experts) continue;
        float score = logits[e];
        // softmax keeps the order and logits are more precise; but groups compare sums of scores
        if (GATING == SIGMOID || BIAS || GROUPED) score = scorer(score);
        if (BIAS) score += float(bias[e]);
        keys.v[j] = float_to_key(score);
        if (GROUPED) scores[e] = keys.v[j] == -INFINITY_BITS ? -INFINITY : score;
    }
    if (GROUPED) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        keep_best_groups(keys, scores, s, lane);
    }
    int expert = 0;
    for (int i = 0; i < s.used; i++) {
        int id = pop_max(keys, lane);
        if (int(lane) == i) expert = id;
    }
    bool active = int(lane) < s.used;
    float weight = active ? scorer(float(logits[expert])) : 0;
    if (NORMALISE) weight /= simd_sum(weight) + MIN_SUM;
    if (!active) return;
    ids[lane] = expert;
    weights[lane] = weight * scale;
}
