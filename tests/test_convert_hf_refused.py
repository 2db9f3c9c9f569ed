"""Broken Hugging Face folders: one clear line each, and no file under the final name."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hf_folders
import numpy as np
import pytest

from mlx_ferrum.catalog import hub
from mlx_ferrum.convert import checkpoint, huggingface
from mlx_ferrum.convert.command import main

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
EXTRA = "model.layers.1.extra.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def change_json(folder: Path, name: str, **changes: object) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(found | changes))


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    made = hf_folders.tensors("qwen3moe" if "num_experts" in config else "qwen3", config)
    change(made)
    hf_folders.save(folder / WEIGHTS, made)


def cut(folder: Path, name: str, nbytes: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:nbytes])


def quantized(**config: object) -> Callable[[Path], object]:
    return lambda folder: change_json(folder, "config.json", quantization_config=config)


def configured(**changes: object) -> Callable[[Path], object]:
    return lambda folder: change_json(folder, "config.json", **changes)


def weighed(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    return lambda folder: change_weights(folder, change)


def fp8_without_scales(made: dict[str, np.ndarray]) -> None:
    made[DOWN] = np.zeros((64, 96), np.uint8)


def fp8_with_too_few_scales(made: dict[str, np.ndarray]) -> None:
    made |= {DOWN: np.zeros((64, 96), np.uint8), f"{DOWN}_scale_inv": np.ones((3, 2), np.float32)}


def header_of(text: str) -> Callable[[Path], object]:
    raw = text.encode()
    return lambda folder: (folder / WEIGHTS).write_bytes(
        len(raw).to_bytes(8, "little") + raw + bytes(64)
    )


def entry(dtype: str, shape: list[int], offsets: list[int]) -> Callable[[Path], object]:
    return header_of(json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}))


def overlapping(folder: Path) -> None:
    """Two tensors of the same bytes; those of one are nobody's."""
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found = json.loads(raw[8 : 8 + length])
    found[DOWN]["data_offsets"] = found[DOWN.replace("1", "0", 1)]["data_offsets"]
    text = json.dumps(found).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def moved(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / source).rename(folder / target)


def index(**files: object) -> Callable[[Path], object]:
    text = json.dumps({"weight_map": files})
    return lambda folder: (folder / checkpoint.INDEX).write_text(text)


