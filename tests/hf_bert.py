"""A small sentence-transformers folder with made-up weights: BERT, WordPiece, pooling.

Weights are multiples of 1/512 within ±1/4, and 1 is added to those of layer norms: the same in float32 and float16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_folders
import numpy as np

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Parts of Korean syllables, an Indic vowel sign that is no nonspacing mark, an ideograph, a Greek and a Polish letter.
OTHERS = "\u1112\u1161\u11ab\u1100\u11a8\u0915\u093e\u0938\u4e2d\u03bb\u0142"
WORDS = (
    *SPECIAL,
    *(mark + letter for letter in LETTERS + OTHERS for mark in ("", "##")),
    *(",", ".", "!", "-", "hello", "##llo", "cafe", "the", "##ing", "text", "long"),
)
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": len(WORDS) + 3,
}
STEPS = ("Transformer", "Pooling", "Normalize")


def tensors(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights by their names in transformers."""
    h, wide = config["hidden_size"], config["intermediate_size"]
    linears: dict[str, tuple[int, ...]] = {
        "attention.self.query": (h, h),
        "attention.self.key": (h, h),
        "attention.self.value": (h, h),
        "attention.output.dense": (h, h),
        "intermediate.dense": (wide, h),
        "output.dense": (h, wide),
    }
    tables = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (n, h) for name, n in tables.items()
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        for name, shape in linears.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
    shapes["pooler.dense.weight"] = (h, h)
    made = {name: hf_folders.weights(name, *shape) / 8 for name, shape in shapes.items()}
    for name in norms:
        made[f"{name}.weight"] = 1 + hf_folders.weights(f"{name}.weight", h) / 8
        made[f"{name}.bias"] = hf_folders.weights(f"{name}.bias", h) / 8
    return made


def write(folder: Path, dtype: str = "F16", **changes: Any) -> dict[str, np.ndarray]:
    """Write a folder; returns the weights. changes: of config.json, None leaves a key out."""
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    made = tensors(CONFIG | {k: v for k, v in config.items() if k in CONFIG})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    hf_folders.save(folder / "model.safetensors", made, dtype)
    write_tokenizer(folder)
    write_steps(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return made


def converted(folder: Path, recipe: str = "f32") -> Path:
    """A GGUF file beside a folder that was written before, made once."""
    from mlx_ferrum.convert.command import main  # golden files are made without the package

    out = folder.parent / f"{recipe}.gguf"
    if not out.exists():
        assert main(["hf", str(folder), str(out), "--type", recipe]) == 0
    return out


def write_steps(folder: Path, *steps: str, **pooling: Any) -> None:
    """modules.json with these types of steps, and the configuration of the pooling, by default the mean."""
    named = "sentence_transformers.models."
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{step}" if i else "", "type": named + step}
        for i, step in enumerate(steps or STEPS)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path, **normalizer: Any) -> None:
    """tokenizer.json, which pads and truncates as some do, and tokenizer_config.json.

    normalizer: changes of its options
    """
    special = [
        {"id": n, "content": text, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for n, text in enumerate(SPECIAL)
    ]
    begin, end, text = (
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    described = {
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True, **normalizer,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text, end],
            "pair": [begin, text, end, {"Sequence": {"id": "B", "type_id": 1}}, end],
            "special_tokens": {
                name: {"id": name, "ids": [SPECIAL.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {text: i for i, text in enumerate(WORDS)},
        },
    }  # fmt: skip
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    config |= {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
