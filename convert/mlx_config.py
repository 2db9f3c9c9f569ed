"""config.json of a GGUF model, and the names of its tensors in mlx_lm.

Converters in architectures/ declare both ways. What is written here is read back by the same converter, and must give
the sizes of the GGUF file again: what config.json cannot say is refused.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any

import gguf
import numpy as np

from mlx_ferrum import models
from mlx_ferrum.models.base import BaseArgs
from mlx_ferrum.models.encoder import Encoder

from . import architecture, architectures, rope
from .architecture import Architecture
from .modules import OUTSIDE


def read(metadata: Mapping[str, Any]) -> BaseArgs:
    """The sizes of a GGUF model, checked.

    Raises ValueError for damaged metadata, NotImplementedError for an architecture that is not supported.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ValueError("metadata key 'general.architecture' is missing or not a string")
    module = models.find(name)
    if issubclass(module.Model, Encoder):
        raise NotImplementedError(f"architecture {name!r}: mlx_lm runs no encoders")
    args: BaseArgs = module.ModelArgs.from_metadata(metadata, name)
    return args


def make(
    args: BaseArgs, metadata: Mapping[str, Any], names: Collection[str], factors: np.ndarray | None
) -> tuple[dict[str, Any], Architecture]:
    """config.json, and the converter that reads it.

    names: of the tensors; factors: of `rope_freqs.weight`, where the file has them
    Raises NotImplementedError for what config.json cannot say, or mlx_lm cannot run.
    """
    kind = _find(args)
    config = {**_sizes(args, kind), **rope.describe(args.rope, factors), **kind.describe(args)}
    config["tie_word_embeddings"] = "output.weight" not in names and "tied" not in kind.lacks
    _check_limits(args, kind, config)
    config = {key: _short(value) for key, value in config.items()}
    model = architecture.find(config)
    _check(args, metadata, model)
    return config, model


def modules(model: Architecture) -> dict[str, str]:
    """The name of each module in mlx_lm by its tensor's name in GGUF files, without `.weight`."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[model.name.upper()], model.layers)
    layers = range(model.layers)
    inside = [f"model.layers.{i}.{name}" for i in layers for name in model.modules_of(i)]
    found = {}
    for module in (model.prefix + name for name in (*OUTSIDE, *inside)):
        known = model.renamed(f"{module}.weight")
        name = None if known is None else names.get_name(known, (".weight",))
        if name is not None:
            found[name.removesuffix(".weight")] = module
    return found


def arrays(model: Architecture) -> dict[str, str]:
    """The names in mlx_lm of arrays that belong to no module, by their names in GGUF files."""
    shapes, found = model.shapes(), {}
    for i in range(model.layers):
        for name, array in model.arrays.items():
            if f"blk.{i}.{name}" in shapes:
                found[f"blk.{i}.{name}"] = f"{model.prefix}model.layers.{i}.{array}"
    return found


def _find(args: BaseArgs) -> type[Architecture]:
    """The converter that writes models of these sizes."""
    for found in pkgutil.iter_modules(architectures.__path__):
        module = importlib.import_module(f".{found.name}", architectures.__name__)
        kind: type[Architecture] = module.Converter
        stacks = any("switch_mlp" in name for name in kind.modules)
        if kind.name == args.architecture and kind.written_as and stacks == bool(args.experts):
            return kind
    raise NotImplementedError(
        f"architecture {args.architecture!r}: writing it as a folder of mlx_lm is not supported"
    )


def _sizes(args: BaseArgs, kind: type[Architecture]) -> dict[str, Any]:
    """The entries that all architectures have."""
    assert kind.written_as is not None
    name, model_type = kind.written_as
    return {
        "architectures": [name],
        "model_type": model_type,
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.num_heads,
        "num_key_value_heads": args.num_kv_heads,
        "head_dim": args.head_dim,
        "rms_norm_eps": args.norm_eps,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": args.context_length,
        "hidden_act": kind.activation,
    }


def _check_limits(args: BaseArgs, kind: type[Architecture], config: Mapping[str, Any]) -> None:
    """Raises NotImplementedError for what mlx_lm's model of this kind does not have."""
    assert kind.written_as is not None
    found = []
    if "head_dim" in kind.lacks and args.head_dim * args.num_heads != args.hidden_size:
        found.append(f"heads of {args.head_dim} in {args.hidden_size} / {args.num_heads}")
    if "rope_scaling" in kind.lacks and "rope_scaling" in config:
        found.append(f"rope scaling {config['rope_scaling']['rope_type']!r}")
    if "softcap" in kind.lacks and config.get("final_logit_softcapping"):
        found.append("final_logit_softcapping")
    if kind.whole_heads and args.rope.dims != args.head_dim:
        found.append(f"rotary embeddings of {args.rope.dims} of {args.head_dim}")
    if args.value_dim != args.head_dim:
        found.append(f"values of {args.value_dim} beside keys of {args.head_dim}")
    if found:
        raise NotImplementedError(f"mlx_lm's {kind.written_as[1]} does not have {found[0]}")


def _check(args: BaseArgs, metadata: Mapping[str, Any], model: Architecture) -> None:
    """Raises NotImplementedError unless the converter makes the same sizes of config.json."""
    w = gguf.GGUFWriter(None, model.name)
    model.add(w)
    back = {key: item.value for key, item in w.kv_data[0].items()}
    back = {k: np.asarray(v) if isinstance(v, list) else v for k, v in back.items()}
    tokens = "tokenizer.ggml.tokens"
    again = read({**back, **({tokens: metadata[tokens]} if tokens in metadata else {})})
    for field in dataclasses.fields(args):
        before, after = getattr(args, field.name), getattr(again, field.name)
        unread = field.name == "intermediate_size" and args.experts is not None
        if not unread and not _alike(before, after):
            raise NotImplementedError(
                f"config.json cannot say {field.name}: {before} would become {after}"
            )


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are the same in float32."""
    if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
        names = [field.name for field in dataclasses.fields(a)]
        return all(_alike(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0))
    return bool(a == b)


def _short(value: Any) -> Any:
    """Floats as the shortest number with the same float32: 1e-06 for 9.999999974752427e-07."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return float(str(np.float32(value))) if isinstance(value, float) else value
