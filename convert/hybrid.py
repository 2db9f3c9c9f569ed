"""What converters of hybrid models share: gated delta nets (recurrent layers) between attention layers.

Checkpoints of transformers hold w of norms that multiply by 1 + w, but for the norm in a delta net; GGUF files hold
1 + w. Folders of mlx_lm hold 1 + w, too, and are told by the shape of the convolution, (channels, kernel, 1).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import gguf
import numpy as np

from mlx_ferrum.notice import warn

from .architecture import Architecture, Converted
from .architectures import qwen2
from .checkpoint import Stored
from .modules import Change

DELTA_NET = tuple(
    f"linear_attn.{name}"
    for name in "in_proj_qkv in_proj_z in_proj_a in_proj_b conv1d norm out_proj".split()
)
INTERVAL = 4  # every so many layers one has attention, where config.json does not say
RECURRENT, ATTENTION = "linear_attention", "full_attention"
_LAYER = re.compile(r"^blk\.\d+\.")
_LEFT_OUT = {
    "multi-token prediction": re.compile(r"(^|\.)mtp\."),
    "the vision tower": re.compile(r"(^|\.)(visual|vision_tower)\."),
}


class Hybrid(qwen2.Converter):
    """A converter of layers of two kinds.

    tiled: whether value head h of the file reads key head h % Hk, instead of h // (Hv / Hk) as in the checkpoint
    sections: counts of rotated pairs for pictures, where config.json has none; None if the file needs none
    recurrent: for each layer, whether it is a delta net
    key_heads, value_heads: Hk and Hv of the delta nets; state: S, the size of each head
    channels: of the convolution, 2 Hk S + Hv S; kernel: its columns
    rotated: how many numbers of an attention head are rotated
    norms_have_one: whether norms of the checkpoint hold 1 + w
    """

    whole_heads = False
    prefix = "language_model."
    arrays = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
    biases = {}
    lacks = Architecture.lacks | {"rope_scaling"}
    tiled: ClassVar[bool] = True
    sections: ClassVar[tuple[int, ...] | None] = (11, 11, 10)
    defaults = {
        **qwen2.Converter.defaults,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": INTERVAL,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.key_heads = self.size("linear_num_key_heads")
        self.value_heads = self.size("linear_num_value_heads")
        self.state = self.size("linear_key_head_dim")
        self.kernel = self.size("linear_conv_kernel_dim", least=2)
        self.channels = (2 * self.key_heads + self.value_heads) * self.state
        self.rotated = int(self.head_dim * float(self.rotary.part))
        self.recurrent = self._kinds()
        self.norms_have_one = False
        self._check_sizes()

    def check(self) -> None:
        super().check()
        if self.config.get("attn_output_gate", True) is not True:
            raise NotImplementedError(
                f"config.json: attn_output_gate: {self.name} files mean True, "
                f"found {self.config['attn_output_gate']!r}"
            )

    def _check_sizes(self) -> None:
        if self.value_heads % self.key_heads:
            raise ValueError(
                f"config.json: linear_num_value_heads: expected a multiple of {self.key_heads}, "
                f"linear_num_key_heads, found {self.value_heads}"
            )
        if self.size("linear_value_head_dim") != self.state:
            raise NotImplementedError(
                f"config.json: linear_value_head_dim: {self.name} files mean {self.state}, the size of "
                f"key heads, found {self.config['linear_value_head_dim']}"
            )
        if self.rotated < 2 or self.rotated % 2 or self.rotated > self.head_dim:
            raise ValueError(
                f"config.json: partial_rotary_factor: expected an even part of {self.head_dim}, "
                f"found {self.rotated} ({self.rotary.part!r})"
            )

    def _kinds(self) -> list[bool]:
        """Whether each layer is recurrent, by layer_types or the interval."""
        names, period = self.config.get("layer_types"), self.size("full_attention_interval")
        if names is None:
            return [(i + 1) % period != 0 for i in range(self.layers)]
        known = isinstance(names, list) and set(map(str, names)) <= {RECURRENT, ATTENTION}
        if not known or len(names) != self.layers:
            raise ValueError(
                f"config.json: layer_types: expected {self.layers} of {ATTENTION} or {RECURRENT}, "
                f"found {str(names)[:200]}"
            )
        return [name == RECURRENT for name in names]

    def add(self, w: gguf.GGUFWriter) -> None:
        super().add(w)
        w.add_ssm_conv_kernel(self.kernel)
        w.add_ssm_state_size(self.state)
        w.add_ssm_group_count(self.key_heads)
        w.add_ssm_time_step_rank(self.value_heads)
        w.add_ssm_inner_size(self.value_heads * self.state)
        w.add_array(f"{self.name}.attention.recurrent_layers", self.recurrent)
        w.add_full_attention_interval(self.size("full_attention_interval"))
        w.add_rope_dimension_count(self.rotated)
        sections = self.rotary.parameters.get("mrope_section", self.sections)
        if sections is not None:
            w.add_rope_dimension_sections(_sections(sections))

    def layer(self, i: int) -> dict[str, tuple[int, ...]]:
        norms = {f"{name}.weight": (self.hidden,) for name in ("attn_norm", "post_attention_norm")}
        inside = self._delta_net() if self.recurrent[i] else self._attention()
        return norms | inside | self.feed_forward()

    def _attention(self) -> dict[str, tuple[int, ...]]:
        """The shapes of attention. `attn_q` has for each head the query, then the gate."""
        h, d, q = self.hidden, self.head_dim, self.heads * self.head_dim
        return {
            "attn_q.weight": (2 * q, h),
            "attn_k.weight": (self.kv_heads * d, h),
            "attn_v.weight": (self.kv_heads * d, h),
            "attn_output.weight": (h, q),
            "attn_q_norm.weight": (d,),
            "attn_k_norm.weight": (d,),
        }

    def _delta_net(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a delta net."""
        inner = self.value_heads * self.state
        return {
            "attn_qkv.weight": (self.channels, self.hidden),
            "attn_gate.weight": (inner, self.hidden),
            "ssm_conv1d.weight": (self.channels, self.kernel),
            "ssm_dt.bias": (self.value_heads,),
            "ssm_a": (self.value_heads,),
            "ssm_norm.weight": (self.state,),
            "ssm_out.weight": (self.hidden, inner),
            **self.decays(),
        }

    def decays(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the matrices that decay and beta are made of."""
        shape = (self.value_heads, self.hidden)
        return {"ssm_alpha.weight": shape, "ssm_beta.weight": shape}

    def renamed(self, name: str) -> str | None:
        if any(pattern.search(name) for pattern in _LEFT_OUT.values()):
            return None
        name = name.replace("language_model.", "", 1).replace("model.model.", "model.")
        return super().renamed(name.replace(".dt_bias", ".dt_proj.bias"))

    def tensors(self, checkpoint: Mapping[str, Stored]) -> list[Converted]:
        """As every architecture's, after one line on the tensors that are left out."""
        _say_left_out(checkpoint)
        return super().tensors(
            {name: self._matrix(name, stored) for name, stored in checkpoint.items()}
        )

    def _matrix(self, name: str, stored: Stored) -> Stored:
        """The kernels of a convolution as a matrix (channels, kernel); other tensors as they are."""
        if not name.endswith("linear_attn.conv1d.weight"):
            return stored
        torch, mlx = (self.channels, 1, self.kernel), (self.channels, self.kernel, 1)
        if stored.shape not in (torch, mlx):
            raise ValueError(
                f"tensor {name!r}: expected shape {torch} by config.json, found {stored.shape}"
            )
        self.norms_have_one = stored.shape == mlx
        return replace(stored, shape=(self.channels, self.kernel))

    def change(self, name: str) -> Change | None:
        part = _LAYER.sub("", name)
        if part.endswith("norm.weight"):
            return None if part == "ssm_norm.weight" or self.norms_have_one else _ONE_MORE
        if part == "ssm_a":
            order = self._order()
            return Change(
                lambda x: _decay(x)[..., order], lambda x: _log(x)[..., np.argsort(order)]
            )
        if not self.tiled or self.value_heads == self.key_heads:
            return None
        return self._in_tiles(part)

    def modules_of(self, i: int) -> Sequence[str]:
        other = "self_attn." if self.recurrent[i] else "linear_attn."
        return [name for name in self.modules if not name.startswith(other)]

    def mlx_change(self, name: str) -> Change | None:
        return None if name.endswith("norm.weight") else self.change(name)

    def mlx_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, 1) if name.endswith("ssm_conv1d.weight") else shape

    @classmethod
    def describe(cls, args: Any) -> dict[str, Any]:
        """args: a HybridArgs of models/hybrid.py"""
        if not math.isclose(args.norm_eps, 1e-6, rel_tol=1e-5):
            raise NotImplementedError(
                f"attention.layer_norm_rms_epsilon: mlx_lm's delta nets have 1e-06, found {args.norm_eps:g}"
            )
        return {
            **super().describe(args),
            "attn_output_gate": True,
            "linear_conv_kernel_dim": args.delta.kernel,
            "linear_key_head_dim": args.delta.size,
            "linear_value_head_dim": args.delta.size,
            "linear_num_key_heads": args.delta.key_heads,
            "linear_num_value_heads": args.delta.value_heads,
            "full_attention_interval": _interval(args.recurrent),
            "layer_types": [RECURRENT if flag else ATTENTION for flag in args.recurrent],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": args.rope.base,
                "partial_rotary_factor": args.rope.dims / args.head_dim,
            },
        }

    def _in_tiles(self, part: str) -> Change | None:
        """How value heads change places. part: a tensor's name without the layer"""
        if part == "ssm_out.weight":
            return Change(*self._columns(), group=self.state)
        sizes = {"attn_gate.weight": self.state, "ssm_dt.bias": 1}
        sizes |= {"ssm_alpha.weight": 1, "ssm_beta.weight": 1}
        if part in ("attn_qkv.weight", "ssm_conv1d.weight"):
            return Change(*self._heads(self.channels, self.state), rows=True)
        if part in sizes:
            rows = sizes[part] * self.value_heads
            return Change(*self._heads(rows, sizes[part]), rows=True)
        return None

    def _order(self) -> np.ndarray:
        """The head of the checkpoint that is at each place in the file: (Hv,)."""
        heads = np.arange(self.value_heads)
        return heads.reshape(self.key_heads, -1).T.reshape(-1) if self.tiled else heads

    def _heads(self, rows: int, size: int) -> tuple[_Values, _Values]:
        """Move the rows of value heads, `size` each, which are the last ones of `rows`; and back."""
        first = rows - self.value_heads * size
        moved = first + self._order()[:, None] * size + np.arange(size)
        places = np.concatenate([np.arange(first), moved.reshape(-1)])
        return partial(_taken, places=places), partial(_taken, places=np.argsort(places))

    def _columns(self) -> tuple[_Values, _Values]:
        """Move the columns of value heads; and back."""
        order = self._order()
        return partial(_in_order, order=order), partial(_in_order, order=np.argsort(order))


