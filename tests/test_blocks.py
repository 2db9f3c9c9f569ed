"""Every block type decodes random bytes to the same bits as gguf-py."""

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_ferrum import blocks

ORACLE = {b.name: gguf.GGMLQuantizationType[b.name] for b in blocks.SUPPORTED}


def random_blocks(block: type[blocks.Block], n: int, seed: int) -> np.ndarray:
    """(n, bytes) uint8: every bit random, so scales are also negative, subnormal, infinite and NaN."""
    return np.random.default_rng(seed).integers(0, 256, (n, block.bytes), dtype=np.uint8)


def expected(block: type[blocks.Block], raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        if block is blocks.Q8_K:  # gguf-py has no decoder for it
            return raw[:, :4].copy().view(np.float32) * raw[:, 4:260].view(np.int8)
        return gguf.quants.dequantize(raw, ORACLE[block.name])


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(found), nan)
    differ = (found.view(np.uint32) != wanted.view(np.uint32)) & ~nan
    worst = np.argwhere(differ)[:1]
    assert not differ.any(), f"{differ.sum()} weights differ, the first at {worst}"


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
@pytest.mark.parametrize("n", [1, 7, 513])
def test_decodes_bit_exactly(block, n):
    raw = random_blocks(block, n, seed=n * 1000 + block.id)
    found = np.asarray(block.dequantize(mx.array(raw)))
    assert found.dtype == np.float32 and found.shape == (n, block.weights)
    assert_same_bits(found, expected(block, raw).reshape(found.shape))


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
def test_rows_of_several_blocks_keep_their_order(block):
    raw = random_blocks(block, 2 * 3 * 5, seed=block.id).reshape(2, 3, 5 * block.bytes)
    found = np.asarray(block.dequantize(mx.array(raw)))
    assert found.shape == (2, 3, 5 * block.weights)
    wanted = expected(block, raw.reshape(-1, block.bytes)).reshape(found.shape)
    assert_same_bits(found, wanted)


def test_sizes_are_those_of_ggml():
    wanted = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    found = {id: (b.name, b.weights, b.bytes) for id, b in blocks.TYPES.items()}
    del found[9], wanted[9]  # Q8_1 has 36 bytes in ggml, 40 in gguf-py 0.19
    # a type that only one side knows yet is not an error here
    both = found.keys() & wanted.keys()
    assert {id: found[id] for id in both} == {id: wanted[id] for id in both}


def test_names():
    assert blocks.by_name("Q4_K") is blocks.Q4_K
    with pytest.raises(NotImplementedError, match=r"IQ2_XXS.*supported: F32"):
        blocks.by_name("IQ2_XXS")
    with pytest.raises(ValueError, match="Q9_X"):
        blocks.by_name("Q9_X")


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"Q6_K.*210"):
        blocks.Q6_K.dequantize(mx.zeros((4, 209), dtype=mx.uint8))
    with pytest.raises(ValueError, match="Q4_K: a row of 100"):
        blocks.Q4_K.row_bytes(100)
