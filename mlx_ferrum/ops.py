"""The operations that models are made of, and which backend runs them.

Everything above calls only these. A backend is a module with functions of the same names
(backends/protocol.py), and the reference backend defines what they mean. A is the array that holds a
backend's activations: np.ndarray on the cpu backend, mx.array on all others. `rows` and `dequantize` return
it too. Models use only what both have: arithmetic, reshaping and slicing.
Shapes: n rows of a batch, h query heads, g key-value heads, d head size; e experts, n of them used by a token.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import mlx.core as mx
import numpy as np

from . import notice, profile, shapes
from .backends import BACKENDS
from .options import Activation as Activation
from .options import Delta as Delta
from .options import Gating as Gating
from .options import HeadNorms as HeadNorms
from .options import Norm as Norm
from .options import Routing as Routing
from .tensor import QTensor

if TYPE_CHECKING:
    from .backends.observed import Observer
    from .backends.protocol import A, Backend
    from .batch import Batch, Place, RecurrentPlace

T = TypeVar("T")
Array = mx.array | np.ndarray  # activations: NumPy's on the cpu backend, MLX's on all others
MAX_THREADS = 512  # as in ggml; the library aborts when the system refuses a thread
_active: Backend[Any] | None = None
_watchers = 0  # how many `unrepeated` are entered


def use_backend(name: str, *, threads: int | None = None) -> None:
    """Run all operations from now on by the backend called `name`.

    threads: of the cpu backend; by default as many as the cores that this process may use
    Raises ValueError for an unknown name, OSError if the backend cannot work on this machine.
    """
    global _active
    if name not in BACKENDS:
        raise ValueError(f"no backend is called {name!r}; there is: {', '.join(BACKENDS)}")
    if threads is not None and name != "cpu":
        raise ValueError(f"threads can be set for the cpu backend, not for {name!r}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads is {threads}, expected 1 to {MAX_THREADS}")
    backend = cast("Backend[Any]", importlib.import_module(f".backends.{name}", __package__))
    backend.prepare(threads)
    _active = backend


def backend_name() -> str:
    """The backend in use."""
    return _backend().__name__.rpartition(".")[2]


def backend_in_use() -> str | None:
    """Its name; None before the first operation, where none was asked for. Starts no backend."""
    return None if _active is None else backend_name()


def is_lazy() -> bool:
    """Whether operations only note what is to be done, so that steps can be put in a queue."""
    return _backend().LAZY


def place(tensors: Sequence[QTensor]) -> None:
    """Bring a model's weights to where the backend in use reads them, which nothing has to wait for later.

    Raises OSError if there is no room for them.
    """
    _backend().place(tensors)


def wired_limit() -> int | None:
    """Bytes that MLX should keep resident while a model generates; None where that is not up to MLX."""
    return _backend().wired_limit()


@contextmanager
def observed(see: Observer) -> Iterator[None]:
    """While entered, see(x, ws, ids) is called before each product, on any backend.

    x: (..., k), normed where the operation has a norm; ws: the weights that share it, each (rows, k) or, for
    experts, (e, rows, k); ids: (..., n), the experts that each row of x goes to, None where w is one matrix. In
    `gather_down` x is (..., n, k), a row for each id.
    """
    global _active
    from .backends.observed import Observed

    before = _backend()
    _active = cast("Backend[Any]", Observed(before, see))
    try:
        yield
    finally:
        _active = before


@contextmanager
def substituted(tensors: Mapping[str, QTensor]) -> Iterator[None]:
    """While entered, operations use `tensors` in place of a model's of the same names, on any backend.

    tensors: name in the file -> the same rows in another block type; what is fused in the model stays so
    """
    global _active
    from .backends.substituted import Substituted

    before = _backend()
    _active = cast("Backend[Any]", Substituted(before, tensors))
    try:
        yield
    finally:
        _active = before


@contextmanager
def unrepeated() -> Iterator[None]:
    """While entered, steps of `repeated` run through their model, for those who look inside it."""
    global _watchers
    _watchers += 1
    try:
        yield
    finally:
        _watchers -= 1


def _backend() -> Backend[Any]:
    if _active is None and (reason := use_default_backend()):
        notice.warn(reason)
    assert _active is not None
    return _active


def use_default_backend() -> str | None:
    """Use metal on an Apple GPU, reference on another GPU, cpu without a GPU.

    Returns why it is the reference instead, where the cpu backend cannot work.
    """
    if mx.default_device() == mx.gpu:
        use_backend("metal" if mx.metal.is_available() else "reference")
        return None
    try:
        use_backend("cpu")
    except OSError as error:
        use_backend("reference")
        return f"{error}; using the reference backend, which is slow"
    return None


def matmul(x: A, w: QTensor, *, bias: mx.array | None = None, add: A | None = None) -> A:
    """x wᵀ + bias + add: x: (..., k), w: (rows, k), bias: (rows,), add: (..., rows) -> (..., rows)"""
    shapes.check_product(x, w)
    return _backend().matmul(x, w, bias=bias, add=add)


def matmuls(
    x: A,
    ws: Sequence[QTensor],
    biases: Sequence[mx.array | None] | None = None,
    *,
    norm: Norm | None = None,
) -> list[A]:
    """Several weights that share x and may differ in type: x: (..., k), each w: (rows, k) -> each (..., rows)

    norm: of x, before the products
    """
    shapes.check_product(x, *ws)
    return _backend().matmuls(x, ws, biases, norm=norm)


def gate_up(
    x: A,
    gate: QTensor,
    up: QTensor,
    act: Activation,
    *,
    biases: Sequence[mx.array | None] | None = None,
    norm: Norm | None = None,
) -> A:
    """act(x gateᵀ) * (x upᵀ): x: (..., k), gate and up: (rows, k) -> (..., rows). "gelu" is the tanh form.

    biases: (rows,) of gate and of up, added to the products
    norm: of x, before the products
    """
    shapes.check_product(x, gate, up)
    shapes.check_pair(gate, up)
    return _backend().gate_up(x, gate, up, act, biases=biases, norm=norm)


def norm_matmul(x: A, w: QTensor, norm: Norm) -> tuple[A, A]:
    """x normed, which others need too, and its product: x: (..., k), w: (rows, k) -> (..., k) and (..., rows)"""
    shapes.check_product(x, w)
    return _backend().norm_matmul(x, w, norm)


def rows(w: QTensor, ids: mx.array | np.ndarray, scale: float = 1.0) -> Any:
    """Embedding rows times scale: w: (rows, k), ids: (...) integers -> (..., k) float32"""
    return _backend().rows(w, ids, scale)


def dequantize(w: QTensor) -> mx.array:
    """The whole tensor: (..., rows, k) float32. For norms and biases; large weights are never expanded."""
    return _backend().dequantize(w)


def allocate(shape: tuple[int, ...], bits: int) -> Any:
    """Zeros for keys and values of so many bits a number, of the type in which the backend stores them.

    bits: 8, 16, or 32 for the scales of 8-bit numbers
    """
    return _backend().allocate(shape, bits)


def append(
    q: A,
    k: A,
    v: A,
    at: Place,
    frequencies: mx.array,
    *,
    interleaved: bool,
    magnitude: float = 1.0,
    norms: HeadNorms | None = None,
) -> A:
    """Store keys and values of new rows, and return their queries as `attend` takes them.

    Each query and key gets its RMS norm, where there is one, then its rotary position embedding.

    q: (n, h, d), k: (n, g, d), v: (n, g, dv) -> q: (n, h, d)
        q may be (n, h, 2 d), as `gate` takes it: the first half of each head is the query
    at: the layer's keys and values, to which those of the n rows of its batch are added
    frequencies: (m,) radians a position; the first 2 m values of a head are rotated, the rest stay
    interleaved: pairs are (2 i, 2 i + 1), else (i, i + m)
    magnitude: multiplies the rotated values (YaRN)
    """
    shapes.check_append(q, k, v, frequencies, at)
    return _backend().append(
        q, k, v, at, frequencies, interleaved=interleaved, magnitude=magnitude, norms=norms
    )


def attend(
    q: A, at: Place, *, scale: float, softcap: float = 0.0, sinks: mx.array | None = None
) -> A:
    """Causal attention of the rows of a batch, grouped-query: q: (n, h, d) -> (n, h, dv).

    at: the layer's keys and values, which `append` has added to. A row sees its own position and those before
        it; where the layer has a window, the last `window` of them.
    scale: multiplies q kᵀ
    softcap: bounds the scores: c tanh(score / c); 0 for no bound
    sinks: (h,), for each head a logit that takes its share of the softmax and adds no value
    """
    shapes.check_attend(q, at, sinks)
    return _backend().attend(q, at, scale=scale, softcap=softcap, sinks=sinks)


def attend_both_ways(q: A, k: A, v: A, lengths: list[int], *, scale: float) -> A:
    """Attention of every position to all positions of its sequence, before and after it.

    q, k, v: (b, h, l, d) -> (b, h, l, d)
    lengths: the positions of each sequence, from 1 to l; what lies behind them is not seen, and its result is any
    finite number
    scale: multiplies q kᵀ
    """
    return _backend().attend_both_ways(q, k, v, lengths, scale=scale)


def short_conv(x: A, weight: mx.array, at: RecurrentPlace) -> A:
    """SiLU of a causal convolution of each channel over the rows of its sequence: x: (n, c) -> (n, c).

    weight: (c, kernel), the newest row last
    at: the layer's states, which give the inputs before the rows and get the last ones
    """
    shapes.check_short_conv(x, weight, at)
    return _backend().short_conv(x, weight, at)


def gated_delta(qkv: A, a: A, b: A, at: RecurrentPlace, delta: Delta) -> A:
    """The gated delta rule over the rows of each sequence: qkv: (n, c), a and b: (n, h) -> (n, h, s).

    qkv: queries and keys of all key heads, then values of the h value heads, s numbers each
    A state M: (s, s) of each value head, which the layer's states give and get, goes on with each row:
        q, k: divided by their lengths, q by sqrt(s) too
        M = exp(decay softplus(a + dt)) M, then M += k dᵀ with d = sigmoid(b) (v - Mᵀ k); the result is Mᵀ q
    """
    shapes.check_delta(qkv, a, b, at, delta)
    return _backend().gated_delta(qkv, a, b, at, delta)


def gated_norm(x: A, weight: mx.array, eps: float, gate: A) -> A:
    """The RMS norm of each head, times silu(gate): x: (n, h, d), weight: (d,), gate: (n, h d) -> (n, h d)"""
    shapes.check_gated_norm(x, weight, gate)
    return _backend().gated_norm(x, weight, eps, gate)


def gate(x: A, pairs: A) -> A:
    """x times the sigmoid of the second half of each head of `pairs`: x: (n, h, d), pairs: (n, h, 2 d) -> (n, h, d)"""
    shapes.check_gate(x, pairs)
    return _backend().gate(x, pairs)


def rms_norm(x: A, weight: mx.array, eps: float, *, add: A | None = None) -> A:
    """x / sqrt(mean(x²) + eps) * weight + add: x and add: (..., d), weight: (d,) -> (..., d)"""
    return _backend().rms_norm(x, weight, eps, add=add)


def gelu(x: A) -> A:
    """x times the normal distribution's share below it, exactly and not by the tanh form: x: (...) -> (...)"""
    return _backend().gelu(x)


