"""What a model is, as lists of models say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_ferrum import gguf, sizes
from mlx_ferrum.load import measured
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.state.kinds import Keeps


@dataclass(frozen=True)
class About:
    """What a model is.

    types: of its blocks
    nbytes: of its tensors
    keeps: what each layer keeps of a sequence; none for encoders, and for what the package cannot load
    experts, token_experts: bytes of all experts, and of those of a token
    """

    architecture: str
    context_length: int | None
    parameter_count: int
    types: str
    nbytes: int
    is_encoder: bool = False
    keeps: Sequence[Keeps] = ()
    experts: int = 0
    token_experts: int = 0


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
        size = sizes.of_file(file)
        if size is None:
            return replace(found, is_encoder=True)
        experts, a_token = size.experts, size.a_token
        return replace(found, keeps=size.keeps, experts=experts, token_experts=a_token)
    except (ValueError, NotImplementedError):
        return found
