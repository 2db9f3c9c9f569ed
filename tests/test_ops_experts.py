"""The operations of mixtures of experts: every backend against NumPy in float64, written another way."""

import mlx.core as mx
import numpy as np
import pytest
from test_ops import assert_close, float64, random_tensor

from mlx_ferrum import blocks, ops
from mlx_ferrum.ops import Routing

MANY = 2  # more tokens than this may go through tiles
TYPES = [
    (blocks.Q4_K, blocks.Q4_K, blocks.Q6_K),
    (blocks.Q6_K, blocks.Q5_0, blocks.F16),
    (blocks.F32, blocks.MXFP4, blocks.Q3_K),
]


# -- the router --------------------------------------------------------------------------------


def chosen(logits: np.ndarray, routing: Routing, bias: np.ndarray) -> tuple[list[int], np.ndarray]:
    """One token's experts and weights, by sorting: logits and bias: (e,)"""
    wide = np.nan_to_num(logits.astype(np.float64), nan=-np.inf)
    if routing.gating == "softmax":
        scores = np.exp(wide - wide.max())
        scores /= scores.sum()
    else:
        scores = 1 / (1 + np.exp(-wide))
    by = np.where(np.isnan(logits), -np.inf, scores + bias)
    groups = np.split(np.arange(len(by)), routing.groups)
    best = sorted(groups, key=lambda group: (-np.sort(by[group])[-2:].sum(), group[0]))
    allowed = np.concatenate(best[: routing.groups_used]).tolist()
    ids = sorted(allowed, key=lambda i: (-by[i], i))[: routing.used]
    weights = scores[ids]
    if routing.normalise:
        weights = weights / weights.sum()
    return ids, weights * routing.scale


def assert_routed(backend, logits, routing, bias=None):
    """logits: (..., e)"""
    given = None if bias is None else mx.array(bias)
    found = ops.route(backend.array(logits), routing, bias=given)
    ids, weights = map(np.asarray, found)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    assert ids.shape == weights.shape == (*logits.shape[:-1], routing.used)
    for at in np.ndindex(logits.shape[:-1]):
        wanted_ids, wanted = chosen(logits[at], routing, 0 * logits[at] if bias is None else bias)
        assert ids[at].tolist() == wanted_ids
        assert_close(weights[at], wanted, relative=2e-6)


def spread(*shape: int) -> np.ndarray:
    """Logits that differ by so much that float32 does not confuse them."""
    rng = np.random.default_rng(shape)
    steps = np.broadcast_to(np.arange(shape[-1]), shape)
    return (rng.permuted(steps, axis=-1) * (8 / shape[-1]) - 5).astype(np.float32)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "experts, used", [(4, 1), (4, 4), (8, 2), (60, 4), (128, 8), (33, 16), (512, 16)]
)
def test_route(backend, experts, used, gating, normalise):
    routing = Routing(used, gating, normalise)
    assert_routed(backend, spread(1, experts), routing)
    assert_routed(backend, spread(2, 35, experts), routing)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("experts", [8, 160])
def test_route_with_a_bias_and_a_scale(backend, experts, gating):
    """The bias turns the choice around; the weights do not know it."""
    logits = spread(5, experts)
    bias = np.random.default_rng(experts).permutation(experts) / np.float32(experts) * 2 - 1
    plain, _ = ops.route(backend.array(logits), Routing(6, gating))
    turned, _ = ops.route(backend.array(logits), Routing(6, gating), bias=mx.array(bias))
    assert not np.array_equal(np.asarray(plain), np.asarray(turned))
    for normalise in (True, False):
        assert_routed(backend, logits, Routing(6, gating, normalise, scale=2.5), bias)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "experts, groups, groups_used, used",
    [(8, 4, 2, 3), (256, 8, 4, 8), (36, 3, 1, 12), (8, 4, 4, 2)],
)
def test_route_within_groups(backend, experts, groups, groups_used, used, gating):
    routing = Routing(used, gating, groups=groups, groups_used=groups_used, scale=0.5)
    assert_routed(backend, spread(9, experts), routing)
    bias = np.random.default_rng(used).uniform(-0.3, 0.3, experts).astype(np.float32)
    assert_routed(backend, spread(9, experts), routing, bias)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("experts, used", [(4, 2), (64, 8), (129, 16)])
def test_of_equal_scores_the_lower_id_is_chosen(backend, experts, used, gating):
    rng = np.random.default_rng(experts)
    few = rng.integers(-2, 3, (20, experts)).astype(np.float32)
    assert_routed(backend, np.concatenate([few, np.zeros_like(few[:2])]), Routing(used, gating))
    groups = Routing(2, gating, groups=2, groups_used=1)
    assert_routed(backend, np.zeros((3, 4), np.float32), groups)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
