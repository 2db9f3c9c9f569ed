"""Experts from disk under a memory limit, beside the mapped file and llama.cpp: needs root and Linux.

    python bench/random_qwen3.py /tmp/moe.gguf --moe
    ferrum-convert pack /tmp/moe.gguf /tmp/packed.gguf
    python bench/streaming.py /tmp/moe.gguf --packed /tmp/packed.gguf --budgets 600MB 800MB [--llama-bench PATH]

Each program runs in a control group whose limit includes the page cache, after the file's part of the cache was
dropped. First the disk's own speed is measured: reads of an expert's size at random places that bypass the cache.
"ceiling" is what that speed allows if only missing experts take time; bytes and reads are the kernel's own counts.
Results go to bench/results/streaming.json.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shlex
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import limited
import llama
from timing import hardware

import mlx_ferrum
from mlx_ferrum import amounts, catalog, cli, gguf, ops, packed
from mlx_ferrum.generate import generate_step

RESULTS = Path(__file__).parent / "results"
DEPTHS = (1, 2, 4, 8, 16)
SECTOR = 4096
PROMPT = 16  # tokens


class Run(NamedTuple):
    """What one process measured.

    device: bytes that the kernel read from disk for it; calls: of read; experts: bytes of experts
    """

    prompt: float
    rate: float
    device: int
    calls: int
    experts: int
    hits: float
    waited: float


def disk(path: Path, nbytes: int, depth: int, seconds: float = 2.0) -> float:
    """Bytes a second of direct reads at random places, `depth` at a time."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size, stop, done = os.fstat(file).st_size, time.perf_counter() + seconds, [0] * depth

    def work(i: int) -> None:
        memory, draw = mmap.mmap(-1, nbytes), random.Random(i)
        while time.perf_counter() < stop:
            at = draw.randrange((size - nbytes) // SECTOR) * SECTOR
            done[i] += os.preadv(file, [memory], at)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(depth)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)
    return sum(done) / (time.perf_counter() - start)


