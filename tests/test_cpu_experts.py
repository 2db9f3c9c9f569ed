"""Experts on the cpu backend: routing, products of stacks, and their calls repeated for other experts.

test_cpu_step_noticed.py has experts that are chosen outside the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import CPU, Backend
from cpu_cases import by_reference, normal, random_weight

from mlx_ferrum import blocks, ops
from mlx_ferrum.kernels.cpu import native as library
from mlx_ferrum.ops import Routing
from mlx_ferrum.tensor import QTensor

BLOCKS = pytest.mark.parametrize(
    "block", [b for b in blocks.SUPPORTED if b is not blocks.Q8_K], ids=lambda b: b.name
)  # files do not hold Q8_K; test_ops.py has it
TOKENS = (1, 2, 7, 33, 200)
EXPERTS, USED = 6, 3


class Stack:
    """A random weight (experts, rows, k), also in float64."""

    def __init__(self, block: type[blocks.Block], rows: int, k: int, seed: int) -> None:
        flat = random_weight(block, EXPERTS * rows, k, seed)
        self.weight = QTensor(block, (EXPERTS, rows, k), flat.buffer)
        self.values = by_reference(ops.dequantize, self.weight).astype(np.float64)

    def times(self, native: Backend, x: Any, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """x: (n, used, k), ids: (n, used) -> products (n, used, rows), and by how much they may be off."""
        wide = x.astype(np.float64)
        found = np.zeros((*ids.shape, self.values.shape[1]))
        allowed = np.zeros_like(found)
        for expert in np.unique(ids):
            mine, weights = ids == expert, self.values[expert]
            found[mine] = wide[mine] @ weights.T
            allowed[mine] = native.product_error(wide[mine], weights)
        return found, allowed


def width(block: type[blocks.Block]) -> int:
    return 512 if block.weights == 256 else 288


CASES = [  # tokens, and what they choose
    *((1, "spread"), (2, "one for all"), (7, "spread")),
    *((33, "two unused"), (200, "spread"), (200, "one for all")),
]


def choice(n: int, kind: str = "spread") -> Any:
    """ids: (n, used) int32"""
    if kind == "one for all":
        return np.full((n, 1), 4, np.int32)
    ids = np.argsort(np.random.default_rng(n).random((n, EXPERTS)))[:, :USED]
    return (np.where(ids < 4, ids, 5 - ids) if kind == "two unused" else ids).astype(np.int32)


def activated(x: np.ndarray, act: ops.Activation) -> np.ndarray:
    if act == "silu":
        return x / (1 + np.exp(-x))
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def experts(*rows: list[int]) -> Any:
    return np.array(rows, np.int32)


def spread_over(x: Any, ids: Any) -> Any:
    """x: (n, k) -> (n, used, k)"""
    return np.repeat(x[:, None], ids.shape[1], 1)


def assert_close(found: Any, wanted: np.ndarray, allowed: np.ndarray) -> None:
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert (np.abs(found - wanted) <= allowed).all(), (np.abs(found - wanted) / allowed).max()


# -- products ----------------------------------------------------------------------------------


@BLOCKS
def test_gather_matmul(native: Backend, block: type[blocks.Block]) -> None:
    stack, bias = Stack(block, 70, width(block), seed=1), normal(EXPERTS, 70)
    for n, kind in CASES:
        x, ids = normal(n, width(block)), choice(n, kind)
        wanted, allowed = stack.times(native, spread_over(x, ids), ids)
        assert_close(ops.gather_matmul(x, stack.weight, ids), wanted, allowed)
        found = ops.gather_matmul(x, stack.weight, ids, bias=bias)
        assert_close(found, wanted + bias[ids], allowed + 1e-6)


@BLOCKS
def test_gather_gate_up(native: Backend, block: type[blocks.Block]) -> None:
    gate = Stack(block, 70, width(block), seed=2)
    up = Stack(blocks.Q8_0, 70, width(block), seed=3)
    for n, kind in CASES:
        x, ids = 3 * normal(n, width(block)), choice(n, kind)
        act: ops.Activation = "gelu" if n == 7 else "silu"
        g, gate_error = gate.times(native, spread_over(x, ids), ids)
        u, up_error = up.times(native, spread_over(x, ids), ids)
        # both activations are at most 1.13 times as steep as their argument, and at most as large
        allowed = 1.13 * gate_error * np.abs(u) + up_error * (np.abs(g) + 1e-3) + 1e-6
        found = ops.gather_gate_up(x, gate.weight, up.weight, ids, act)
        assert_close(found, activated(g, act) * u, allowed)


def test_stacks_with_space_between_their_matrices(native: Backend) -> None:
    rng = np.random.default_rng(7)
    for block, space in (
        (blocks.Q4_K, 4096),
        (blocks.Q6_K, 2),
        (blocks.F16, 10),
        (blocks.Q8_0, 32),
    ):
        k, n = width(block), 7
        close = Stack(block, 70, k, seed=5).weight
        step = close.step + space
        buffer = rng.integers(0, 256, EXPERTS * step + 32, np.uint8)
        for i in range(EXPERTS):
            buffer[32 + i * step :][: close.step] = close.data[i].reshape(-1)
        spaced = QTensor(block, close.shape, buffer, 32, step=step)
        x, ids = normal(n, k), choice(n)
        inner, weights = normal(*ids.shape, k), normal(*ids.shape)
        for found, wanted in (
            (ops.gather_matmul(x, w, ids) for w in (spaced, close)),
            (ops.gather_gate_up(x, w, close, ids, "silu") for w in (spaced, close)),
            (ops.gather_gate_up(x, close, w, ids, "silu") for w in (spaced, close)),
            (ops.gather_down(inner, w, ids, weights) for w in (spaced, close)),
        ):
            assert np.isfinite(wanted).all()
            np.testing.assert_array_equal(found, wanted)


@BLOCKS
def test_gather_down(native: Backend, block: type[blocks.Block]) -> None:
    stack = Stack(block, 130, width(block), seed=4)
    for n, kind in CASES:
        ids = choice(n, kind)
        x, weights, add = normal(*ids.shape, width(block)), normal(*ids.shape), normal(n, 130)
        each, error = stack.times(native, x, ids)
        wanted = (each * weights[..., None]).sum(1)
        allowed = (error * np.abs(weights[..., None])).sum(1) + 1e-6
        assert_close(ops.gather_down(x, stack.weight, ids, weights), wanted, allowed)
        found = ops.gather_down(x, stack.weight, ids, weights, add=add)
        assert_close(found, wanted + add, allowed)


@pytest.mark.parametrize("block", [blocks.Q4_K, blocks.Q6_K, blocks.F16], ids=lambda b: b.name)
def test_the_number_of_threads_changes_nothing(block: type[blocks.Block]) -> None:
    stack = Stack(block, 300, 256, seed=5)

    def results() -> list[bytes]:
        found = []
        for n, kind in CASES:
            x, ids = normal(n, 256), choice(n, kind)
            h = ops.gather_gate_up(x, stack.weight, stack.weight, ids, "silu")
            down = ops.gather_down(h[..., :256], stack.weight, ids, normal(*ids.shape))
            found += [np.asarray(h).tobytes(), np.asarray(down).tobytes()]
        return found

    with CPU.in_use():
        by_threads = []
        for threads in (1, 2, 3):
            ops.use_backend("cpu", threads=threads)
            by_threads.append(results())
        ops.use_backend("cpu")
    assert by_threads[0] == by_threads[1] == by_threads[2]


@pytest.mark.parametrize("n", TOKENS)
def test_nan_stays_with_its_token(native: Backend, n: int) -> None:
    stack, ids = Stack(blocks.Q4_K, 70, 256, seed=6), choice(n)
    x = normal(n, 256)
    clean = np.asarray(ops.gather_matmul(x, stack.weight, ids))
    x[n // 2, 7] = np.nan
    found = np.asarray(ops.gather_matmul(x, stack.weight, ids))
    others = np.arange(n) != n // 2
    assert np.isnan(found[n // 2]).all() and np.array_equal(found[others], clean[others])


@pytest.mark.parametrize("n", [1, 33])
def test_any_leading_axes(native: Backend, n: int) -> None:
    stack, ids = Stack(blocks.Q8_0, 64, 64, seed=7), choice(2 * n)
    x, weights = normal(2 * n, 64), normal(*ids.shape)
    h: Any = ops.gather_gate_up(x, stack.weight, stack.weight, ids, "silu")
    out = ops.gather_down(h, stack.weight, ids, weights, add=x)
    b, c = x.reshape(2, n, 64), ids.reshape(2, n, USED)
    deep: Any = ops.gather_gate_up(b, stack.weight, stack.weight, c, "silu")
    assert np.array_equal(deep, h.reshape(2, n, USED, 64))
    found = ops.gather_down(deep, stack.weight, c, weights.reshape(c.shape), add=b)
    assert np.array_equal(found, np.asarray(out).reshape(2, n, 64))


@pytest.mark.parametrize("shape", [(1,), (2, 3), (130,)], ids=str)
@pytest.mark.parametrize("d", [1, 7, 64, 1000])
def test_sigmoid_gate(native: Backend, shape: tuple[int, ...], d: int) -> None:
    x, gate, add = normal(*shape, d), 4 * normal(*shape, 1), normal(*shape, d, seed=1)
    wanted = by_reference(ops.sigmoid_gate, x, gate)
    assert np.allclose(ops.sigmoid_gate(x, gate), wanted, rtol=1e-6, atol=1e-7)
    assert np.allclose(ops.sigmoid_gate(x, gate, add=add), wanted + add, rtol=1e-6, atol=1e-6)


# -- routing -----------------------------------------------------------------------------------

ROUTINGS = {
    "softmax": (128, Routing(8)),
    "plain softmax": (60, Routing(4, normalise=False)),
    "many": (512, Routing(16)),
    "sigmoid": (160, Routing(6, "sigmoid", scale=2.5)),
    "groups": (256, Routing(8, "sigmoid", groups=8, groups_used=4)),
    "softmax in groups": (24, Routing(5, groups=6, groups_used=2)),
    "all": (7, Routing(7)),
    "one": (1, Routing(1)),
}


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("biased", [False, True])
def test_route(native: Backend, name: str, biased: bool) -> None:
    experts, routing = ROUTINGS[name]
    for n in TOKENS:
        logits = 2 * normal(n, experts)
        bias = normal(experts, seed=1) if biased else None
        wanted_ids, wanted = (np.array(x) for x in routed_by_reference(logits, routing, bias))
        ids, weights = (np.asarray(x) for x in ops.route(logits, routing, bias=bias))
        assert ids.dtype == np.int32 and weights.dtype == np.float32
        # scores that round to the same number may change places
        by_logits = routing.gating == "softmax" and routing.groups == 1 and not biased
        assert (ids != wanted_ids).mean() <= (0 if by_logits else 2e-3)
        assert all(len(set(row)) == routing.used for row in ids.tolist())
        assert np.allclose(weights, wanted, rtol=2e-5, atol=1e-7)


def routed_by_reference(logits: Any, routing: Routing, bias: Any = None) -> tuple[Any, Any]:
    ids = by_reference(lambda x: ops.route(x, routing, bias=bias)[0], logits)
    return ids, by_reference(lambda x: ops.route(x, routing, bias=bias)[1], logits)


@pytest.mark.parametrize("routing", [Routing(4), Routing(4, "sigmoid", groups=4, groups_used=2)])
def test_of_equal_scores_the_lower_id_is_chosen(native: Backend, routing: Routing) -> None:
    logits: Any = np.random.default_rng(1).integers(-1, 2, (200, 32)).astype(np.float32)
    wanted, _ = routed_by_reference(logits, routing)
    assert np.array_equal(ops.route(logits, routing)[0], wanted)


@pytest.mark.parametrize("routing", [Routing(4), Routing(4, "sigmoid", groups=4, groups_used=2)])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_ids_are_experts_whatever_the_logits(
    native: Backend, routing: Routing, poison: float
) -> None:
    for count in (1, 30, 32):
        logits = normal(5, 32)
        logits[2, np.random.default_rng(count).permutation(32)[:count]] = poison
        wanted, weights = routed_by_reference(logits, routing)
        ids, found = ops.route(logits, routing)
        assert np.array_equal(ids, wanted)
        assert np.allclose(found, weights, rtol=2e-5, atol=1e-7, equal_nan=True)


# -- calls that are repeated -------------------------------------------------------------------


def test_recorded_calls_take_the_experts_of_the_moment(native: Backend) -> None:
    stack, x = Stack(blocks.Q4_K, 64, 256, seed=8), normal(1, 256)
    ids, other = experts([0, 5, 2]), experts([3, 1, 5])
    made = library.Recording()
    with library.recorded(made):
        out = np.asarray(ops.gather_matmul(x, stack.weight, ids))
    ids[...] = other
    made.replay()
    assert np.array_equal(out, ops.gather_matmul(x, stack.weight, other))


@pytest.mark.parametrize("bad", [-1, EXPERTS, 1 << 30, -(1 << 31)])
def test_what_became_no_expert_is_nan(native: Backend, bad: int) -> None:
    """Ids are checked before a call; what is written there later must not lead outside the weights."""
    stack, x = Stack(blocks.Q4_K, 64, 256, seed=9), normal(2, 256)
    ids, weights = experts([0, 5], [3, 1]), normal(2, 2)
    made = library.Recording()
    with library.recorded(made):
        each = np.asarray(ops.gather_matmul(x, stack.weight, ids))
        wide: Any = np.concatenate([each] * 4, -1)
        total = np.asarray(ops.gather_down(wide, stack.weight, ids, weights))
    kept = each.copy(), total.copy()
    ids[1, 0] = bad
    made.replay()
    assert np.isnan(each[1, 0]).all() and np.isnan(total[1]).all()
    each[1, 0], total[1] = kept[0][1, 0], kept[1][1]
    assert np.array_equal(each, kept[0]) and np.array_equal(total, kept[1])


# -- refused -----------------------------------------------------------------------------------


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def ids_of(*shape: int) -> Any:
    return np.zeros(shape, np.int32)


def weight(rows: int = 5) -> QTensor:
    flat = random_weight(blocks.Q8_0, 3 * rows, 64, 1)
    return QTensor(blocks.Q8_0, (3, rows, 64), flat.buffer)


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "id too large": (
        lambda: ops.gather_matmul(zeros(1, 64), weight(), experts([0, 3])),
        "expert ids lie between 0 and 2, found",
    ),
    "negative id": (
        lambda: ops.gather_down(zeros(1, 2, 64), weight(), experts([-1, 0]), zeros(1, 2)),
        "expert ids lie between 0 and 2, found",
    ),
    "tokens": (
        lambda: ops.gather_gate_up(zeros(2, 64), weight(), weight(), ids_of(3, 2), "silu"),
        r"x of shape \(2, 64\) does not fit ids of shape \(3, 2\)",
    ),
    "inputs of experts": (
        lambda: ops.gather_down(zeros(2, 3, 64), weight(), ids_of(2, 2), zeros(2, 2)),
        r"x of shape \(2, 3, 64\) does not fit ids of shape \(2, 2\)",
    ),
    "k": (
        lambda: ops.gather_matmul(zeros(2, 32), weight(), ids_of(2, 1)),
        r"x of shape \(2, 32\) does not fit QTensor\(Q8_0, \(3, 5, 64\)\)",
    ),
    "a matrix": (
        lambda: ops.gather_matmul(zeros(2, 64), weight().matrix(0), ids_of(2, 1)),
        r"x of shape \(2, 64\) does not fit QTensor\(Q8_0, \(5, 64\)\)",
    ),
    "gate and up": (
        lambda: ops.gather_gate_up(zeros(1, 64), weight(5), weight(6), ids_of(1, 1), "silu"),
        "differ in rows",
    ),
    "bias": (
        lambda: ops.gather_matmul(zeros(1, 64), weight(), ids_of(1, 1), bias=zeros(5)),
        r"bias: expected shape \(3, 5\), found \(5,\)",
    ),
    "weights": (
        lambda: ops.gather_down(zeros(1, 2, 64), weight(), ids_of(1, 2), zeros(1, 3)),
        r"weights: expected shape \(1, 2\), found \(1, 3\)",
    ),
    "residual": (
        lambda: ops.gather_down(
            zeros(1, 2, 64), weight(), ids_of(1, 2), zeros(1, 2), add=zeros(1, 6)
        ),
        r"add: expected shape \(1, 5\), found \(1, 6\)",
    ),
    "gate": (
        lambda: ops.sigmoid_gate(zeros(2, 8), zeros(2, 8)),
        r"gate: expected shape \(2, 1\), found \(2, 8\)",
    ),
    "more than there are": (lambda: ops.route(zeros(1, 4), Routing(5)), "1 to 4 experts, found 5"),
    "groups": (
        lambda: ops.route(zeros(1, 9), Routing(2, groups=2)),
        "9 experts do not make 2 groups",
    ),
    "groups used": (
        lambda: ops.route(zeros(1, 8), Routing(2, groups=2, groups_used=3)),
        "expected 1 to 2 groups, found 3",
    ),
    "selection bias": (
        lambda: ops.route(zeros(1, 8), Routing(2), bias=zeros(7)),
        r"bias: expected shape \(8,\), found \(7,\)",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(name: str) -> None:
    call, message = UNFIT[name]
    with CPU.in_use(), pytest.raises(ValueError, match=message):
        call()
