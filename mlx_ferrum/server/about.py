"""What a model is, as lists of models say it, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_ferrum import gguf, models
from mlx_ferrum.load import measured
from mlx_ferrum.models.base import LanguageModel, Metadata
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.state.kinds import KV, Keeps, Recurrent
from mlx_ferrum.state.model import LEAST_SLOTS

SCALES = 8  # bytes beside the 8-bit numbers of a key and its value


@dataclass(frozen=True)
class About:
    """What a model is.

    types: of its blocks
    nbytes: of its tensors
    keeps: what each layer keeps of a sequence; none for encoders, and for what the package cannot load
    """

    architecture: str
    context_length: int | None
    parameter_count: int
    types: str
    nbytes: int
    is_encoder: bool = False
    keeps: Sequence[Keeps] = ()


def of_model(model: LanguageModel | Encoder) -> About:
    """What is said of a model that is loaded."""
    is_encoder = isinstance(model, Encoder)
    return About(
        type(model).__module__.rpartition(".")[2],
        model.context_length if isinstance(model, Encoder) else model.args.context_length,
        model.parameter_count,
        model.types,
        model.nbytes,
        is_encoder,
    )


def of_file(file: gguf.GGUF) -> About:
    """What the header says. A file that cannot be loaded is described as far as it goes: loading names the error."""
    nbytes, count, types = measured(file.tensors.values())
    metadata = file.metadata
    name = str(metadata.get("general.architecture", "unknown"))
    context = metadata.get(f"{name}.context_length")
    found = About(name, context if type(context) is int else None, count, types, nbytes)
    try:
        module = models.find(name)
        if issubclass(module.Model, Encoder):
            return replace(found, is_encoder=True)
        return replace(found, keeps=_keeps(module.ModelArgs.fields(Metadata(metadata, name))))
    except (ValueError, NotImplementedError):
        return found


def _keeps(fields: Mapping[str, Any]) -> list[Keeps]:
    """fields: of an architecture's arguments"""
    kv = KV(fields["num_kv_heads"], fields["head_dim"], fields["value_dim"])
    delta = fields.get("delta")
    if delta is None:
        return [kv] * fields["num_layers"]
    recurrent = Recurrent(delta.channels, delta.kernel - 1, delta.value_heads, delta.size)
    return [recurrent if is_recurrent else kv for is_recurrent in fields["recurrent"]]


def pool_nbytes(keeps: Sequence[Keeps], positions: int, kv_bits: int) -> int:
    """Bytes of the pools of so many positions once they are full, and of the slots beside them; see `ModelStates`."""
    kvs = [kind for kind in keeps if isinstance(kind, KV)]
    numbers = sum(kv.heads * (kv.key_dim + kv.value_dim) for kv in kvs) * positions
    scales = sum(kv.heads for kv in kvs) * positions * SCALES if kv_bits == 8 else 0
    slot = sum(kind.nbytes for kind in keeps if isinstance(kind, Recurrent))
    slots = max(LEAST_SLOTS, numbers * kv_bits // 8 // slot) if slot else 0
    return numbers * kv_bits // 8 + scales + slots * slot