def softcap(x: A, cap: float) -> A:
    """cap tanh(x / cap): x: (...) -> (...)"""
    return _backend().softcap(x, cap)


def choose(logits: A) -> tuple[A, A]:
    """The most likely token of each row: logits: (n, v) -> ids: (n,) and ranges: (n, 2).

    ids: the first of the largest logits; ranges: the smallest and the largest logit, NaN if any is NaN
    """
    return _backend().choose(logits)


def mask_logits(logits: A, bits: A) -> A:
    """Logits (n, v), -inf where the bit of a token is 0: bits: (n, ceil(v / 32)) int32, the lowest first -> (n, v)"""
    shapes.check_mask(logits, bits)
    return _backend().mask_logits(logits, bits)


def route(logits: A, routing: Routing, *, bias: mx.array | None = None) -> tuple[A, A]:
    """Choose experts: logits: (..., e) -> ids: (..., n) int32 and weights: (..., n) float32, the best first.

    bias: (e,), added to the scores for the choice, not for the weights
    Of equal scores the lower id is chosen; a NaN scores lowest, so ids lie below e whatever the logits are.
    """
    routing.check(logits.shape[-1])
    return _backend().route(logits, routing, bias=bias)


def gather_matmul(x: A, w: QTensor, ids: A, *, bias: mx.array | None = None) -> A:
    """x w[id]ᵀ + bias[id] for each of a token's ids.

    x: (..., k), w: (e, rows, k), bias: (e, rows), ids: (..., n) -> (..., n, rows)
    """
    shapes.check_experts(x, ids, w)
    return _backend().gather_matmul(x, w, ids, bias=bias)


