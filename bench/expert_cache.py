"""Which experts to keep in memory: hit rates of ways to choose, on what a trained model's routers choose for real text.

    python bench/expert_cache.py [MODEL] [--text FILE]

A cache of each layer has slots for some experts. After each token the experts that it chose are in it; those that it
held least worth go. "age n": an expert's worth is the sum of its uses, where a use n tokens ago counts e times less
(`streamed.AGE` is 1 / n). "best": the one goes that is needed last, which nobody can know. "shuffled": age 256 over the
same choices in a random order, where only their frequency is left.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

import mlx_ferrum
from mlx_ferrum import cli, ops
from mlx_ferrum.experts.choices import observers
from mlx_ferrum.models.expert_layers import with_experts

ROOT = Path(__file__).parent.parent
Trace = list[list[int]]  # the experts of each token


def trace(name: str, text: str, piece: int = 256) -> list[Trace]:
    """What each layer's router chooses for the tokens of a text, in pieces that know nothing of each other."""
    model, tokenizer = mlx_ferrum.load(name)
    layers = with_experts(model)
    found: list[Trace] = [[] for _ in layers]

    def noting(layer: int) -> Callable[[ops.Array, ops.Array, ops.Array], None]:
        def note(_logits: ops.Array, ids: ops.Array, _weights: ops.Array) -> None:
            rows = np.asarray(ids)
            found[layer] += rows.reshape(-1, rows.shape[-1]).tolist()

        return note

    tokens = tokenizer.encode(text)
    with observers(layers, [noting(i) for i in range(len(layers))]):
        for at in range(0, len(tokens), piece):
            mx.eval(model(mx.array(tokens[at : at + piece])[None]))
    return found


class Policy(Protocol):
    """Says what an expert in the cache is worth."""

    def use(self, expert: int, t: int) -> None:
        """Token t chooses an expert."""

    def worth(self, expert: int) -> float:
        """Of an expert that was used."""


class Aged:
    """Sums of uses that fade: logarithms, as in streamed.cpp."""

    def __init__(self, age: float) -> None:
        self._age, self._scores = age, dict[int, float]()

    def use(self, expert: int, t: int) -> None:
        before = self._scores.get(expert, -np.inf)
        self._scores[expert] = float(np.logaddexp(before, t / self._age))

    def worth(self, expert: int) -> float:
        return self._scores[expert]


class Latest:
    """The last use: LRU."""

    def __init__(self) -> None:
        self._times: dict[int, int] = {}

    def use(self, expert: int, t: int) -> None:
        self._times[expert] = t

    def worth(self, expert: int) -> float:
        return self._times[expert]


class Foreseen:
    """The next use."""

    def __init__(self, choices: Trace) -> None:
        self._uses: dict[int, deque[int]] = {}
        for t, chosen in enumerate(choices):
            for expert in chosen:
                self._uses.setdefault(expert, deque()).append(t)

    def use(self, expert: int, t: int) -> None:
        self._uses[expert].popleft()

    def worth(self, expert: int) -> float:
        later = self._uses[expert]
        return -later[0] if later else -np.inf


def hits(choices: Trace, slots: int, policy: Policy) -> float:
    """The share of uses that find their expert in the cache."""
    kept: set[int] = set()
    found = total = 0
    for t, chosen in enumerate(choices):
        found += sum(expert in kept for expert in chosen)
        total += len(chosen)
        for expert in chosen:
            policy.use(expert, t)
        kept |= set(chosen)
        loose = sorted(kept - set(chosen), key=policy.worth)
        kept -= set(loose[: max(0, len(kept) - slots)])
    return found / total


POLICIES: dict[str, Callable[[Trace], Policy]] = {
    "least recently used": lambda _: Latest(),
    **{f"age {age}": lambda _, age=age: Aged(age) for age in (4, 16, 64, 256, 4096)},
    "best": Foreseen,
}


def main() -> int:
    """Print a table."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    parser.add_argument("model", nargs="?", default="tiny-moe")
    parser.add_argument("--text", type=Path, nargs="+", default=[ROOT / "CONTRIBUTING.md"])
    parser.add_argument("--slots", type=cli.positive, nargs="+", default=[2, 3, 4, 5, 6, 7])
    args = parser.parse_args()
    traces = trace(args.model, "".join(path.read_text("utf-8") for path in args.text))
    print(
        f"{args.model}, {len(traces)} layers, {len(traces[0])} tokens; hits by slots of a layer\n"
    )
    print("| | " + " | ".join(map(str, args.slots)) + " |\n|---|" + "---|" * len(args.slots))
    rng = np.random.default_rng(0)
    shuffled = [[choices[i] for i in rng.permutation(len(choices))] for choices in traces]
    rows = [(name, traces, policy) for name, policy in POLICIES.items()]
    for name, each, policy in [*rows, ("shuffled", shuffled, POLICIES["age 256"])]:
        found = [np.mean([hits(one, n, policy(one)) for one in each]) for n in args.slots]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in found) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
