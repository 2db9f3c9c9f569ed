"""Prompt and generation speed of models, beside llama.cpp if wanted, with load time and memory: `make bench`.

Prints Markdown tables and writes speed.json and speed.png. Tests, as llama-bench defines them:
"prompt N" reads N random tokens into an empty cache and computes the logits of the last; "decode N"
computes the logits of N random tokens, one after the other, from an empty cache; neither picks
tokens. "generate N" is decode through `generate_step`, which does, for mlx_ferrum alone. "decode N after M" has read M
tokens before, which are not timed (--depths).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bandwidth
import llama
import memory
import mlx.core as mx
import numpy as np
import plot
from timing import Others, Spread, alternate, hardware, once

import mlx_ferrum
from mlx_ferrum import catalog, cli, gguf, ops, packed
from mlx_ferrum.cache import Cache
from mlx_ferrum.engine.choosing import forward
from mlx_ferrum.generate import generate_step
from mlx_ferrum.models.base import LanguageModel

US, LLAMA = "mlx_ferrum", "llama.cpp"
RESULTS = Path(__file__).parent / "results"
CHUNK = 512  # rows of a pass over what is not timed


class Plan(NamedTuple):
    """What is measured, on which backend: lengths in tokens, thread counts, and how often each test is run."""

    backend: str
    prompts: list[int]
    tokens: int
    depths: list[int]
    threads: list[int]
    runs: int
    llama_bench: Path | None


class Row(NamedTuple):
    """One test with one number of threads: tokens a second by program, and the share of the bandwidth that we reach."""

    threads: int
    test: str
    rates: dict[str, Spread]
    share: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as llama.cpp we are."""
        return self.rates[US].median / self.rates[LLAMA].median if LLAMA in self.rates else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {name: rate._asdict() for name, rate in self.rates.items()}
        return {**self._asdict(), "rates": rates, "ratio": self.ratio}


def prompt(model: LanguageModel, length: int) -> None:
    """Read `length` tokens and compute the logits of the last."""
    batch = model.make_cache().batch(np.array([_random_tokens(model, length)]))
    mx.eval(model.head(batch.last(model.body(batch))))


def decode(model: LanguageModel, length: int, cache: Cache | None = None) -> None:
    """Compute the logits of `length` tokens, one after the other; cache: of what comes before them."""
    run, cache = forward(model), cache or model.make_cache()
    for token in _random_tokens(model, length):
        batch = cache.batch(np.array([[token]]))
        logits, *_ = run(batch)
        if ops.is_lazy():
            mx.eval(logits)
        batch.advance()


def decode_after(model: LanguageModel, length: int, depth: int) -> float:
    """The seconds of `decode` after `depth` tokens."""
    cache, tokens = model.make_cache(), np.array([_random_tokens(model, depth)])
    for first in range(0, depth, CHUNK):
        mx.eval(model(mx.array(tokens[:, first : first + CHUNK]), cache))
    return once(partial(decode, model, length, cache))


def generate(model: LanguageModel, length: int) -> None:
    """Generate `length` tokens, each the likeliest."""
    for _ in generate_step([1], model, max_tokens=length):
        pass


def _random_tokens(model: LanguageModel, length: int) -> list[int]:
    """Token ids, the same at every call."""
    ids: list[int] = np.random.default_rng(0).integers(0, model.args.vocab_size, length).tolist()
    return ids


def ours(model: LanguageModel, plan: Plan, threads: int) -> dict[str, float]:
    """Seconds of every test once, each after a warm-up."""
    ops.use_backend(plan.backend, threads=threads if plan.backend == "cpu" else None)
    seconds = {}
    for length in plan.prompts:
        prompt(model, length)
        seconds[f"prompt {length}"] = once(partial(prompt, model, length))
    tests = {"decode": partial(decode, model), "generate": partial(generate, model)}
    for name, test in tests.items():
        test(4)
        seconds[f"{name} {plan.tokens}"] = once(partial(test, plan.tokens))
    for depth in plan.depths:
        seconds[f"decode {plan.tokens} after {depth}"] = decode_after(model, plan.tokens, depth)
    return seconds


def theirs(llama_bench: Path, path: Path, plan: Plan, threads: int) -> dict[str, float]:
    """The same by llama.cpp, except `generate`, which it does not have."""
    lengths = llama.Lengths(plan.prompts, plan.tokens, plan.depths)
    return llama.run(llama_bench, path, lengths, threads)


def rows(path: Path, plan: Plan, limits: dict[int, Spread]) -> list[Row]:
    """Every test of one model; limits: GB/s of memory by number of threads."""
    model, _ = mlx_ferrum.load(path)
    per_token = token_bytes(path)
    found = []
    for threads in plan.threads:
        programs: dict[str, Callable[[], dict[str, float]]] = {
            US: partial(ours, model, plan, threads)
        }
        if plan.llama_bench:
            programs[LLAMA] = partial(theirs, plan.llama_bench, path, plan, threads)
        seconds = alternate(programs, plan.runs)
        for test in seconds[US]:
            kind, length, *_ = test.split()
            rates = {p: s[test].rate(int(length)) for p, s in seconds.items() if test in s}
            share = rates[US].median * per_token / 1e9 / limits[threads].median
            found.append(Row(threads, test, rates, None if kind == "prompt" else share))
    return found