def test_extreme_logits_leave_finite_weights(backend, gating):
    logits = spread(4, 32) * np.array([[30], [-30], [1e-30], [1e4]], np.float32)
    for normalise in (True, False):
        ids, weights = ops.route(backend.array(logits), Routing(4, gating, normalise))
        assert np.isfinite(np.asarray(weights)).all()
        assert all(len(set(row)) == 4 for row in np.asarray(ids).tolist())


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("experts, used", [(4, 2), (70, 8)])
def test_nan_is_never_preferred(backend, experts, used, gating):
    logits = spread(6, experts)
    logits[:, ::2] = np.nan
    logits[-1] = np.nan
    ids = np.asarray(ops.route(backend.array(logits), Routing(used, gating))[0])
    wanted = [chosen(row, Routing(used, gating), np.zeros(experts))[0] for row in logits[:-1]]
    assert ids.tolist() == [*wanted, list(range(used))]


# -- products of the chosen ----------------------------------------------------------------------


def stack(block, experts: int, rows: int, k: int, seed: int):
    return random_tensor(block, experts, rows, k, seed=seed)


def spread_ids(kind: str, tokens: int, used: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng(tokens)
    if kind == "distinct":
        rows = [rng.permutation(experts)[:used] for _ in range(tokens)]
        return np.array(rows, np.int32)
    if kind == "one":
        return np.full((tokens, used), experts - 1, np.int32)
    most = {"repeated": experts, "unused": 2}[kind]
    return rng.integers(0, most, (tokens, used), dtype=np.int32)


def each(backend, x: np.ndarray, w, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row times its expert's matrix, and the error allowed: x: (..., n, k), ids: (..., n) -> (..., n, rows)"""
    wide, matrices = x.astype(np.float64), float64(w)
    out = np.einsum("...k,...rk->...r", wide, matrices[ids])
    error = np.zeros_like(out)
    for expert in np.unique(ids):
        error[ids == expert] = backend.product_error(wide[ids == expert], matrices[expert])
    tokens = ids.size // ids.shape[-1]
    return out, error + (backend.tiles * np.abs(out).max() if tokens > MANY else 0)


def spread_over(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """x: (..., k) -> (..., n, k)"""
    return np.repeat(x[..., None, :], ids.shape[-1], axis=-2)


def assert_within(found, wanted: np.ndarray, error: np.ndarray) -> None:
    assert found.shape == wanted.shape
    worst = (np.abs(np.asarray(found) - wanted) / (error + 1e-30)).max()
    assert worst <= 1, f"{worst:.2f} times the error allowed"


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(x / 2)) / 2


def assert_layer(backend, types, ids: np.ndarray, lead: tuple[int, ...], k=256, rows=21) -> None:
    """Gate, up and down of one layer; lead: shape of the tokens."""
    experts, used = 6, ids.shape[-1]
    ids = ids.reshape(*lead, used)
    gate, up = (stack(b, experts, rows, k, seed=i) for i, b in enumerate(types[:2]))
    x, add, weights = normal(*lead, k), normal(*lead, 19), normal(*lead, used)
    given = backend.array(ids)
    g, g_error = each(backend, spread_over(x, ids), gate, ids)
    u, u_error = each(backend, spread_over(x, ids), up, ids)
    found = ops.gather_gate_up(backend.array(x), gate, up, given, "silu")
    # silu is at most 1.1 times as steep as its argument
    bound = 1.1 * g_error * np.abs(u) + u_error * (np.abs(silu(g)) + 1.1 * g_error)
    assert_within(found, silu(g) * u, bound + 1e-6 * np.abs(silu(g) * u))
    inner = max(256, types[2].weights)
    down = stack(types[2], experts, 19, inner, seed=9)
    h = normal(*lead, used, inner)
    d, d_error = each(backend, h, down, ids)
    wanted = (d * weights[..., None]).sum(-2)
    bound = ((d_error + 1e-6 * np.abs(d)) * np.abs(weights)[..., None]).sum(-2)
    arguments = backend.array(h), down, given, backend.array(weights)
    assert_within(ops.gather_down(*arguments), wanted, bound)
    found = ops.gather_down(*arguments, add=backend.array(add))
    assert_within(found, wanted + add, bound + 1e-6 * np.abs(add))


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
@pytest.mark.parametrize("tokens", [1, 33])
def test_every_type(backend, block, tokens):
    assert_layer(backend, [block] * 3, spread_ids("distinct", tokens, 2, 6), (tokens,))


@pytest.mark.parametrize("kind", ["distinct", "repeated", "one", "unused"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33, 200])
def test_any_choice_of_any_number_of_tokens(backend, kind, tokens):
    types = TYPES[tokens % len(TYPES)]
    assert_layer(backend, types, spread_ids(kind, tokens, 3, 6), (tokens,))


@pytest.mark.parametrize("types", TYPES, ids=lambda types: "-".join(b.name for b in types))
def test_a_batch_and_more_experts_a_token(backend, types):
    assert_layer(backend, types, spread_ids("distinct", 6, 6, 6), (2, 3), k=512, rows=33)


@pytest.mark.parametrize("block", [blocks.Q4_K, blocks.Q5_1, blocks.F32], ids=lambda b: b.name)
@pytest.mark.parametrize("tokens", [1, 20])
def test_gather_matmul_with_a_bias(backend, block, tokens):
    w, ids = stack(block, 5, 13, 256, seed=1), spread_ids("repeated", tokens, 2, 5)
    x, bias = normal(tokens, 256), normal(5, 13)
    wanted, error = each(backend, spread_over(x, ids), w, ids)
    found = ops.gather_matmul(backend.array(x), w, backend.array(ids))
    assert_within(found, wanted, error)
    found = ops.gather_matmul(backend.array(x), w, backend.array(ids), bias=mx.array(bias))
    assert_within(found, wanted + bias[ids], error + 1e-6 * np.abs(bias[ids]))


def test_gather_with_gelu(backend):
    gate, up = (stack(blocks.Q8_0, 4, 9, 64, seed=i) for i in range(2))
    x, ids = normal(3, 64), spread_ids("distinct", 3, 2, 4)
    g, _ = each(backend, spread_over(x, ids), gate, ids)
    u, _ = each(backend, spread_over(x, ids), up, ids)
    gelu = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
    found = ops.gather_gate_up(backend.array(x), gate, up, backend.array(ids), "gelu")
    assert_close(found, gelu * u, relative=2e-3)


@pytest.mark.parametrize("wrong", [-1, 5, 2**30])
def test_ids_of_no_expert_are_refused(fast_backend, wrong):
    """A backend that computes later, on a GPU, cannot look at them."""
    if fast_backend.is_gpu:
        pytest.skip("ids are not looked at")
    w, x = stack(blocks.Q8_0, 5, 8, 64, seed=1), fast_backend.array(normal(2, 64))
    ids = fast_backend.array(np.array([[0, 4], [1, wrong]], np.int32))
    weights = fast_backend.array(normal(2, 2))
    with pytest.raises(ValueError, match="expert ids lie between 0 and 4"):
        ops.gather_matmul(x, w, ids)
    with pytest.raises(ValueError, match="expert ids lie between 0 and 4"):
        ops.gather_gate_up(x, w, w, ids, "silu")
    with pytest.raises(ValueError, match="expert ids lie between 0 and 4"):
        ops.gather_down(fast_backend.array(normal(2, 2, 64)), w, ids, weights)


def test_shapes_that_do_not_fit_are_refused(backend):
    w, x = stack(blocks.Q8_0, 5, 8, 64, seed=1), normal(2, 32)
    ids = backend.array(np.zeros((2, 2), np.int32))
    with pytest.raises(ValueError, match=r"does not fit"):
        ops.gather_matmul(backend.array(x), w, ids)
    with pytest.raises(ValueError, match=r"does not fit"):
        ops.gather_down(backend.array(normal(2, 3, 64)), w, ids, backend.array(normal(2, 2)))
    with pytest.raises(ValueError, match=r"of shape \(3, 64\) does not fit ids of shape \(2, 2\)"):
        ops.gather_matmul(backend.array(normal(3, 64)), w, ids)
    with pytest.raises(ValueError, match=r"does not fit QTensor\(Q8_0, \(8, 64\)\)"):
        ops.gather_matmul(backend.array(normal(2, 64)), w.matrix(0), ids)
    other = stack(blocks.Q8_0, 5, 9, 64, seed=1)
    with pytest.raises(ValueError, match=r"differ in rows"):
        ops.gather_gate_up(backend.array(normal(2, 64)), w, other, ids, "silu")


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        (Routing(0), "a token gets 1 to 8 experts, found 0"),
        (Routing(9), "a token gets 1 to 8 experts, found 9"),
        (Routing(2, groups=3), "8 experts do not make 3 groups"),
        (Routing(2, groups=0), "8 experts do not make 0 groups"),
        (Routing(2, groups=2, groups_used=3), "expected 1 to 2 groups, found 3"),
        (Routing(2, groups=2, groups_used=0), "expected 1 to 2 groups, found 0"),
    ],
)
def test_routing_that_cannot_be_is_refused(backend, routing, message):
    with pytest.raises(ValueError, match=message):
        ops.route(backend.array(normal(2, 8)), routing)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 64), (70, 300)], ids=str)
def test_sigmoid_gate(backend, shape):
    x, add, gate = (
        normal(*shape),
        normal(*shape[:-1], shape[-1])[::-1].copy(),
        normal(*shape[:-1], 1),
    )
    wanted = x.astype(np.float64) / (1 + np.exp(-8 * gate.astype(np.float64)))
    assert_close(ops.sigmoid_gate(backend.array(x), backend.array(8 * gate)), wanted, 1e-6)
    found = ops.sigmoid_gate(backend.array(x), backend.array(8 * gate), add=backend.array(add))
    assert_close(found, wanted + add, 1e-6)
