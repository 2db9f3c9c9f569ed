"""Large mixtures of experts on Apple machines whose memory they exceed: estimates from traces, no measurement.

    python bench/streaming_machines.py [--trace MODEL] [--text FILE ...] [--tokens N]

How often a token finds its experts in memory is simulated, with the policy of kernels/cpu/streamed.cpp and the memory
that `mlx_ferrum.budget` gives them, for three kinds of routing:
- "even": every expert is as likely as any other, each token anew: nobody can do worse.
- "trace": what the routers of a trained model choose for real text, tiny-moe's unless another is named; carried over to
  larger models by the share of a layer's experts that is in memory. (tiny-hybrid has no experts.)
- "skewed": popularity falls as 1 / rank^0.8, and a quarter of a token's experts are those of the token before.

A token takes the time to read its weights from memory, at the share of the bandwidth that llama.cpp reaches with a
mixture (`metal_machines.MIXTURE_SHARES`, the lower one), plus the time to read the missing experts at the full speed
of the SSD. Neither overlap nor prediction of experts is counted, nor attention, nor reads that are slower than the SSD
allows. The package streams on the `cpu` backend only so far.

Assumptions: Q4_K_M takes 4.5 bits for a weight, 6.5625 for half of the down projections, 6.5625 for the head, 4.85 on
average for other dense weights. The system and other programs keep 3 GB or an eighth of the memory, whichever is more.
Keys and values are those of 8,192 tokens. Results go to bench/results/streaming_machines.json and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import expert_cache
import numpy as np
from metal_machines import MIXTURE_SHARES

from mlx_ferrum import budget, cli, drawing
from mlx_ferrum.sizes import Sizes
from mlx_ferrum.state.kinds import KV, Keeps, Recurrent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
SSDS = (3e9, 7e9, 17e9)  # bytes a second
AGE = 256  # tokens; streamed.AGE
ZIPF, REPEATED = 0.8, 0.25  # of "skewed"
Q4_K, Q6_K, DENSE = 4.5 / 8, 6.5625 / 8, 4.85 / 8  # bytes of a weight
CURVE = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)  # shares
KINDS = ("even", "trace", "skewed")
GB = 1e9
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # tokens a second


class Model(NamedTuple):
    """Sizes as in config.json. dense: weights that every token reads, without the head; width: of an expert"""

    name: str
    layers: int
    hidden: int
    experts: int
    used: int
    width: int
    dense: float
    vocabulary: int
    keeps: Sequence[Keeps]

    def sizes(self) -> Sizes:
        """In bytes, as Q4_K_M."""
        matrix = self.hidden * self.width
        one = int(matrix * (2 * Q4_K + (Q4_K + Q6_K) / 2))
        table, head = (int(self.vocabulary * self.hidden * size) for size in (Q4_K, Q6_K))
        routers = self.layers * self.experts * self.hidden * 4
        layers = dict.fromkeys(range(self.layers), one)
        experts = self.experts * self.layers * one
        nbytes = int(self.dense * DENSE) + routers + table + head + experts
        return Sizes(nbytes, table, layers, self.experts, self.used, 1 << 18, self.keeps)


class Machine(NamedTuple):
    """memory: bytes; bandwidth: of it, bytes a second, from Apple's announcements"""

    name: str
    memory: float
    bandwidth: float

    @property
    def free(self) -> int:
        """Bytes that a model can have."""
        return int(self.memory - max(3 * GB, self.memory / 8))


def hybrid(layers: int, value_heads: int) -> list[Keeps]:
    """Of Qwen 3.5 and 3.6: every fourth layer has attention."""
    recurrent = Recurrent((2 * 16 + value_heads) * 128, 3, value_heads, 128)
    return [KV(2, 256, 256) if i % 4 == 3 else recurrent for i in range(layers)]


MODELS = (
    Model("Qwen3-30B-A3B", 48, 2048, 128, 8, 768, 0.91e9, 151936, [KV(4, 128, 128)] * 48),
    Model("Qwen3.6-35B-A3B", 40, 2048, 256, 8, 512, 1.41e9, 248320, hybrid(40, 32)),
    Model("Qwen3.5-397B-A17B", 60, 4096, 512, 10, 1024, 7.61e9, 248320, hybrid(60, 64)),
)
MACHINES = (
    Machine("M1", 8 * GB, 68.25e9),
    Machine("M4", 16 * GB, 120e9),
    Machine("M4", 24 * GB, 120e9),
    Machine("M4 Pro", 48 * GB, 273e9),
    Machine("M4 Max", 64 * GB, 546e9),
    Machine("M4 Max", 128 * GB, 546e9),
)