def token_bytes(path: Path) -> int:
    """The bytes of weights that each generated token needs: of tables that give one row none, of experts those used."""
    file = gguf.read(path)
    sizes = {name: info.nbytes for name, info in packed.tensors(file).items()}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    architecture = file.metadata["general.architecture"]
    used, count = (
        file.metadata.get(f"{architecture}.expert_{key}", 1) for key in ("used_count", "count")
    )
    return sum(n * used // count if "_exps." in name else n for name, n in sizes.items())


def footprint(path: Path, plan: Plan) -> dict[str, Any]:
    """Load time and memory of a process that loads the model and generates."""
    found = memory.measure(path, plan.backend, plan.runs)
    columns = {name: Spread.of(getattr(f, name) for f in found) for name in found[0]._fields}
    return {name: spread._asdict() for name, spread in columns.items()}


def measure_model(name: str, plan: Plan, limits: dict[int, Spread]) -> dict[str, Any]:
    """Measure and print one model."""
    path = catalog.resolve(name)
    file = gguf.read(path)
    threads = max(plan.threads)
    found: dict[str, Any] = {
        "name": name if name in catalog.names() else path.stem,
        "file_bytes": sum(part.size for part in file.parts),
        "token_bytes": token_bytes(path),
        "file_gb_s": bandwidth.read(threads, buffer=file.parts[0])._asdict(),
    }
    print(f"\n## {found['name']}\n", flush=True)
    others = Others()
    measured = rows(path, plan, limits)
    found["others"] = others.share()
    print_rows(measured)
    found |= {"rows": [row.as_dict() for row in measured], "memory": footprint(path, plan)}
    print_footprint(found, threads)
    print_others(found["others"])
    return found


def print_others(share: float | None) -> None:
    """Say how much of the machine others had, for the figures mean little if that is much."""
    if share is not None:
        print(f"Other processes and guests took {share:.0%} of the cores meanwhile.", flush=True)


def print_rows(measured: list[Row]) -> None:
    """Print the speeds as a Markdown table."""
    titles = ["threads", "test", f"{US}, tok/s", f"{LLAMA}, tok/s", "ratio", "of memory bandwidth"]
    table = [titles]
    for row in measured:
        cells = [str(row.threads), row.test, str(row.rates[US]), str(row.rates.get(LLAMA, ""))]
        cells.append("" if row.ratio is None else f"{row.ratio:.2f}")
        cells.append("" if row.share is None else f"{row.share:.0%}")
        table.append(cells)
    widths = [max(len(line[i]) for line in table) for i in range(len(titles))]
    table.insert(1, ["-" * width for width in widths])
    for line in table:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |")


def print_footprint(found: dict[str, Any], threads: int) -> None:
    """Print sizes, load time and memory in two lines."""
    mb = {name: f"{found[name] / 1e6:.0f} MB" for name in ("file_bytes", "token_bytes")}
    taken = found["memory"]
    peak, imports = (taken[name]["high"] / 1e6 for name in ("peak_bytes", "import_bytes"))
    beyond = peak - found["file_bytes"] / 1e6
    seconds = [f"{taken[name]['median']:.2f} s" for name in ("import_s", "load_s")]
    print(
        f"\nFile {mb['file_bytes']}, of which a token needs {mb['token_bytes']}; the file alone is "
        f"read at {found['file_gb_s']['median']:.1f} GB/s with {threads} threads.\n"
        f"Imports {seconds[0]}, load {seconds[1]}. Peak memory {peak:.0f} MB: the file + "
        f"{beyond:.0f} MB, of which imports {imports:.0f} MB.",
        flush=True,
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", default=catalog.names(), help="default: the catalog")
    add("--prompts", type=cli.positive, nargs="+", default=[16, 128, 512], metavar="N")
    add("--tokens", type=cli.positive, default=64, metavar="N", help="generated tokens")
    add(
        "--depths",
        type=cli.positive,
        nargs="+",
        default=[],
        metavar="N",
        help="tokens to read before more tests of decode",
    )
    add("--threads", type=cli.positive, nargs="+", default=bandwidth.thread_counts(), metavar="N")
    add("--backend", choices=ops.BACKENDS, help="default: the one that models get here")
    add("--runs", type=cli.positive, default=3, metavar="N", help="of every test")
    add("--llama-bench", type=Path, metavar="PATH", help="compare with this llama-bench")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    args = parser.parse_args(argv)
    if args.llama_bench and not args.llama_bench.is_file():
        parser.error(f"argument --llama-bench: there is no file {args.llama_bench}")
    return args


def main() -> int:
    """Measure, print, save, plot."""
    args = parse()
    backend = args.backend or ops.backend_name()
    # llama.cpp gets the threads; on a GPU they are not ours to vary
    threads = args.threads if backend == "cpu" else args.threads[-1:]
    plan = Plan(
        backend, args.prompts, args.tokens, args.depths, threads, args.runs, args.llama_bench
    )
    results: dict[str, Any] = {"command": shlex.join(sys.argv), "hardware": hardware(backend)}
    print(", ".join(f"{key} {value}" for key, value in results["hardware"].items()))
    limits = {threads: bandwidth.read(threads) for threads in plan.threads}
    for threads, limit in limits.items():
        print(f"memory bandwidth, {threads} threads: {limit} GB/s", flush=True)
    print(f"Figures are medians of {plan.runs} runs (lowest to highest).")
    results["bandwidth"] = {threads: limit._asdict() for threads, limit in limits.items()}
    results["models"] = [measure_model(name, plan, limits) for name in args.models]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "speed.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    plot.draw(json.loads(path.read_text()), path.with_suffix(".png"))
    print(f"\nsaved: {path} and {path.with_suffix('.png').name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
