"""llama.cpp's own benchmark, llama-bench, as one of the programs that are compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Lengths(NamedTuple):
    """In tokens: of each prompt test, and of the one decode test."""

    prompts: Sequence[int]
    tokens: int


def run(llama_bench: Path, model: Path, lengths: Lengths, threads: int) -> dict[str, float]:
    """Seconds of every test once, after its own warm-up, under the names that `speed.py` uses.

    Raises OSError if it cannot be run, ValueError with its last line if it fails.
    """
    options = {"-m": model, "-t": threads, "-n": lengths.tokens, "-r": 1, "-o": "json"}
    options["-p"] = ",".join(map(str, lengths.prompts))
    command = [str(part) for option in options.items() for part in option]
    done = subprocess.run([str(llama_bench), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"{llama_bench} failed on {model}: {last[0]}")
    return {_name(test): test["avg_ns"] / 1e9 for test in json.loads(done.stdout)}


def _name(test: dict[str, int]) -> str:
    return f"prompt {test['n_prompt']}" if test["n_prompt"] else f"decode {test['n_gen']}"
