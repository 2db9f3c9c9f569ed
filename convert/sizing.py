"""The types of a model that shall have a given size: what is measured, what is chosen, and why."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx_ferrum
from mlx_ferrum import amounts, gguf
from mlx_ferrum.blocks import Block, by_name
from mlx_ferrum.models.encoder import language_model

from . import budget, chunks, model_facts, quantizing, recipes, sensitivity
from .budget import Choice
from .sensitivity import Sensitivity

HEADER_BYTES = 4096  # for the metadata that quantizing adds
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Budget:
    """What the user may spend: bits a weight over all tensors, or bytes of the file."""

    bits: float | None = None
    nbytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "4.5" (bits a weight), "18GB" or "17.5GiB" (the file). Raises ValueError for anything else."""
        if _NUMBER.fullmatch(text.strip()):
            bits = float(text)
            if not 0 < bits <= 32:
                raise ValueError(f"expected up to 32 bits a weight, found {text[:60]}")
            return cls(bits=bits)
        try:
            return cls(nbytes=amounts.read_size(text))
        except ValueError:
            expected = "expected bits a weight or a size, as 4.5 or 18GB"
            raise ValueError(f"{expected}; found {text[:60]!r}") from None

    def without(self, nbytes: int) -> Budget:
        """What is left of a file's size when metadata takes some of it."""
        return self if self.nbytes is None else Budget(nbytes=self.nbytes - nbytes)

    def tensor_bytes(self, file: gguf.GGUF) -> int:
        """What all tensors together may take."""
        if self.bits is not None:
            return int(self.bits * sum(_weights(info) for info in file.tensors.values()) / 8)
        assert self.nbytes is not None, "one of the two is given"
        stored = sum(info.nbytes for info in file.tensors.values())
        return self.nbytes - (sum(part.size for part in file.parts) - stored) - HEADER_BYTES


@dataclass(frozen=True)
class Text:
    """What sensitivity is measured on: `most` chunks of a file, of `size` tokens (None: the usual number)."""

    path: Path
    most: int
    size: int | None = None


@dataclass(frozen=True)
class Sized:
    """What was chosen.

    choices: name -> type, bytes and expected loss; types: also of the tensors that the user named
    measured: name -> its sensitivity; nbytes: of all tensors
    """

    choices: dict[str, Choice]
    types: dict[str, type[Block]]
    measured: dict[str, Sensitivity]
    nbytes: int

    @property
    def loss(self) -> float:
        """The expected divergence, in nats a token, of the tensors that were chosen for."""
        return sum(choice.loss for choice in self.choices.values())


def choose(
    file: gguf.GGUF,
    wanted: Budget,
    text: Text,
    overrides: recipes.Overrides,
    saved: Path | None = None,
) -> Sized:
    """Types for the tensors of `file` that together fit into the budget and lose as little as is known how.

    saved: measurements are read from there, or written there
    Raises ValueError for a budget that is too small, and as loading the model, the text and `saved` do.
    """
    facts = quantizing.facts(file, overrides)
    named = recipes.asked(facts, model_facts.read(file.metadata, list(file.tensors)), overrides)
    asked = [t.name for t in facts if recipes.may_quantize(t) and t.name not in named]
    free = [name for name in asked if budget.divides(file.tensors[name].shape[-1])]
    room = wanted.tensor_bytes(file)
    fixed = {
        name: _nbytes(file, name, named.get(name)) for name in file.tensors if name not in free
    }
    _check_room(file, fixed, free, room)
    measured = _measured(file, free, text, room, saved)
    choices = {name: _choices(file, name, measured[name]) for name in free}
    chosen = budget.allocate(choices, room - sum(fixed.values()))
    types = {**named, **{name: choice.block for name, choice in chosen.items()}}
    nbytes = sum(fixed.values()) + sum(choice.nbytes for choice in chosen.values())
    return Sized(chosen, types, measured, nbytes)


def _row(file: gguf.GGUF, name: str) -> tuple[int, type[Block]]:
    """How many weights a row of a tensor has, and their type."""
    info = file.tensors[name]
    return info.shape[-1], by_name(info.type)


def _check_room(file: gguf.GGUF, fixed: Mapping[str, int], free: Sequence[str], room: int) -> None:
    """Raises ValueError if the smallest types take more than `room`: told before anything is measured."""
    least = {name: budget.candidates(*_row(file, name)) for name in free}
    nbytes = sum(fixed.values())
    nbytes += sum(min(_nbytes(file, name, b) for b in some) for name, some in least.items())
    if nbytes > room:
        bits = 8 * nbytes / max(1, sum(_weights(info) for info in file.tensors.values()))
        raise ValueError(
            f"{file.path}: takes at least {bits:.2f} bits a weight, {nbytes:,} bytes; "
            f"found room for {max(0, room):,} bytes"
        )


