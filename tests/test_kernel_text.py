"""Kernel text: what a body needs, and nothing else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import kernel, launch
from msl import metal_on_cpu

from mlx_ferrum.kernel_text import bare, needed, with_places
from mlx_ferrum.kernels.matvecs import _kernel as matvecs_kernel
from mlx_ferrum.kernels.route import _kernel as route_kernel

HEADER = """#line 1 "kernels/a.h"
#include <metal_stdlib>
// A comment.
using namespace metal;

#define TWICE(x) ((x) + (x))
#define IDLE 3

constant constexpr int SIZES[] = {1,
                                  2};
enum { FIRST, SECOND };

struct Pair {
    int a, b; /* both
                 of them */
};

struct Lone {
    int a;
};

#line 7 "kernels/b.h"
template <typename P>
inline int total(P p) { return p.a + 0xe + p.b; }

inline int total(Lone x) { return x.a; }

template <int N>
inline int scaled(int x) {
    return N * TWICE(x);
}

template <>
inline int scaled<2>(int x) {
    return x - -x;
}

template <int N>
inline enable_if_t<(N > 1 && (N < 9)), int> checked(int x) { return x; }

inline int unused(int x) { return scaled<3>(x) + SECOND; }
"""
BODY = "Pair p = {a[0], SIZES[1]}; // not Lone, unused\ny[0] = checked<5>(scaled<5>(total(p)));"
EXPECTED = """#line 1 "kernels/a.h"
#include <metal_stdlib>
#line 3 "kernels/a.h"
using namespace metal;
#line 5 "kernels/a.h"
#define TWICE(x) ((x) + (x))
#line 8 "kernels/a.h"
constant constexpr int SIZES[]={1,
2};
#line 12 "kernels/a.h"
struct Pair{
int a,b;
#line 15 "kernels/a.h"
};
#line 7 "kernels/b.h"
template<typename P>
inline int total(P p){return p.a+0xe +p.b;}
#line 12 "kernels/b.h"
template<int N>
inline int scaled(int x){
return N*TWICE(x);
}
#line 17 "kernels/b.h"
template<>
inline int scaled<2>(int x){
return x- -x;
}
#line 22 "kernels/b.h"
template<int N>
inline enable_if_t<(N>1&&(N<9)),int>checked(int x){return x;}
"""


def test_only_what_a_body_needs_is_left() -> None:
    lines = needed(HEADER, BODY)
    assert with_places(lines) == EXPECTED
    assert bare(lines) == "".join(
        row for row in EXPECTED.splitlines(keepends=True) if not row.startswith("#line")
    )


@pytest.mark.parametrize("body", [BODY, "y[0] = unused(a[0]) + total(Lone{FIRST});"])
def test_the_result_is_that_of_the_whole_header(body: str) -> None:
    whole = kernel(body, 1, 1, HEADER)
    short = kernel(body, 1, 1, bare(needed(HEADER, body)))
    x = mx.array([7, *range(9)])
    with metal_on_cpu():
        (one,), (other,) = (
            launch(text, [x], [((1,), mx.int32)], grid=1) for text in (whole, short)
        )
    np.testing.assert_array_equal(one, other)
    assert one[0] != 0


def test_what_mlx_gets_is_what_the_host_runs() -> None:
    for made in (matvecs_kernel(True, True, "Q4_K", "Q4_K", "Q6_K"), route_kernel()):
        rows = made.text().splitlines(keepends=True)
        assert any(row.startswith("#line") for row in rows)
        assert made.bare_text == "".join(row for row in rows if not row.startswith("#line"))
