"""Hybrid models in folders of mlx_lm, to GGUF files and back: the same weights, codes and configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as gguf_py
import hf_folders
import hf_hybrid
import mlx.core as mx
import mlx_folders
import numpy as np
import pytest
from test_convert_hybrid import assert_same, convert

from mlx_ferrum import gguf
from mlx_ferrum.blocks import F32, by_name
from mlx_ferrum.convert import output, source
from mlx_ferrum.convert.command import main

WRITTEN = ("qwen35", "qwen35-1", "qwen35-3", "qwen35moe")
HEADS: dict[str, Any] = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}  # whole blocks


def as_mlx(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as mlx_lm has them: kernels with another axis, norms with 1, experts in stacks."""
    plain = {k: x for k, x in made.items() if not k.startswith("mtp.")}
    for name, x in plain.items():
        if name.endswith("conv1d.weight"):
            plain[name] = x.swapaxes(1, 2)
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            plain[name] = x + 1
    found = mlx_folders.stacked({k: x for k, x in plain.items() if ".mlp.experts." not in k})
    for name, x in plain.items():
        stem, fused, _ = name.partition("experts.gate_up_proj")
        if fused:
            gate, up = np.split(x, 2, axis=1)
            found |= {f"{stem}switch_mlp.gate_proj.weight": gate}
            found |= {f"{stem}switch_mlp.up_proj.weight": up}
        elif ".mlp.experts." in name:
            found[name.replace("experts", "switch_mlp") + ".weight"] = x
    return {f"language_model.{name}": np.ascontiguousarray(x) for name, x in found.items()}


@pytest.mark.parametrize("case", ["qwen35-3", "qwen35moe-3"])
def test_folders_of_mlx_lm_have_other_norms_and_kernels(case: str, tmp_path: Path) -> None:
    made = hf_hybrid.write(tmp_path / "a", case)
    hf_hybrid.write(tmp_path / "b", case)
    hf_folders.save(tmp_path / "b" / "model.safetensors", as_mlx(made), "BF16")
    assert_same(*(convert(tmp_path / name, "--type", "f32") for name in "ba"))


@pytest.mark.parametrize("size", [32, 16])
def test_codes_of_mlx_move_with_their_heads(size: int, tmp_path: Path) -> None:
    """Rows, and columns in heads of whole blocks, keep their codes; other columns are decoded."""
    folder, made = tmp_path / "m", {}
    heads: dict[str, Any] = dict.fromkeys(HEADS, size)
    arrays: dict[str, mx.array] = {}
    for name, x in as_mlx(hf_hybrid.write(folder, "qwen35-3", **heads)).items():
        arrays[name] = mx.array(x).astype(mx.bfloat16)
        made[name] = x
        if x.ndim == 2 and x.shape[1] % 32 == 0:
            w, scales, biases = mx.quantize(arrays[name], 32, 4)
            stem = name.removesuffix(".weight")
            arrays |= {name: w, f"{stem}.scales": scales, f"{stem}.biases": biases}
            made[name] = mlx_folders.decoded(w, scales, biases, mlx_folders.LAYOUT)
    hf_folders.save(folder / "model.safetensors", made, "F32")
    wanted = convert(folder, "--type", "f32")
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    mlx_folders.change(folder, quantization=mlx_folders.LAYOUT)
    assert_same(convert(folder, "--type", "f32"), wanted)
    assert main(["mlx", str(folder), str(tmp_path / "kept.gguf")]) == 0
    kept = gguf.read(tmp_path / "kept.gguf")
    for part in ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out"):
        name = f"blk.0.{part}.weight"
        info, raw = kept.tensors[name], kept.data(name)
        assert info.type == ("Q8_0" if (part, size) == ("ssm_out", 16) else "Q4_1"), name
        found = np.array(by_name(info.type).dequantize(mx.array(raw.reshape(info.shape[0], -1))))
        x = wanted.data(name).view(np.float32).reshape(info.shape)
        np.testing.assert_allclose(found, x, atol=0.02 if info.type == "Q8_0" else 1e-6)


