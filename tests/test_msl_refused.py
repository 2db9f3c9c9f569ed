"""What Apple's compiler would refuse is an error on the host too, which names the line."""

from __future__ import annotations

import mlx.core as mx
import pytest
from metal_call import kernel, launch, needs_host
from msl import SourceError, metal_on_cpu

REFUSED = {
    "pointers across spaces": (
        "thread float* p = y;",
        "cannot initialize a variable of type '__private float",
    ),
    "a constant written": ("a[0] = 1;", "read-only variable"),
    "half to bfloat": ("bfloat b = half(a[0]);", "rvalue of type 'half'"),
    "vector of wrong size": ("float4 v = float4(1, 2);", "wrong number of elements"),
    "vectors of two types": ("float4 v = int4(1) + float4(1);", "vector"),
    "min of two types": ("int i = min(1, 2u);", "ambiguous"),
    "an unknown name": ("float x = simd_cumsum(1.0f);", "undeclared identifier"),
    "a standard header": ("#include <vector>\n", "file not found"),
    "an array of variable length": (
        "int n = int(a[0]); float v[n];",
        "array size is not a constant",
    ),
    "a device method call": (
        "const device S* s = (const device S*)y; s->get();",
        "'this' argument",
    ),
    "pointer without space": ("float* p = 0;", r"body:2: a pointer without"),
    "reference without space": ("S& s = *(thread S*)0;", r"body:2: a reference without"),
    "pointer to a type argument": ("G<float>::f(0);", r"header:8: a pointer without"),
    "pointer to pointer": ("device float** p = 0;", "inner pointer"),
    "implicit conversion": (
        "float f = a[0]; bfloat b = f;",
        r"body:2: an implicit conversion to bfloat",
    ),
    "implicit conversion of a number": (
        "bfloat b = 1.5f;",
        r"body:2: an implicit conversion to bfloat",
    ),
    "implicit conversion in a sum": (
        "bfloat b = 1bf; b += a[0];",
        "an implicit conversion to bfloat",
    ),
    "implicit conversion returned": (
        "bfloat b = narrow(a[0]);",
        r"header:5: an implicit conversion to bfloat",
    ),
    "recursion": ("y[0] = fall(int(a[0]));", r"header:6: recursion"),
    "mutable global": ("y[0] = count++;", "must reside in constant address space"),
    "static variable": ("static int n = 0;", "static"),
    "constant in a function": (
        "constant float t[2] = {1, 2};",
        "a constant variable inside a function",
    ),
    "threadgroup variable in a function": (
        "y[0] = helper();",
        r"header:11: a threadgroup variable outside",
    ),
    "threadgroup variable with a value": ("threadgroup float t = 1;", "initial value"),
    "double": ("double x = 1;", "Metal has no double"),
    "goto": ("goto end; end: ;", "Metal has no goto"),
    "new": ("device float* p = new float;", "Metal has no heap"),
    "exceptions": ("throw 1;", "Metal has no exceptions"),
    "lambda": ("auto f = [&](int i) { return i; }; y[0] = f(1);", "Metal has no lambdas"),
    "std": ("std::max(1, 2);", "namespace metal"),
    "OpenCL": ("__global float* p = y;", "OpenCL's"),
    "clang's functions": ("y[0] = __builtin_expf(1);", "is not Metal's"),
    "the host's functions": ("y[0] = msl_lane();", "is not Metal's"),
    "long long": ("long long x = 1;", "Metal has no long long"),
    "a vector from one value in braces": ("float4 v = float4{1};", r"float4\{\} with 1 values"),
    "MLX's names": ("", r"header:12: ceildiv is declared by MLX too"),
}
BASE = {
    "a device method call": "struct S { float x; float get() const { return x; } };",
    "reference without space": "struct S { float x; };",
    "pointer to a type argument": "template <typename T> struct G { static void f(T* p) {} };",
    "implicit conversion returned": "inline bfloat narrow(float x) { return x; }",
    "recursion": "inline int fall(int n) { return n < 2 ? 1 : n * fall(n - 1); }",
    "mutable global": "int count;",
    "threadgroup variable in a function": "inline float helper() { threadgroup float t[4]; return t[0]; }",
    "MLX's names": "inline int ceildiv(int a, int b) { return (a + b - 1) / b; }",
}
LINES = {"pointer to a type argument": 8, "implicit conversion returned": 5, "recursion": 6,
         "threadgroup variable in a function": 11, "MLX's names": 12}  # fmt: skip


@needs_host
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compile(name):
    source, message = REFUSED[name]
    header = "\n" * (LINES.get(name, 1) - 1) + BASE.get(name, "")
    text = kernel(f"\n{source}\ny[1] = 2;", 1, 1, header)
    with metal_on_cpu(), pytest.raises(SourceError, match=message) as error:
        launch(text, [mx.zeros(8)], [((8,), mx.float32)], grid=1)
    assert "test body" in str(error.value) or "test header" in str(error.value)


@needs_host
def test_an_error_is_told_without_the_warnings_before_it():
    text = kernel("float f = uint(a[0]);\nint n = f;\nfloat2 v = nothing; y[0] = n;", 1, 1)
    with metal_on_cpu(), pytest.raises(SourceError) as error:
        launch(text, [mx.zeros(8)], [((8,), mx.float32)], grid=1)
    assert str(error.value).startswith("test body:3:12: error: use of undeclared identifier")
    assert "warning:" not in str(error.value)
