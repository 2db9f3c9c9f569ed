"""What converters of architectures share: names, shapes, stacks of experts, and metadata from config.json.

A converter is a class `Converter` in a file of its own in architectures/. The file is named after the class of
transformers that config.json names: `Qwen3MoeForCausalLM` is in qwen3moe.py.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gguf
import numpy as np

from mlx_ferrum.blocks import Block

from . import architectures, rope
from .checkpoint import Stored
from .modules import ATTENTION, MLP, Change
from .pieces import Piece, gathered

if TYPE_CHECKING:
    from mlx_ferrum.models.base import BaseArgs

MOST = 4096  # layers, or experts in a layer, as in the models that run
_CLASS = re.compile(r"(ForCausalLM|ForConditionalGeneration|ForMaskedLM|Model)$")
_LAYER = re.compile(r"blk\.(\d+)\.")
_ENDS = ("output_norm.weight", "output.weight")  # after the layers
_UNUSED = (".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Converted:
    """A tensor as GGUF files have it.

    source: the type in the checkpoint
    parts: make its entries in order, float32, or rows of bytes if `packed` says of which block type
    """

    name: str
    shape: tuple[int, ...]
    source: str
    parts: tuple[Callable[[], np.ndarray], ...]
    packed: type[Block] | None = None

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> Converted:
        """With each part changed."""
        return replace(self, parts=tuple(partial(_changed, part, change) for part in self.parts))


def _changed(
    part: Callable[[], np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    return change(part())


def find(config: Mapping[str, Any]) -> Architecture:
    """The converter for a model with this config.json. Raises NotImplementedError for an unknown architecture."""
    text = config.get("text_config") or {}
    if not isinstance(text, Mapping):
        raise ValueError(f"config.json: text_config: expected an object, found {text!r}")
    names = text.get("architectures") or config.get("architectures") or []
    if not isinstance(names, list) or not names or type(names[0]) is not str:
        raise ValueError(f"config.json: architectures: expected a list of names, found {names!r}")
    known = sorted(module.name for module in pkgutil.iter_modules(architectures.__path__))
    name = _CLASS.sub("", names[0]).lower()
    if name not in known:
        raise NotImplementedError(
            f"config.json: architecture {names[0]!r} is not supported; known: {', '.join(known)}"
        )
    module = importlib.import_module(f".{name}", architectures.__name__)
    tied = any(given.get("tie_word_embeddings") for given in (config, text))  # text may not say so
    own = {"tie_word_embeddings": True} if tied else {}
    found: Architecture = module.Converter({**config, **text, **own})
    return found


class Architecture:
    """A converter. name: in GGUF files; defaults: of config.json; activation: the only one that runs.

    Of the way back, see mlx_config.py:
    written_as: the class and the model_type of config.json; None where another converter writes these models
    modules: of layers, with all experts in one; prefix: of their names, and of those outside the layers
    arrays: of a layer, which belong to no module, by their names in GGUF files
    biases: modules that have biases in mlx_lm, by the option of config.json that gives them; "" for always
    halves: whether activations fit float16
    lacks: what mlx_lm's model does not have, of "head_dim", "rope_scaling", "tied" and "softcap"
    """

    name: ClassVar[str]
    written_as: ClassVar[tuple[str, str] | None] = None
    modules: ClassVar[tuple[str, ...]] = (*ATTENTION, *MLP)
    prefix: ClassVar[str] = ""
    arrays: ClassVar[Mapping[str, str]] = {}
    biases: ClassVar[Mapping[str, Sequence[str]]] = {}
    halves: ClassVar[bool] = True
    lacks: ClassVar[frozenset[str]] = frozenset({"softcap"})
    defaults: ClassVar[Mapping[str, Any]] = {}
    activation: ClassVar[str] = "silu"
    llama3_rope: ClassVar[bool] = False  # whether the model may have Llama 3's factors
    needs_biases: ClassVar[bool] = False  # whether every linear has one
    whole_heads: ClassVar[bool] = True  # whether all of a head is rotated

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for missing or impossible sizes, NotImplementedError for what the package cannot run."""
        given = {key: value for key, value in config.items() if value is not None}
        self.config = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, **self.defaults, **given}
        self.layers, self.hidden = self.size("num_hidden_layers"), self.size("hidden_size")
        self.heads = self.size("num_attention_heads")
        self.kv_heads = self.size("num_key_value_heads", self.heads)
        self.head_dim = self.size("head_dim", max(1, self.hidden // self.heads))
        self.experts = self.size("num_experts", self.config.get("num_local_experts", 0), least=0)
        for what, count in (("num_hidden_layers", self.layers), ("experts", self.experts)):
            if count > MOST:
                raise ValueError(f"config.json: {what}: expected at most {MOST}, found {count}")
        self.vocabulary = self.size("vocab_size")
        self.rotary = rope.read(self.config)
        self.tied = bool(self.config.get("tie_word_embeddings", False))
        self.check()

    def check(self) -> None:
        """Raises NotImplementedError for options that GGUF files of this architecture cannot say."""
        found = self.config.get("hidden_act", self.config.get("hidden_activation", self.activation))
        if found != self.activation:
            raise NotImplementedError(
                f"config.json: activation {found!r} is not supported, expected {self.activation!r}"
            )
        if self.rotary.kind == "llama3" and not self.llama3_rope:
            raise NotImplementedError(f"config.json: rope_type 'llama3' in {self.name} models")

        if self.rotary.part != 1 and self.whole_heads:
            raise NotImplementedError(
                "config.json: partial_rotary_factor: only whole heads are supported, found "
                f"{self.rotary.part:g}"
            )

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of config.json. Raises ValueError if it is missing without a default, or too small."""
        value = self.config.get(key, default)
        if type(value) is not int or value < least:
            raise ValueError(
                f"config.json: {key}: expected a whole number from {least}, found {value!r}"
            )
        return value

    def number(self, key: str) -> float:
        """A number of config.json. Raises ValueError unless it is positive and float32 holds it."""
        return rope.positive(self.config.get(key), key)

    def add(self, w: gguf.GGUFWriter) -> None:
        """Add the keys `{architecture}.…`."""
        w.add_block_count(self.layers)
        w.add_context_length(self.size("max_position_embeddings"))
        w.add_embedding_length(self.hidden)
        if "intermediate_size" in self.config:  # models of experts alone may have none
            w.add_feed_forward_length(self.size("intermediate_size"))
        w.add_head_count(self.heads)
        w.add_head_count_kv(self.kv_heads)
        rope.add(w, self.rotary, self.size("max_position_embeddings"))
        w.add_layer_norm_rms_eps(self.number("rms_norm_eps"))
        if self.experts:
            w.add_expert_count(self.experts)
            used = self.size("num_experts_per_tok")
            if used > self.experts:
                raise ValueError(
                    f"config.json: num_experts_per_tok: expected at most {self.experts}, found {used}"
                )
            w.add_expert_used_count(used)
        if "head_dim" in self.config:
            w.add_key_length(self.head_dim)
            w.add_value_length(self.head_dim)

    def add_folder(self, w: gguf.GGUFWriter, folder: Path) -> None:
        """Add the keys that other files of the folder than config.json and the tokenizer's give."""

    def space_prefix(self, tokenizer_config: Mapping[str, Any]) -> bool | None:
        """Whether the tokenizer puts a space before text, where this architecture says so."""
        return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by its GGUF name. Biases of matrices may be missing unless `needs_biases`."""
        inside = {
            f"blk.{i}.{name}": s for i in range(self.layers) for name, s in self.layer(i).items()
        }
        return self.outside() | inside

    def outside(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors before and after the layers."""
        table = (self.vocabulary, self.hidden)
        head = {} if self.tied else {"output.weight": table}
        return {"token_embd.weight": table, "output_norm.weight": (self.hidden,), **head}

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of layer `i`, by their names without the layer."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_norm.weight": (h,),
            **linear("attn_q", q, h),
            **linear("attn_k", kv, h),
            **linear("attn_v", kv, h),
            **linear("attn_output", h, q),
            "ffn_norm.weight": (h,),
            **self.feed_forward(),
        }

    def feed_forward(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the feed-forward layer."""
        h, wide = self.hidden, self.size("intermediate_size")
        return linear("ffn_gate", wide, h) | linear("ffn_up", wide, h) | linear("ffn_down", h, wide)

    def renamed(self, name: str) -> str | None:
        """The name of a tensor of the checkpoint as TensorNameMap knows it; None for one that is not used."""
        if name.endswith(_UNUSED) or (self.tied and name == "lm_head.weight"):
            return None
        return name.replace(".switch_mlp.", ".experts.")  # as mlx_lm calls a stack of experts

    def change(self, name: str) -> Change | None:
        """How GGUF files hold a tensor otherwise than the checkpoint does. name: in GGUF files"""
        return None

    def modules_of(self, i: int) -> Sequence[str]:
        """The modules of layer `i` in mlx_lm."""
        return self.modules

    def mlx_change(self, name: str) -> Change | None:
        """How GGUF files hold a tensor otherwise than mlx_lm does. name: in GGUF files"""
        return self.change(name)

    def mlx_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor in mlx_lm. name, shape: in GGUF files"""
        return shape

    @classmethod
    def describe(cls, args: BaseArgs) -> dict[str, Any]:
        """The entries of config.json that depend on the architecture, from the sizes of a GGUF file."""
        return {"intermediate_size": args.intermediate_size}

    def tensors(self, checkpoint: Mapping[str, Stored]) -> list[Converted]:
        """The tensors of the GGUF file, in the order in which a model uses them.

        Raises ValueError for tensors that are missing, unknown or of a wrong shape.
        """
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[self.name.upper()], self.layers)
        renamed = ((self.renamed(name), stored) for name, stored in checkpoint.items())
        used = ((name, stored) for name, stored in renamed if name is not None)
        found: dict[str, list[Piece]] = {}
        unknown = []
        for name, pieces in gathered(used, self.experts):
            new = names.get_name(name, (".weight", ".bias"))
            if new is None:
                unknown.append(name)
            elif new in found:
                raise ValueError(f"tensors {name!r} and {found[new][0].name!r} are both {new!r}")
            else:
                found[new] = pieces
        _refuse("that this architecture does not know", unknown)
        shapes = self.shapes()
        _refuse("missing", [n for n in shapes if n not in found and self._needs(n, shapes)])
        made = [self._converted(name, pieces, shapes.get(name)) for name, pieces in found.items()]
        if self.rotary.kind == "llama3":
            factors = rope.llama3_factors(self.rotary, self.head_dim)
            made.append(Converted("rope_freqs.weight", factors.shape, "F32", (lambda: factors,)))
        return sorted(made, key=_place)

    def _needs(self, name: str, shapes: Mapping[str, Any]) -> bool:
        """Whether a checkpoint must have the tensor: it may lack the bias of a matrix."""
        weight = shapes.get(f"{name.removesuffix('.bias')}.weight", ())
        return self.needs_biases or not name.endswith(".bias") or len(weight) < 2

    def _converted(
        self, name: str, pieces: Sequence[Piece], expected: tuple[int, ...] | None
    ) -> Converted:
        """Raises ValueError if the shape is not the one that config.json asks for."""
        if expected is None:
            raise ValueError(f"tensor {pieces[0].name!r}: this architecture does not have {name!r}")
        for piece in pieces:
            wanted = (1, *expected[1:]) if piece.stacked else expected
            if piece.shape != wanted:
                raise ValueError(
                    f"tensor {piece.name!r}: expected shape {wanted[piece.stacked :]} by config.json, "
                    f"found {piece.stored.shape}"
                )
        change = self.change(name)
        whole = len(expected) == 1 or (change is not None and change.rows)
        types = {piece.stored.repacks for piece in pieces}
        packed = types.pop() if len(types) == 1 else None
        if packed is not None and change is not None and not change.keeps(packed):
            packed = None
        read = [replace(piece, packed=packed is not None) for piece in pieces]
        parts = tuple(part for piece in read for part in piece.parts(whole))
        made = Converted(name, expected, pieces[0].stored.dtype, parts, packed)
        return made if change is None else made.mapped(change.there)


def linear(name: str, rows: int, k: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a weight (rows, k) and of a bias that may be there."""
    return {f"{name}.weight": (rows, k), f"{name}.bias": (rows,)}


def _place(tensor: Converted) -> tuple[int, int]:
    """For sorting: embeddings, layers, then the end of the model."""
    layer = _LAYER.match(tensor.name)
    if layer is not None:
        return 1, int(layer[1])
    return (2, _ENDS.index(tensor.name)) if tensor.name in _ENDS else (0, 0)


def _refuse(what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        raise ValueError(f"{len(names)} tensors {what}: {shown}")
