// Metal's standard library for clang's C++ for OpenCL, which has MSL's address spaces and vectors.
// Names that start with msl_ are the host's; the functions among them are in ../runtime.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable

#define METAL_FUNC inline __attribute__((always_inline, convergent))

// clang-format off: each needs the one before
#include "types.h"
#include "runtime.h"
#include "traits.h"
#include "vectors.h"
#include "math.h"
#include "integer.h"
#include "simd.h"
#include "matrix.h"
#include "tensor.h"
#include "atomic.h"
// clang-format on

#define VECTOR uint3
#define SCALAR uint
#include "position.h"
#undef VECTOR
#undef SCALAR

// What MLX puts before every kernel, as far as kernels here may use it.
typedef half float16_t;
typedef bfloat bfloat16_t;
using namespace metal;
