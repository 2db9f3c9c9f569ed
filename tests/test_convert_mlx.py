"""GGUF files to folders of mlx_lm and back: the same weights, names, configuration and tokens."""

import json
from typing import Any

import hf_folders
import mlx.core as mx
import mlx_folders
import numpy as np
import pytest
import random_blocks
import random_models

from mlx_ferrum import blocks, gguf
from mlx_ferrum.convert import affine, folder, mlx_folder, repack
from mlx_ferrum.convert.command import main

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
# What mlx_lm's models or config.json do not have.
REFUSED = {
    "llama-tied-rope_freqs": "expected the factors of Llama 3",
    "qwen3moe-60-dense": "tensor 'blk.0.ffn_gate.weight': this architecture does not have it",
    "qwen3moe-not-normalised": "norm_topk_prob: qwen3moe files mean True, found False",
    "qwen3next": "writing it as a folder of mlx_lm is not supported",
    "qwen3next-old-dense": "writing it as a folder of mlx_lm is not supported",
    "qwen35": "layer_norm_rms_epsilon: mlx_lm's delta nets have 1e-06, found 0.0001",
    "qwen35moe-predictor": "layer_norm_rms_epsilon: mlx_lm's delta nets have 1e-06, found 0.0001",
}

CHANGES: dict[str, dict[str, Any]] = {
    "gemma3": {"num_hidden_layers": 6}
}  # so that one has no window


def run(*arguments: Any) -> None:
    assert main(["mlx", *map(str, arguments)]) == 0


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_weights_and_configuration_are_those_of_the_original_folder(kind, tmp_path):
    """By way of a GGUF file, in which rows have other places, norms other values and experts one tensor."""
    made = hf_folders.write(tmp_path / "hf", kind, **CHANGES.get(kind, {}))
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "m.gguf"), "--type", "f32"]) == 0
    run(tmp_path / "m.gguf", tmp_path / "mlx")
    found, wanted = mlx_folders.weights(tmp_path / "mlx"), mlx_folders.stacked(made)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, name)
    config, before = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("mlx", "hf")
    )
    before["model_type"] = before["model_type"].replace("mistral", "llama")
    unsaid = {"architectures", "torch_dtype", "rope_scaling", "rope_parameters", "eos_token_id"}
    same = {k for k in before.keys() - unsaid if before[k] is not None}
    assert {k: config.get(k) for k in same} == {k: before[k] for k in same}
    assert config["eos_token_id"] == [263, 264]  # <|endoftext|> ends text, too, as in llama.cpp
    again = tmp_path / "again.gguf"
    run(tmp_path / "mlx", again)
    a, b = gguf.read(tmp_path / "m.gguf"), gguf.read(again)
    for name in a.tensors:
        np.testing.assert_array_equal(a.data(name), b.data(name), name)


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_metadata_of_a_file_comes_back(kind, tmp_path):
    hf_folders.write(tmp_path / "hf", kind, **CHANGES.get(kind, {}))
    assert main(["hf", str(tmp_path / "hf"), str(tmp_path / "m.gguf"), "--type", "q8_0"]) == 0
    run(tmp_path / "m.gguf", tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "again.gguf")
    a, b = (gguf.read(tmp_path / f"{name}.gguf") for name in ("m", "again"))
    assert {
        k for k in a.metadata if not np.array_equal(a.metadata[k], b.metadata.get(k, ()))
    } == set()
    # head_dim is written where it follows from other sizes, too
    implied = ("attention.key_length", "attention.value_length", "rope.freq_base_swa")
    added = b.metadata.keys() - a.metadata.keys()
    assert all(key.endswith(implied) or "sliding_window_pattern" in key for key in added), added
    for name in a.tensors:
        assert a.tensors[name].type == b.tensors[name].type, name
        np.testing.assert_array_equal(a.data(name), b.data(name), name)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_blocks_with_one_scale_come_back_bit_by_bit(kind, dtype, tmp_path):
    for arch, experts in (("llama", 0), ("qwen3moe", 3)):
        sizes = random_models.Sizes(layers=1, experts=experts, used=min(experts, 2))
        path = random_models.write(tmp_path / f"{arch}.gguf", arch, 5, types=(kind,), sizes=sizes)
        run(path, tmp_path / arch, "--dtype", dtype)
        run(tmp_path / arch, tmp_path / f"{arch}.again.gguf")
        a, b = gguf.read(path), gguf.read(tmp_path / f"{arch}.again.gguf")
        assert a.tensors.keys() == b.tensors.keys()
        for name, info in a.tensors.items():
            if info.type == "F32" and dtype == "float16":
                continue  # random vectors and routers are rounded
            assert (info.type, info.shape) == (b.tensors[name].type, b.tensors[name].shape)
            np.testing.assert_array_equal(a.data(name), b.data(name), name)


