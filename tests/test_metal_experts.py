"""Kernels of mixtures of experts against float64 and the reference; on the host, which checks them, or on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from metal_call import needs_host
from msl import Host, metal_on_cpu, survivors
from msl.counting import counting
from test_metal_kernels import BLOCKS, FLOATS, HALVES, activated, wide
from test_ops import float64, random_tensor

from mlx_ferrum import blocks
from mlx_ferrum.backends import metal, reference
from mlx_ferrum.backends.metal.thresholds import METAL
from mlx_ferrum.kernels.gather_down import gather_down
from mlx_ferrum.kernels.gather_gate_up import gather_gate_up
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.gather_matvec import gather_matvec
from mlx_ferrum.kernels.sort_pairs import sort_pairs
from mlx_ferrum.kernels.weighted_sum import weighted_sum
from mlx_ferrum.ops import Routing
from mlx_ferrum.tensor import QTensor


@contextmanager
def checked(seed: int = 1) -> Iterator[Host]:
    """Checked mode, in which nothing is to be found."""
    with metal_on_cpu(checked=True, seed=seed) as host:
        yield host
    assert not host.findings, "\n".join(map(str, host.findings))


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(shape).normal(size=shape), mx.float32).astype(dtype)


def spread(tokens: int, used: int, experts: int) -> mx.array:
    """ids: (tokens, used), some of which no token chooses where experts are many."""
    rng = np.random.default_rng(tokens)
    chosen = [rng.permutation(experts)[:used] for _ in range(tokens)]
    return mx.array(np.stack(chosen).astype(np.int32))


class Products:
    """x w[id]ᵀ in float64, and what float32 or halves may be off: both (tokens, used, rows)."""

    def __init__(self, x: mx.array, w: QTensor, ids: mx.array, exactness: float) -> None:
        weights = float64(w)
        values = wide(x) if x.ndim == 3 else wide(x)[:, None].repeat(ids.shape[1], axis=1)
        chosen = np.array(ids)
        self.sums = np.empty((*chosen.shape, w.shape[1]))
        self.error = np.empty_like(self.sums)
        for at in np.ndindex(*chosen.shape):
            self.sums[at] = weights[chosen[at]] @ values[at]
            lengths = np.linalg.norm(weights[chosen[at]], axis=-1)
            self.error[at] = exactness * np.linalg.norm(values[at]) * lengths


def assert_within(found: mx.array, wanted: np.ndarray, error: np.ndarray) -> None:
    assert found.dtype == mx.float32
    worst = (np.abs(np.array(found).reshape(wanted.shape) - wanted) / error).max()
    assert worst <= 1, f"{worst:.2f} times the error allowed"


def assert_gated(found: mx.array, act: str, gate: Products, up: Products) -> None:
    """Activations are at most 1.13 times as steep as their argument."""
    factor = activated(gate.sums, act)
    error = 1.13 * gate.error * (np.abs(up.sums) + up.error) + up.error * np.abs(factor)
    assert_within(found, factor * up.sums, error)


def assert_summed(found: mx.array, down: Products, weights: mx.array, add: mx.array | int) -> None:
    shares = wide(weights)[..., None]
    wanted = (down.sums * shares).sum(axis=1) + (add if isinstance(add, int) else wide(add))
    assert_within(found, wanted, (down.error * shares).sum(axis=1))


@BLOCKS
@pytest.mark.parametrize("n", [1, 3], ids=["a block", "blocks"])
def test_every_type(block, n):
    """Few tokens, and tiles, of one block and of three."""
    k = n * max(block.weights, 13)
    other = blocks.F16 if k % 32 else blocks.Q4_0
    w, up = random_tensor(block, 5, 9, k, seed=n), random_tensor(other, 5, 9, k, seed=2)
    x, ids, weights, bias = normal(3, k), spread(3, 2, 5), abs(normal(3, 2)), normal(5, 9)
    parts, add = normal(6, k), normal(3, 9)
    plain = Products(x, w, ids, FLOATS)
    added = wide(bias)[np.array(ids)]
    with checked():
        assert_within(gather_matvec(x, w, ids, bias=bias), plain.sums + added, plain.error)
        found = gather_gate_up(x, w, up, ids, "gelu")
        assert_gated(found, "gelu", plain, Products(x, up, ids, FLOATS))
        down = Products(parts.reshape(3, 2, k), w, ids, FLOATS)
        assert_summed(gather_down(parts, w, ids, weights, add=add), down, weights, add)
        order = sort_pairs(ids.reshape(-1), 5, size=16)
        halves = Products(x, w, ids, HALVES)
        assert_within(gather_matmul(x, w, order, bias=bias), halves.sums + added, halves.error)


def experts_of(how: str, tokens: int, experts: int) -> mx.array:
    if how == "one":
        return mx.full((tokens, 1), experts - 1, mx.int32)
    chosen = experts // 2 if how == "half" else experts
    return spread(tokens, min(3, chosen), chosen)


@pytest.mark.parametrize("how", ["all", "half", "one"], ids="{} of the experts".format)
@pytest.mark.parametrize(
    "tokens, experts", [(1, 8), (2, 128), (7, 8), (33, 8), (33, 4), (200, 8), (200, 40)]
)
def test_a_layer(tokens, experts, how):
    """gate_up and down as the backend chooses kernels, with types that differ, under two orders of execution."""
    gate, up, down = (
        random_tensor(block, experts, rows, k, seed=k)
        for block, rows, k in [
            (blocks.Q4_K, 37, 256),
            (blocks.Q5_0, 37, 256),
            (blocks.Q8_0, 70, 64),
        ]
    )
    ids = experts_of(how, tokens, experts)
    used = ids.shape[1]
    x, parts, add = normal(tokens, 256), normal(tokens, used, 64), normal(tokens, 70)
    weights = abs(normal(tokens, used))
    exactness = HALVES if tokens > METAL.matvec_rows and ids.size > 3 * experts else FLOATS
    for seed in (1, 2):
        with checked(seed):
            found = metal.gather_gate_up(x, gate, up, ids, "silu")
            assert found.shape == (tokens, used, 37)
            assert_gated(found, "silu", *(Products(x, w, ids, exactness) for w in (gate, up)))
            found = metal.gather_down(parts, down, ids, weights, add=add)
            assert found.shape == (tokens, 70)
            assert_summed(found, Products(parts, down, ids, exactness), weights, add)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [2, 40])
def test_shorter_types(tokens, dtype):
    w, narrow = (random_tensor(blocks.Q4_K, 6, rows, 256, seed=rows) for rows in (70, 9))
    ids, weights = spread(tokens, 2, 6), abs(normal(tokens, 2))
    x, parts, add = normal(tokens, 256), normal(tokens, 2, 256), normal(tokens, 70)
    x, parts, add = (a.astype(dtype) for a in (x, parts, add))
    exactness = FLOATS if tokens == 2 else HALVES
    with metal_on_cpu():
        for stack in (w, narrow):
            found = metal.gather_matmul(x, stack, ids)
            products = Products(x, stack, ids, exactness)
            assert_within(found, products.sums, products.error)
        up = random_tensor(blocks.Q4_K, 6, 70, 256, seed=1)
        found = metal.gather_gate_up(x, w, up, ids, "silu")
        assert_gated(found, "silu", *(Products(x, part, ids, exactness) for part in (w, up)))
        found = metal.gather_down(parts, w, ids, weights, add=add)
        assert_summed(found, Products(parts, w, ids, exactness), weights, add)


@pytest.mark.parametrize("block", [blocks.Q4_K, blocks.Q6_K, blocks.F16], ids=lambda b: b.name)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_a_simdgroup(block, rows):
    """gate and up of one type; the rows of an expert end amid a step, at its end, and after several."""
    with metal_on_cpu():
        for k in (256, 768, 1536):
            w, ids = random_tensor(block, 4, 11, k, seed=k), spread(2, 3, 4)
            x, parts, weights = normal(2, k), normal(6, k), abs(normal(2, 3))
            up = random_tensor(block, 4, 11, k, seed=1)
            found = gather_gate_up(x, w, up, ids, "silu", rows=rows)
            assert_gated(found, "silu", *(Products(x, part, ids, FLOATS) for part in (w, up)))
            down = Products(parts.reshape(2, 3, k), w, ids, FLOATS)
            assert_summed(gather_down(parts, w, ids, weights, rows=rows), down, weights, 0)


def test_stacks_of_a_few_words():
    w = random_tensor(blocks.F32, 4, 1, 1, seed=1)
    x, ids, weights = normal(3, 1), spread(3, 2, 4), normal(3, 2)
    parts = normal(3, 2, 1)
    with metal_on_cpu():
        for found, wanted in [
            (metal.gather_matmul(x, w, ids), reference.gather_matmul(x, w, ids)),
            (
                metal.gather_gate_up(x, w, w, ids, "silu"),
                reference.gather_gate_up(x, w, w, ids, "silu"),
            ),
            (
                metal.gather_down(parts, w, ids, weights, add=x),
                reference.gather_down(parts, w, ids, weights, add=x),
            ),
        ]:
            np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [2, 33])
def test_ids_that_are_no_experts(tokens):
    """Nothing is read for them, and what they lead to is NaN, whatever kernel takes them."""
    w = random_tensor(blocks.Q8_0, 4, 33, 64, seed=1)
    right = np.array(spread(tokens, 2, 4))
    ids = right.copy()
    ids[:2, 1] = 4, -1
    ids[-1, 0] = 1 << 30
    bad = ids != right
    x, parts, weights = normal(tokens, 64), normal(tokens, 2, 64), abs(normal(tokens, 2))
    with checked():
        for call in (
            lambda ids: metal.gather_matmul(x, w, ids),
            lambda ids: metal.gather_gate_up(x, w, w, ids, "silu"),
            lambda ids: metal.gather_down(parts, w, ids, weights),
        ):
            found, wanted = np.array(call(mx.array(ids))), np.array(call(mx.array(right)))
            wrong = bad if found.ndim == 3 else bad.any(axis=1)
            assert np.isnan(found[wrong]).all()
            np.testing.assert_array_equal(found[~wrong], wanted[~wrong])


@pytest.mark.parametrize("experts", [4, 60, 512])
@pytest.mark.parametrize("n, size", [(1, 16), (33, 16), (250, 64), (1600, 32)])
def test_pairs_are_sorted_by_expert(n, size, experts):
    ids = np.random.default_rng(n).integers(-1, experts + 1, n).astype(np.int32)
    ids[n // 2 :] = ids[0]
    expected = np.where((ids < 0) | (ids >= experts), experts, ids)
    with checked():
        order = sort_pairs(mx.array(ids), experts, size=size)
    pairs, tiles = np.array(order.pairs), np.array(order.tiles)
    np.testing.assert_array_equal(pairs, np.argsort(expected, kind="stable"))
    needed = tiles[tiles[:, 2] > 0]
    covered = np.concatenate([np.arange(first, first + count) for _, first, count in needed])
    np.testing.assert_array_equal(covered, np.arange(n))
    assert tiles[:, 2].min() >= 0 and tiles[:, 2].max() <= size
    for expert, first, count in needed:
        assert (expected[pairs[first : first + count]] == expert).all()


@pytest.mark.parametrize("used, d", [(1, 1), (3, 70), (16, 9)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_weighted_sum(used, d, dtype):
    x, weights, add = normal(5 * used, d, dtype=dtype), normal(5, used), normal(5, d, dtype=dtype)
    wanted = (wide(x).reshape(5, used, d) * wide(weights)[..., None]).sum(axis=1)
    with checked():
        for given, total in ((None, wanted), (add, wanted + wide(add))):
            found = weighted_sum(x, weights, add=given)
            assert_within(found, total, 1e-5 * np.ones_like(total))


@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 64), (33, 70)], ids=str)
def test_sigmoid_gate(shape):
    x, gate, add = normal(*shape), 9 * normal(*shape[:-1], 1), normal(*shape[:-1], shape[-1])
    with checked():
        for given in (None, add):
            found = metal.sigmoid_gate(x, gate, add=given)
            wanted = reference.sigmoid_gate(x, gate, add=given)
            np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-6, atol=1e-6)


ROUTINGS = {
    "softmax": Routing(8),
    "all experts": Routing(4),
    "not renormalised": Routing(2, normalise=False),
    "scaled": Routing(16, scale=2.5),
    "sigmoid": Routing(6, "sigmoid", scale=1.7),
    "groups": Routing(8, "sigmoid", groups=4, groups_used=2),
    "groups of softmax": Routing(3, normalise=False, groups=2),
}
EXPERTS = {
    "softmax": [8, 60, 1024],
    "all experts": [4],
    "groups": [16, 512],
    "groups of softmax": [6],
}


def assert_routed(logits: mx.array, routing: Routing, bias: mx.array | None = None) -> None:
    with checked():
        found, weights = metal.route(logits, routing, bias=bias)
    wanted, wanted_weights = reference.route(logits, routing, bias=bias)
    assert (found.dtype, weights.dtype) == (mx.int32, mx.float32)
    np.testing.assert_array_equal(np.array(found), np.array(wanted))
    np.testing.assert_allclose(np.array(weights), np.array(wanted_weights), rtol=2e-6)


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_route(name, dtype):
    for experts in EXPERTS.get(name, [128]):
        logits = 3 * normal(2, 3, experts).astype(dtype)
        assert_routed(logits, ROUTINGS[name])
        if dtype == mx.float32:  # scores of few bits have ties that float32 sums break otherwise
            assert_routed(logits, ROUTINGS[name], normal(experts))


@pytest.mark.parametrize("name", ROUTINGS)
def test_route_of_numbers_that_are_none_and_of_equal_ones(name):
    rng = np.random.default_rng(3)
    numbers = [-np.inf, -3.0, -0.0, 0.0, 2.0, np.inf, np.nan]
    logits = rng.choice(numbers, (8, EXPERTS.get(name, [60])[0]))
    logits[0], logits[1], logits[2], logits[3, ::2] = np.nan, 0, -np.inf, 1
    logits[4], logits[5] = np.inf, rng.permutation([np.inf, *np.arange(logits.shape[1] - 1)])
    with checked():
        found, _ = metal.route(mx.array(logits, mx.float32), ROUTINGS[name])
    wanted, _ = reference.route(mx.array(logits, mx.float32), ROUTINGS[name])
    np.testing.assert_array_equal(np.array(found), np.array(wanted))


@pytest.mark.parametrize("name", ["sigmoid", "groups"])
def test_route_of_sigmoids_that_are_all_zero(name):
    """Their sum is, too; the weights are 0 and not NaN."""
    logits = mx.array([[-np.inf, -200.0, -1e30]] * 128, mx.float32).T
    assert_routed(logits, ROUTINGS[name])
    with metal_on_cpu():
        assert not np.array(metal.route(logits, ROUTINGS[name])[1]).any()


@pytest.mark.parametrize("tokens, wanted", [(1, [1, 1, 1]), (33, [1, 3, 3])])
def test_a_step_takes_few_launches(tokens, wanted):
    """Of one token, and of many: what choosing among kernels must not undo."""
    w, router = random_tensor(blocks.Q8_0, 4, 32, 32, seed=1), Routing(2)
    x, ids, weights = normal(tokens, 32), spread(tokens, 2, 4), normal(tokens, 2)
    calls: list[Callable[[], object]] = [
        lambda: metal.route(normal(tokens, 4), router),
        lambda: metal.gather_gate_up(x, w, w, ids, "silu"),
        lambda: metal.gather_down(normal(tokens, 2, 32), w, ids, weights, add=x),
    ]
    found = []
    for call in calls:
        with counting() as host:
            call()
        found.append(len(host.counts))
    assert found == wanted


@needs_host
def test_every_barrier_is_needed():
    w, ids = random_tensor(blocks.Q8_0, 2, 9, 64, seed=1), spread(17, 2, 2)
    x, logits = normal(17, 64), normal(5, 8)

    def tiles():
        mx.eval(gather_matmul(x, w, sort_pairs(ids.reshape(-1), 2, size=32)))

    def groups():
        mx.eval(metal.route(logits, Routing(2, groups=2)))

    for run in (tiles, groups):
        assert survivors(run, seeds=(1, 2)) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, ids: gather_matvec(x[:, :32], w, ids),
        lambda x, w, ids: gather_matvec(x, w, ids, bias=normal(4, 4)),
        lambda x, w, ids: gather_matvec(x, w, x),
        lambda x, w, ids: gather_gate_up(
            x, w, random_tensor(blocks.Q8_0, 4, 6, 64, seed=1), ids, "silu"
        ),
        lambda x, w, ids: gather_down(x, w, ids, normal(3, 2)),
        lambda x, w, ids: gather_down(normal(6, 64), w, ids, normal(2, 3)),
        lambda x, w, ids: gather_down(normal(6, 64), w, ids, normal(3, 2), add=normal(3, 6)),
        lambda x, w, ids: gather_matmul(x[:2], w, sort_pairs(mx.arange(3), 4, size=16)),
        lambda x, w, ids: gather_matmul(x[:0], w, sort_pairs(mx.arange(3), 4, size=16)),
        lambda x, w, ids: sort_pairs(ids, 4, size=16),
        lambda x, w, ids: metal.route(x, Routing(33)),
        lambda x, w, ids: metal.route(x, Routing(2), bias=normal(63)),
        lambda x, w, ids: metal.route(normal(1, 1025), Routing(2)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    w, ids = random_tensor(blocks.Q8_0, 4, 5, 64, seed=1), spread(3, 2, 4)
    with metal_on_cpu(), pytest.raises(ValueError, match=r"fit|expected|differ|for|fall"):
        call(normal(3, 64), w, ids)