def _measured(
    file: gguf.GGUF, names: Sequence[str], text: Text, room: int, saved: Path | None
) -> dict[str, Sensitivity]:
    loaded, tokenizer = mlx_ferrum.load(file.path)
    model = language_model(loaded, file.path)
    size = chunks.size(text.size, model.args.context_length)
    pieces = chunks.read(text.path, tokenizer, size, text.most)
    digest = hashlib.sha256(repr(pieces).encode()).hexdigest()
    about = {"model": model.fingerprint, "text": text.path.name, "tokens": digest}
    if saved is not None and saved.exists():
        found = sensitivity.read(saved, about)
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{saved}: does not have the tensor {missing[0]!r}")
        return found
    bits = 8 * room / sum(_weights(file.tensors[name]) for name in names) if names else 0
    probes = {name: budget.probe(file.tensors[name].shape[-1], bits) for name in names}
    found = sensitivity.measure(model, file, pieces, probes, budget.TYPES)
    if saved is not None:
        sensitivity.save(saved, about, found)
    return found


def _choices(file: gguf.GGUF, name: str, measured: Sensitivity) -> list[Choice]:
    stored = by_name(file.tensors[name].type)
    return [
        Choice(b, _nbytes(file, name, b), 0.0 if b is stored else measured.expected(b))
        for b in budget.candidates(file.tensors[name].shape[-1], stored)
    ]


def _nbytes(file: gguf.GGUF, name: str, block: type[Block] | None) -> int:
    """Of a tensor in another type; None: as it is."""
    info = file.tensors[name]
    if block is None:
        return info.nbytes
    return _weights(info) // info.shape[-1] * block.row_bytes(info.shape[-1])


def _weights(info: gguf.TensorInfo) -> int:
    count = 1
    for n in info.shape:
        count *= n
    return count


def recipe_of(sized: Sized) -> str:
    """The recipe that the file is named after: that of the type which most bytes have."""
    nbytes: Counter[type[Block]] = Counter()
    for choice in sized.choices.values():
        nbytes[choice.block] += choice.nbytes
    return recipes.named_after(nbytes.most_common(1)[0][0]) if nbytes else "f16"


def report(file: gguf.GGUF, sized: Sized) -> Iterator[str]:
    """Why, for people: of each kind of tensor how much its bits matter, and what it got."""
    weights = sum(_weights(info) for info in file.tensors.values())
    yield f"{'tensors':<24} {'loss when in':>20}  {'bits':>5} {'loss':>8}  types"
    for kind, names in _kinds(sized.choices).items():
        yield _line(file, sized, kind, names)
    bits = 8 * sized.nbytes / weights
    yield f"{'all':<24} {'':>20}  {bits:5.2f} {sized.loss:8.5f}"
    yield from _beside(file, sized)


def _kinds(choices: Mapping[str, Choice]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for name in choices:
        kinds.setdefault(re.sub(r"^blk\.\d+\.|\.weight$", "", name), []).append(name)
    return kinds


def _line(file: gguf.GGUF, sized: Sized, kind: str, names: Sequence[str]) -> str:
    chosen = [sized.choices[name] for name in names]
    count = Counter(choice.block.name for choice in chosen)
    alone = sum(sized.measured[name].loss for name in names)
    probe = sized.measured[names[0]].block
    bits = 8 * sum(c.nbytes for c in chosen) / sum(_weights(file.tensors[n]) for n in names)
    types = ", ".join(f"{n} {name}" for name, n in sorted(count.items(), key=lambda one: -one[1]))
    loss = sum(choice.loss for choice in chosen)
    label = kind if len(names) == 1 else f"{kind} ({len(names)})"
    return f"{label:<24} {probe:>11} {alone:8.5f}  {bits:5.2f} {loss:8.5f}  {types}"


def _beside(file: gguf.GGUF, sized: Sized) -> Iterator[str]:
    """The largest recipe that is no larger, for comparison."""
    facts = model_facts.read(file.metadata, list(file.tensors))
    tensors = [recipes.TensorFacts(i.name, i.shape, i.type) for i in file.tensors.values()]
    best = None
    for recipe in recipes.RECIPES:
        types = recipes.choose(tensors, recipe, facts)
        nbytes = sum(_nbytes(file, name, types[name]) for name in types)
        known = all(types[name].name in sized.measured[name].errors for name in sized.choices)
        if known and nbytes <= sized.nbytes * 1.001 and (best is None or nbytes > best[1]):
            loss = sum(sized.measured[name].expected(types[name]) for name in sized.choices)
            best = recipe, nbytes, loss
    if best is not None:
        yield f"the recipe {best[0]} takes {best[1]:,} bytes and would lose {best[2]:.5f}"
    yield (
        "loss: expected divergence from the model as it is, in nats a token; those of single "
        "tensors add up while they are small"
    )
