"""What the host takes Metal 4's tensor operations to mean, and that it finds what goes against that."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from metal_call import kernel, launch, needs_host
from msl import KernelError, SourceError, metal_on_cpu

pytestmark = needs_host

# y (16, 16) of one simdgroup: a (16, 32) times the transpose of b (16, 32), as halves
BODY = """
    threadgroup half left[16 * 32], right[16 * 32];
    int lane = thread_index_in_threadgroup;
    for (int i = lane; i < 512; i += 32) {
        left[i] = half(a[i]);
        right[i] = half(b[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tensor<threadgroup half, extents<int32_t, 32, 16>, tensor_inline> l(left, extents<int32_t, 32, 16>());
    tensor<threadgroup half, extents<int32_t, 32, 16>, tensor_inline> r(right, extents<int32_t, 32, 16>());
    mpp::tensor_ops::matmul2d<mpp::tensor_ops::matmul2d_descriptor(
        16, 16, 32, false, true, false, mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate),
        execution_simdgroup> product;
    auto sums = product.template get_destination_cooperative_tensor<decltype(l), decltype(r), float>();
    for (ushort i = 0; i < sums.get_capacity(); i++) if (sums.is_valid_element(i)) sums[i] = 0;
    product.run(l, r, sums);
    for (ushort i = 0; i < sums.get_capacity(); i++) {
        if (!sums.is_valid_element(i)) continue;
        auto index = sums.get_multidimensional_index(i);
        y[index[1] * 16 + index[0]] = sums[i];
    }
"""
SET, CHECKED = (
    "if (sums.is_valid_element(i)) sums[i] = 0;",
    "if (!sums.is_valid_element(i)) continue;",
)


def product(text: str) -> tuple[np.ndarray, np.ndarray]:
    """What the host computes, and what it should."""
    a, b = (np.random.default_rng(i).integers(-9, 9, (16, 32)).astype(np.float32) for i in (1, 2))
    arrays = [mx.array(a), mx.array(b)]
    (found,) = launch(kernel(text, 2, 1), arrays, [((16, 16), mx.float32)], grid=32)
    return found, a @ b.T


def edited(before: str, after: str) -> str:
    assert BODY.count(before) >= 1
    return BODY.replace(before, after)


def test_a_product():
    with metal_on_cpu():
        found, wanted = product(BODY)
    assert np.array_equal(found, wanted)


def test_operands_that_are_not_transposed_have_other_extents():
    text = edited("right[i] = half(b[i]);", "right[i] = half(b[i % 16 * 32 + i / 16]);")
    text = text.replace(
        "extents<int32_t, 32, 16>, tensor_inline> r(right, extents<int32_t, 32, 16>())",
        "extents<int32_t, 16, 32>, tensor_inline> r(right, extents<int32_t, 16, 32>())",
    )
    with metal_on_cpu():
        found, wanted = product(text.replace("false, true, false", "false, false, false"))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    "before, after, reason",
    [
        ("false, true, false", "false, false, false", "right is not"),
        ("false, true, false", "true, true, false", "left is not"),
        ("false, true, false", "false, true, true", "relaxed"),
        ("16, 16, 32, false", "8, 16, 32, false", "multiples of 16"),
        ("execution_simdgroup>", "execution_simdgroups<4>>", "one simdgroup"),
    ],
)
def test_what_does_not_compile(before, after, reason):
    with metal_on_cpu(), pytest.raises(SourceError, match=reason):
        product(edited(before, after))


def test_sums_are_undefined_at_first():
    with metal_on_cpu():
        found, _ = product(edited(SET, ""))
    assert np.isnan(found).all()


@pytest.mark.parametrize(
    "before, after",
    [
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        (CHECKED, ""),
        ("product.run(l, r, sums);", "if (lane < 31) product.run(l, r, sums);"),
    ],
    ids=["no barrier", "an invalid element", "not all threads"],
)
def test_what_is_found(before, after):
    with metal_on_cpu(checked=True, seed=1) as host:
        product(edited(before, after))
    assert host.findings


def test_a_simdgroup_that_is_not_whole():
    with metal_on_cpu(), pytest.raises(KernelError):
        product(edited("product.run(l, r, sums);", "if (lane < 31) product.run(l, r, sums);"))
