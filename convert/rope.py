"""Rotary embeddings: what config.json says of them, in its old and its new form, and what GGUF files say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from mlx_ferrum.notice import warn
from mlx_ferrum.rope import RopeArgs

LOCAL = ("rope_local_base_freq", "local_rope_theta", "rope_local_theta")
FLOAT32_MAX = float(np.finfo(np.float32).max)
YARN = {
    "extrapolation_factor": "add_rope_scaling_yarn_ext_factor",
    "beta_fast": "add_rope_scaling_yarn_beta_fast",
    "beta_slow": "add_rope_scaling_yarn_beta_slow",
}


@dataclass(frozen=True)
class Rotary:
    """parameters: of layers that see everything; local_base: the base of layers with a window, None without any."""

    parameters: Mapping[str, Any]
    local_base: float | None

    @property
    def kind(self) -> str:
        """How positions are scaled: "default" for not at all."""
        found = self.parameters.get("rope_type", self.parameters.get("type", "default"))
        return str(found).lower()

    @property
    def base(self) -> float:
        """The base of the frequencies, "theta"."""
        return positive(self.parameters["rope_theta"], "rope_theta")

    @property
    def part(self) -> float:
        """How much of each head is rotated: 1 for all of it."""
        return positive(self.parameters.get("partial_rotary_factor", 1), "partial_rotary_factor")

    def number(self, name: str, default: float | None = None) -> float:
        """A parameter. Raises ValueError unless it is a positive number."""
        return positive(self.parameters.get(name, default), f"rope {self.kind}: {name}")


def positive(value: Any, name: str) -> float:
    """A number of config.json. Raises ValueError unless it is positive and float32 holds it."""
    if type(value) not in (int, float) or not 0 < value <= FLOAT32_MAX:
        raise ValueError(f"config.json: {name}: expected a positive number, found {value!r}")
    return float(value)


def read(config: Mapping[str, Any]) -> Rotary:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as they were before."""
    given = _object(config.get("rope_parameters") or config.get("rope_scaling"))
    local = next((config[name] for name in LOCAL if config.get(name) is not None), None)
    if "full_attention" in given:
        local = _object(given.get("sliding_attention")).get("rope_theta", local)
        given = _object(given["full_attention"])
    top = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
    inherited = {name: config[name] for name in top if config.get(name) is not None}
    base = None if local is None else positive(local, "rope_theta of layers with a window")
    return Rotary({**inherited, **given}, base)


def _object(value: Any) -> Mapping[str, Any]:
    if value and not isinstance(value, Mapping):
        raise ValueError(f"config.json: rope parameters: expected an object, found {value!r}")
    return value or {}


def add(w: gguf.GGUFWriter, rotary: Rotary, context: int) -> None:
    """Add the keys of the frequencies and their scaling. Llama 3's factors are a tensor, see `llama3_factors`.

    context: of the model. Raises NotImplementedError for a scaling that llama.cpp does not have for these models.
    """
    if rotary.kind in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rotary.kind))
        w.add_rope_scaling_factor(rotary.number("factor"))
        if rotary.kind == "yarn":
            _add_yarn(w, rotary, context)
    elif rotary.kind == "dynamic":
        warn("rope scaling 'dynamic' is left out: it changes nothing up to max_position_embeddings")
    elif rotary.kind not in ("default", "none", "llama3"):
        raise NotImplementedError(
            f"config.json: rope_type {rotary.kind!r} is not supported; known: default, linear, "
            "dynamic, yarn, llama3"
        )
    w.add_rope_freq_base(rotary.base)
    if rotary.local_base is not None:
        w.add_rope_freq_base_swa(rotary.local_base)


