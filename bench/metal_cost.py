"""What the Metal kernels cost, counted on this CPU; and speeds of whole models on Apple's GPUs, which are an ESTIMATE.

Nothing here is timed. Kernels run on the host that tests run them on, on Linux, which counts (tests/msl/counting.py):
LLVM's text of the kernel after its optimisations gets a call in each basic block and before each access to memory,
and that text is what runs. So instructions are weighted by how often each basic block ran, and accesses are those
of the run, exactly. A simdgroup issues a block as often as its busiest lane needs. How an instruction of
LLVM counts is in tests/msl/instructions.py. Of large launches some threadgroups run, spread evenly, and stand for all.

Columns:
  read    bytes of weights that threadgroups read, each byte once a threadgroup, over the weights' bytes
  step    128-byte lines that the loads of weights of a step touch, over their different bytes; a step is one run of
          a basic block by a simdgroup, a line between two loads of a step is not lost
  access  the same for each load for itself: lines over the fewest that hold its different bytes
  x lines the same as `access` for the other inputs
  x bytes bytes of the other inputs that simdgroups read for a weight and row of x, each byte once a simdgroup
  flight  KiB of weights that a simdgroup asks for in a step: what can be under way at once
  tg KiB  threadgroup memory of a threadgroup
  body    instructions of the longest basic block, mostly the body of a loop; an M1's instruction cache has 12 KB, room
          for about 1,500 of 8 bytes
  barriers, simd   of a simdgroup: barriers; reductions, shuffles and 8x8 products
  arith, all   arithmetic and all instructions for a weight and row of x, of a thread
          (attend_rows: for a pair of a query and a key; its weights are the keys and values. gated_delta: for a number
          of a state and a row; its weights are the state, those of short_conv the columns. gated_norm: for a number)
  cycles  estimate: of one lane for a weight and row of x, at an M1's speeds of instructions (metal_machines.py)
  cache   estimate: the same of the second-level cache, at most, for all that simdgroups read; what takes longest counts
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from metal_cases import HEADER, Cost, cache_bytes, counting, others, product
from metal_expert_cases import SORT, mixtures
from metal_machines import CHIPS, MIXTURE_SHARES, SHARES, Chip, cycles
from metal_models import MODELS, Launch, Model, launches, output
from metal_prefill_cases import prompts
from metal_recurrent import StateLaunch
from metal_recurrent_cases import recurrent

from mlx_ferrum import blocks, cli
from mlx_ferrum.backends.metal.thresholds import METAL

RESULTS = Path(__file__).parent / "results"
SHAPES = [(4096, 4096), (11008, 4096), (151936, 2048)]
HELD = 512  # tokens before the one that is estimated, and those of a prompt


class Demand(NamedTuple):
    """Of a launch: cycles of schedulers, an estimate, and bytes from the second-level cache."""

    cycles: float
    cached: float


def count(launch: Launch | StateLaunch, batch: int, sample: int) -> Demand:
    """What a launch needs for `batch` rows of x."""
    with counting(sample, whole=[SORT]) as host:
        launch.run(mx.zeros((batch, launch.k)))
    found = host.counts
    return Demand(sum(cycles(c.issued) for c in found), sum(cache_bytes(c) for c in found))


@dataclass(frozen=True)
class Speed:
    """ESTIMATES of tokens a second: low and high of decoding, and of a prompt if only arithmetic took time.

    busy, cache: the share of a token's time, at the lowest, that arithmetic and the cache take beside the memory
    launches: of a token
    """

    model: str
    chip: str
    low: float
    high: float
    busy: float
    cache: float
    prompt: float
    launches: int


class Work(NamedTuple):
    """A launch, how often a token needs it, and what it needs: for one token, and for a prompt."""

    launch: Launch | StateLaunch
    times: int
    one: Demand
    prompt: Demand


def speeds(model: Model, sample: int) -> Iterator[Speed]:
    """On each chip, with HELD tokens in the cache, or in the prompt; attention's arithmetic is left out."""
    work = []
    for launch, times in launches(model).items():
        rows = 1 if launch == output(model) else HELD
        work.append(Work(launch, times, count(launch, 1, sample), count(launch, rows, sample)))
    shares = MIXTURE_SHARES if model.experts else SHARES
    for chip in CHIPS:
        low, high = (seconds(chip, work, model.cache_bytes(HELD), share) for share in shares)
        busy = chip.arithmetic_seconds(sum(w.times * w.one.cycles for w in work))
        cache = chip.cache_seconds(sum(w.times * w.one.cached for w in work))
        prompt = chip.arithmetic_seconds(sum(w.times * w.prompt.cycles for w in work))
        yield Speed(
            model.name,
            chip.name,
            1 / low,
            1 / high,
            busy / low,
            cache / low,
            HELD / prompt,
            model.launches,
        )


def seconds(chip: Chip, work: list[Work], cached: int, share: float) -> float:
    """Of a token: launches one after another, each bound by memory, by the second-level cache or by arithmetic.

    cached: bytes of keys and values
    """
    out = chip.memory_seconds(cached, share)
    for w in work:
        memory = chip.memory_seconds(w.launch.nbytes, share)
        cache = chip.cache_seconds(w.one.cached)
        out += w.times * max(memory, cache, chip.arithmetic_seconds(w.one.cycles))
    return out


def shape(text: str) -> tuple[int, int]:
    """`4096x4096`"""
    rows, k = map(int, text.split("x"))
    return rows, k


def parse() -> argparse.Namespace:
    """The command line."""
    names = [block.name for block in blocks.SUPPORTED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("types", nargs="*", default=names, metavar="TYPE", help=f"of {', '.join(names)}")
    add("--shapes", type=shape, nargs="+", default=SHAPES, metavar="ROWSxK")
    add("--batches", type=cli.positive, nargs="+", default=[1, 4, 512], metavar="N")
    add("--sample", type=cli.positive, default=24, metavar="N", help="threadgroups (default: 24)")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    return parser.parse_args()


def table(args: argparse.Namespace) -> Iterator[Cost]:
    """Count every case, and print its line."""
    cases = (product(t, s, n) for n in args.batches for t in args.types for s in args.shapes)
    more = (case for n in args.batches if n <= METAL.matvec_rows for case in others(n))
    print(HEADER)
    for case in chain(cases, more, mixtures(), prompts(), recurrent(1, 512)):
        found = case.cost(args.sample)
        print(found.line(), flush=True)
        yield found


def main() -> int:
    """Count, print, save."""
    args = parse()
    results: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "costs": [asdict(c) for c in table(args)],
    }
    print(
        f"\nESTIMATES, nothing was timed: tokens a second after, and of a prompt of, {HELD} tokens\n"
    )
    print(
        "| model | chip | decode | launches | arithmetic | cache | prompt, arithmetic alone |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    estimates = [speed for model in MODELS for speed in speeds(model, args.sample)]
    for e in estimates:
        cells = f"{e.low:.0f} to {e.high:.0f} | {e.launches} | {e.busy:.0%} | {e.cache:.0%} | {e.prompt:.0f}"
        print(f"| {e.model} Q4_K_M | {e.chip} | {cells} |")
    results["estimates"] = [asdict(e) for e in estimates]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metal_cost.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
