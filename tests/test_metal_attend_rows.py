"""attend_rows against attention in float64, in plain and in checked mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl import metal_on_cpu, survivors
from pages import attention

from mlx_ferrum.kernels.attend_rows import attend_rows

ROUNDING = 2.0**-11  # of a half
# Of the values' magnitudes by their weights: weights and results are rounded to halves, and of 8 bits also values.
# Rounded queries and keys move scores of a few units.
ERROR = {(16, "float16"): 2, (16, "float32"): 5, (8, "float16"): 6, (8, "float32"): 8}
NOWHERE = 1 << 20  # a block far beyond all others


@dataclass(frozen=True)
class Kind:
    """A layer: what kernels are compiled for."""

    heads: int
    groups: int
    d: int
    dv: int
    bits: int = 16
    queries: str = "float16"
    softcap: float = 0.0
    sinks: bool = False


PLAIN = Kind(6, 2, 64, 64)
KINDS = [
    PLAIN,
    Kind(4, 4, 128, 128, queries="float32", softcap=3.0),
    Kind(8, 1, 72, 40, sinks=True),
    Kind(5, 1, 256, 256, bits=8),
    Kind(9, 3, 8, 192, bits=8, queries="float32", softcap=2.0, sinks=True),
]


class Pool:
    """Random rows, keys and values of sequences.

    counts: rows of each sequence, lengths: positions that it holds. Blocks are in random order. All that no row sees
    is NaN; with `hidden`, blocks before the window are that block.
    """

    def __init__(
        self,
        kind: Kind,
        counts: Sequence[int],
        lengths: Sequence[int],
        *,
        size: int = 4,
        window: int = 0,
        hidden: int = 0,
    ) -> None:
        self.kind, self.counts, self.lengths, self.window = kind, counts, lengths, window
        self.rng = np.random.default_rng([*counts, *lengths, size, window])
        per = [-(-length // size) for length in lengths]
        blocks, outer = 1 + self.rng.permutation(sum(per)), (1 + sum(per), kind.groups, size)
        self.q = self.rng.normal(size=(sum(counts), kind.heads, kind.d)).astype(kind.queries)
        self.keys, self.key_scales = self.empty(*outer, kind.d)
        self.values, self.value_scales = self.empty(*outer, kind.dv)
        self.table = np.full((len(counts), max(per) + 1), hidden, np.int32)
        self.past = []
        for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            first = max(0, length - count - window + 1) if window and count else 0
            mine = blocks[sum(per[:i]) : sum(per[: i + 1])]
            self.table[i, first // size : per[i]] = mine[first // size :]
            at = np.arange(first, length)
            where = mine[at // size], slice(None), at % size
            self.past.append(
                [
                    np.concatenate([np.zeros((first, *x.shape[1:])), x])
                    for x in (
                        self.fill(self.keys, self.key_scales, where),
                        self.fill(self.values, self.value_scales, where),
                    )
                ]
            )
        self.sinks: Any = None
        if kind.sinks:
            self.sinks = self.rng.normal(size=kind.heads).astype(np.float32)

    def empty(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and scales, of which nothing counts yet."""
        numbers = np.full(shape, np.nan, np.float16)
        if self.kind.bits == 8:
            numbers = np.full(shape, 99, np.int8)
        return numbers, np.full(shape[:3], np.nan, np.float32)

    def fill(self, numbers: np.ndarray, scales: np.ndarray, where: Any) -> np.ndarray:
        """Put random numbers there; returns what they stand for, (positions, groups, size)."""
        shape = numbers[where].shape
        if self.kind.bits == 16:
            numbers[where] = self.rng.normal(size=shape).astype(np.float16)
            return numbers[where].astype(np.float64)
        numbers[where] = self.rng.integers(-127, 128, shape)
        scales[where] = self.rng.uniform(0.5, 2, shape[:2]).astype(np.float32) / 80
        return numbers[where] * scales[where].astype(np.float64)[..., None]

    @property
    def how(self) -> dict[str, Any]:
        """Options of attention."""
        sinks = None if self.sinks is None else mx.array(self.sinks)
        scale = 1.3 * self.kind.d**-0.5
        return {"scale": scale, "softcap": self.kind.softcap, "sinks": sinks}

    def found(self) -> mx.array:
        """By the kernel."""
        scales = (mx.array(self.key_scales), mx.array(self.value_scales))
        found, _ = attend_rows(
            *(mx.array(x) for x in (self.q, self.keys, self.values)),
            scales=scales if self.kind.bits == 8 else None,
            starts=mx.array(np.cumsum([0, *self.counts]).astype(np.int32)),
            lengths=mx.array(np.array(self.lengths, np.int32)),
            table=mx.array(self.table),
            window=self.window,
            **self.how,
        )
        return found

    def rows(self, i: int) -> slice:
        """Those of a sequence."""
        return slice(sum(self.counts[:i]), sum(self.counts[: i + 1]))

    def wanted(self, i: int, *, magnitude: bool = False) -> np.ndarray:
        """The rows of a sequence in float64; magnitude: with the values' magnitudes."""
        keys, values = self.past[i]
        values = np.abs(values) if magnitude else values
        window = self.window or None
        return attention(self.q[self.rows(i)], keys, values, window=window, **self.how)

    def check(self) -> None:
        """Compare."""
        found = np.array(self.found())
        assert found.shape == (sum(self.counts), self.kind.heads, self.kind.dv)
        assert found.dtype == np.float16
        for i, count in enumerate(self.counts):
            if count:
                self.check_sequence(i, found[self.rows(i)])

    def check_sequence(self, i: int, found: np.ndarray) -> None:
        """Compare the rows of one."""
        limit = ERROR[self.kind.bits, self.kind.queries] * ROUNDING
        allowed = limit * self.wanted(i, magnitude=True) + 2.0**-24  # subnormal results
        worst = (np.abs(found - self.wanted(i)) / allowed).max()
        assert worst <= 1, f"sequence {i}: {worst:.2f} times the error allowed"