@pytest.mark.parametrize("kind", [*EXACT, "Q4_K", "Q5_K", "F16", "BF16", "F32"])
def test_weights_in_float32_are_those_of_the_blocks(kind, tmp_path):
    path = random_models.write(tmp_path / "m.gguf", "qwen2", 3, types=(kind,), biases=("attn_q",))
    run(path, tmp_path / "mlx", "--dtype", "float32")
    found = mlx_folders.weights(tmp_path / "mlx")
    names = {
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "ffn_down": "mlp.down_proj",
    }
    file = gguf.read(path)
    for name, module in names.items():
        info = file.tensors[f"blk.1.{name}.weight"]
        raw = mx.array(file.data(info.name).reshape(info.shape[0], -1))
        wanted = np.array(blocks.by_name(kind).dequantize(raw))
        np.testing.assert_array_equal(found[f"model.layers.1.{module}.weight"], wanted)
    zeros = found["model.layers.1.self_attn.v_proj.bias"]  # mlx_lm's Qwen 2 has three biases
    assert zeros.shape == (128,) and not zeros.any()


@pytest.mark.parametrize("name", random_models.CASES)
def test_random_models_are_converted_or_refused(name, tmp_path, capsys):
    path = random_models.write_case(tmp_path / "m.gguf", name, 1)
    code = main(["mlx", str(path), str(tmp_path / "mlx")])
    if name in REFUSED:
        assert code == 1
        assert REFUSED[name] in capsys.readouterr().err
        assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    else:
        assert code == 0
        assert all(np.isfinite(x).all() for x in mlx_folders.weights(tmp_path / "mlx").values())


# Sizes and options of random models that mlx_lm's models or config.json do not have.
LIMITS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": (
        {"arch": "qwen2", "sizes": random_models.Sizes(head_dim=128)},
        "qwen2 does not have heads of 128",
    ),
    "rope": (
        {
            "arch": "qwen3moe",
            "metadata": random_models.YARN,
            "sizes": random_models.Sizes(experts=3, used=2),
        },
        "qwen3_moe does not have rope scaling 'yarn'",
    ),
    "part of a head": (
        {"arch": "llama", "metadata": {"rope.dimension_count": 32}},
        "embeddings of 32 of 64",
    ),
    "softcap": (
        {"arch": "gemma3", "tied": True, "metadata": {"final_logit_softcapping": 30.0}},
        "does not have final_logit_softcapping",
    ),
    "windows": (
        {
            "arch": "gemma3",
            "tied": True,
            "metadata": {
                **random_models.GEMMA_WINDOW,
                "attention.sliding_window_pattern": [True, True, False],
            },
        },
        "",
    ),
    "uneven windows": (
        {
            "arch": "gemma3",
            "tied": True,
            "metadata": {
                **random_models.GEMMA_WINDOW,
                "attention.sliding_window_pattern": [False, True, True],
            },
        },
        "mlx_lm has windows in all layers but every n-th, found .ww",
    ),
    "biases": ({"arch": "qwen3", "biases": ("attn_q",)}, "mlx_lm's model has no such bias"),
    "scaled experts": (
        {
            "arch": "llama",
            "metadata": {"expert_weights_scale": 2.0},
            "sizes": random_models.Sizes(ffn=256, experts=3, used=2, expert_ffn=256),
        },
        "config.json cannot say experts",
    ),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_mlx_lm_does_not_have_is_refused(what, tmp_path, capsys):
    options, message = LIMITS[what]
    path = random_models.write(tmp_path / "m.gguf", seed=1, types=("Q4_0",), **options)
    assert main(["mlx", str(path), str(tmp_path / "out")]) == bool(message)
    assert message in capsys.readouterr().err
    assert (tmp_path / "out").exists() is not bool(message)


