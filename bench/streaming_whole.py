"""Experts from disk where memory holds all of them, beside the mapped file; and the memory that a budget really takes.

    python bench/random_qwen3.py /tmp/moe.gguf --moe
    python bench/streaming_whole.py /tmp/moe.gguf [--budget 600MB]

Both programs are in one process and decode in turn; needs twice the file's size of memory. With --budget the process
runs that program alone, without a limit, and prints its peak beside what the budget allows.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx_ferrum
from mlx_ferrum import amounts, cli, gguf, ops, sizes
from mlx_ferrum.generate import generate_step

PROMPT, LONG = (
    16,
    512,
)  # tokens: of timed runs, and of the run before them, which reads most experts
UNIT = 1 if sys.platform == "darwin" else 1024  # of the peak that the system reports


def decode(model: Any, prompt: list[int], tokens: int) -> float:
    """Tokens a second after the first one."""
    times = [time.perf_counter() for _ in generate_step(prompt, model, max_tokens=tokens + 1)]
    return tokens / (times[-1] - times[0])


def compare(path: Path, found: sizes.Sizes, args: argparse.Namespace) -> None:
    """Print medians and the median of ratios, pair by pair."""
    prompt = tokens_of(LONG)
    mapped, _ = mlx_ferrum.load(path, expert_memory=0)
    streamed, _ = mlx_ferrum.load(path, expert_memory=2 * found.experts)
    for model in (streamed, mapped):
        decode(model, prompt, args.tokens)
    pairs = []
    for i in range(args.runs):
        order = (mapped, streamed) if i % 2 else (streamed, mapped)
        rates = [decode(model, prompt[:PROMPT], args.tokens) for model in order]
        pairs.append(rates if i % 2 else rates[::-1])
    medians = [statistics.median(each) for each in zip(*pairs, strict=True)]
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"mapped {medians[0]:.2f} tok/s, all experts in memory {medians[1]:.2f}, ratio {ratio:.3f}"
    )


def peak(path: Path, found: sizes.Sizes, args: argparse.Namespace) -> None:
    """Print the peak of one program."""
    model, _ = mlx_ferrum.load(path, expert_memory=args.budget)
    decode(model, tokens_of(LONG), args.tokens)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    dense, beside = found.dense + found.table, most - found.dense - found.table - args.budget
    print(
        f"peak {amounts.size(most)}: {amounts.size(args.budget)} for experts, {amounts.size(dense)} of dense weights, "
        f"{amounts.size(beside)} beside"
    )


def tokens_of(count: int) -> list[int]:
    """Random ones."""
    draw = random.Random(1)
    return [draw.randrange(256) for _ in range(count)]


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--budget", type=amounts.read_size, help="print the peak with so much memory"
    )
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    ops.use_backend("cpu", threads=args.threads)
    found = sizes.of_file(gguf.read(args.file))
    assert found is not None, "an encoder has no experts"
    (compare if args.budget is None else peak)(args.file, found, args)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
