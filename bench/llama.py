"""llama.cpp's own benchmarks, llama-bench and llama-batched-bench, as programs that are compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Lengths(NamedTuple):
    """In tokens: of each prompt test, of the decode tests, and of what comes before all but the first of these."""

    prompts: Sequence[int]
    tokens: int
    depths: Sequence[int]


class Batches(NamedTuple):
    """Numbers of sequences, and the tokens of each."""

    sequences: Sequence[int]
    prompt: int
    tokens: int


def run(llama_bench: Path, model: Path, lengths: Lengths, threads: int) -> dict[str, float]:
    """Seconds of every test once, after its own warm-up, under the names that `speed.py` uses.

    Raises OSError if it cannot be run, ValueError with its last line if it fails.
    """
    options: dict[str, object] = {"-m": model, "-t": threads, "-r": 1, "-o": "json"}
    tests: list[dict[str, object]] = [
        {"-p": ",".join(map(str, lengths.prompts)), "-n": lengths.tokens}
    ]
    tests += [{"-p": 0, "-n": lengths.tokens, "-d": depth} for depth in lengths.depths]
    found = [_output(llama_bench, options | test) for test in tests]
    return {name: taken for each in found for name, taken in seconds(each).items()}


def seconds(output: str) -> dict[str, float]:
    """Seconds of every test that llama-bench has printed as JSON."""
    return {_name(each): each["avg_ns"] / 1e9 for each in json.loads(output)}


def run_batches(
    llama_batched_bench: Path, model: Path, batches: Batches, threads: int
) -> dict[str, float]:
    """Seconds of every test once, under the names that `serving.py` uses. Raises as `run` does."""
    each = batches.prompt + batches.tokens
    options: dict[str, object] = {"-m": model, "-t": threads, "--output-format": "jsonl"}
    options |= {"-npp": batches.prompt, "-ntg": batches.tokens, "-c": max(batches.sequences) * each}
    options["-npl"] = ",".join(map(str, batches.sequences))
    seconds = {}
    for line in _output(llama_batched_bench, options).splitlines():
        if line.startswith("{"):
            test = json.loads(line)
            seconds[f"prompt {test['pl']}"] = test["t_pp"]
            seconds[f"generate {test['pl']}"] = test["t_tg"]
    return seconds


def _output(program: Path, options: dict[str, object]) -> str:
    """What a program prints. Raises OSError if it cannot be run, ValueError with its last line if it fails."""
    command = [str(part) for option in options.items() for part in option]
    done = subprocess.run([str(program), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"{program} failed: {last[0]}")
    return done.stdout


def _name(test: dict[str, int]) -> str:
    if test["n_prompt"]:
        return f"prompt {test['n_prompt']}"
    after = f" after {test['n_depth']}" if test["n_depth"] else ""
    return f"decode {test['n_gen']}{after}"
