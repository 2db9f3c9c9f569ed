"""The memory that a model takes, by its file's header: nothing of the weights is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import gguf, models, packed
from .models.base import Metadata
from .models.encoder import Encoder
from .state.kinds import KV, Keeps, Recurrent
from .state.model import LEAST_SLOTS

SCALES = 8  # bytes beside the 8-bit numbers of a key and its value
_TENSOR = re.compile(r"blk\.(\d+)\.(ffn_(?:gate|up|down|gate_up)_exps\.weight)?")
_TABLE, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Sizes:
    """Of a language model, in bytes.

    nbytes: of all tensors that are used
    table: of the embeddings where they are not the head, too: a token reads one row
    layers: of one expert, gate, up and down, in each layer that has experts; by the number of the layer
    count, used: of the experts in such a layer, and of those that a token gets
    context: of the model, in tokens
    keeps: what each layer keeps of a sequence
    """

    nbytes: int
    table: int
    layers: Mapping[int, int]
    count: int
    used: int
    context: int
    keeps: Sequence[Keeps]

    @cached_property
    def one_each(self) -> int:
        """One expert of every layer."""
        return sum(self.layers.values())

    @property
    def experts(self) -> int:
        """All experts."""
        return self.count * self.one_each

    @property
    def a_token(self) -> int:
        """The experts that a token gets."""
        return self.used * self.one_each

    @property
    def dense(self) -> int:
        """What every token reads."""
        return self.nbytes - self.experts - self.table

    def pool(self, positions: int, kv_bits: int = 16) -> int:
        """As `pool_nbytes`."""
        return pool_nbytes(self.keeps, positions, kv_bits)


def of_file(file: gguf.GGUF) -> Sizes | None:
    """None for an encoder. Raises ValueError and NotImplementedError as loading the file would for its metadata."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("metadata key 'general.architecture' is missing or not a string")
    module = models.find(architecture)
    if issubclass(module.Model, Encoder):
        return None
    fields = module.ModelArgs.fields(Metadata(file.metadata, architecture))
    nbytes, layers, tensors = 0, dict[int, int](), packed.tensors(file)
    for name, info in tensors.items():
        layer, is_stack = _place(name)
        if layer >= fields["num_layers"]:  # it predicts further tokens
            continue
        nbytes += info.nbytes
        if is_stack:
            layers[layer] = layers.get(layer, 0) + info.nbytes // info.shape[0]
    experts = fields["experts"]
    table = tensors[_TABLE].nbytes if {_TABLE, _HEAD} <= tensors.keys() else 0
    return Sizes(
        nbytes=nbytes,
        table=table,
        layers=layers,
        count=experts.count if experts else 0,
        used=experts.routing.used if experts else 0,
        context=fields["context_length"],
        keeps=keeps(fields),
    )


def stacks(file: gguf.GGUF, found: Sizes) -> list[gguf.TensorInfo]:
    """The tensors that hold the experts. found: of the file"""
    places = [(info, *_place(name)) for name, info in packed.tensors(file).items()]
    return [info for info, layer, is_stack in places if is_stack and layer in found.layers]


def _place(name: str) -> tuple[int, bool]:
    """The layer that a tensor is of, -1 for none, and whether it is a stack of experts."""
    found = _TENSOR.match(name)
    return (int(found[1]), found[2] is not None) if found else (-1, False)


def keeps(fields: Mapping[str, Any]) -> list[Keeps]:
    """What each layer keeps of a sequence. fields: of an architecture's arguments"""
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
