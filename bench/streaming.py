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
import random
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import limited
import llama
from timing import hardware

import mlx_ferrum
from mlx_ferrum import amounts, catalog, cli, gguf, ops, packed, sizes
from mlx_ferrum.doctor.disk import Disk, stretches
from mlx_ferrum.doctor.disk import measure as measure_disk
from mlx_ferrum.generate import generate_step
from mlx_ferrum.kernels.cpu.streams import Counts

RESULTS = Path(__file__).parent / "results"
SECONDS = 2.0  # for each number of reads at a time
PROMPT = 16  # tokens


class Program(NamedTuple):
    """How experts are read.

    memory: bytes of them; 0: the file is mapped
    predicts: what the next layer may choose is read, too
    """

    file: Path
    memory: int = 0
    predicts: bool = True

    @property
    def name(self) -> str:
        """For the table."""
        if not self.memory:
            return "mapped"
        kind = ", packed" if packed.is_packed(gguf.read(self.file)) else ""
        plain = "" if self.predicts else ", nothing predicted"
        return f"experts in {amounts.size(self.memory)}{kind}{plain}"


class Run(NamedTuple):
    """What one process measured.

    prompt, rate: seconds to the first token, and tokens a second after it
    device: bytes that the kernel read from disk for it; calls: of read; experts: bytes of experts
    hits: the share of uses that needed no read; waited: seconds, of all threads
    recall: the share of uses that were predicted; useful: of what was read ahead
    """

    prompt: float
    rate: float
    device: int
    calls: int
    experts: int
    hits: float
    waited: float
    recall: float
    useful: float


def disk(path: Path) -> Disk:
    """How fast experts can be read, each of their matrices on its own."""
    file = gguf.read(path)
    found = sizes.of_file(file)
    assert found is not None, "an encoder has no experts"
    limited.forget(path)
    return measure_disk(file, stretches(file, sizes.stacks(file, found)), SECONDS)


def child(program: Program, tokens: int, threads: int, seed: int) -> Run:
    """Generate, in this process."""
    ops.use_backend("cpu", threads=threads)
    model, _ = mlx_ferrum.load(program.file, expert_memory=program.memory)
    if model.streams is not None:
        model.streams.predict(program.predicts)
    draw = random.Random(seed)
    prompt = [draw.randrange(256) for _ in range(PROMPT)]
    start, times = time.perf_counter(), []
    device = calls = 0
    before = None
    for _ in generate_step(prompt, model, max_tokens=tokens + 1):
        times.append(time.perf_counter())
        if before is None:
            before, device, calls = _counts(model), _kernel("read_bytes"), _kernel("syscr")
    assert before is not None, "there is a first token"
    device, calls = _kernel("read_bytes") - device, _kernel("syscr") - calls
    counts = Counts(*(a - b for a, b in zip(_counts(model), before, strict=True)))
    return Run(
        times[0] - start,
        tokens / (times[-1] - times[0]),
        device,
        calls,
        counts.nbytes,
        hits=1 - _share(counts.read, counts.used) if counts.used else 0.0,
        waited=counts.waited,
        recall=_share(counts.foretold, counts.judged),
        useful=_share(counts.useful, counts.ahead),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _counts(model: Any) -> Counts:
    return Counts(*[0] * len(Counts._fields)) if model.streams is None else model.streams.counts()


def _kernel(count: str) -> int:
    """What the kernel has counted for this process: "read_bytes" from disk, or calls of read, "syscr"."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(count))


def run(program: Program, args: argparse.Namespace, seed: int) -> tuple[Run, int]:
    """Generate in a process of its own under the limit; also its peak."""
    limited.forget(program.file)
    words = [sys.executable, __file__, str(program.file), "--child", str(program.memory)]
    words += ["--seed", str(seed)]
    words += [] if program.predicts else ["--unpredicted"]
    words += ["--tokens", str(args.tokens), "--threads", str(args.threads)]
    with limited.limited(args.limit) as group:
        found = Run(**json.loads(group.run(words).splitlines()[-1]))
        return found, group.peak


def measure(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every program in turn, `args.runs` times; medians by rate."""
    files = [path, *([] if args.packed is None else [args.packed])]
    found: dict[Program, list[tuple[Run, int]]] = {Program(path): []}
    for memory in args.budgets:
        found |= {Program(file, memory): [] for file in files}
        found[Program(path, memory, predicts=False)] = []
    theirs = []
    for seed in range(args.runs):
        for program, runs in found.items():
            runs.append(run(program, args, seed))
        if args.llama_bench:
            limited.forget(path)
            with limited.limited(args.limit) as group:
                theirs.append(llama_rate(group, path, args))
    rows = []
    for program, runs in found.items():
        middle, peak = sorted(runs, key=lambda each: each[0].rate)[len(runs) // 2]
        rows.append({"name": program.name, "peak": peak, **middle._asdict()})
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
        "| program | tok/s | hits | predicted | ahead, used | read, MB/token | device, MB/token | reads/token | GB/s "
        "| ceiling, tok/s | of it | peak, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "experts" not in row:
            print(f"| {row['name']} | {row['rate']:.2f} |" + " |" * 10)
            continue
        missed, device, calls = (row[key] / row["tokens"] for key in ("experts", "device", "calls"))
        allowed = ceiling / missed if missed else 0.0
        share = f"{allowed:.2f} | {row['rate'] / allowed:.0%}" if allowed else " | "
        print(
            f"| {row['name']} | {row['rate']:.2f} | {row['hits']:.0%} | {row['recall']:.0%} "
            f"| {row['useful']:.0%} | {missed / 1e6:.0f} | {device / 1e6:.0f} | {calls:.0f} | "
            f"{device * row['rate'] / 1e9:.2f} | {share} | {row['peak'] / 1e6:.0f} |"
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
    add("--unpredicted", action="store_true", help=argparse.SUPPRESS)
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> int:
    """Measure, print, save."""
    args = parse()
    path = catalog.resolve(args.model)
    if args.child is not None:
        program = Program(path, args.child, not args.unpredicted)
        print(json.dumps(child(program, args.tokens, args.threads, args.seed)._asdict()))
        return 0
    results: dict[str, Any] = {"command": shlex.join(sys.argv), "hardware": hardware()}
    print(", ".join(f"{key} {value}" for key, value in results["hardware"].items()))
    found = disk(path)
    results["disk"] = found.speeds
    speeds = ", ".join(f"{depth}: {each / 1e9:.2f}" for depth, each in found.speeds.items())
    print(f"Reads of {amounts.size(found.nbytes)}, GB/s by reads at a time: {speeds}")
    rows = [{"tokens": args.tokens, **row} for row in measure(path, args)]
    print(
        f"{args.tokens} tokens, {amounts.size(args.limit)} of memory, medians of {args.runs} runs.\n"
    )
    show(rows, found.best)
    results["rows"] = rows
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "streaming.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
