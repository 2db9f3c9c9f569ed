"""Hugging Face folders to GGUF: the tensors and the metadata that llama.cpp's converter writes, and models that run."""

import json
from pathlib import Path

import hf_folders
import mlx.core as mx
import numpy as np
import pytest

import mlx_ferrum
from mlx_ferrum import gguf
from mlx_ferrum.convert import checkpoint, pieces, rope
from mlx_ferrum.convert.command import main

GOLDEN = json.loads((Path(__file__).parent / "golden" / "convert_hf.json").read_text())


def convert(folder: Path, *arguments: str) -> gguf.GGUF:
    out = folder.with_suffix(".gguf")
    assert main(["hf", str(folder), str(out), "--force", *arguments]) == 0
    return gguf.read(out)


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def tensor(file: gguf.GGUF, name: str) -> np.ndarray:
    """A tensor of a file in F32."""
    return file.data(name).view(np.float32).reshape(file.tensors[name].shape)


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_tensors_and_metadata_are_those_of_llama_cpp(kind, tmp_path):
    hf_folders.write(tmp_path / f"Tiny-{kind}", kind)
    file = convert(tmp_path / f"Tiny-{kind}", "--type", "f16")
    golden = GOLDEN[kind]
    found = {
        name: [t.type, list(t.shape), hf_folders.digest(file.data(name).tobytes())]
        for name, t in file.tensors.items()
    }
    if (
        kind == "gemma3"
    ):  # llama.cpp drops rows of the embeddings, but not their tokens: its file does not load
        del found["token_embd.weight"], golden["tensors"]["token_embd.weight"]
    assert found == golden["tensors"]
    metadata = {
        k: plain(v) for k, v in file.metadata.items() if not k.endswith((".tokens", ".merges"))
    }
    assert metadata == golden["metadata"]


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_models_run(kind, tmp_path):
    hf_folders.write(tmp_path / kind, kind)
    convert(tmp_path / kind, "--type", "f32")
    model, tokenizer = mlx_ferrum.load(tmp_path / f"{kind}.gguf")
    ids = tokenizer.encode("hello world")
    logits = np.array(model(mx.array([ids])))
    assert logits.shape == (1, len(ids), hf_folders.SIZES["vocab_size"])
    assert np.isfinite(logits).all()