def even(rng: np.random.Generator, tokens: int, experts: int, used: int) -> expert_cache.Trace:
    """Choices that know nothing of each other."""
    return [rng.choice(experts, used, replace=False).tolist() for _ in range(tokens)]


def skewed(rng: np.random.Generator, tokens: int, experts: int, used: int) -> expert_cache.Trace:
    """Choices by popularity, of which some are those of the token before."""
    popularity = -ZIPF * np.log(np.arange(1, experts + 1))
    found: expert_cache.Trace = [[]]
    for _ in range(tokens):
        kept = [expert for expert in found[-1] if rng.random() < REPEATED]
        scores = popularity + rng.gumbel(size=experts)  # the highest are draws without replacement
        scores[kept] = np.inf
        found.append(np.argpartition(-scores, used)[:used].tolist())
    return found[1:]


def curve(traces: Sequence[expert_cache.Trace], slots: Sequence[int]) -> list[float]:
    """Mean hit rates over layers, by slots; a token starts with what the one before left."""
    policy = expert_cache.Aged
    return [
        float(np.mean([expert_cache.hits(each, n, policy(AGE)) for each in traces])) if n else 0.0
        for n in slots
    ]


class Routing(NamedTuple):
    """Hit rates by the share of a layer's experts that is in memory."""

    shares: Sequence[float]
    hits: Sequence[float]

    def at(self, share: float) -> float:
        """Between the shares that were simulated."""
        return float(np.interp(share, self.shares, self.hits))


def routings(model: Model, traced: Routing, tokens: int) -> dict[str, Routing]:
    """Of a model, by kind."""
    slots = sorted({round(share * model.experts) for share in CURVE} | {model.used})
    shares = [n / model.experts for n in slots]
    rng = np.random.default_rng(0)
    drawn = {}
    for name, draw in (("even", even), ("skewed", skewed)):
        trace = draw(rng, tokens, model.experts, model.used)
        few = [n if n >= model.used else 0 for n in slots]  # fewer slots than a token needs
        drawn[name] = Routing(shares, curve([trace], few))
    return {"even": drawn["even"], "trace": traced, "skewed": drawn["skewed"]}


def estimate(machine: Machine, found: Sizes, hits: Mapping[str, Routing]) -> dict[str, Any]:
    """Of a model on a machine: what is in memory, and tokens a second by SSD and kind of routing."""
    plan = budget.plan(found, machine.free)
    is_mapped = not plan.nbytes and not plan.is_short
    share = 1.0 if is_mapped else plan.nbytes / found.experts
    weights = (found.dense + found.a_token) / (machine.bandwidth * MIXTURE_SHARES[0])
    speeds: dict[str, dict[str, float]] = {}
    rates = {kind: 1.0 if is_mapped else hits[kind].at(share) for kind in KINDS}
    for ssd in SSDS:
        times = {kind: weights + (1 - rates[kind]) * found.a_token / ssd for kind in KINDS}
        speeds[f"{ssd / GB:.0f}"] = {kind: 1 / seconds for kind, seconds in times.items()}
    return {
        "machine": machine.name,
        "memory": machine.memory,
        "is_mapped": is_mapped,
        "fits": is_mapped or plan.nbytes > 0,
        "nbytes": plan.nbytes,
        "share": share,
        "hits": rates,
        "in_memory": 1 / weights,
        "speeds": speeds if is_mapped or plan.nbytes else {},
    }