@pytest.fixture
def host():
    with metal_on_cpu() as host:
        yield host


@pytest.mark.parametrize("size", [2, 4, 32])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_ragged_batches(host, kind, size):
    Pool(kind, [37, 1, 70], [37, 50, 101], size=size).check()
    Pool(kind, [37, 0, 13, 5], [39, 7, 101, 9], size=size, window=21).check()


@pytest.mark.parametrize("window", [1, 2, 16, 31, 32, 33, 200])
def test_windows(host, window):
    Pool(PLAIN, [64, 3, 45], [64, 90, 131], window=window).check()


@pytest.mark.parametrize("heads", [2, 6, 14, 80])
def test_edges_of_tiles(host, heads):
    """Rows and keys around multiples of 32, with tiles that end amid a position's heads or hold less than one."""
    kind = Kind(heads, 2, 64, 64)
    for counts in ([1, 31, 32], [33, 2, 63], [10, 11, 12]):
        for more in (0, 1, 30):
            Pool(kind, counts, [count + more for count in counts]).check()


def test_many_sequences(host):
    counts = [1, 0, 40, 7, 2, 33, 1, 64, 9]
    Pool(PLAIN, counts, [n + 5 * i for i, n in enumerate(counts)]).check()


@pytest.mark.parametrize("nan", ["keys", "values"])
def test_not_a_number_stays_in_its_sequence(host, nan):
    pool = Pool(PLAIN, [35, 33, 40], [35, 60, 40], size=2)
    getattr(pool, nan)[pool.table[1, :30]] = np.nan
    found = np.array(pool.found())
    assert np.isnan(found[pool.rows(1)]).all()
    for i in (0, 2):
        pool.check_sequence(i, found[pool.rows(i)])


def test_keys_that_not_all_rows_see_do_not_matter_to_the_others(host):
    pool = Pool(PLAIN, [20], [50])
    pool.keys[pool.table[0, 10]] = np.nan  # positions 40 to 43
    found = np.array(pool.found())
    assert np.isnan(found[10:]).all()
    np.testing.assert_array_equal(found[:10], np.array(Pool(PLAIN, [20], [50]).found())[:10])


def test_many_small_weights_are_not_lost(host):
    """One key of weight 1 and value 0 before 999 of weight 2^-26 and value 1000."""
    pool = Pool(PLAIN, [1], [1000], size=32)
    pool.q[:], pool.keys[:], pool.values[:] = 1, 0, 1000
    pool.keys[pool.table[0, 0], :, 0] = 26 * math.log(2) / pool.how["scale"] / pool.kind.d
    pool.values[pool.table[0, 0], :, 0] = 0
    wanted = 999 * 2.0**-26 * 1000 / (1 + 999 * 2.0**-26)
    np.testing.assert_allclose(np.array(pool.found()), wanted, rtol=0.02)  # the key is a half


def test_queries_and_results_are_clamped_to_halves(host):
    pool = Pool(Kind(4, 4, 128, 128, queries="float32", softcap=3.0), [3], [3])
    pool.q[0], pool.values[pool.table[0, 0], :, 0, 0] = 1e6, np.inf
    found = np.array(pool.found())
    assert (found[:, :, 0] == 65504).all()
    assert np.isfinite(found).all()


