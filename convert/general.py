"""The `general.…` keys: name, licence, languages and so on from the model card, and sampling defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import yaml

from .architecture import Converted
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
    found.set_gguf_meta_model(w)


def _counts(tensors: Sequence[Converted]) -> tuple[int, int, int, int]:
    """Parameters, those outside experts, those of one expert, and experts, as gguf counts them."""
    w = gguf.GGUFWriter(None, "none")
    for tensor in tensors:
        w.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), 0)
    found: tuple[int, int, int, int] = w.get_total_parameter_count()
    return found