def show(model: Model, found: Sizes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a Markdown table."""
    print(
        f"\n{model.name}, Q4_K_M: {found.nbytes / GB:.1f} GB, {found.experts / GB:.1f} of them experts of "
        f"{found.one_each / model.layers / 1e6:.2f} MB; a token reads {found.dense / GB:.2f} GB and "
        f"{found.a_token / GB:.2f} GB of experts\n"
    )
    ssds = " | ".join(f"SSD of {ssd / GB:.0f} GB/s" for ssd in SSDS)
    print(f"| machine | experts in memory | hits | {ssds} | if all were in memory |")
    print("|---|---|---|" + "---|" * (len(SSDS) + 1))
    for row in rows:
        name = f"{row['machine']}, {row['memory'] / GB:.0f} GB"
        top = f"{row['in_memory']:.1f}"
        if not row["fits"]:
            cells = ["too little memory", "", *[""] * len(SSDS), top]
        elif row["is_mapped"]:
            cells = ["all", "100%", *[top] * len(SSDS), top]
        else:
            kept = f"{row['nbytes'] / GB:.1f} GB, {row['share']:.0%}"
            hits = " / ".join(f"{row['hits'][kind]:.0%}" for kind in KINDS)
            speeds = [
                " / ".join(f"{each[kind]:.1f}" for kind in KINDS) for each in row["speeds"].values()
            ]
            cells = [kept, hits, *speeds, top]
        print(f"| {name} | " + " | ".join(cells) + " |")


def draw(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """A panel a model: tokens a second by machine, a band from even to skewed routing for each SSD."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(results))
    for axes, (name, rows) in zip(panels, results.items(), strict=True):
        _panel(axes, rows)
        axes.set_title(name, fontsize=10)
    panels[0].set_ylabel("decode, tokens a second (estimate)")
    panels[0].legend(
        fontsize=7,
        loc="upper left",
        title="line: routing as traced\nband: even to skewed",
        title_fontsize=7,
    )
    figure.suptitle(
        "Experts read from disk, Q4_K_M: estimates of bench/streaming_machines.py", fontsize=10
    )
    drawing.save(figure, path)


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    at = [i for i, row in enumerate(rows) if row["fits"]]
    for color, ssd in zip(
        ("#b5651d", "#3b7a57", "#33658a"), (f"{ssd / GB:.0f}" for ssd in SSDS), strict=True
    ):
        speeds = {kind: [rows[i]["speeds"][ssd][kind] for i in at] for kind in KINDS}
        axes.fill_between(at, speeds["even"], speeds["skewed"], color=color, alpha=0.2)
        axes.plot(at, speeds["trace"], "o-", color=color, markersize=4, label=f"SSD of {ssd} GB/s")
    axes.plot(
        range(len(rows)),
        [row["in_memory"] for row in rows],
        "k:",
        label="if all weights were in memory",
    )
    labels = [f"{row['machine']}\n{row['memory'] / GB:.0f} GB" for row in rows]
    for i, row in enumerate(rows):
        if not row["fits"]:
            labels[i] += "\n(too small)"
        elif not row["is_mapped"]:
            labels[i] += f"\n{row['share']:.0%}"
        else:
            labels[i] += "\nall"
    axes.set_xticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("machine, memory, share of the experts in memory", fontsize=8)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low < tick < high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=cli.HelpFormatter
    )
    add = parser.add_argument
    add(
        "--trace",
        default="tiny-moe",
        metavar="MODEL",
        help="whose routers are traced (default: tiny-moe)",
    )
    text = [expert_cache.ROOT / "CONTRIBUTING.md"]
    add(
        "--text",
        type=Path,
        nargs="+",
        default=text,
        metavar="FILE",
        help="default: CONTRIBUTING.md",
    )
    add(
        "--tokens",
        type=cli.positive,
        default=1000,
        metavar="N",
        help="of drawn routing (default: 1000)",
    )
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: bench/results")
    return parser.parse_args(argv)


def main() -> int:
    """Simulate, print, draw, save."""
    args = parse()
    drawing.check_installed()
    text = "".join(path.read_text("utf-8") for path in args.text)
    traces = expert_cache.trace(args.trace, text)
    experts, used = 1 + max(max(chosen) for each in traces for chosen in each), len(traces[0][0])
    slots = [0, *range(used, experts + 1)]
    traced = Routing([n / experts for n in slots], curve(traces, slots))
    print(
        f"Estimates. Routing by {args.trace} over {len(traces[0])} tokens: even / trace / skewed in each cell"
    )
    results = {}
    for model in MODELS:
        found = model.sizes()
        hits = routings(model, traced, args.tokens)
        results[model.name] = [estimate(machine, found, hits) for machine in MACHINES]
        show(model, found, results[model.name])
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.out / "streaming_machines.png")
    (args.out / "streaming_machines.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guarded(main))
