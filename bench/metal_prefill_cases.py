"""Launches of attend_rows: a prompt's rows over keys and values in blocks. A product is a pair of a query and a key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
from metal_cases import Case

from mlx_ferrum.kernels.attend_rows import attend_rows

SIZE = 32  # positions of a block
SHAPES = (("Qwen3-8B", 32, 8, 128), ("Llama-3.2-1B", 32, 8, 64), ("Gemma-3-4B", 8, 4, 256))


def prompts(rows: int = 512, before: int = 1536) -> Iterator[Case]:
    """The last `rows` of `before + rows` positions, in models with heads of 128, 64 and 256."""
    for model, heads, groups, d in SHAPES:
        for bits in (16, 8):
            yield _prompt(f"{model}, {bits} bits", (heads, groups, d), bits, (rows, before))


def _prompt(name: str, shape: tuple[int, int, int], bits: int, length: tuple[int, int]) -> Case:
    (heads, groups, d), (rows, before) = shape, length
    held = before + rows
    blocks = -(-held // SIZE)
    pool = mx.zeros((blocks, groups, SIZE, d), mx.float16 if bits == 16 else mx.int8)
    scales = mx.zeros((blocks, groups, SIZE))
    run = partial(
        attend_rows,
        mx.zeros((rows, heads, d), mx.float16),
        pool,
        pool,
        scales=None if bits == 16 else (scales, scales),
        starts=mx.array([0, rows], mx.int32),
        lengths=mx.array([held], mx.int32),
        table=mx.arange(blocks, dtype=mx.int32)[None],
        scale=d**-0.5,
    )
    pairs = heads * (rows * before + rows * (rows + 1) // 2)
    least = 2 * held * groups * d * bits // 8
    return Case(f"attend_rows {name}, {rows} of {held}", run, ("keys", "values"), least, pairs)