def _add_yarn(w: gguf.GGUFWriter, rotary: Rotary, context: int) -> None:
    """Of the magnitude, which `attention_factor` sets, GGUF files give the part that YaRN does not have by itself."""
    given = rotary.parameters
    scaled = given.get("mscale") or given.get("mscale_all_dim")  # in place of attention_factor
    if (scaled and not given.get("attention_factor")) or given.get("truncate") is False:
        raise NotImplementedError(
            "config.json: yarn with mscale or without truncate is not supported"
        )
    w.add_rope_scaling_orig_ctx_len(int(rotary.number("original_max_position_embeddings", context)))
    for name, method in YARN.items():
        if given.get(name) is not None:
            getattr(w, method)(rotary.number(name))
    if given.get("attention_factor") is not None:
        own = 1 + 0.1 * math.log(rotary.number("factor"))
        w.add_rope_scaling_attn_factors(rotary.number("attention_factor") / own)


def llama3_factors(rotary: Rotary, dims: int) -> np.ndarray:
    """Divisors of the frequencies, (dims / 2,) float32: 1 for short waves, `factor` for long ones, between them a ramp.

    Computed in float32 from the first step on, as llama.cpp does.
    """
    factor = rotary.number("factor", 8.0)
    low, high = rotary.number("low_freq_factor", 1.0), rotary.number("high_freq_factor", 4.0)
    context = rotary.number("original_max_position_embeddings", 8192)
    if not low < high:
        raise ValueError(
            f"config.json: high_freq_factor: expected more than low_freq_factor, {low:g}, found {high:g}"
        )
    steps = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    waves = np.float32(2 * math.pi) * np.float32(rotary.base) ** steps
    ramp = (np.float32(context) / waves - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - ramp) / np.float32(factor) + ramp)
    found = np.where(waves > context / low, np.float32(factor), between)
    return np.where(waves < context / high, np.float32(1), found).astype(np.float32)


CONTEXTS = [
    1 << n for n in range(4, 21)
]  # where the original context of Llama 3's factors is looked for


def describe(args: RopeArgs, factors: np.ndarray | None) -> dict[str, Any]:
    """The way back: `rope_theta` and `rope_scaling` of config.json.

    factors: of `rope_freqs.weight`
    Raises NotImplementedError for what config.json cannot say.
    """
    scaling: dict[str, Any] = {"rope_type": args.scaling, "type": args.scaling}
    if args.scaling == "yarn":
        scaling |= _describe_yarn(args)
    elif args.attention_factor != 1:
        raise NotImplementedError("rope.scaling.attn_factor: only YaRN has a factor of attention")
    elif factors is not None and args.scaling == "none":
        scaling = _describe_llama3(args, factors)
    elif factors is not None:
        raise NotImplementedError("rope_freqs.weight beside rope.scaling.type is not supported")
    elif args.scaling == "linear":
        scaling |= {"factor": args.factor}
    else:
        return {"rope_theta": args.base}
    return {"rope_theta": args.base, "rope_scaling": scaling}


def _describe_yarn(args: RopeArgs) -> dict[str, Any]:
    found = {
        "factor": args.factor,
        "original_max_position_embeddings": args.original_context,
    }
    usual = {"beta_fast": 32.0, "beta_slow": 1.0}
    found |= {name: getattr(args, name) for name, x in usual.items() if getattr(args, name) != x}
    if args.attention_factor == 1:
        return found
    own = 0.1 * math.log(args.factor)
    whole = args.attention_factor * (1 + own)
    # transformers reads the first, mlx_lm the second, of which a factor of 1 leaves nothing to scale
    return {**found, "attention_factor": whole, "mscale": (whole - 1) / own if own else 1.0}


def _describe_llama3(args: RopeArgs, factors: np.ndarray) -> dict[str, Any]:
    """The parameters that give these factors; only the ratio of the contexts counts, so the low factor is 1."""
    for context in CONTEXTS:
        found = {
            "rope_type": "llama3",
            "type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        made = llama3_factors(Rotary({**found, "rope_theta": args.base}, None), args.dims)
        if np.allclose(made, factors, rtol=1e-5, atol=0):
            return found
    raise NotImplementedError(
        "rope_freqs.weight: expected the factors of Llama 3, found others, which config.json cannot say"
    )
