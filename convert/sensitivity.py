"""How much a model's predictions change when one tensor is stored in fewer bits, measured tensor by tensor.

One tensor at a time is quantized, and the model reads a text. The loss is the mean Kullback-Leibler divergence of its
predictions from those of the unchanged model. For small errors the losses of several tensors add up, and each loss is
proportional to the tensor's squared error, so one measurement gives the loss in every type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_ferrum import blocks, gguf, ops, progress
from mlx_ferrum.batch import Batch
from mlx_ferrum.blocks import Block
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tensor import QTensor

from . import divergence, quantizing, recipes
from .output import replaced
from .perplexity import ROWS

KEPT_BYTES = 256 << 20  # of the model's logits that losses are measured against
SAMPLE = 1 << 17  # weights of a tensor that errors are measured on
FORMAT = 1  # of saved measurements


@dataclass(frozen=True)
class Sensitivity:
    """Of one tensor.

    block: the type it was measured in; loss: nats a token with this tensor alone in that type
    errors: name of a type -> relative squared error, sum of (found - x)² over sum of x²
    """

    block: str
    loss: float
    errors: dict[str, float]

    def expected(self, block: type[Block]) -> float:
        """The loss in nats a token with the tensor in another type of `errors`."""
        mine = self.errors[self.block]
        return self.loss * self.errors[block.name] / mine if mine > 0 else 0.0


class Baseline:
    """Predictions of the unchanged model: logits of at most KEPT_BYTES, from evenly spread positions.

    Tensors are best tried in the order of layers: what comes into the layer is kept, so that those before it run once.
    """

    def __init__(self, model: LanguageModel, chunks: Sequence[Sequence[int]]) -> None:
        self._model, self._chunks = model, [np.array(tokens) for tokens in chunks]
        most = KEPT_BYTES // (4 * model.args.vocab_size)
        each = max(1, most // len(chunks))
        self._positions = [_spread(len(tokens) // 2, len(tokens), each) for tokens in chunks]
        self._last = list(self._from(0, self._embedded()))
        self._expected = list(self._logits(self._last))
        self._layer, self._inputs = 0, self._embedded()

    @property
    def positions(self) -> int:
        """How many predictions are compared."""
        return sum(map(len, self._positions))

    def loss(self, tensor: QTensor) -> float:
        """Mean KL, in nats, of predictions with `tensor` in place of the model's own from the unchanged model's.

        Raises ValueError for logits that are not finite.
        """
        layer = recipes.layer(tensor.name)
        if layer >= 0:
            self._move_to(layer)
        with ops.substituted({tensor.name: tensor}):
            if tensor.name == "output.weight":
                hidden: Iterable[ops.Array] = self._last
            else:
                inputs = self._inputs if layer >= 0 else self._embedded()
                hidden = self._from(max(layer, 0), inputs)
            pairs = zip(self._expected, self._logits(hidden), strict=True)
            return sum(float(divergence.kl(p, q).sum()) for p, q in pairs) / self.positions

    def _move_to(self, layer: int) -> None:
        """Keep what comes into this layer."""
        if layer < self._layer:
            self._layer, self._inputs = 0, self._embedded()
        run, first = self._model.body.run, self._layer
        self._inputs = [
            run(x, batch, first, layer)
            for x, batch in zip(self._inputs, self._batches(), strict=True)
        ]
        mx.eval(*map(ops.to_mlx, self._inputs))
        self._layer = layer

    def _embedded(self) -> list[ops.Array]:
        return [self._model.body.embed_tokens(tokens) for tokens in self._chunks]

    def _batches(self) -> Iterator[Batch]:
        """For each chunk a batch over an empty cache."""
        return (self._model.make_cache().batch(tokens[None]) for tokens in self._chunks)

    def _from(self, layer: int, inputs: Iterable[ops.Array]) -> Iterator[mx.array]:
        """What the layers from this one on make of each chunk, (positions, hidden), normed for the head."""
        body = self._model.body
        for x, batch, positions in zip(inputs, self._batches(), self._positions, strict=True):
            hidden = body.norm(body.run(x, batch, layer, len(body.layers)))
            yield ops.to_mlx(hidden)[mx.array(positions)]

    def _logits(self, hidden: Iterable[ops.Array]) -> Iterator[np.ndarray]:
        """(at most ROWS, vocabulary) float32 each, in order."""
        for x in hidden:
            for start in range(0, len(x), ROWS):
                yield np.asarray(self._model.head(x[start : start + ROWS]))


def _spread(first: int, stop: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(first, stop - 1, min(most, stop - first)).astype(np.int64))


def measure(
    model: LanguageModel,
    file: gguf.GGUF,
    chunks: Sequence[Sequence[int]],
    probes: Mapping[str, type[Block]],
    types: Sequence[type[Block]],
) -> dict[str, Sensitivity]:
    """The sensitivity of each tensor of `probes`, measured in the type that it has there.

    model: of `file`; chunks: tokens to read, each from an empty cache
    types: errors are measured in those that the rows of a tensor can be stored in
    Raises ValueError for weights that a type cannot hold, and for predictions that are not finite.
    """
    baseline = Baseline(model, chunks)
    found = {}
    with progress.bar(total=len(probes), desc="sensitivity", unit="tensor") as bar:
        for name in sorted(probes, key=recipes.layer):
            probe = probes[name]
            loss = baseline.loss(quantized(file, name, probe))
            k = file.tensors[name].shape[-1]
            fitting = [block for block in types if k % block.weights == 0]
            found[name] = Sensitivity(probe.name, loss, _errors(file, name, fitting))
            bar.update()
    file.check()
    return {name: found[name] for name in probes}


def quantized(file: gguf.GGUF, name: str, block: type[Block]) -> QTensor:
    """A tensor in another type, in memory."""
    info = file.tensors[name]
    pieces = [
        block.quantize(x, None, "fast").reshape(-1) for x, _ in quantizing.decoded(file, info)
    ]
    return QTensor(block, info.shape, np.concatenate(pieces), 0, name)


def _errors(file: gguf.GGUF, name: str, types: Sequence[type[Block]]) -> dict[str, float]:
    info = file.tensors[name]
    block, k = blocks.by_name(info.type), info.shape[-1]
    rows = file.data(name).reshape(-1, block.row_bytes(k))
    some = np.ascontiguousarray(rows[_spread(0, len(rows), max(1, SAMPLE // k))])
    x = _decoded(block, some, k)
    square = float(np.square(x, dtype=np.float64).sum())
    errors = {}
    for kind in types:
        off = _decoded(kind, kind.quantize(x, None, "fast"), k) - x
        errors[kind.name] = float(np.square(off, dtype=np.float64).sum()) / (square or 1.0)
    return errors


def _decoded(block: type[Block], raw: np.ndarray, k: int) -> np.ndarray:
    """raw: (rows, row bytes) -> (rows, k) float32"""
    from mlx_ferrum.backends import cpu  # compiles when first used

    return cpu.dequantize(QTensor(block, (len(raw), k), raw.reshape(-1)))


def save(path: Path, about: Mapping[str, object], found: Mapping[str, Sensitivity]) -> None:
    """Write measurements as JSON, with what they were made from."""
    tensors = {name: asdict(one) for name, one in found.items()}
    text = json.dumps({"format": FORMAT, **about, "tensors": tensors}, indent=1)
    with replaced([path]) as (partial,):
        partial.write_text(text + "\n")


def read(path: Path, about: Mapping[str, object]) -> dict[str, Sensitivity]:
    """Measurements that `save` wrote with the same `about`.

    Raises ValueError if they are of something else, or cannot be read.
    """
    try:
        held = json.loads(path.read_text())
        found = {name: Sensitivity(**one) for name, one in held.pop("tensors").items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: no measurements of sensitivity: {error}") from None
    for key, value in {"format": FORMAT, **about}.items():
        if held.get(key) != value:
            raise ValueError(f"{path}: measured with {key} {held.get(key)!r}, expected {value!r}")
    for name, one in found.items():
        if not _is_sound(one):
            raise ValueError(f"{path}: tensor {name!r}: expected a loss and errors, found {one}")
    return found


def _is_sound(found: Sensitivity) -> bool:
    """Whether it says how much is lost in the type that it was measured in, in finite numbers."""
    if not isinstance(found.errors, dict) or found.block not in found.errors:
        return False
    numbers = (found.loss, *found.errors.values())
    return all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
