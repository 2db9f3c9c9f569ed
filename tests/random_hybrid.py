"""What `random_models` needs of hybrid architectures: shapes and keys of gated delta nets between attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("qwen3next", "qwen35", "qwen35moe")
F32 = ("ssm_conv1d",)  # matrices that files keep so
# Decays of half-lives from less than a token to 500 tokens and more.
RANGES = {"ssm_a": (-1.5, -0.02), "ssm_dt.bias": (-4.0, 0.5)}


@dataclass(frozen=True)
class Delta:
    """Of the recurrent layers.

    interval: every so many layers one has attention, unless `recurrent` says of each layer whether it is recurrent
    is_old: tensors as the first converters wrote them: q, k, v and z in one
    predictors: layers behind the model's that predict further tokens
    """

    key_heads: int = 2
    value_heads: int = 4
    size: int = 64
    kernel: int = 4
    interval: int = 2
    recurrent: Sequence[bool] | None = None
    is_old: bool = False
    predictors: int = 0
    rotary: int = 16

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer is."""
        if self.recurrent is not None:
            return self.recurrent[layer]
        return (layer + 1) % self.interval != 0

    @property
    def values(self) -> int:
        return self.value_heads * self.size

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.size + self.values


def recurrent_layer(arch: str, hidden: int, delta: Delta) -> dict[str, tuple[int, ...]]:
    """Names, of weights without `.weight`, and shapes of a layer's tensors, but norms and what follows."""
    heads, values = delta.value_heads, delta.values
    if delta.is_old:
        inputs = {"ssm_in": (delta.channels + values, hidden)}
    else:
        inputs = {"attn_qkv": (delta.channels, hidden), "attn_gate": (values, hidden)}
    if arch == "qwen3next":
        gates = {"ssm_ba": (2 * heads, hidden)}
    else:
        gates = {"ssm_beta": (heads, hidden), "ssm_alpha": (heads, hidden)}
    return {
        **inputs,
        **gates,
        "ssm_conv1d": (delta.channels, delta.kernel),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_norm": (delta.size,),
        "ssm_out": (hidden, values),
    }


def attention_layer(hidden: int, heads: int, kv_heads: int, d: int) -> dict[str, tuple[int, ...]]:
    """The same of a layer with attention: each head's query, then its gate."""
    return {
        "attn_q": (2 * heads * d, hidden),
        "attn_k": (kv_heads * d, hidden),
        "attn_v": (kv_heads * d, hidden),
        "attn_output": (hidden, heads * d),
        "attn_q_norm": (d,),
        "attn_k_norm": (d,),
    }


def predictor(hidden: int) -> dict[str, tuple[int, ...]]:
    """What a layer that predicts further tokens has besides those of attention."""
    return {
        "nextn.eh_proj": (hidden, 2 * hidden),
        "nextn.enorm": (hidden,),
        "nextn.hnorm": (hidden,),
        "nextn.shared_head_norm": (hidden,),
    }


def full_name(name: str) -> str:
    """As files have it in a layer."""
    return name if name == "ssm_a" or name.endswith(".bias") else f"{name}.weight"


def metadata(arch: str, delta: Delta, layers: int) -> dict[str, Any]:
    """Keys besides those of every model."""
    found: dict[str, Any] = {
        "ssm.conv_kernel": delta.kernel,
        "ssm.state_size": delta.size,
        "ssm.group_count": delta.key_heads,
        "ssm.time_step_rank": delta.value_heads,
        "ssm.inner_size": delta.values,
        "rope.dimension_count": delta.rotary,
    }
    if arch != "qwen3next":
        pairs = delta.rotary // 2
        found["rope.dimension_sections"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0]
    if delta.interval != 4:  # which is what a missing key means
        found["full_attention_interval"] = delta.interval
    if delta.recurrent is not None:
        found["attention.recurrent_layers"] = [*delta.recurrent, *[False] * delta.predictors]
    if delta.predictors:
        found |= {
            "block_count": layers + delta.predictors,
            "nextn_predict_layers": delta.predictors,
        }
    return found
