"""What a folder of sentence-transformers says about embeddings: pooling, scaling to length 1, the longest text.

Files: modules.json lists the steps, `1_Pooling/config.json` has the pooling, sentence_bert_config.json the length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from mlx_ferrum.models.encoder import MAX_LENGTH, NORMALIZE
from mlx_ferrum.notice import warn

from .vocabulary import read_json

MODES = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "lasttoken": gguf.PoolingType.LAST,
}
# Older files have a flag for each mode.
_FLAG, _NAMES = "pooling_mode_", {"mean_tokens": "mean", "cls_token": "cls"}


def add(w: gguf.GGUFWriter, folder: Path, context: int) -> None:
    """Add the keys. A folder without modules.json leaves the pooling open, as llama.cpp does.

    context: how many positions the model has
    Raises ValueError for damaged files, NotImplementedError for steps and pooling modes that do not run.
    """
    modules = _modules(folder / "modules.json")
    if modules is None:
        return
    kinds = [kind for kind, _ in modules]
    for kind, path in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise NotImplementedError(
                f"modules.json: the step {path!r} of type {kind} is not supported, "
                "expected Transformer, Pooling and Normalize"
            )
    if kinds.count("Pooling") != 1:
        raise ValueError(f"modules.json: expected one Pooling, found {', '.join(kinds)}")
    file = folder / dict(modules)["Pooling"] / "config.json"
    if not file.is_file():
        raise ValueError(f"{file}: not found; modules.json names it for the pooling")
    w.add_pooling_type(_pooling(file))
    w.add_bool(NORMALIZE, "Normalize" in kinds)
    options = read_json(folder / "sentence_bert_config.json")
    length = options.get("max_seq_length")
    if length is None:  # as sentence-transformers does
        length = read_json(folder / "tokenizer_config.json").get("model_max_length", context)
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
        raise ValueError(
            f"sentence_bert_config.json: max_seq_length: expected a positive number, found {length!r}"
        )
    w.add_uint32(MAX_LENGTH, int(min(length, context)))
    _warn_of_prompts(folder, options)


def _warn_of_prompts(folder: Path, options: Mapping[str, Any]) -> None:
    """Tell what is to be done to texts before they become tokens, and is not done here."""
    if options.get("do_lower_case"):
        warn("sentence_bert_config.json: do_lower_case: write texts in lower case yourself")
    config = read_json(folder / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    if name is not None:
        prompt = (config.get("prompts") or {}).get(name)
        warn(f"config_sentence_transformers.json: put the prompt {prompt!r} before texts yourself")


def _modules(file: Path) -> list[tuple[str, str]] | None:
    """(type without its package, folder) of each step; None without the file."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        steps = [(str(step["type"]).rsplit(".", 1)[-1], str(step["path"])) for step in found]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{file}: expected a list of steps with type and path: {error!r}"
        ) from None
    if any(Path(path).is_absolute() or ".." in Path(path).parts for _, path in steps):
        raise ValueError(f"{file}: expected folders within this one, found {steps}")
    return steps


def _pooling(file: Path) -> gguf.PoolingType:
    """Raises NotImplementedError for another mode, or several: sentence-transformers joins their vectors."""
    modes = _modes(read_json(file))
    if len(modes) != 1 or modes[0] not in MODES:
        raise NotImplementedError(
            f"{file}: pooling {' and '.join(modes) or 'without a mode'} is not supported, "
            f"expected one of {', '.join(MODES)}"
        )
    return MODES[modes[0]]


def _modes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [str(mode) for mode in (named if isinstance(named, list) else [named])]
    flags = [key.removeprefix(_FLAG) for key, on in config.items() if key.startswith(_FLAG) and on]
    return [_NAMES.get(flag, flag) for flag in flags]
