"""What quantizing does with constants, zeros, ends of the range, importance, and what it refuses."""

import numpy as np
import pytest
from quantizing import (
    FLOATS,
    dequantize,
    draw,
    error,
    every,
    importance_of,
    quantized,
)

from mlx_ferrum import blocks


@every
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, -777.0])
def test_constants(block, value):
    found = dequantize(block, block.quantize(np.full((1, 512), value, np.float32)))
    coarse = {"MXFP4": 0.25, "BF16": 2**-8}.get(block.name, 2**-10)
    assert np.abs(found / np.float32(value) - 1).max() <= coarse


@every
def test_zeros_stay(block):
    x = np.zeros((2, 512), np.float32)
    x[1, 256:] = draw("normal", np.random.default_rng(1), (1, 256))
    found = dequantize(block, block.quantize(x))
    assert not found[0].any() and not found[1, :256].any() and found[1, 256:].any()


@quantized
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1e-7])
def test_the_smallest(block, scale):
    x = draw("normal", np.random.default_rng(2), (4, 256)) * np.float32(scale)
    found = dequantize(block, block.quantize(x))
    # the smallest float16; as a scale it is a step of most types, and half of IQ4_NL's widest near 0 is 6 of it
    steps = 6 if scale == 1e-7 else 1
    assert np.abs(found - x).max() <= steps * 2.0**-24


@every
def test_the_largest(block):
    x = draw("uniform", np.random.default_rng(3), (4, 256)) * np.float32(block.limit)
    found = dequantize(block, block.quantize(x))
    assert np.isfinite(found).all()
    x[1, 7], x[2, 9] = block.limit, -block.limit
    assert np.isfinite(dequantize(block, block.quantize(x))).all()


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_no_block_can_hold_is_refused(block, value):
    x = np.zeros((3, 40, 1024), np.float32)
    x[1, 7, 100] = x[2, 0, 0] = value
    message = rf"{block.name}: weights must be within .* found {value} in row 1, 7, column 100"
    with pytest.raises(ValueError, match=message):
        block.quantize(x)


def test_refusals():
    with pytest.raises(
        ValueError, match=r"Q4_K: weights must be within .*found 1e.* row 0, column 0"
    ):
        blocks.Q4_K.quantize(np.full((1, 256), 1e30, np.float32))
    with pytest.raises(ValueError, match="Q6_K: a row of 100"):
        blocks.Q6_K.quantize(np.zeros((1, 100), np.float32))
    with pytest.raises(ValueError, match="effort: expected fast, normal, best, found 'most'"):
        blocks.Q4_K.quantize(np.zeros((1, 256), np.float32), effort="most")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_bad_importance_is_refused(value):
    importance = np.ones((3, 256), np.float32)
    importance[2, 5] = value
    with pytest.raises(ValueError, match=rf"not negative, found {value:g} for column 5 in row 2"):
        blocks.Q4_K.quantize(np.zeros((3, 4, 256), np.float32), importance)


def test_a_misshapen_importance_is_refused():
    with pytest.raises(ValueError, match=r"shape \(256,\) or \(3, 256\), found \(4, 256\)"):
        blocks.Q4_K.quantize(np.zeros((3, 4, 256), np.float32), np.ones((4, 256), np.float32))


@quantized
def test_importance_lowers_the_error_where_it_is(block):
    rng = np.random.default_rng(4)
    x = draw("normal", rng, (32, 512))
    importance = np.where(np.arange(512) % 8 == 0, 100, 1).astype(np.float32)
    plain, weighted = (dequantize(block, block.quantize(x, i)) - x for i in (None, importance))
    chosen = importance > 1
    assert np.mean(weighted[:, chosen] ** 2) < 0.97 * np.mean(plain[:, chosen] ** 2)
    assert np.mean(weighted**2) >= np.mean(plain**2)


@quantized
def test_importance_without_differences_is_none(block):
    x = draw("normal", np.random.default_rng(5), (5, 512))
    raw = block.quantize(x)
    for value in (0, 1, 8, 2.0**-140, 2.0**100):
        assert np.array_equal(block.quantize(x, np.full(512, value, np.float32)), raw)


@quantized
def test_importance_of_nothing_but_one_weight(block):
    """All but one column count for nothing: that one is held as well as the type can, the others stay sane."""
    x = draw("normal", np.random.default_rng(6), (8, 256))
    x[:, 77] = np.linspace(-1.5, 1, 8)
    importance = np.zeros(256, np.float32)
    importance[77] = 3
    found = dequantize(block, block.quantize(x, importance))
    off = 0.4 if block is blocks.MXFP4 else 0.05
    assert np.all(np.abs(found - x)[:, 77] <= off * np.abs(x[:, 77]) + 1e-3)
    assert error(block, block.quantize(x, importance), x) < 0.8


@every
def test_each_expert_has_its_importance(block):
    rng = np.random.default_rng(7)
    x = draw("normal", rng, (9, 512)).reshape(3, 3, 512)
    importance = np.stack([importance_of(rng, 512) for _ in x])
    alone = [block.quantize(*expert) for expert in zip(x, importance, strict=True)]
    assert np.array_equal(block.quantize(x, importance), np.stack(alone))


@pytest.mark.parametrize("block", FLOATS, ids=lambda b: b.name)
def test_floats_are_rounded_to_the_nearest(block):
    x = np.random.default_rng(8).normal(size=(7, 333)).astype(np.float32)
    found = dequantize(block, block.quantize(x))
    bits = {"F32": 24, "F16": 11, "BF16": 8}[block.name]
    mantissa, exponent = np.frexp(x)
    nearest = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    usual = np.abs(x) >= 2.0**-14  # below it float16 has fewer bits
    assert np.array_equal(found[usual], nearest[usual])
