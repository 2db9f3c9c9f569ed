"""Seconds to load a model, and the most memory that it takes: `python bench/memory.py MODEL BACKEND`.

`measure` runs this file in a process of its own, whose peak is the model's alone. The page cache is warm.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

PROMPT, TOKENS = 64, 32


class Footprint(NamedTuple):
    """Of one process: seconds, and bytes. Mapped pages of the file count as memory."""

    import_s: float
    load_s: float
    import_bytes: int
    peak_bytes: int


def measure(model: Path, backend: str, runs: int) -> list[Footprint]:
    """Load and generate in `runs` fresh processes, after one that fills the page cache."""
    command = [sys.executable, __file__, str(model), backend]
    done = [subprocess.run(command, stdout=subprocess.PIPE, check=True) for _ in range(runs + 1)]
    return [Footprint(**json.loads(process.stdout)) for process in done[1:]]


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's on Linux
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(model: str, backend: str) -> None:
    """Print the footprint of this process as JSON."""
    start = time.perf_counter()
    import mlx_ferrum

    # a user has these by the first token; imports are counted apart from loading
    from mlx_ferrum import ops
    from mlx_ferrum.generate import stream_generate

    ops.use_backend(backend)
    imported, import_bytes = time.perf_counter(), peak_bytes()
    loaded, tokenizer = mlx_ferrum.load(model)
    load_s = time.perf_counter() - imported
    for _ in stream_generate(loaded, tokenizer, list(range(1, PROMPT + 1)), max_tokens=TOKENS):
        pass
    found = Footprint(imported - start, load_s, import_bytes, peak_bytes())
    print(json.dumps(found._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