@pytest.mark.parametrize("case", WRITTEN)
def test_weights_and_configuration_come_back(case: str, tmp_path: Path) -> None:
    made = hf_hybrid.write(tmp_path / "hf", case, "F32")
    file = convert(tmp_path / "hf", "--type", "f32")
    assert main(["mlx", str(file.path), str(tmp_path / "mlx")]) == 0
    found, wanted = mlx_folders.weights(tmp_path / "mlx"), as_mlx(made)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=5e-7 if "A_log" in name else 0)
    config, before = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("mlx", "hf")
    )
    unsaid = {"architectures", "model_type", "eos_token_id", "rope_parameters"}
    assert {k: config.get(k) for k in before.keys() - unsaid} == {
        k: x for k, x in before.items() if k not in unsaid
    }
    assert config["rope_parameters"] == hf_hybrid.ROPE
    assert main(["mlx", str(tmp_path / "mlx"), str(tmp_path / "again.gguf")]) == 0
    again = gguf.read(tmp_path / "again.gguf")
    for name in file.tensors:
        x, y = (each.data(name).view(np.float32) for each in (file, again))
        np.testing.assert_allclose(x, y, rtol=5e-7 if name.endswith("ssm_a") else 0)


@pytest.mark.parametrize("recipe", ["q4_0", "q5_1", "q8_0"])
def test_codes_of_blocks_come_back(recipe: str, tmp_path: Path) -> None:
    hf_hybrid.write(tmp_path / "hf", "qwen35moe-3", layer_types=None, **HEADS)
    file = convert(tmp_path / "hf", "--type", recipe)
    assert main(["mlx", str(file.path), str(tmp_path / "mlx")]) == 0
    assert main(["mlx", str(tmp_path / "mlx"), str(tmp_path / "again.gguf")]) == 0
    again = gguf.read(tmp_path / "again.gguf")
    for name in ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_out", "ffn_up_exps"):
        name = f"blk.1.{name}.weight"
        assert file.tensors[name].type == again.tensors[name].type == recipe.upper()
        np.testing.assert_array_equal(file.data(name), again.data(name), name)


def with_predictor(file: gguf.GGUF, out: Path) -> None:
    """Copy a file of 4 layers with one more layer, which predicts further tokens."""
    kind, metadata = gguf_py.GGUFValueType, source.metadata(file)
    metadata["qwen35.block_count"] = output.Value(5, kind.UINT32)
    metadata["qwen35.nextn_predict_layers"] = output.Value(1, kind.UINT32)
    flags = [True, True, True, False, False]
    metadata["qwen35.attention.recurrent_layers"] = output.Value(flags, kind.ARRAY, kind.BOOL)
    zeros = np.zeros(64 * 128 * 4, np.uint8)
    more = output.Planned("blk.4.nextn.eh_proj.weight", F32, (64, 128), "F32", lambda: zeros)
    copied = [source.copied(file, info) for info in file.tensors.values()]
    output.write(out, metadata, [*copied, more])


def test_layers_that_predict_further_tokens_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hf_hybrid.write(tmp_path / "hf", "qwen35", "F32")
    file = convert(tmp_path / "hf", "--type", "f32")
    with_predictor(file, tmp_path / "more.gguf")
    caplog.clear()
    for path, out in ((file.path, "a"), (tmp_path / "more.gguf", "b")):
        assert main(["mlx", str(path), str(tmp_path / out)]) == 0
    assert "warning: tensors are left out: 1 of multi-token prediction" in caplog.messages
    a, b = (mlx_folders.weights(tmp_path / name) for name in "ab")
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows of a key head together": ("qwen3next", {}, "'qwen3next': writing it as a folder"),
    "layers that no interval gives": ("qwen35", {"layer_types": hf_hybrid.LAYERS}, "found a..a"),
    "another epsilon": ("qwen35", {"rms_norm_eps": 1e-5}, "delta nets have 1e-06, found 1e-05"),
    "scaled positions": (
        "qwen35",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        "does not have rope scaling 'linear'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_mlx_lm_does_not_have_is_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, changes, message = REFUSED[what]
    hf_hybrid.write(tmp_path / "hf", case, **changes)
    file = convert(tmp_path / "hf", "--type", "f32")
    assert main(["mlx", str(file.path), str(tmp_path / "mlx")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "mlx").exists()