# What is done to a folder of Qwen 3, and what the message says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json found"),
    "config of text": (lambda f: (f / "config.json").write_text("hello"), "expected JSON"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "expected an object"),
    "no architectures": (configured(architectures=[]), "architectures: expected a list of names"),
    "unknown architecture": (configured(architectures=["XForCausalLM"]), "'XForCausalLM' is not supported; known: "),
    "a path": (configured(architectures=["../evilModel"]), "'../evilModel' is not supported"),
    "no hidden size": (configured(hidden_size=None), "hidden_size: expected a whole number"),
    "a billion layers": (configured(num_hidden_layers=10**9), "num_hidden_layers: expected at most 4096"),
    "text_config of text": (configured(text_config="x"), "text_config: expected an object"),
    "no small number": (configured(rms_norm_eps=float("nan")), "rms_norm_eps: expected a positive number, found nan"),
    "negative small number": (configured(rms_norm_eps=-1), "rms_norm_eps: expected a positive number"),
    "base of a list": (configured(rope_parameters={"rope_theta": []}), "rope_theta: expected a positive number"),
    "base 0": (configured(rope_parameters={"rope_theta": 0}), "rope_theta: expected a positive number"),
    "local base of text": (configured(rope_local_base_freq="x"), "with a window: expected a positive number"),
    "rope by layer of lists": (configured(rope_parameters={"full_attention": [1]}), "rope parameters: expected an obj"),
    "a layer too few": (configured(num_hidden_layers=1), "does not know: model.layers.1"),
    "a layer too many": (configured(num_hidden_layers=3), "tensors missing: blk.2.attn_norm.weight"),
    "other activation": (configured(hidden_act="gelu"), "activation 'gelu' is not supported"),
    "rope of text": (configured(rope_parameters="yarn"), "rope parameters: expected an object"),
    "unknown rope": (configured(rope_parameters={"rope_type": "longrope"}), "rope_type 'longrope'"),
    "rope without a factor": (configured(rope_parameters={"rope_type": "linear"}), "factor: expected a positive"),
    "half a rotary": (configured(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors found"),
    "pickled weights": (moved(WEIGHTS, "pytorch_model.bin"), ".bin files are pickles"),
    "missing shard": (moved(WEIGHTS, "model-00001-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    "missing shard of an index": (index(a="model-00001-of-00001.safetensors"), "1 of 1 safetensors files"),
    "index of other tensors": (index(a=WEIGHTS), "are in none of the files: a"),
    "index to elsewhere": (index(a="../x.safetensors"), "expected names of files, found '../x.safetensors'"),
    "index of text": (lambda f: (f / checkpoint.INDEX).write_text("{"), "expected JSON with a weight_map"),
    "index to lists": (index(a=[WEIGHTS]), "expected names of files, found ['model.safetensors']"),
    "index to numbers": (index(a=WEIGHTS, b=1), "expected names of files, found 1"),
    "index to nothing": (index(a=""), "expected names of files, found ''"),
    "deep index": (lambda f: (f / checkpoint.INDEX).write_text("[" * 10**5), "index.json: expected JSON"),
    "deep header": (header_of("[" * 10**5), "model.safetensors: damaged header"),
    "overlapping tensors": (overlapping, "down_proj.weight' overlap"),
    "empty weights": (lambda f: cut(f, WEIGHTS, 0), "not a safetensors file, or truncated: 0 bytes"),
    "cut in the header": (lambda f: cut(f, WEIGHTS, 200), "not a safetensors file, or truncated: 200 bytes"),
    "cut in the weights": (lambda f: cut(f, WEIGHTS, 60_000), "truncated: expected"),
    "header of text": (header_of("hello"), "damaged header"),
    "header of a list": (header_of("[1]"), "damaged header"),
    "negative shape": (entry("F32", [-1], [0, 4]), "expected sizes"),
    "offsets of another size": (entry("F32", [2], [0, 4]), "takes 8 bytes"),
    "unknown type": (entry("F4", [2], [0, 1]), "unknown type 'F4'"),
    "missing tensor": (weighed(lambda m: m.pop(DOWN)), "1 tensors missing: blk.1.ffn_down.weight"),
    "tensor that nobody takes": (weighed(lambda m: m.update({EXTRA: m[DOWN]})), "know: model.layers.1.extra"),
    "unknown bias": (weighed(lambda m: m.update({"model.norm.bias": np.zeros(64)})), "'output_norm.bias'"),
    "wrong shape": (weighed(lambda m: m.update({DOWN: m[DOWN].T})), "down_proj.weight': expected shape (64, 96)"),
    "NaN": (weighed(lambda m: m[DOWN].fill(np.nan)), "tensor 'blk.1.ffn_down.weight': "),
    "fp8 without scales": (weighed(fp8_without_scales), "fp8 without"),
    "fp8 with too few scales": (weighed(fp8_with_too_few_scales), "down_proj.weight_scale_inv': expected"),
    "quantization of text": (configured(quantization_config="fp8"), "quantization_config: expected an object"),
    "fp8 in blocks of nothing": (quantized(quant_method="fp8", weight_block_size=[0, 0]), "weight_block_size: "),
    "GPTQ": (quantized(quant_method="gptq", bits=4), "weights quantized by gptq are not supported"),
    "no tokenizer": (lambda f: (f / TOKENIZER).unlink(), "no tokenizer.json and no tokenizer.model found"),
    "tekken": (moved(TOKENIZER, "tekken.json"), "tekken.json alone is not supported"),
    "tokenizer of text": (lambda f: (f / TOKENIZER).write_text("x"), "expected JSON"),
    "a tokenizer of words": (lambda f: change_json(f, TOKENIZER, model={"type": "WordLevel"}), "type 'WordLevel'"),
    "a tokenizer of a number": (lambda f: change_json(f, TOKENIZER, model=1), "a model of type 1 is not supported"),
    "templates of numbers": (
        lambda f: change_json(f, "tokenizer_config.json", chat_template=[1]), "damaged tokenizer files"
    ),
    "damaged tokenizer": (lambda f: change_json(f, TOKENIZER, model={"type": "BPE", "vocab": 3}), "tokenizer.json: "),
    "unknown pre-tokenizer": (lambda f: hf_folders.write_tokenizer(f, "[aeiou]+"), "the right one with --pre"),
    "more tokens than rows": (configured(vocab_size=260), "expected shape (260, 64)"),
    "not SentencePiece": (lambda f: (f / "tokenizer.model").write_bytes(b"x" * 99), "not a SentencePiece model"),
    "damaged model card": (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "damaged model card"),
    "licence of a list": (lambda f: (f / "README.md").write_text("---\nlicense: [1]\n---\n"), "damaged model card"),
    "name of a number": (
        lambda f: (f / "README.md").write_text("---\nmodel_name: 3\n---\n"), "3 is not a value of type string"
    ),
    "damaged generation defaults": (lambda f: (f / "generation_config.json").write_text("{"), "expected JSON"),
    "damaged tokenizer_config": (lambda f: (f / "tokenizer_config.json").write_text("{"), "expected JSON"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_refused_in_one_line(what, tmp_path, capsys):
    folder, out = tmp_path / "m", tmp_path / "m.gguf"
    hf_folders.write(folder, "qwen3")
    change, message = BROKEN[what]
    change(folder)
    assert main(["hf", str(folder), str(out), "--type", "q8_0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 4}, "num_experts_per_tok: expected at most 3, found 4"),
        ({"num_experts": 10**9}, "experts: expected at most 4096, found 1000000000"),
        ({"num_experts": 4}, "expected experts 0 to 3, found 3, without 3"),
        ({"num_experts": 2}, "expected experts 0 to 1, found 3"),
        ({"norm_topk_prob": False}, "norm_topk_prob: qwen3moe files mean True"),
        ({"mlp_only_layers": [0]}, "layers without experts are not supported"),
    ],
)
def test_experts_that_cannot_be_stacked_are_refused(changes, message, tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "qwen3moe")
    change_json(tmp_path / "m", "config.json", **changes)
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window_pattern": 0}, "sliding_window_pattern: expected a whole number from 1"),
        ({"sliding_window_pattern": "x"}, "sliding_window_pattern: expected a whole number from 1"),
        (
            {"layer_types": ["full_attention"]},
            "layer_types: expected 2 of full_attention or sliding_",
        ),
        (
            {"layer_types": ["full_attention", 1]},
            "layer_types: expected 2 of full_attention or slidi",
        ),
    ],
)
def test_windows_of_nothing_are_refused(changes, message, tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "gemma3", **changes)
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    assert message in capsys.readouterr().err


def test_gemma_with_another_scale_is_refused(tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "gemma3", query_pre_attn_scalar=48)
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf")]) == 1
    assert "query_pre_attn_scalar: gemma3 files mean 32 here, found 48" in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_written(monkeypatch, tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "qwen3")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--type", "f16"]) == 1
    assert "MB are free" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_ctrl_c_leaves_nothing(monkeypatch, tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    (tmp_path / "m.gguf").write_text("before")
    encode, names = huggingface.encode, []

    def interrupted(tensor, *how):
        names.append(tensor.name)
        if len(names) == 5:
            raise KeyboardInterrupt
        return encode(tensor, *how)

    monkeypatch.setattr(huggingface, "encode", interrupted)
    out = tmp_path / "m.gguf"
    assert main(["hf", str(tmp_path / "m"), str(out), "--type", "f16", "--force"]) == 130
    assert (tmp_path / "m.gguf").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf"]


def test_a_killed_conversion_leaves_no_file_under_the_name(tmp_path):
    hf_folders.write(tmp_path / "m", "qwen3")
    code = (
        "import os, sys\n"
        "from mlx_ferrum.convert import huggingface\n"
        "from mlx_ferrum.convert.command import main\n"
        "whole = huggingface.encode\n"
        "def killed(tensor, *how):\n"
        "    if tensor.name == 'blk.1.ffn_up.weight': os.kill(os.getpid(), 9)\n"
        "    return whole(tensor, *how)\n"
        "huggingface.encode = killed\n"
        "main(['hf', sys.argv[1], sys.argv[2], '--type', 'f16'])\n"
    )
    out = tmp_path / "m.gguf"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m"), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()


def test_a_file_that_is_there_stays_unless_forced(tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "qwen3")
    out = tmp_path / "m.gguf"
    out.write_bytes(b"before")
    arguments = ["hf", str(tmp_path / "m"), str(out), "--type", "f16"]
    assert main(arguments) == 1
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert out.read_bytes() == b"before"
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_repository_that_cannot_be_reached_is_refused_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["hf", "nobody/nothing-such", str(tmp_path / "m.gguf")]) == 1
    assert "nobody/nothing-such: not in the cache" in capsys.readouterr().err


def test_what_is_no_folder_and_no_repository_is_refused(tmp_path, capsys):
    assert main(["hf", str(tmp_path / "nowhere"), str(tmp_path / "m.gguf")]) == 1
    assert "expected a Hugging Face folder or owner/repo" in capsys.readouterr().err