def test_rows_of_a_pair_lie_side_by_side(tmp_path):
    made = hf_folders.write(tmp_path / "m", "mistral")
    file = convert(tmp_path / "m", "--type", "f32")
    given, found = (
        made["model.layers.1.self_attn.k_proj.weight"],
        tensor(file, "blk.1.attn_k.weight"),
    )
    for head in range(
        2
    ):  # of 32 rows: pair i is rows i and i + 16 of the checkpoint, 2 i and 2 i + 1 here
        for i in range(16):
            np.testing.assert_array_equal(found[32 * head + 2 * i], given[32 * head + i])
            np.testing.assert_array_equal(found[32 * head + 2 * i + 1], given[32 * head + i + 16])
    value = made["model.layers.1.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(tensor(file, "blk.1.attn_v.weight"), value)


@pytest.mark.parametrize("kind", ["qwen3moe", "mixtral"])
def test_experts_are_stacked_in_order(kind, tmp_path):
    made = hf_folders.write(tmp_path / "m", kind)
    file = convert(tmp_path / "m", "--type", "f32")
    prefix, name = ("mlp", "up_proj") if kind == "qwen3moe" else ("block_sparse_moe", "w3")
    given = [made[f"model.layers.0.{prefix}.experts.{n}.{name}.weight"] for n in range(3)]
    np.testing.assert_array_equal(tensor(file, "blk.0.ffn_up_exps.weight"), np.stack(given))


def test_experts_in_one_tensor_with_gates_are_told_apart(tmp_path):
    made = hf_folders.write(tmp_path / "m", "qwen2moe")
    wanted = convert(tmp_path / "m", "--type", "f32")
    for i in range(2):
        stacks = {
            p: np.stack(
                [made.pop(f"model.layers.{i}.mlp.experts.{n}.{p}_proj.weight") for n in range(3)]
            )
            for p in ("gate", "up", "down")
        }
        stem = f"model.layers.{i}.mlp.experts"
        made[f"{stem}.gate_up_proj"] = np.concatenate([stacks["gate"], stacks["up"]], axis=1)
        made[f"{stem}.down_proj"] = stacks["down"]
    hf_folders.save(tmp_path / "m" / "model.safetensors", made)
    found = convert(tmp_path / "m", "--type", "f32")
    assert found.tensors.keys() == wanted.tensors.keys()
    for name in found.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_every_float_type_gives_the_same_weights(dtype, tmp_path):
    hf_folders.write(tmp_path / "a", "qwen3")
    hf_folders.write(tmp_path / "b", "qwen3", dtype)
    a, b = (convert(tmp_path / name, "--type", "f32") for name in "ab")
    for name in a.tensors:
        np.testing.assert_array_equal(a.data(name), b.data(name), name)


@pytest.mark.parametrize("block", [None, [16, 48]])
def test_fp8_is_multiplied_by_its_scales(block, monkeypatch, tmp_path):
    monkeypatch.setattr(pieces, "PART", 7 * 96)
    made = hf_folders.write(tmp_path / "m", "qwen3")
    name = "model.layers.0.mlp.down_proj.weight"  # (64, 96)
    codes = (np.arange(64 * 96) % 120).astype(np.uint8).reshape(64, 96) | 128 * (
        np.arange(96) % 2 == 1
    )
    codes = codes.astype(np.uint8)
    scale = (
        np.array([[0.5, 2], [1, 4], [8, 0.25], [3, 5]], np.float32)
        if block
        else np.array(0.375, np.float32)
    )
    made |= {name: codes, f"{name}_scale_inv": scale}
    hf_folders.save(tmp_path / "m" / "model.safetensors", made, "F32")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    found = tensor(convert(tmp_path / "m", "--type", "f32"), "blk.0.ffn_down.weight")
    # 1 sign, 4 exponent bits with bias 7, 3 fraction bits
    for row, column in ((0, 1), (17, 50), (40, 47), (63, 95), (3, 8)):
        code = int(codes[row, column])
        exponent, fraction = code >> 3 & 15, code & 7
        value = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6
        factor = scale[row // 16, column // 48] if block else scale
        assert found[row, column] == pytest.approx((-1) ** (code >> 7) * value * factor)


def test_text_model_of_one_that_sees_pictures(tmp_path):
    made = hf_folders.write(tmp_path / "a", "gemma3")
    hf_folders.write(
        tmp_path / "b",
        "gemma3",
        architectures=["Gemma3ForConditionalGeneration"],
        text_config=hf_folders.GEMMA3_TEXT,
    )
    nested = {f"language_model.{name}": x for name, x in made.items()}
    nested["vision_tower.vision_model.x.weight"] = np.zeros((2, 2), np.float32)
    nested["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(2, np.float32)
    hf_folders.save(tmp_path / "b" / "model.safetensors", nested)
    a, b = (convert(tmp_path / name, "--type", "f32") for name in "ab")
    assert a.tensors.keys() == b.tensors.keys()
    np.testing.assert_array_equal(
        tensor(b, "blk.0.attn_q_norm.weight"), made["model.layers.0.self_attn.q_norm.weight"] + 1
    )


def test_files_of_a_split_checkpoint_are_read_together(tmp_path):
    made = hf_folders.write(tmp_path / "m", "llama")
    wanted = convert(tmp_path / "m", "--type", "f16")
    (tmp_path / "m" / "model.safetensors").unlink()
    names = sorted(made)
    where: dict[str, str] = {}
    for n, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-0000{n}-of-00002.safetensors"
        hf_folders.save(tmp_path / "m" / file, {name: made[name] for name in part})
        where |= dict.fromkeys(part, file)
    (tmp_path / "m" / checkpoint.INDEX).write_text(json.dumps({"weight_map": where}))
    found = convert(tmp_path / "m", "--type", "f16")
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)


def test_large_tensors_are_converted_in_parts(monkeypatch, tmp_path):
    hf_folders.write(tmp_path / "m", "qwen2moe")
    wanted = convert(tmp_path / "m", "--type", "q8_0")
    monkeypatch.setattr(pieces, "PART", 100)
    found = convert(tmp_path / "m", "--type", "q8_0")
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)


@pytest.mark.parametrize("kind", ["llama", "qwen3moe"])
@pytest.mark.parametrize("recipe", ["q4_k_m", "q8_0", "mxfp4_moe"])
def test_types_and_blocks_are_those_of_quantize(kind, recipe, tmp_path):
    """In one pass as in two, by way of a file in F32."""
    hf_folders.write(tmp_path / "m", kind)
    convert(tmp_path / "m", "--type", "f32")
    two = tmp_path / "two.gguf"
    assert main(["quantize", str(tmp_path / "m.gguf"), str(two), "--type", recipe]) == 0
    found, wanted = convert(tmp_path / "m", "--type", recipe), gguf.read(two)
    assert found.metadata["general.file_type"] == wanted.metadata["general.file_type"]
    assert {n: t.type for n, t in found.tensors.items()} == {
        n: t.type for n, t in wanted.tensors.items()
    }
    for name in wanted.tensors:
        np.testing.assert_array_equal(found.data(name), wanted.data(name), name)


def test_llama3_factors_keep_short_waves_and_stretch_long_ones():
    rotary = rope.read(
        {
            "rope_theta": 500000.0,
            "rope_scaling": {**hf_folders.LLAMA3, "original_max_position_embeddings": 8192},
        }
    )
    factors = rope.llama3_factors(rotary, 128)
    assert factors.shape == (64,)
    assert factors[0] == 1 and factors[28] == 1 and factors[-1] == 8
    assert (np.diff(factors) >= 0).all()
    # pair 30: a wave of 2 pi 500000^(60 / 128) = 2949 positions, 8192 / 2949 = 2.778; (2.778 - 1) / 3 of the way
    part = (8192 / (2 * np.pi * 500000 ** (60 / 128)) - 1) / 3
    assert factors[30] == pytest.approx(1 / ((1 - part) / 8 + part), rel=1e-5)


def test_yarn_magnitude_is_what_yarn_does_not_have_by_itself(tmp_path):
    scaling = {**hf_folders.YARN, "attention_factor": 1.5, "beta_fast": 16}
    hf_folders.write(tmp_path / "m", "qwen2", rope_scaling=scaling)
    metadata = convert(tmp_path / "m", "--type", "f16").metadata
    assert metadata["qwen2.rope.scaling.attn_factor"] == pytest.approx(1.5 / (1 + 0.1 * np.log(4)))
    assert metadata["qwen2.rope.scaling.yarn_beta_fast"] == 16


def test_dry_run_shows_a_table_and_writes_nothing(tmp_path, capsys):
    hf_folders.write(tmp_path / "m", "qwen3")
    assert (
        main(["hf", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--type", "q8_0", "--dry-run"])
        == 0
    )
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[:6] == [
        "token_embd.weight",
        "272",
        "x",
        "64",
        "F16",
        "Q8_0",
    ]
    assert not (tmp_path / "m.gguf").exists()