def test_values_of_8_bits_are_clamped_to_halves(host):
    pool = Pool(Kind(5, 1, 256, 256, bits=8), [2], [2])
    pool.values[pool.table[0, 0]], pool.value_scales[:] = 100, 1000
    assert (np.array(pool.found()) == 65504).all()


@pytest.mark.parametrize("size", [-1e30, -np.inf, 99.0])
def test_sinks_far_from_scores(host, size):
    """Far below, they take no part, also before a row sees a key; far above, they take all."""
    pool = Pool(Kind(2, 2, 128, 128, sinks=True), [40, 3], [40, 9], window=5)
    pool.sinks = np.full(2, size, np.float32)
    if size > 0:
        np.testing.assert_array_equal(np.array(pool.found()), 0)
    else:
        pool.check()


def test_no_rows(host):
    assert Pool(PLAIN, [0, 0], [3, 4]).found().shape == (0, 6, 64)
    assert not host.kernels


def test_sinks_of_another_type(host):
    pool = Pool(KINDS[2], [9, 3], [9, 5])
    wanted = np.array(pool.found())
    pool.sinks = pool.sinks.astype(np.float16)
    found = np.array(pool.found())
    np.testing.assert_allclose(found, wanted, atol=2 * ROUNDING * np.abs(wanted).max())


@needs_host
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_checked(kind, seed):
    """In any order, and with a table whose entries before the window are no blocks."""
    with metal_on_cpu(checked=True, seed=seed) as host:
        Pool(kind, [37, 1, 0, 20], [37, 50, 7, 90]).check()
        Pool(kind, [35, 3], [110, 90], window=21, hidden=NOWHERE).check()
    assert not host.findings, "\n".join(map(str, host.findings))


@needs_host
def test_each_barrier_is_needed():
    """But for those that only order instructions."""
    pool = Pool(PLAIN, [37, 3], [67, 80])
    text = metal_text()
    assert [
        line
        for place in survivors(lambda: mx.eval(pool.found()), seeds=(1, 2))
        if "mem_none" not in (line := text[int(place.split(":")[1]) - 1])
    ] == []


def metal_text() -> list[str]:
    """The lines of the kernel's file."""
    from mlx_ferrum.launch import FOLDER

    return (FOLDER / "attend_rows.metal").read_text().splitlines()


def test_the_length_of_a_prompt_compiles_nothing(host):
    for count in (40, 41, 77):
        Pool(PLAIN, [count, 3], [count + 9, 50], size=2).found()
    assert len(host.kernels) == 1


ARGUMENTS: dict[str, Any] = {
    "q": mx.zeros((3, 4, 16), mx.float16),
    "keys": mx.zeros((5, 2, 4, 16), mx.float16),
    "values": mx.zeros((5, 2, 4, 24), mx.float16),
    "scales": None,
    "starts": mx.array([0, 3], mx.int32),
    "lengths": mx.array([3], mx.int32),
    "table": mx.zeros((1, 2), mx.int32),
    "scale": 1.0,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": mx.zeros((3, 4, 24), mx.float16)}, "do not fit together"),
        ({"q": mx.zeros((3, 3, 16), mx.float16)}, "do not fit together"),
        ({"q": mx.zeros((3, 4, 16), mx.bfloat16)}, "q of mlx.core.bfloat16, expected float16 or"),
        ({"values": mx.zeros((5, 2, 2, 16), mx.float16)}, "do not fit together"),
        ({"values": mx.zeros((5, 2, 4, 20), mx.float16)}, r"heads of \(16, 20\), expected multip"),
        ({"values": mx.zeros((5, 2, 4, 264), mx.float16)}, r"heads of \(16, 264\), expected mult"),
        ({"values": mx.zeros((5, 2, 4, 16), mx.int8)}, "values of mlx.core.int8, expected mlx.co"),
        ({"scales": (mx.zeros((5, 2, 4)),) * 2}, "keys of mlx.core.float16 .* expected mlx.core.i"),
        ({"starts": mx.zeros(3, mx.int32)}, "do not fit together"),
        ({"lengths": mx.zeros(1)}, "lengths of mlx.core.float32, expected int32"),
        ({"table": mx.zeros((1, 0), mx.int32)}, r"a table of shape \(1, 0\) for 3 rows"),
        ({"sinks": mx.zeros(3)}, r"sinks of shape \(3,\), expected \(4,\)"),
        ({"sinks": mx.zeros(4, mx.int32)}, "sinks of mlx.core.int32, expected a float type"),
        ({"window": -1}, "window -1 and softcap 0.0, expected 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        attend_rows(**{**ARGUMENTS, **wrong})
