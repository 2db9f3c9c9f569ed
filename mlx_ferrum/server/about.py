"""What a model is, as lists of models say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_ferrum import gguf, models
from mlx_ferrum.load import measured
from mlx_ferrum.models.base import LanguageModel, Metadata
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.sizes import keeps
from mlx_ferrum.state.kinds import Keeps


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
        return replace(found, keeps=keeps(module.ModelArgs.fields(Metadata(metadata, name))))
    except (ValueError, NotImplementedError):
        return found
