"""Which experts to keep in memory: hit rates of ways to choose, on what a trained model's routers choose for real text.

    python bench/expert_cache.py [MODEL] [--text FILE]

A cache of each layer has slots for some experts. After each token the experts that it chose are in it; those that it
held least worth go. "age n": an expert's worth is the sum of its uses, where a use n tokens ago counts e times less
(`streamed.AGE` is 1 / n). "best": the one goes that is needed last, which nobody can know. "shuffled": age 256 over the
same choices in a random order, where only their frequency is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

import mlx_ferrum
from mlx_ferrum import cli, ops
from mlx_ferrum.experts.choices import observers, with_experts

ROOT = Path(__file__).parent.parent
Trace = list[list[int]]  # the experts of each token
Worth = Callable[[int, int], float]  # of an expert at a token


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


def hits(choices: Trace, slots: int, worth: Callable[[Trace], Worth]) -> float:
    """The share of uses that find their expert in the cache."""
    value = worth(choices)
    kept: set[int] = set()
    found = total = 0
    for t, chosen in enumerate(choices):
        found += sum(expert in kept for expert in chosen)
        total += len(chosen)
        kept |= set(chosen)
        for expert in chosen:
            value(expert, t)
        loose = sorted(kept - set(chosen), key=lambda expert: worth_of(value, expert))
        while len(kept) > max(slots, len(chosen)):
            kept.discard(loose.pop(0))
    return found / total


def worth_of(value: Worth, expert: int) -> float:
    """Without a use."""
    return value(expert, -1)


def aged(age: float) -> Callable[[Trace], Worth]:
    """Sums of uses that fade: logarithms, as in streamed.cpp."""

    def worth(_: Trace) -> Worth:
        scores: dict[int, float] = {}

        def value(expert: int, t: int) -> float:
            if t >= 0:
                scores[expert] = float(np.logaddexp(scores.get(expert, -np.inf), t / age))
            return scores[expert]

        return value

    return worth


def latest(_: Trace) -> Worth:
    """The last use: LRU."""
    times: dict[int, int] = {}

    def value(expert: int, t: int) -> float:
        if t >= 0:
            times[expert] = t
        return times[expert]

    return value


def foreseen(choices: Trace) -> Worth:
    """The next use."""
    uses: dict[int, list[int]] = {}
    for t, chosen in enumerate(choices):
        for expert in chosen:
            uses.setdefault(expert, []).append(t)
    now = 0

    def value(expert: int, t: int) -> float:
        nonlocal now
        now = max(now, t)
        later = uses[expert]
        while later and later[0] <= now:
            later.pop(0)
        return -later[0] if later else -np.inf

    return value


POLICIES: dict[str, Callable[[Trace], Worth]] = {
    "least recently used": latest,
    "age 4": aged(4),
    "age 16": aged(16),
    "age 64": aged(64),
    "age 256": aged(256),
    "age 4096": aged(4096),
    "best": foreseen,
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
    for name, each, policy in [*rows, ("shuffled", shuffled, aged(256))]:
        found = [np.mean([hits(choices, n, policy) for choices in each]) for n in args.slots]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in found) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
