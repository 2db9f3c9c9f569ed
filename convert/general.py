"""The `general.…` keys: name, licence, languages and so on from the model card, and sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml

from .architecture import Converted
from .values import as_list
from .vocabulary import read_json

# Keys of generation_config.json by GGUFWriter's names.
SAMPLING = {
    "sequence": "sequence",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "repetition_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}

# Keys of the model card by GGUF's names, `general.…`.
CARD = {
    **{
        name: name
        for name in "name author version organization description finetune basename".split()
    },
    **{name: name for name in "size_label license tags".split()},
    "license.name": "license_name",
    "license.link": "license_link",
    "languages": "language",
    "url": "url",
    "repo_url": "repo_url",
}
CARD_TEXT = """
Converted from a GGUF file for mlx_lm:

    mlx_lm.generate --model FOLDER --prompt "Hello"
"""


def card(metadata: Mapping[str, Any]) -> str:
    """The way back: a model card, README.md, with what the `general.…` keys of a GGUF file say."""
    found = {
        name: as_list(metadata[f"general.{key}"])
        for key, name in CARD.items()
        if f"general.{key}" in metadata
    }
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else ""
    return f"---\n{text}---\n{CARD_TEXT}"


def add(w: gguf.GGUFWriter, folder: Path, name: str, tensors: Sequence[Converted]) -> None:
    """Add the keys.

    name: `owner/repo`, or the folder's name
    Raises ValueError for a model card or a configuration that cannot be read.
    """
    counts = _counts(tensors)
    metadata = gguf.Metadata
    try:
        card = metadata.load_model_card(folder)
        found = metadata.apply_metadata_heuristic(
            metadata(), card, read_json(folder / "config.json"), Path(name), counts[0]
        )
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'README.md'}: damaged model card: {error}") from None
    for key, source in SAMPLING.items():
        value = read_json(folder / "generation_config.json").get(source)
        if value is not None:
            setattr(found, f"sampling_{key}", value)
    if found.name is None:
        found.name = Path(name).name
    if found.organization is None and "/" in name:
        found.organization = metadata.id_to_title(name.split("/")[0])
    if found.size_label is None and counts[0] > 0:
        found.size_label = gguf.size_label(*counts)
    w.add_type(gguf.GGUFType.MODEL)
    try:
        found.set_gguf_meta_model(w)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'README.md'}: damaged model card: {error}") from None


def _counts(tensors: Sequence[Converted]) -> tuple[int, int, int, int]:
    """Parameters, those outside experts, those of one expert, and experts, as gguf counts them."""
    w = gguf.GGUFWriter(None, "none")
    for tensor in tensors:
        w.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 0)
    found: tuple[int, int, int, int] = w.get_total_parameter_count()
    return found
