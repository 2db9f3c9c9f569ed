"""What a decode step costs the host on the metal backend: launches, waits, copies, kernel text, Python time.

Nothing is computed: a runner that returns zeros takes the launches. Models have the shapes of Qwen3-8B and
Qwen3-30B-A3B, all layers and types as in Q4_K_M, but no weights: a sparse file, of which only the header is written.
Tensors of one shape share one array, so the memory needed is that of one layer.

Columns:
  ours, MLX's  launches of a step: of our kernels, and operations of MLX that move or compute
  waits        how often the host waits for an array
  copied       bytes that operations of MLX take between launches (the most at a time, summed over the launches)
  text         bytes of kernel text, header and body: the mean and the most of a launch
  kernels      different ones in the step, by the name that MLX compiles them under
  Python       milliseconds of the host's thread from the tokens to the next ones, the runner's dictionary look-ups
               included: the median of 30 steps, lowest and highest; a Mac adds the time that MLX needs for a launch
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import mlx.core as mx
import numpy as np
import random_files
import random_qwen3
from timing import Spread, once_busy

import mlx_ferrum
from mlx_ferrum import cli, launch, ops
from mlx_ferrum.engine.choosing import forward
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.tensor import QTensor, word

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from launches import Launches, Zeros, counting
from msl.signature import signature

SIZES = {
    "Qwen3-8B": random_qwen3.Sizes("qwen3", 4096, 12288, layers=36, heads=32, kv_heads=8),
    "Qwen3-30B-A3B": random_qwen3.MOE._replace(layers=48),
}
SEQUENCES = (1, 8, 16)
PROMPT, STEPS = 20, 30  # tokens that each sequence holds before; steps that are timed
WAITS = ("item", "tolist", "__array__", "__bool__", "__int__", "__float__")  # of an mx.array


@dataclass
class Counted(Launches):
    """A runner that counts what the table shows."""

    copied: int = 0
    texts: list[int] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)

    def __call__(self, kernel: launch.Kernel, call: launch.Launch) -> list[mx.array]:
        self.texts.append(len(kernel.bare_text) + len(kernel.source))
        self.kernels.add(signature(kernel, call).name)
        return super().__call__(kernel, call)

    def settle(self, arrays: Sequence[mx.array]) -> None:
        """As of the base; notes the memory that is taken meanwhile."""
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        super().settle(arrays)
        self.copied += max(0, mx.get_peak_memory() - before)


@dataclass(frozen=True)
class Step:
    """A line of the table."""

    model: str
    sequences: int
    counted: Counted
    waits: int
    python: Spread

    def line(self) -> str:
        """Of the table."""
        texts, ours = self.counted.texts, len(self.counted.texts)
        cells = [ours, len(self.counted.names) - ours, self.waits, self.counted.copied]
        cells += [round(sum(texts) / ours), max(texts), len(self.counted.kernels)]
        numbers = " | ".join(str(n) for n in cells)
        return f"| {self.model} | {self.sequences} | {numbers} | {self.python} |"


HEADER = f"""\
| model | sequences | ours | MLX's | waits | copied | text | most | kernels | Python, ms |
|{" --- |" * 10}"""


def write(path: Path, sizes: random_qwen3.Sizes) -> None:
    """A file whose tensors are a hole: zeros that take no space."""
    writer = gguf.GGUFWriter(path, sizes.architecture)
    random_qwen3.add_metadata(writer, sizes)
    tensors = list(random_qwen3.tensors(sizes))
    random_files.add_tensor_infos(writer, tensors)
    nbytes = sum(writer.ggml_pad(tensor.nbytes, writer.data_alignment) for tensor in tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = writer.ggml_pad(path.stat().st_size, writer.data_alignment)
    with path.open("r+b") as file:
        file.truncate(start + nbytes)


@cache
def words(shape: tuple[int, ...], dtype: np.dtype) -> mx.array:
    """The array that all tensors of one shape share."""
    out = mx.zeros(shape, getattr(mx, dtype.name))
    mx.eval(out)
    return out


def shared(tensor: QTensor) -> mx.array:
    """What the tensor's `array` shall be."""
    dtype = word(tensor.block)
    return words((*tensor.shape[:-1], tensor.row_bytes // dtype.itemsize), dtype)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within, tensors take their arrays from `shared`, once each."""
    array = cached_property(shared)
    array.__set_name__(QTensor, "array")
    with mock.patch.object(QTensor, "array", array):
        yield


@contextmanager
def counting_waits() -> Iterator[list[str]]:
    """Within, note each call that makes the host wait for an array."""
    seen: list[str] = []

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            if name != "numpy.asarray" or isinstance(args[0], mx.array):
                seen.append(name)
            return call(*args, **kwargs)

        return noted

    targets = {f"mlx.core.array.{name}": getattr(mx.array, name) for name in WAITS}
    targets |= {"mlx.core.eval": mx.eval, "mlx.core.synchronize": mx.synchronize}
    targets |= {"numpy.asarray": np.asarray}
    with ExitStack() as stack:
        for name, call in targets.items():
            stack.enter_context(mock.patch(name, noting(name, call)))
        yield seen


class Decoding:
    """Sequences that have read a prompt."""

    def __init__(self, model: LanguageModel, sequences: int) -> None:
        self.cache, self.forward = model.make_cache(), forward(model)
        self._run(np.zeros((sequences, PROMPT), np.int64))
        self.tokens = mx.zeros((sequences, 1), mx.int32)
        self.settle()

    def _run(self, tokens: Any) -> mx.array:
        batch = self.cache.batch(tokens)
        found = self.forward(batch)
        batch.advance()
        return found[1]

    def step(self) -> None:
        """One token more of each."""
        self.tokens = self._run(self.tokens).reshape(-1, 1).astype(mx.int32)

    def settle(self) -> None:
        """Compute what MLX itself was asked for, so that graphs do not grow from step to step."""
        mx.eval(self.tokens, self.cache.arrays)


def measure(name: str, model: LanguageModel, sequences: int) -> Step:
    """Count one step, then time some."""
    with launch.use_runner(Zeros()):
        decoding = Decoding(model, sequences)
        decoding.step()
        decoding.settle()
        with counting_waits() as waits:
            decoding.step()
        decoding.settle()
        times = []
        for _ in range(STEPS):
            times.append(1e3 * once_busy(decoding.step))
            decoding.settle()
    counted = Counted()
    with counting(counted):
        decoding.step()
        counted.settle([decoding.tokens, *decoding.cache.arrays])
    return Step(name, sequences, counted, len(waits), Spread.of(times))


def models(names: Sequence[str]) -> Iterator[tuple[str, LanguageModel]]:
    """Load each; the metal backend and a runner are in use."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write(path, SIZES[name])
            model, _ = mlx_ferrum.load(path)
            yield name, model


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("models", nargs="*", default=list(SIZES), metavar="MODEL")
    parser.add_argument("--sequences", type=cli.positive, nargs="+", default=SEQUENCES, metavar="N")
    args = parser.parse_args()
    if unknown := set(args.models) - set(SIZES):
        parser.error(f"no shapes of {', '.join(unknown)}; there are: {', '.join(SIZES)}")
    print(HEADER)
    with launch.use_runner(Zeros()), without_weights():
        ops.use_backend("metal")
        for name, model in models(args.models):
            for sequences in args.sequences:
                print(measure(name, model, sequences).line(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
