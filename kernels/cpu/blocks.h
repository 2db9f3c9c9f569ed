// All block types, their ids, and the call that picks one at run time.
#pragma once

#include "prelude.h"

#pragma pack(push, 1)
#include "../blocks/bf16.h"
#include "../blocks/f16.h"
#include "../blocks/f32.h"
#include "../blocks/iq4_nl.h"
#include "../blocks/iq4_xs.h"
#include "../blocks/mxfp4.h"
#include "../blocks/q2_k.h"
#include "../blocks/q3_k.h"
#include "../blocks/q4_0.h"
#include "../blocks/q4_1.h"
#include "../blocks/q4_k.h"
#include "../blocks/q5_0.h"
#include "../blocks/q5_1.h"
#include "../blocks/q5_k.h"
#include "../blocks/q6_k.h"
#include "../blocks/q8_0.h"
#include "../blocks/q8_k.h"
#pragma pack(pop)

#undef device
#undef constant

// What a type's codes count from, w = scale * (code - origin); 0 where a block has a minimum instead.
template <typename B>
constexpr int origin = 0;
template <>
inline constexpr int origin<Q3_K> = 4;
template <>
inline constexpr int origin<Q4_0> = 8;
template <>
inline constexpr int origin<MXFP4> = 12;
template <>
inline constexpr int origin<Q5_0> = 16;
template <>
inline constexpr int origin<Q6_K> = 32;
template <>
inline constexpr int origin<Q8_0> = 128;
template <>
inline constexpr int origin<Q8_K> = 128;
template <>
inline constexpr int origin<IQ4_NL> = 128;
template <>
inline constexpr int origin<IQ4_XS> = 128;

template <typename B>
struct type_of {
    using type = B;
};

// Call f(type_of<B>{}) with the block type of a ggml id. False if there is no such type.
template <typename F>
bool with_block(int id, F&& f) {
    switch (id) {
    case 0:
        f(type_of<F32>{});
        return true;
    case 1:
        f(type_of<F16>{});
        return true;
    case 2:
        f(type_of<Q4_0>{});
        return true;
    case 3:
        f(type_of<Q4_1>{});
        return true;
    case 6:
        f(type_of<Q5_0>{});
        return true;
    case 7:
        f(type_of<Q5_1>{});
        return true;
    case 8:
        f(type_of<Q8_0>{});
        return true;
    case 10:
        f(type_of<Q2_K>{});
        return true;
    case 11:
        f(type_of<Q3_K>{});
        return true;
    case 12:
        f(type_of<Q4_K>{});
        return true;
    case 13:
        f(type_of<Q5_K>{});
        return true;
    case 14:
        f(type_of<Q6_K>{});
        return true;
    case 15:
        f(type_of<Q8_K>{});
        return true;
    case 20:
        f(type_of<IQ4_NL>{});
        return true;
    case 23:
        f(type_of<IQ4_XS>{});
        return true;
    case 30:
        f(type_of<BF16>{});
        return true;
    case 39:
        f(type_of<MXFP4>{});
        return true;
    default:
        return false;
    }
}
