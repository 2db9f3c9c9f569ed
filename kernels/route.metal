// Which experts a token gets and how much each counts: a simdgroup a token, whose lanes hold the scores of experts
// lane, lane + 32, … in registers. The best is taken out as often as experts are wanted, each time by two reductions:
// the highest score, then the lowest id that has it. Scores are compared as integers, so that NaN and zeros of
// either sign have their place whatever a compiler makes of floats.
#pragma once

#include "numbers.h"

enum { SOFTMAX, SIGMOID };

constant constexpr int INFINITE = 0x7f800000;  // the bits of infinity
constant constexpr int TAKEN = -0x7fffffff;    // below all keys
constant constexpr float LEAST_SUM = 1e-20f;   // of weights that are divided by it; sigmoids can all be 0
constant constexpr int NO_EXPERT = 0x7fffffff; // above all ids

struct RouteShape {
    int experts, used, groups, groups_used;
};

// Integers in the order of floats, 0 for both zeros; NaN as low as -infinity.
METAL_FUNC int key_of(float x) {
    int bits = as_type<int>(x), size = bits & 0x7fffffff;
    if (size > INFINITE) return -INFINITE;
    return bits < 0 ? -size : size;
}

// Those of experts, or groups of them, lane + 32 j.
template <int EACH>
struct Keys {
    int of[EACH];
};

// Takes the highest key out of all lanes' keys, of equal ones that with the lowest id, which every lane gets.
template <int EACH>
METAL_FUNC int take_best(thread Keys<EACH>& keys, uint lane) {
    int best = TAKEN, id = NO_EXPERT;
    UNROLL for (int j = 0; j < EACH; j++) {
        if (keys.of[j] > best) {
            best = keys.of[j];
            id = 32 * j + lane;
        }
    }
    id = simd_min(best == simd_max(best) ? id : NO_EXPERT);
    UNROLL for (int j = 0; j < EACH; j++) {
        if (id == 32 * j + int(lane)) keys.of[j] = TAKEN;
    }
    return id;
}

// Scores of logits: of softmax with what all of a token's have in common.
template <int GATING>
struct Gate {
    float highest, sum;

    float operator()(float logit) const {
        return GATING == SOFTMAX ? exp(logit - highest) / sum : 1 / (1 + exp(-logit));
    }
};

template <int GATING, typename X>
METAL_FUNC Gate<GATING> gate_of(X logits, int experts, uint lane) {
    if (GATING == SIGMOID) return Gate<GATING>{0, 1};
    float highest = -INFINITY, sum = 0;
    for (int e = lane; e < experts; e += 32) highest = max(highest, float(logits[e]));
    highest = simd_max(highest);
    for (int e = lane; e < experts; e += 32) sum += exp(float(logits[e]) - highest);
    return Gate<GATING>{highest, simd_sum(sum)};
}

// The sum of the two best of n scores, or the only one.
METAL_FUNC float best_two(const threadgroup float* scores, int n) {
    float first = scores[0], second = -INFINITY;
    for (int i = 1; i < n; i++) {
        second = max(second, min(first, scores[i]));
        first = max(first, scores[i]);
    }
    return n > 1 ? first + second : first;
}

// Keys outside the best groups become those of -infinity. scores (experts,)
template <int EACH>
METAL_FUNC void keep_best_groups(thread Keys<EACH>& keys, const threadgroup float* scores, RouteShape s, uint lane) {
    int size = s.experts / s.groups;
    Keys<EACH> groups;
    UNROLL for (int j = 0; j < EACH; j++) {
        int g = 32 * j + lane;
        groups.of[j] = g < s.groups ? key_of(best_two(scores + g * size, size)) : TAKEN;
    }
    uint kept = 0; // bit j: key j
    for (int i = 0; i < s.groups_used; i++) {
        int first = take_best(groups, lane) * size;
        UNROLL for (int j = 0; j < EACH; j++) {
            int e = 32 * j + lane;
            if (e >= first && e < first + size) kept |= 1u << j;
        }
    }
    UNROLL for (int j = 0; j < EACH; j++) {
        if (keys.of[j] != TAKEN && !(kept >> j & 1)) keys.of[j] = -INFINITE;
    }
}

// One token: logits, bias: (experts,), bias read if BIAS says so -> ids, weights: (used,), used at most 32.
// scores: (experts,), if GROUPED.
template <int EACH, int GATING, bool NORMALISE, bool BIAS, bool GROUPED, typename X, typename P>
METAL_FUNC void route(X logits, P bias, device int* ids, device float* weights, RouteShape s, float scale,
                      threadgroup float* scores, uint lane) {
    Gate<GATING> gate = gate_of<GATING>(logits, s.experts, lane);
    Keys<EACH> keys;
    UNROLL for (int j = 0; j < EACH; j++) {
        int e = 32 * j + lane;
        keys.of[j] = TAKEN;
        if (e >= s.experts) continue;
        float score = logits[e];
        // softmax keeps the order, and logits are finer; groups are compared by sums, which it changes
        if (GATING == SIGMOID || BIAS || GROUPED) score = gate(score);
        if (BIAS) score += float(bias[e]);
        keys.of[j] = key_of(score);
        if (GROUPED) scores[e] = keys.of[j] == -INFINITE ? -INFINITY : score;
    }
    if (GROUPED) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        keep_best_groups(keys, scores, s, lane);
    }
    int mine = 0;
    for (int i = 0; i < s.used; i++) {
        int id = take_best(keys, lane);
        if (int(lane) == i) mine = id;
    }
    bool chose = int(lane) < s.used;
    float weight = chose ? gate(float(logits[mine])) : 0;
    if (NORMALISE) weight /= simd_sum(weight) + LEAST_SUM;
    if (!chose) return;
    ids[lane] = mine;
    weights[lane] = weight * scale;
}
