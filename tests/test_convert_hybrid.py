"""Hybrid models from Hugging Face to GGUF: what llama.cpp's converter writes, other forms of folders, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_folders
import hf_hybrid
import mlx_folders
import numpy as np
import pytest

from mlx_ferrum import gguf
from mlx_ferrum.convert import pieces
from mlx_ferrum.convert.command import main

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "convert_hybrid.json").read_text()
)


def convert(folder: Path, *arguments: str) -> gguf.GGUF:
    out = folder.with_suffix(".gguf")
    assert main(["hf", str(folder), str(out), "--force", *arguments]) == 0
    return gguf.read(out)


def assert_same(a: gguf.GGUF, b: gguf.GGUF) -> None:
    """Assert that two files have the same metadata, but the model's name, and the same tensors."""
    assert {k: a.raw(k) for k in a.metadata if k != "general.name"} == {
        k: b.raw(k) for k in b.metadata if k != "general.name"
    }
    assert {t.name: (t.type, t.shape) for t in a.tensors.values()} == {
        t.name: (t.type, t.shape) for t in b.tensors.values()
    }
    for name in a.tensors:
        np.testing.assert_array_equal(a.data(name), b.data(name), name)


@pytest.mark.parametrize("case", hf_hybrid.CASES)
def test_tensors_and_metadata_are_those_of_llama_cpp(case: str, tmp_path: Path) -> None:
    hf_hybrid.write(tmp_path / f"Tiny-{case}", case)
    file = convert(tmp_path / f"Tiny-{case}", "--type", "f16")
    assert {
        name: [t.type, list(t.shape), hf_folders.digest(file.data(name).tobytes())]
        for name, t in file.tensors.items()
    } == GOLDEN[case]["tensors"]
    assert {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in file.metadata.items()
        if not key.endswith((".tokens", ".merges"))
    } == GOLDEN[case]["metadata"]


def test_value_heads_are_tiled(tmp_path: Path) -> None:
    """Of 2 key heads and 6 value heads: 0 3 1 4 2 5, so that head h reads key head h % 2."""
    made = hf_hybrid.write(tmp_path / "m", "qwen35-3", "F32")
    file = convert(tmp_path / "m", "--type", "f32")
    order = [0, 3, 1, 4, 2, 5]
    given = made["model.layers.0.linear_attn.out_proj.weight"].reshape(64, 6, 16)
    found = file.data("blk.0.ssm_out.weight").view(np.float32).reshape(64, 6, 16)
    np.testing.assert_array_equal(found, given[:, order])
    decay = -np.exp(made["model.layers.0.linear_attn.A_log"])[order]
    np.testing.assert_allclose(file.data("blk.0.ssm_a").view(np.float32), decay, rtol=2e-7)


@pytest.mark.parametrize("case", ["qwen3next-3", "qwen35moe-3"])
def test_large_tensors_are_converted_in_parts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_hybrid.write(tmp_path / "a", case)
    hf_hybrid.write(tmp_path / "b", case)
    wanted = convert(tmp_path / "a", "--type", "q8_0")
    monkeypatch.setattr(pieces, "PART", 100)
    assert_same(convert(tmp_path / "b", "--type", "q8_0"), wanted)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_every_float_type_gives_the_same_weights(dtype: str, tmp_path: Path) -> None:
    hf_hybrid.write(tmp_path / "a", "qwen35-3")
    hf_hybrid.write(tmp_path / "b", "qwen35-3", dtype)
    assert_same(*(convert(tmp_path / name, "--type", "f32") for name in "ab"))


def test_layers_by_an_interval(tmp_path: Path) -> None:
    hf_hybrid.write(tmp_path / "m", "qwen3next", full_attention_interval=3)
    file = convert(tmp_path / "m")
    assert file.metadata["qwen3next.full_attention_interval"] == 3
    assert file.metadata["qwen3next.attention.recurrent_layers"].tolist() == [1, 1, 0, 1]
    assert "blk.2.attn_q.weight" in file.tensors and "blk.3.ssm_a" in file.tensors


@pytest.mark.parametrize("case", ["qwen35", "qwen35moe"])
def test_text_model_of_one_that_sees_pictures(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = hf_hybrid.write(tmp_path / "a", case)
    wanted = convert(tmp_path / "a", "--type", "f16")
    hf_hybrid.write(tmp_path / "b", case)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    name = config.pop("architectures")[0].replace("CausalLM", "ConditionalGeneration")
    tokens = {key: config.pop(key) for key in ("bos_token_id", "eos_token_id")}
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]}
    text = config | {"tie_word_embeddings": False}  # as transformers writes it
    nested = {"architectures": [name], "text_config": text, "vision_config": {"depth": 1}} | tied
    (tmp_path / "b" / "config.json").write_text(json.dumps(nested | tokens))
    renamed = {name.replace("model.", "model.language_model.", 1): x for name, x in made.items()}
    renamed["model.visual.blocks.0.norm1.weight"] = np.zeros(2, np.float32)
    hf_folders.save(tmp_path / "b" / "model.safetensors", renamed, "BF16")
    caplog.clear()
    assert_same(convert(tmp_path / "b", "--type", "f16"), wanted)
    mtp = sum(name.startswith("mtp.") for name in made)
    left_out = f"tensors are left out: {mtp} of multi-token prediction and 1 of the vision tower"
    assert caplog.messages == [f"warning: {left_out}"]


