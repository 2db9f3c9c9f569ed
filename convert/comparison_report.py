"""A comparison as text for people and as JSON for machines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .comparison import (
    PERCENTS,
    Comparison,
    Divergence,
    Estimate,
    Model,
    Other,
    TensorError,
    TensorErrors,
    relative,
)

SHOWN = 20  # tensors, unless all are asked for
NAMES = 5  # of tensors that have no counterpart
Cell = Callable[[Divergence], str]


def labels(models: Sequence[Model]) -> list[str]:
    """Short names: that of the file, unless two models share it."""
    short = [Path(model.name).name for model in models]
    return [s if short.count(s) == 1 else m.name for s, m in zip(short, models, strict=True)]


def as_text(comparison: Comparison, *, is_all: bool = False) -> Iterator[str]:
    """Lines: the models beside each other, then the tensors of each other one. is_all: every tensor is listed."""
    yield from _predictions(comparison)
    names = labels([o.model for o in comparison.others])
    for name, other in zip(names, comparison.others, strict=True):
        if other.tensors is not None:
            yield ""
            yield from _tensors(name, other.tensors, is_all)


def _predictions(comparison: Comparison) -> Iterator[str]:
    models = [comparison.base, *(o.model for o in comparison.others)]
    columns = [["base", *labels(models[1:])]]
    columns.append([f"{m.nbytes / 1e6:,.1f} MB" for m in models])
    columns.append([f"{m.bits:.2f}" for m in models])
    titles = ["", "size of tensors", "bits per weight"]
    found = [o.divergence for o in comparison.others if o.divergence is not None]
    if found:
        titles += ["perplexity", *_ROWS]
        columns.append(
            [_short(d) for d in (found[0].base_perplexity, *(d.perplexity for d in found))]
        )
        columns += [["", *map(cell, found)] for cell in _ROWS.values()]
    yield f"base: {comparison.base.name}"
    if comparison.text is not None:
        t, tokens = comparison.text, found[0].tokens
        of = f" of {t.of}" if t.chunks < t.of else ""
        yield f"text: {t.name}, {tokens:,} tokens scored in {t.chunks}{of} chunks of {t.size}"
    yield ""
    widths = [max(len(row[i]) for row in columns) for i in range(len(models))]
    for title, row in zip(titles, columns, strict=True):
        cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{title:<19}  {'  '.join(cells)}".rstrip()


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} +- {estimate.error:.4f}"


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.3%} +- {estimate.error:.3%}"


def _percentile(percent: float) -> Cell:
    return lambda d: f"{d.percentiles([percent])[percent]:.6f}"


def _title(percent: float) -> str:
    return {50.0: "KL median", 100.0: "KL largest"}.get(percent, f"KL {percent:g} %")


_ROWS: dict[str, Cell] = {
    "ratio to base": lambda d: f"{d.ratio.value:.5f} +- {d.ratio.error:.5f}",
    "KL mean": lambda d: str(d.kl),
    **{_title(percent): _percentile(percent) for percent in PERCENTS},
    "same top token": lambda d: _percent(d.agreement),
    "RMS of dp": lambda d: _percent(d.probability_rms),
}


def _tensors(name: str, tensors: TensorErrors, is_all: bool) -> Iterator[str]:
    yield f"{name}: {len(tensors.errors)} tensors"
    yield from _missing(tensors)
    if not tensors.errors:
        yield "  no tensor has the name and shape of one in the base"
        return
    yield from _types(tensors.errors)
    shown = tensors.errors if is_all else [e for e in tensors.worst() if e.relative != 0][:SHOWN]
    if not shown:
        yield "  all are equal"
        return
    width = max(len(e.name) for e in shown)
    yield ""
    titles = f"{'error':>9} {'share':>7} {'largest':>9} {'1 - cosine':>10}"
    yield f"  {'tensor':<{width}}  {'type':<15} {'bytes':>14} {titles}"
    for e in shown:
        yield f"  {e.name:<{width}}  {_type(e):<15} {e.nbytes:>14,} {_numbers(tensors, e)}"
    if len(shown) < len(tensors.errors):
        yield f"  {len(tensors.errors) - len(shown)} more, with smaller errors or none; --all lists them"


def _numbers(tensors: TensorErrors, e: TensorError) -> str:
    error, cosine = e.relative, e.cosine
    if error is None or cosine is None:
        return f"{'cannot be decoded':>38}"
    if not e.is_finite:
        return f"{'not finite':>38}"
    share = tensors.share(e)
    return f"{error:>9.3%} {share:>7.2%} {e.largest:>9.2e} {1 - cosine:>10.2e}"


def _type(e: TensorError) -> str:
    return e.type if e.type == e.base_type else f"{e.base_type} -> {e.type}"


def _missing(tensors: TensorErrors) -> Iterator[str]:
    for where, names in (("the base", tensors.only_base), ("it", tensors.only_other)):
        if names:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            yield f"  only in {where}: {', '.join(names[:NAMES])}{more}"
    for name, (a, b) in tensors.reshaped.items():
        yield f"  another shape: {name} is {_shape(a)} in the base, {_shape(b)} here"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _types(errors: Sequence[TensorError]) -> Iterator[str]:
    groups = defaultdict(list)
    for e in errors:
        groups[e.base_type, e.type].append(e)
    yield f"  {'type':<15} {'tensors':>7} {'bytes':>14} {'error':>9} {'largest':>9}"
    for group in groups.values():
        nbytes = sum(e.nbytes for e in group)
        line = f"  {_type(group[0]):<15} {len(group):>7} {nbytes:>14,}"
        if all(e.squares is None for e in group):
            yield f"{line} {'cannot be decoded':>19}"
            continue
        known = [e for e in group if e.is_finite]
        if len(known) < len(group):
            line += f" {len(group) - len(known)} not finite;"
        if not known:
            yield line.removesuffix(";")
            continue
        error = relative(sum(e.squares or 0.0 for e in known), sum(e.base_squares for e in known))
        yield f"{line} {error:>9.3%} {max(e.largest for e in known):>9.2e}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, with every tensor; numbers that are not finite are null."""
    text = comparison.text
    return {
        "base": _model(comparison.base),
        "text": None if text is None else vars(text),
        "others": [_other(other) for other in comparison.others],
    }


