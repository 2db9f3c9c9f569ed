"""Commands on GGUF files of hybrid models: load, quantize, imatrix, split, merge and edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_hybrid
import numpy as np
import pytest

import mlx_ferrum
from mlx_ferrum import gguf
from mlx_ferrum.convert.command import main
from mlx_ferrum.models.hybrid import HybridArgs

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
SMALL = ("ssm_a", "ssm_dt.bias", "ssm_conv1d.weight", "ssm_norm.weight", "attn_norm.weight")
ARCHITECTURES = list(hf_hybrid.CONFIGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and an F16 file of each architecture, and a text."""
    folder = tmp_path_factory.mktemp("hybrid")
    for name in ARCHITECTURES:
        changes: dict[str, Any] = {} if name == "qwen35" else {"num_experts": 5}
        hf_hybrid.write(folder / name, name, **(WIDE | changes))
        run("hf", folder / name, folder / f"{name}.gguf", "--type", "f16")
    text = "".join(f"{n} seats on the train to Trieste, " for n in range(9))
    (folder / "text.txt").write_text(text)
    return folder


def run(*arguments: Any) -> None:
    assert main([*map(str, arguments)]) == 0


def parts(file: gguf.GGUF) -> dict[str, set[str]]:
    """The types that tensors of each name have, without the layer."""
    found: dict[str, set[str]] = {}
    for name, info in file.tensors.items():
        part = name.split(".", 2)[-1] if name.startswith("blk.") else name
        found.setdefault(part, set()).add(info.type)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_package_loads_what_it_converts(name: str, folder: Path) -> None:
    model, _ = mlx_ferrum.load(folder / f"{name}.gguf")
    assert isinstance(model.args, HybridArgs)
    assert model.args.recurrent == (True, True, True, False)
    assert model.args.rope.dims == 8


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantize_in_two_steps_as_in_one(name: str, folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    run("hf", folder / name, one, "--type", "q4_k_m")
    run("quantize", folder / f"{name}.gguf", two, "--type", "q4_k_m")
    a, b = gguf.read(one), gguf.read(two)
    types = parts(a)
    assert types == parts(b)
    assert all(types[part] == {"F32"} for part in SMALL)
    assert types["attn_qkv.weight"] == {"Q4_K", "Q6_K"}
    assert types["attn_gate.weight"] == types["ssm_out.weight"] == {"Q4_K"}
    decays = ["ssm_ba"] if name == "qwen3next" else ["ssm_alpha", "ssm_beta"]
    assert all(types[f"{part}.weight"] == {"Q4_K"} for part in decays)
    for tensor in a.tensors:
        np.testing.assert_array_equal(a.data(tensor), b.data(tensor), tensor)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_importance_of_every_matrix_is_measured_and_used(
    name: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The names are those of llama.cpp's tool: all matrices of the layers but the convolutions."""
    model, measured = folder / f"{name}.gguf", tmp_path / "importance.gguf"
    options = ("--chunk-size", "48", "--chunks", "2", "--backend", "reference")
    run("imatrix", model, folder / "text.txt", measured, *options)
    found = gguf.read(measured).tensors
    wanted = {
        info.name
        for info in gguf.read(model).tensors.values()
        if len(info.shape) > 1 and info.name.startswith("blk.") and "conv1d" not in info.name
    }
    assert {n.removesuffix(".in_sum2") for n in found if n.endswith(".in_sum2")} == wanted
    assert wanted >= {"blk.0.ssm_out.weight", "blk.0.attn_gate.weight", "blk.0.attn_qkv.weight"}
    caplog.clear()
    out = tmp_path / "out.gguf"
    run("quantize", model, out, "--type", "q3_k_m", "--imatrix", measured)
    without = [line for line in caplog.messages if "without importance" in line]
    assert not any("blk." in line for line in without)
    plain = tmp_path / "plain.gguf"
    run("quantize", model, plain, "--type", "q3_k_m")
    a, b = gguf.read(out), gguf.read(plain)
    assert parts(a) == parts(b)
    assert (a.data("blk.0.ssm_out.weight") != b.data("blk.0.ssm_out.weight")).any()
    assert (a.data("blk.0.ssm_conv1d.weight") == b.data("blk.0.ssm_conv1d.weight")).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_split_and_merge_keep_every_tensor(name: str, folder: Path, tmp_path: Path) -> None:
    run("split", folder / f"{name}.gguf", tmp_path / "part", "--max-tensors", "20")
    first = min(tmp_path.glob("part-00001-of-*.gguf"))
    run("merge", first, tmp_path / "whole.gguf")
    a, b = gguf.read(folder / f"{name}.gguf"), gguf.read(tmp_path / "whole.gguf")
    assert {k: a.raw(k) for k in a.metadata} == {k: b.raw(k) for k in b.metadata}
    assert list(a.tensors) == list(b.tensors)
    assert all((a.data(tensor) == b.data(tensor)).all() for tensor in a.tensors)


def test_edit_changes_arrays_of_layers(folder: Path, tmp_path: Path) -> None:
    key, heads = "qwen35.attention.head_count_kv", "[0, 0, 0, 2]"
    out = tmp_path / "out.gguf"
    run("edit", folder / "qwen35.gguf", out, "--delete", key, "--set", f"{key}:int32[]={heads}")
    assert gguf.read(out).metadata[key].tolist() == [0, 0, 0, 2]
    run("quantize", out, tmp_path / "small.gguf", "--type", "q4_k_m")
    mlx_ferrum.load(tmp_path / "small.gguf")