def test_pre_tokenizer_with_marks_in_words(tmp_path: Path) -> None:
    """That of Qwen 3.5: as Qwen 2's, but marks belong to words."""
    hf_hybrid.write(tmp_path / "m", "qwen35")
    words = hf_folders.QWEN2.replace(r"?\p{L}+|", r"?[\p{L}\p{M}]+|")
    words = words.replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
    hf_folders.write_tokenizer(tmp_path / "m", words)
    assert convert(tmp_path / "m").metadata["tokenizer.ggml.pre"] == "qwen35"


def test_mixed_rows_in_fp8_keep_their_scales(tmp_path: Path) -> None:
    """In blocks of 24 x 40, which no head begins with."""
    made = hf_hybrid.write(tmp_path / "m", "qwen3next-3")
    name = "model.layers.1.linear_attn.in_proj_qkvz.weight"
    rows, columns = made[name].shape
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 120, (rows, columns), np.uint8)
    scale = rng.uniform(0.5, 2, (-(-rows // 24), -(-columns // 40))).astype(np.float32)
    exponent, fraction = codes >> 3, (codes & 7) / 8
    x = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - 7.0), fraction * 2.0**-6)
    factors = np.repeat(np.repeat(scale, 24, 0)[:rows], 40, 1)[:, :columns]
    decoded = made | {name: x.astype(np.float32) * factors}
    hf_folders.save(tmp_path / "m" / "model.safetensors", decoded, "F32")
    wanted = convert(tmp_path / "m", "--type", "f32")
    scaled = made | {name: codes, f"{name}_scale_inv": scale}
    hf_folders.save(tmp_path / "m" / "model.safetensors", scaled, "F32")
    quantization = {"quant_method": "fp8", "weight_block_size": [24, 40]}
    mlx_folders.change(tmp_path / "m", quantization_config=quantization)
    assert_same(convert(tmp_path / "m", "--type", "f32"), wanted)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "kinds of another number": ({"layer_types": ["full_attention"]}, "layer_types: expected 4 of"),
    "an unknown kind": ({"layer_types": ["full"] * 4}, "full_attention or linear_attention"),
    "kinds that are no list": ({"layer_types": "full_attention"}, "layer_types: expected 4 of"),
    "no interval": ({"full_attention_interval": 0}, "full_attention_interval: expected a whole"),
    "heads that do not divide": ({"linear_num_value_heads": 5}, "expected a multiple of 2"),
    "no key heads": ({"linear_num_key_heads": None}, "linear_num_key_heads: expected a whole"),
    "values of another size": ({"linear_value_head_dim": 8}, "qwen35 files mean 16"),
    "no gate": ({"attn_output_gate": False}, "attn_output_gate: qwen35 files mean True"),
    "a kernel of one column": ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim: expected"),
    "an odd part": ({"rope_parameters": {"partial_rotary_factor": 0.1}}, "an even part of 32"),
    "more than a head": ({"rope_parameters": {"partial_rotary_factor": 2}}, "an even part of 32"),
    "sections of text": (
        {"rope_parameters": {"mrope_section": "x", "partial_rotary_factor": 0.5}},
        "mrope_section: expected whole numbers, found 'x'",
    ),
    "too many layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most 4096"),
    "another kernel": ({"linear_conv_kernel_dim": 3}, "expected shape (128, 1, 3) by config.json"),
    "another state": (
        {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
        "expected shape (256, 1, 4) by config.json, found (128, 1, 4)",
    ),
    "kinds of other layers": (
        {"layer_types": hf_hybrid.LAYERS},
        "6 tensors missing: blk.0.attn_q.weight",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_configurations_that_do_not_fit_are_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = BROKEN[what]
    hf_hybrid.write(tmp_path / "m", "qwen35")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | changes
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_only_layers": [1]}, "layers without experts are not supported"),
        ({"decoder_sparse_step": 2}, "layers without experts are not supported"),
        ({"norm_topk_prob": False}, "norm_topk_prob: qwen3next files mean True, found False"),
        ({"linear_num_key_heads": 4}, "in_proj_qkvz.weight': expected shape (256, 64)"),
        ({"linear_num_key_heads": 10**9, "linear_num_value_heads": 10**9}, "in_proj_qkvz.weight'"),
        ({"num_experts": 4}, "expected experts 0 to 3, found 3, without 3"),
    ],
)
def test_experts_and_heads_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_hybrid.write(tmp_path / "m", "qwen3next")
    mlx_folders.change(tmp_path / "m", **changes)
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
