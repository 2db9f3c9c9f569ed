r"""Everything that a machine with an NVIDIA GPU has to show, in one command of some minutes: `make cuda-check`.

It needs sm_80 or newer and the wheels of the extras cuda, test and bench; compute-sanitizer comes with the wheel
nvidia-cuda-sanitizer-api, or with a CUDA toolkit on PATH. For a machine without a network, fetch them on another one:

    pip download -d wheels '.[cuda,test,bench]' hatchling editables nvidia-cuda-sanitizer-api \\
        --only-binary=:all: --platform manylinux_2_35_x86_64 --platform manylinux_2_28_x86_64 --python-version 3.12
    pip install --no-index --find-links wheels -e '.[cuda,test,bench]' nvidia-cuda-sanitizer-api

Stages: the doctor; the tests of kernels and models on the GPU; memcheck, racecheck and synccheck over every kernel;
matrix products against the bandwidth of a copy (80 % wanted); a prompt and decode steps of a dense model and of a
mixture of random weights (60 % wanted), beside llama.cpp with --llama-bench. Files stay in --folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlx_ferrum import cli

HERE = Path(__file__).parent
TESTS = (
    *("ops", "ops_experts", "append", "attend", "mask_logits", "logits", "choose"),
    *("models", "models_variants", "hidden_states", "embed"),
)
TOOLS = ("memcheck", "racecheck", "synccheck")
KINDS = {
    "random-qwen3.gguf": [],
    "random-moe.gguf": ["--moe"],
}  # as bench/random_qwen3.py makes them
FOUND = 9  # what compute-sanitizer exits with if it found something
SECONDS = 300  # of a stage, at most


@dataclass(frozen=True)
class Stage:
    """A command, and what it shows. reason: why it cannot run here, if it cannot"""

    name: str
    command: Sequence[str]
    reason: str = ""


class Outcome(NamedTuple):
    """What came of a stage."""

    name: str
    verdict: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether something is wrong, or was not looked at."""
        return self.verdict != "ok"


def sanitizer() -> str | None:
    """compute-sanitizer, of a wheel or on PATH."""
    wheels = [
        path
        for folder in sys.path
        for path in sorted(Path(folder).glob("nvidia/cu1?/compute-sanitizer/compute-sanitizer"))
    ]
    return next(map(str, wheels), None) or shutil.which("compute-sanitizer")


def stages(folder: Path, llama_bench: Path | None, tool: str | None) -> Iterator[Stage]:
    """All stages, in order. folder: where model files are; tool: compute-sanitizer, if there is one"""
    python = sys.executable
    yield Stage("doctor", [python, "-m", "mlx_ferrum.doctor", "--backend", "cuda"])
    tests = [str(HERE.parent / "tests" / f"test_{name}.py") for name in TESTS]
    yield Stage("tests", [python, "-m", "pytest", "-q", "--cuda", "-k", "cuda", *tests])
    reason = "" if tool else "no compute-sanitizer: pip install nvidia-cuda-sanitizer-api"
    for kind in TOOLS:
        watched = [
            tool or "",
            "--tool",
            kind,
            "--error-exitcode",
            str(FOUND),
            "--print-limit",
            "20",
        ]
        only_ours = ["--kernel-name", "kns=ferrum_kernel"]
        command = [*watched, *only_ours, python, str(HERE / "cuda_launches.py")]
        yield Stage(kind, command, reason)
    yield Stage("kernels", [python, str(HERE / "cuda_kernels.py")])
    for name, options in KINDS.items():
        if not (folder / name).exists():
            command = [python, str(HERE / "random_qwen3.py"), str(folder / name), *options]
            yield Stage(f"make {name}", command)
    beside = [] if llama_bench is None else ["--llama-bench", str(llama_bench)]
    files = [str(folder / name) for name in KINDS]
    yield Stage("models", [python, str(HERE / "cuda_models.py"), *files, *beside])


def run(stage: Stage) -> Outcome:
    """Run a stage; what it prints is shown as it comes."""
    print(f"\n== {stage.name}", flush=True)
    if stage.reason:
        print(stage.reason)
        return Outcome(stage.name, f"not run: {stage.reason}", 0.0)
    start = time.perf_counter()
    try:
        code = subprocess.run(stage.command, check=False, timeout=SECONDS).returncode
        verdict = "ok" if code == 0 else f"FAILED, exit code {code}"
    except subprocess.TimeoutExpired:
        verdict = f"FAILED, took more than {SECONDS} s"
    except OSError as error:
        verdict = f"FAILED: {error}"
    return Outcome(stage.name, verdict, time.perf_counter() - start)


def report(outcomes: Iterable[Outcome]) -> list[str]:
    """A line a stage."""
    outcomes = list(outcomes)
    width = max(len(one.name) for one in outcomes)
    lines = [f"{one.name:<{width}}  {one.seconds:6.1f} s  {one.verdict}" for one in outcomes]
    wrong = sum(one.failed for one in outcomes)
    end = f"{wrong} of {len(outcomes)} stages are not ok" if wrong else "all stages are ok"
    return [*lines, end]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="STAGE", help="these stages, by name")
    add("--llama-bench", type=Path, metavar="PATH", help="llama-bench of a CUDA build of llama.cpp")
    add(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ferrum-cuda-check",
        help="where model files of 0.7 and 5 GB are made (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.llama_bench and not args.llama_bench.is_file():
        parser.error(f"argument --llama-bench: there is no file {args.llama_bench}")
    names = [stage.name for stage in stages(args.folder, None, None)]
    unknown = [name for name in args.only or () if name not in names]
    if unknown:
        parser.error(f"argument --only: no stage {unknown[0]!r}; there is: {', '.join(names)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages, and say what came of them; 1 if any is not ok."""
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = [
        stage
        for stage in stages(args.folder, args.llama_bench, sanitizer())
        if not args.only or stage.name in args.only
    ]
    outcomes = [run(stage) for stage in chosen]
    print("\n" + "\n".join(report(outcomes)))
    return int(any(one.failed for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