def _model(model: Model) -> dict[str, Any]:
    return {**vars(model), "bits_per_weight": model.bits}


def _other(other: Other) -> dict[str, Any]:
    found = _model(other.model)
    if other.divergence is not None:
        found["divergence"] = _divergence(other.divergence)
    if other.tensors is not None:
        found["tensors"] = [_tensor(other.tensors, e) for e in other.tensors.errors]
        found["only_in_base"] = other.tensors.only_base
        found["not_in_base"] = other.tensors.only_other
        found["reshaped"] = {n: list(shapes) for n, shapes in other.tensors.reshaped.items()}
    return found


def _divergence(d: Divergence) -> dict[str, Any]:
    estimates = {
        "perplexity": d.perplexity,
        "base_perplexity": d.base_perplexity,
        "ratio": d.ratio,
        "kl": d.kl,
        "agreement": d.agreement,
        "probability_rms": d.probability_rms,
    }
    found: dict[str, Any] = {"tokens": d.tokens}
    for name, estimate in estimates.items():
        found[name], found[f"{name}_error"] = estimate.value, _finite(estimate.error)
    found["kl_percentiles"] = {f"{percent:g}": kl for percent, kl in d.percentiles().items()}
    return found


def _tensor(tensors: TensorErrors, e: TensorError) -> dict[str, Any]:
    return {
        "name": e.name,
        "shape": e.shape,
        "base_type": e.base_type,
        "type": e.type,
        "base_nbytes": e.base_nbytes,
        "nbytes": e.nbytes,
        "relative_error": _finite(e.relative),
        "largest_error": None if e.squares is None else _finite(e.largest),
        "cosine": _finite(e.cosine),
        "share": _finite(tensors.share(e)),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