_Values = Callable[[np.ndarray], np.ndarray]


def _interval(recurrent: Sequence[bool]) -> int:
    """The interval of layers with attention. Raises NotImplementedError for layers that no interval gives."""
    for n in range(1, len(recurrent) + 1):
        if all(flag == ((i + 1) % n != 0) for i, flag in enumerate(recurrent)):
            return n
    raise NotImplementedError(
        "attention.recurrent_layers: mlx_lm has attention in every n-th layer, found "
        f"{''.join('.a'[not flag] for flag in recurrent)} (a: with attention)"
    )


def _taken(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """x: (rows, ...) -> the rows at `places`"""
    return np.ascontiguousarray(x[places])


def _in_order(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """x: (rows, heads * size) -> the same with its heads in another order"""
    return x.reshape(len(x), len(order), -1)[:, order].reshape(x.shape)


def _decay(x: np.ndarray) -> np.ndarray:
    """-exp(x), computed in float64, so that it is the same on every platform."""
    return (-np.exp(x.astype(np.float64))).astype(np.float32)


def _log(x: np.ndarray) -> np.ndarray:
    """The inverse of `_decay`."""
    return np.log(-x.astype(np.float64)).astype(np.float32)


_ONE_MORE = Change(lambda x: x + np.float32(1), lambda x: x - np.float32(1))


def _sections(given: Any) -> list[int]:
    """Four counts of pairs: of time, height, width, and others."""
    if not isinstance(given, list | tuple) or any(type(n) is not int or n < 0 for n in given):
        raise ValueError(f"config.json: mrope_section: expected whole numbers, found {given!r}")
    return [*given, 0, 0, 0, 0][:4]


def _say_left_out(names: Mapping[str, Any]) -> None:
    """Warn of tensors that are not converted, in one line."""
    counts = Counter(
        what for name in names for what, pattern in _LEFT_OUT.items() if pattern.search(name)
    )
    if counts:
        parts = " and ".join(f"{n} of {what}" for what, n in counts.items())
        warn(f"tensors are left out: {parts}")