def gather_gate_up(x: A, gate: QTensor, up: QTensor, ids: A, act: Activation) -> A:
    """`gate_up` of each chosen expert: x: (..., k), gate and up: (e, rows, k), ids: (..., n) -> (..., n, rows)"""
    shapes.check_experts(x, ids, gate, up)
    shapes.check_pair(gate, up)
    return _backend().gather_gate_up(x, gate, up, ids, act)


def gather_down(x: A, w: QTensor, ids: A, weights: A, *, add: A | None = None) -> A:
    """The weighted sum of what the chosen experts say, + add.

    x: (..., n, k), w: (e, rows, k), ids and weights: (..., n), add: (..., rows) -> (..., rows)
    """
    shapes.check_experts(x, ids, w, spread=True)
    return _backend().gather_down(x, w, ids, weights, add=add)


def sigmoid_gate(x: A, gate: A, *, add: A | None = None) -> A:
    """x * sigmoid(gate) + add: x and add: (..., d), gate: (..., 1) -> (..., d)"""
    return _backend().sigmoid_gate(x, gate, add=add)


def to_mlx(x: A) -> mx.array:
    """What leaves a model, as an mx.array of float32; a backend may hold activations otherwise."""
    return _backend().to_mlx(x)


def repeated(run: Callable[[Batch], T]) -> Callable[[Batch], T]:
    """`run` for many batches in which each sequence has one row. It returns arrays, alone or in tuples.

    A backend may note the operations of a run and make them again for the next batch of the same shape, without
    Python; results are the same to the last bit, and last until the next run. run and the modules that it calls must
    not be changed meanwhile, and must not change arrays in place.
    Nothing is repeated while a Profile, `observed`, `substituted` or `unrepeated` is entered, nor by another backend.
    """
    backend = _backend()
    repeat = backend.repeated(run)

    def step(batch: Batch) -> T:
        is_watched = _watchers or profile.is_active() or _backend() is not backend
        return run(batch) if is_watched else repeat(batch)

    return step
