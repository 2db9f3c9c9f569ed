"""A GGUF model in other types: which tensors change and how, what the user should know, and the work itself.

Rows are decoded to float32 and encoded in pieces of CHUNK weights, so that memory does not grow with the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf as gguf_py
import numpy as np

from mlx_ferrum import amounts, gguf, notice, packed
from mlx_ferrum.blocks import BF16, F16, F32, Block, by_name
from mlx_ferrum.tensor import QTensor

from . import model_facts, parts, recipes, source, target
from .importance import Importance
from .importance import read as read_importance
from .output import File, Planned, Value, write_files

CHUNK = 1 << 23  # weights decoded at a time, 32 MB in float32
QUANTIZATION_VERSION = 2  # of ggml
FLOATS = (F32, F16, BF16)
SHOWN = 5  # names in a notice


def quantize(
    model: str | Path,
    out: str | Path,
    recipe: str,
    *,
    effort: str = "normal",
    importance: str | Path | None = None,
    overrides: recipes.Overrides | None = None,
) -> Path:
    """Write a GGUF model in other types, with a progress bar, and return the path of the new file.

    model: as for `mlx_ferrum.load`, best in F32, BF16 or F16
    out: a file, replaced if it is there; it appears when it is complete
    recipe: such as "q4_k_m", a key of `recipes.RECIPES`
    effort: "fast", "normal" or "best", how long to search for the blocks of least error
    importance: an imatrix file; overrides: types of single tensors
    Raises ValueError for an unknown recipe or effort, if `out` is a file of the model or the model is not sound;
    NotImplementedError for tensors that cannot be decoded; OSError if the file cannot be written.
    """
    recipe = recipe.lower()
    if recipe not in recipes.RECIPES:
        raise ValueError(f"recipe: expected {', '.join(recipes.RECIPES)}, found {recipe!r}")
    out, file = Path(out), source.read_stacked(model)
    target.check([out], [part.path for part in file.files], force=True)
    found = None if importance is None else read_importance(Path(importance))
    options = Options(recipe, overrides or recipes.Overrides(), found, effort)
    made = plan(file, options)
    for line in made.notices:
        notice.warn(line)
    values = metadata(source.metadata(file), recipe, found)
    write_files(files(out, values, made, split_as=None))
    file.check()
    return out


@dataclass(frozen=True)
class Options:
    """How a model is quantized.

    recipe: a key of recipes.RECIPES
    effort: of Block.quantize; threads: all cores by default
    types: by name of a tensor, in place of what the recipe and `overrides` choose; others stay as they are
    """

    recipe: str
    overrides: recipes.Overrides = field(default_factory=recipes.Overrides)
    importance: Importance | None = None
    effort: str = "normal"
    threads: int | None = None
    types: Mapping[str, type[Block]] | None = None


@dataclass(repr=False)
class Plan:
    """The tensors, in the order of the file, and one line for each thing that the user should know."""

    tensors: dict[str, Planned] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        types = Counter(t.block.name for t in self.tensors.values()).most_common()
        held = ", ".join(f"{count} of {name}" for name, count in types)
        return f"Plan({held}, {amounts.size(sum(t.nbytes for t in self.tensors.values()))})"


def plan(model: gguf.GGUF, options: Options) -> Plan:
    """What becomes of each tensor of `model`.

    Raises ValueError for metadata that no recipe can use, a pattern that no tensor has, or importance of the wrong
    size; NotImplementedError for a tensor that cannot be decoded.
    """
    if options.importance is not None:
        check_importance(options.importance, model.tensors)
    given, about = (
        facts(model, options.overrides),
        model_facts.read(model.metadata, list(model.tensors)),
    )
    chosen = options.types
    if chosen is None:
        imatrix = options.importance is not None
        chosen = recipes.choose(
            given, options.recipe, about, imatrix=imatrix, overrides=options.overrides
        )
    made, changed, plain = Plan(), [], []
    made.notices += recipes.not_fitting(given, about, options.overrides)
    for info in model.tensors.values():
        block = chosen.get(info.name)
        if block is None or block.name == info.type:
            made.tensors[info.name] = source.copied(model, info)
            continue
        weights = None
        if options.importance is not None and block not in FLOATS:
            weights = options.importance.of(info.name, info.shape)
            if weights is None:
                plain.append(info.name)
        changed.append((info, block))
        made.tensors[info.name] = _encoded(model, info, block, weights, options)
    made.notices += _requantized(changed)
    if options.importance is not None:
        made.notices += importance_notices(options.importance, plain)
    return made


def facts(model: gguf.GGUF, overrides: recipes.Overrides) -> list[recipes.TensorFacts]:
    """Of the tensors that may change.

    Raises ValueError for a pattern that no tensor has, NotImplementedError for a tensor that a recipe would change and
    that cannot be decoded.
    """
    found = [recipes.TensorFacts(i.name, i.shape, i.type) for i in model.tensors.values()]
    check_patterns(overrides, found)
    return [t for t in found if _is_decoded(t)]


def metadata(
    values: Mapping[str, Value], recipe: str, importance: Importance | None
) -> dict[str, Value]:
    """The metadata of the quantized model: as before, with its type, and where the importance came from."""
    kind = gguf_py.GGUFValueType
    new = {
        "general.quantization_version": Value(QUANTIZATION_VERSION, kind.UINT32),
        "general.file_type": Value(recipes.RECIPES[recipe].file_type, kind.UINT32),
    }
    kept = {key: value for key, value in values.items() if key not in source.SPLIT}
    return {**kept, **new, **importance_metadata(importance)}


def importance_metadata(importance: Importance | None) -> dict[str, Value]:
    """Where the importance came from, under llama.cpp's keys."""
    if importance is None:
        return {}
    kind = gguf_py.GGUFValueType
    new = {
        "quantize.imatrix.file": Value(str(importance.path), kind.STRING),
        "quantize.imatrix.entries_count": Value(len(importance.columns), kind.UINT32),
    }
    if importance.dataset:
        new["quantize.imatrix.dataset"] = Value(importance.dataset, kind.STRING)
    if importance.chunks:
        new["quantize.imatrix.chunks_count"] = Value(importance.chunks, kind.UINT32)
    return new