@pytest.mark.parametrize("bits", affine.BITS)
@pytest.mark.parametrize("group", affine.GROUPS)
def test_codes_are_packed_as_mlx_packs_them(bits, group):
    x = np.random.default_rng(bits).normal(size=(6, 256)).astype(np.float32)
    packed, scales, biases = mx.quantize(mx.array(x), group_size=group, bits=bits)
    raw = np.array(packed).view(np.uint8)
    codes = affine.unpack(raw, bits)
    np.testing.assert_array_equal(affine.pack(codes, bits), raw)
    theirs = affine.Rows(codes, np.array(scales), np.array(biases)).weights
    wanted = np.array(mx.dequantize(packed, scales, biases, group_size=group, bits=bits))
    np.testing.assert_allclose(theirs, wanted, rtol=1e-6, atol=1e-7)  # one rounding or two
    ours = affine.quantize(x, affine.Layout(bits, group)).weights
    assert np.square(ours - x).sum() < np.square(theirs - x).sum()


def test_equal_weights_are_kept():
    x = np.repeat(np.array([[0], [-3.5], [1e-30]], np.float32), 64, axis=1)
    found = affine.quantize(x, affine.Layout(4, 32))
    np.testing.assert_array_equal(found.weights, x)


def test_biases_of_symmetric_blocks_are_float16_values():
    """A power of two times a float16 is a float16, down to the smallest, unless it is beyond the largest."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    d = halves[np.isfinite(halves)].astype(np.float32)
    for middle in repack.MIDDLE.values():
        held = d[np.abs(d) * middle <= 65504]
        np.testing.assert_array_equal(
            affine.loaded(affine.stored(-middle * held, "float16"), "float16"), -middle * held
        )
        assert held.min() < -500 and np.abs(held[held != 0]).min() == np.float32(2.0**-24)


@pytest.mark.parametrize("block", repack.BITS, ids=lambda block: block.__name__)
def test_random_blocks_have_the_same_weights_as_codes(block):
    matrix = random_blocks.matrix(np.random.default_rng(7), block.__name__, 9, 512)
    raw = np.ascontiguousarray(matrix.data).view(np.uint8).reshape(9, -1)
    rows = repack.rows(block, raw)
    np.testing.assert_array_equal(rows.weights, np.array(block.dequantize(mx.array(raw))))
    assert rows.codes.max() < 1 << repack.BITS[block]


def test_bfloat16_is_rounded_as_mlx_rounds():
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    x[::2].view(np.uint32)[:] = x[::2].view(np.uint32) & 0xFFFF0000 | 0x8000  # ties
    wanted = np.array(mx.array(x).astype(mx.bfloat16).astype(mx.float32))
    np.testing.assert_array_equal(affine.loaded(affine.stored(x, "bfloat16"), "bfloat16"), wanted)


def test_files_are_split_by_size_with_an_index(tmp_path):
    path = random_models.write(tmp_path / "m.gguf", "llama", 3, types=("Q4_0",))
    run(path, tmp_path / "whole")
    plan = mlx_folder.plan(gguf.read(path), mlx_folder.Options())
    folder.write(tmp_path / "split", plan.modules, {"config.json": plan.config}, most=300_000)
    files = sorted(p.name for p in (tmp_path / "split").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    a, b = mlx_folders.weights(tmp_path / "whole"), mlx_folders.weights(tmp_path / "split")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    sizes = [p.stat().st_size for p in (tmp_path / "split").glob("*.safetensors")]
    assert max(sizes) < 400_000
    folder.write(tmp_path / "each", plan.modules, {}, most=1)
    assert len(list((tmp_path / "each").glob("*.safetensors"))) == len(plan.modules)
