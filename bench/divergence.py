"""KL divergence of quantized models from the float model, beside llama-quantize's files of the same size.

    python bench/divergence.py tiny-moe work/ --calibration train.txt --held-out test.txt
    python bench/divergence.py … --llama-quantize path/to/llama-quantize --types q2_k q4_k_m --budget

The model is decoded, noise of --noise of each row's size is added, so that no grid of blocks shows, and it is written
as F16 to the folder. Each type is quantized with and without importance measured on --calibration, by this package and
by llama-quantize; --budget also chooses types for the size of each file, by sensitivity on the same text. Divergence
is measured on --held-out, in nats per token, with its standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf as gguf_py
import numpy as np

from mlx_ferrum import gguf
from mlx_ferrum.blocks import F16
from mlx_ferrum.convert import compare, output, quantizing, recipes, source
from mlx_ferrum.convert.command import main as convert


def noisy(model: gguf.GGUF, info: gguf.TensorInfo, noise: float, seed: int) -> Iterator[np.ndarray]:
    """A tensor's rows as F16, each with normal noise of `noise` times its root mean square."""
    rng = np.random.default_rng(seed)
    for x, _ in quantizing.decoded(model, info):
        size = noise * np.sqrt(np.mean(np.square(x), axis=1, keepdims=True))
        yield F16.quantize(x + size * rng.standard_normal(x.shape, np.float32))


def write_noisy(name: str, out: Path, noise: float, draw: int) -> None:
    """The model in F16, with noise in what recipes quantize; `draw` tells noises apart."""
    model, tensors = source.read(name), []
    for seed, info in enumerate(model.tensors.values(), 1000 * draw):
        if recipes.may_quantize(recipes.TensorFacts(info.name, info.shape, info.type)):
            data = partial(noisy, model, info, noise, seed)
            tensors.append(output.Planned(info.name, F16, info.shape, info.type, data))
        else:
            tensors.append(source.copied(model, info))
    values = source.metadata(model)
    values["general.file_type"] = output.Value(1, gguf_py.GGUFValueType.UINT32)
    output.write(out, values, tensors)


class Made(NamedTuple):
    """A quantized file, and the seconds that the whole command took."""

    path: Path
    seconds: float


def timed(path: Path, *command: object) -> Made:
    """Run a command that writes `path`."""
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return Made(path, time.perf_counter() - start)


def candidates(folder: Path, kind: str, args: argparse.Namespace) -> dict[str, Made]:
    """The files of one type by what made them."""
    base, importance = folder / "f16.gguf", folder / "importance.gguf"
    quantize = (sys.executable, "-m", "mlx_ferrum.convert", "quantize", base)
    found = {}
    for weighted in (False, True):
        more = ["--imatrix", str(importance)] if weighted else []
        ours, theirs = (folder / f"{who}-{kind}-{weighted}.gguf" for who in ("ours", "theirs"))
        which = ", importance" if weighted else ""
        found[f"ours{which}"] = timed(ours, *quantize, ours, "--type", kind, "--force", *more)
        if args.llama_quantize is not None:
            command = (args.llama_quantize, *more, base, theirs, kind)
            found[f"llama-quantize{which}"] = timed(theirs, *command)
    if args.budget:
        sized, text = folder / f"budget-{kind}.gguf", ["--text", str(args.calibration)]
        size = f"{found['ours'].path.stat().st_size}B"
        kept = ["--sensitivity", str(folder / "sensitivity.json"), "--force"]
        found["budget"] = timed(sized, *quantize, sized, "--budget", size, *text, *kept)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="a GGUF file or a catalog name")
    add("folder", type=Path, help="where files are written")
    add("--calibration", type=Path, required=True)
    add("--held-out", type=Path, required=True)
    add("--llama-quantize", type=Path)
    add("--types", nargs="+", default=["q4_k_m"])
    add("--budget", action="store_true")
    add("--noise", type=float, default=0.08)
    add("--draw", type=int, default=0, help="another number is another noise")
    add("--chunks", type=int, default=20, help="of the held-out text, of 512 tokens")
    args = parser.parse_args(argv)
    folder = args.folder / f"draw-{args.draw}"
    folder.mkdir(parents=True, exist_ok=True)
    base, importance = folder / "f16.gguf", folder / "importance.gguf"
    if not base.exists():
        write_noisy(args.model, base, args.noise, args.draw)
    if not importance.exists():
        convert(["imatrix", str(base), str(args.calibration), str(importance), "--chunks", "40"])
    for kind in args.types:
        files = candidates(folder, kind, args)
        paths = [made.path for made in files.values()]
        found = compare(base, paths, args.held_out, count=args.chunks, tensors=False)
        for (who, made), other in zip(files.items(), found.others, strict=True):
            kl, size = other.divergence.kl, made.path.stat().st_size
            print(
                f"{kind:<8} {who:<28} {size:>14,} bytes  KL {kl.value:.5f} +- {kl.error:.5f}  {made.seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