def check_patterns(overrides: recipes.Overrides, tensors: Sequence[recipes.TensorFacts]) -> None:
    """Raises ValueError for a pattern of --tensor-type that no tensor has whose type may change."""
    for pattern, _ in overrides.patterns:
        if not any(pattern.search(t.name) for t in tensors):
            raise ValueError(f"--tensor-type {pattern.pattern}: found in the name of no tensor")
        if not any(pattern.search(t.name) for t in tensors if recipes.may_quantize(t)):
            raise ValueError(
                f"--tensor-type {pattern.pattern}: found only in names of tensors that keep their type, "
                "as norms and routers do"
            )


def _is_decoded(tensor: recipes.TensorFacts) -> bool:
    """False for a type that is only copied. Raises NotImplementedError if a recipe would change it."""
    try:
        by_name(tensor.type)
    except NotImplementedError as error:
        if recipes.may_quantize(tensor):
            raise NotImplementedError(f"tensor {tensor.name!r}: {error}") from None
        return False
    return True


def _encoded(
    model: gguf.GGUF,
    info: gguf.TensorInfo,
    block: type[Block],
    importance: np.ndarray | None,
    options: Options,
) -> Planned:
    def data() -> Iterator[np.ndarray]:
        for x, matrix in decoded(model, info):
            weights = None if importance is None else importance[matrix]
            try:
                yield block.quantize(x, weights, options.effort, threads=options.threads)
            except ValueError as error:
                raise ValueError(f"{model.path}: tensor {info.name!r}: {error}") from error

    return Planned(info.name, block, info.shape, info.type, data)


def decoded(model: gguf.GGUF, info: gguf.TensorInfo) -> Iterator[tuple[np.ndarray, int]]:
    """A tensor's rows in order, (n, k) float32 with at most CHUNK weights, and the number of their matrix."""
    from mlx_ferrum.backends import cpu  # compiles when first used

    block, k = by_name(info.type), info.shape[-1]
    rows = info.shape[-2] if len(info.shape) > 1 else 1
    matrices = int(np.prod(info.shape[:-2], dtype=np.int64))
    step = max(1, CHUNK // k)
    part, row_bytes = model.parts[info.part], block.row_bytes(k)
    matrix_step = info.step if isinstance(info, packed.Stack) else rows * row_bytes
    for matrix in range(matrices):
        for start in range(0, rows, step):
            count = min(step, rows - start)
            offset = info.offset + matrix * matrix_step + start * row_bytes
            yield cpu.dequantize(QTensor(block, (count, k), part, offset)), matrix


def _requantized(changed: Sequence[tuple[gguf.TensorInfo, type[Block]]]) -> list[str]:
    """What is lost where a quantized tensor is quantized again, in one line."""
    floats = {block.name for block in FLOATS}
    again = Counter(i.type for i, b in changed if i.type not in floats and b.name not in floats)
    if not again:
        return []
    types = ", ".join(f"{count} of {name}" for name, count in again.most_common())
    what = f"{again.total()} tensors are quantized already ({types})"
    if set(again) <= {"Q8_0"}:
        return [f"{what}; quantizing them from F16 would be a little more accurate"]
    return [f"{what}; quantizing them again loses more than quantizing a float model once"]


def check_importance(importance: Importance, names: Container[str]) -> None:
    """Raises ValueError for a file that was measured with another model: it names none of the tensors."""
    if not any(name in names for name in importance.columns):
        raise ValueError(
            f"{importance.path}: expected importance of this model's tensors, found "
            f"{_some(list(importance.columns))}, which it does not have"
        )


def importance_notices(importance: Importance, plain: list[str]) -> list[str]:
    """A line for experts that were never measured, and one for the tensors of `plain`, quantized without importance."""
    lines = []
    if importance.unused:
        count = sum(map(len, importance.unused.values()))
        names = [f"{n} {', '.join(map(str, e[:SHOWN]))}" for n, e in importance.unused.items()]
        lines.append(
            f"matrices of experts that were never chosen when importance was measured: {count}; "
            f"their columns count alike: {_some(names)}"
        )
    if plain:
        lines.append(f"tensors quantized without importance: {len(plain)}: {_some(plain)}")
    return lines


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def files(
    out: Path, values: Mapping[str, Value], plan: Plan, split_as: gguf.GGUF | None
) -> list[File]:
    """One file, or as many as `split_as` has, with the same tensors in each."""
    if split_as is None or len(split_as.parts) == 1:
        return [File(out, values, list(plan.tensors.values()))]
    groups: list[list[Planned]] = [[] for _ in split_as.parts]
    for info in split_as.tensors.values():
        groups[info.part].append(plan.tensors[info.name])
    prefix = out.with_suffix("") if out.suffix.lower() == ".gguf" else out
    return parts.files(prefix, values, groups)