def expert_bytes(path: Path) -> int:
    """Of one expert's largest part."""
    tensors = packed.tensors(gguf.read(path)).values()
    return max(info.nbytes // info.shape[0] for info in tensors if "_exps." in info.name)


def child(path: Path, memory: int | None, tokens: int, threads: int, seed: int) -> Run:
    """Generate, in this process."""
    ops.use_backend("cpu", threads=threads)
    model, _ = mlx_ferrum.load(path, expert_memory=memory)
    draw = random.Random(seed)
    prompt = [draw.randrange(256) for _ in range(PROMPT)]
    start, times = time.perf_counter(), []
    device = calls = 0
    before = None
    for _ in generate_step(prompt, model, max_tokens=tokens + 1):
        times.append(time.perf_counter())
        if before is None:
            before, device, calls = _counts(model), _kernel("read_bytes"), _kernel("syscr")
    used, read, nbytes, waited = (a - b for a, b in zip(_counts(model), before or (), strict=True))
    rate = tokens / (times[-1] - times[0])
    hits = 1 - read / used if used else 0.0
    device, calls = _kernel("read_bytes") - device, _kernel("syscr") - calls
    return Run(times[0] - start, rate, device, calls, int(nbytes), hits, waited)


def _counts(model: Any) -> tuple[float, ...]:
    return (0, 0, 0, 0.0) if model.streams is None else tuple(model.streams.counts())


def _kernel(count: str) -> int:
    """What the kernel has counted for this process: "read_bytes" from disk, or calls of read, "syscr"."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(count))


def run(path: Path, memory: int | None, args: argparse.Namespace, seed: int) -> tuple[Run, int]:
    """Generate in a process of its own under the limit; also its peak."""
    limited.forget(path)
    words = [sys.executable, __file__, str(path), "--child", str(memory or 0), "--seed", str(seed)]
    words += ["--tokens", str(args.tokens), "--threads", str(args.threads)]
    with limited.limited(args.limit) as group:
        found = Run(**json.loads(group.run(words).splitlines()[-1]))
        return found, group.peak


def measure(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every program in turn, `args.runs` times; medians by rate."""
    memories: dict[str, int | None] = {"mapped": None}
    memories |= {f"experts in {amounts.size(n)}": n for n in args.budgets}
    files = {"": path, **({} if args.packed is None else {", packed": args.packed})}
    programs = {
        name + kind: (file, memory)
        for name, memory in memories.items()
        for kind, file in files.items()
    }
    found: dict[str, list[tuple[Run, int]]] = {name: [] for name in programs}
    theirs = []
    for seed in range(args.runs):
        for name, (file, memory) in programs.items():
            found[name].append(run(file, memory, args, seed))
        if args.llama_bench:
            limited.forget(path)
            with limited.limited(args.limit) as group:
                theirs.append(llama_rate(group, path, args))
    rows = []
    for name, runs in found.items():
        middle, peak = sorted(runs, key=lambda each: each[0].rate)[len(runs) // 2]
        rows.append({"name": name, "peak": peak, **middle._asdict()})
    if theirs:
        rows.append({"name": "llama.cpp, mapped", "rate": statistics.median(theirs)})
    return rows


def llama_rate(group: limited.Group, path: Path, args: argparse.Namespace) -> float:
    """Tokens a second of llama.cpp."""
    words = [args.llama_bench, "-m", path, "-t", args.threads, "-p", 0, "-n", args.tokens]
    words += ["--load-mode", "mmap", "--repack", 0]  # repacked weights would be copies
    out = group.run([*map(str, words), "-r", "1", "-o", "json"])
    return args.tokens / (llama.seconds(out)[f"decode {args.tokens}"])


def show(rows: list[dict[str, Any]], ceiling: float) -> None:
    """Print a Markdown table."""
    print(
        "| program | tok/s | hits | missed, MB/token | device, MB/token | reads/token | GB/s | ceiling, tok/s "
        "| of it | peak, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "experts" not in row:
            print(f"| {row['name']} | {row['rate']:.2f} |" + " |" * 8)
            continue
        missed, device, calls = (row[key] / row["tokens"] for key in ("experts", "device", "calls"))
        allowed = ceiling / missed if missed else 0.0
        share = f"{allowed:.2f} | {row['rate'] / allowed:.0%}" if allowed else " | "
        print(
            f"| {row['name']} | {row['rate']:.2f} | {row['hits']:.0%} | {missed / 1e6:.0f} | {device / 1e6:.0f} | "
            f"{calls:.0f} | {device * row['rate'] / 1e9:.2f} | {share} | {row['peak'] / 1e6:.0f} |"
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    add = parser.add_argument
    add("model", help="a mixture of experts")
    add("--packed", type=Path, metavar="FILE", help="the same model as a packed file")
    add("--limit", type=cli.size, default=1_500_000_000, metavar="SIZE", help="default: 1500MB")
    add(
        "--budgets",
        type=cli.size,
        nargs="*",
        default=[600_000_000],
        metavar="SIZE",
        help="of experts",
    )
    add("--tokens", type=cli.positive, default=32, metavar="N", help="generated")
    add("--threads", type=cli.positive, default=2, metavar="N")
    add("--runs", type=cli.positive, default=3, metavar="N", help="of every program")
    add("--llama-bench", type=Path, metavar="PATH", help="compare with this llama-bench")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    add("--child", type=int, help=argparse.SUPPRESS)
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> int:
    """Measure, print, save."""
    args = parse()
    path = catalog.resolve(args.model)
    if args.child is not None:
        found = child(path, args.child or None, args.tokens, args.threads, args.seed)
        print(json.dumps(found._asdict()))
        return 0
    results: dict[str, Any] = {"command": shlex.join(sys.argv), "hardware": hardware()}
    print(", ".join(f"{key} {value}" for key, value in results["hardware"].items()))
    nbytes = expert_bytes(path) // SECTOR * SECTOR
    limited.forget(path)
    results["disk"] = {depth: disk(path, nbytes, depth) for depth in DEPTHS}
    speeds = ", ".join(f"{depth}: {each / 1e9:.2f}" for depth, each in results["disk"].items())
    print(f"Direct reads of {amounts.size(nbytes)}, GB/s by reads at a time: {speeds}")
    rows = [{"tokens": args.tokens, **row} for row in measure(path, args)]
    ceiling = max(results["disk"].values())
    print(
        f"{args.tokens} tokens, {amounts.size(args.limit)} of memory, medians of {args.runs} runs.\n"
    )
    show(rows, ceiling)
    results["rows"] = rows
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "streaming.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
