"""Files that say the same in other ways, and parts that only some files have: biases, fused matrices, odd metadata."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from divergence import log_softmax
from test_models import build

from mlx_ferrum import gguf, ops
from mlx_ferrum.blocks import F32, Q8_0
from mlx_ferrum.models.weights import Weights
from mlx_ferrum.tensor import QTensor

LAYER_BIASES = (*random_models.QKV_BIASES, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
PROMPT = [32, 117, 112, 111, 110, 5, 99, 100]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.write_case(tmp_path_factory.mktemp("llama") / "m.gguf", "llama", seed=3)


@pytest.fixture(scope="module")
def qwen3moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.write_case(tmp_path_factory.mktemp("moe") / "m.gguf", "qwen3moe", seed=5)


def logits(model: Any, tokens: list[int] = PROMPT) -> np.ndarray:
    return np.asarray(model(mx.array([tokens])))[0]


# Log-probabilities that llama.cpp gives tokens after PROMPT; it keeps keys and values in float16.
LLAMA_CPP: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "llama": (
        {"arch": "llama", "seed": 41, "biases": LAYER_BIASES},
        {0: -6.503, 60: -4.045, 120: -6.025, 180: -5.8, 240: -4.967, 209: -2.958, 2: -2.962},
    ),
    "qwen2": (
        {"arch": "qwen2", "seed": 42, "biases": (*random_models.QKV_BIASES, "output")},
        {0: -7.33, 60: -7.942, 120: -6.521, 180: -6.292, 240: -5.456, 56: -2.862, 47: -3.725},
    ),
    "qwen2-tied": (
        {"arch": "qwen2", "seed": 43, "biases": ("attn_q", "output"), "tied": True},
        {0: -9.01, 60: -5.687, 120: -4.594, 180: -4.874, 240: -6.413, 80: -3.77, 5: -3.799},
    ),
}


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_biases_as_in_llama_cpp(backend, name: str, tmp_path: Path) -> None:
    arguments, expected = LLAMA_CPP[name]
    model = build(random_models.write(tmp_path / "m.gguf", types=("F32",), **arguments))
    found = log_softmax(logits(model)[-1])
    for token, log_probability in expected.items():
        assert abs(found[token] - log_probability) < 0.01 + backend.logit


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "gemma3"])
def test_every_bias_counts(reference, arch: str, tmp_path: Path) -> None:
    """Also where no converter writes them: each, left out, changes what the model says."""
    biases = (*LAYER_BIASES, "output")
    path = random_models.write(tmp_path / "m.gguf", arch, seed=7, biases=biases)
    whole = logits(build(path))
    names = [f"blk.1.{name}.bias" for name in LAYER_BIASES if name != "attn_k"] + ["output.bias"]
    for name in names:  # softmax forgets what a bias adds to all keys, but for their rotation
        assert np.abs(logits(build(path, without=[name])) - whole).max() > 1e-3, name


@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)])
def test_gate_up_with_biases(backend, rows: int, which: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(rows)
    gate, up = (
        QTensor(F32, (21, 64), rng.normal(size=(21, 64)).astype(np.float32).view(np.uint8).ravel())
        for _ in range(2)
    )
    x = rng.normal(size=(rows, 64)).astype(np.float32)
    biases = [rng.normal(size=21).astype(np.float32) * has for has in which]
    g, u = (
        x.astype(np.float64) @ w.data.view(np.float32).astype(np.float64).T + bias
        for w, bias in zip((gate, up), biases, strict=True)
    )
    given = [mx.array(bias) if has else None for bias, has in zip(biases, which, strict=True)]
    found = np.asarray(ops.gate_up(backend.array(x), gate, up, "silu", biases=given))
    wanted = g / (1 + np.exp(-g)) * u
    assert np.abs(found - wanted).max() < (1e-5 + backend.tiles) * np.abs(wanted).max()


def joined(path: Path, fused: str, parts: tuple[str, ...]) -> dict[str, QTensor]:
    """The tensors of a file with some of each layer in one, weights and biases."""
    file = gguf.read(path)
    tensors = {
        name: QTensor(F32 if i.type == "F32" else Q8_0, i.shape, file.parts[0], i.offset)
        for name, i in file.tensors.items()
    }
    layers = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    for prefix in [f"blk.{i}." for i in layers]:
        for kind in ("weight", "bias"):
            names = [f"{prefix}{part}.{kind}" for part in parts]
            if names[0] in tensors:
                found = [tensors.pop(name) for name in names]
                raw = np.concatenate([tensor.data.ravel() for tensor in found])
                rows = sum(tensor.shape[0] for tensor in found)
                shape = (rows, *found[0].shape[1:])
                tensors[f"{prefix}{fused}.{kind}"] = QTensor(found[0].block, shape, raw)
    return tensors


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    ("fused", "parts"),
    [("attn_qkv", ("attn_q", "attn_k", "attn_v")), ("ffn_up", ("ffn_gate", "ffn_up"))],
    ids=["qkv", "gate and up"],
)
def test_fused_matrices_give_the_same_bits(
    backend, arch: str, fused: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    path = random_models.write(
        tmp_path / "m.gguf", arch, seed=9, types=("Q8_0",), biases=LAYER_BIASES
    )
    separate = build(path)
    weights = Weights(joined(path, fused, parts))
    model = type(separate)(separate.args, weights)
    weights.check_all_used()
    assert np.array_equal(logits(model), logits(separate))


def test_parts_of_a_fused_matrix_are_the_same_bytes(llama: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 6 * 128, dtype=np.uint8)
    whole = Weights({"w.weight": QTensor(F32, (6, 32), raw)})
    one, two = whole.linears("w", 32, {"a": 2, "b": 4})
    assert np.shares_memory(one.weight.data, raw) and np.shares_memory(two.weight.data, raw)
    assert np.array_equal(np.concatenate([one.weight.data, two.weight.data]).ravel(), raw)
    assert not whole.left
    with pytest.raises(ValueError, match=r"'w.weight': expected shape \(7, 32\), found \(6, 32\)"):
        Weights(whole.tensors).linears("w", 32, {"a": 3, "b": 4})


def test_a_fused_weight_may_have_separate_biases() -> None:
    def vector(*values: float) -> QTensor:
        return QTensor(F32, (len(values),), np.array(values, np.float32).view(np.uint8))

    zeros = QTensor(F32, (3, 32), np.zeros(3 * 128, np.uint8))
    weights = Weights({"w.weight": zeros, "a.bias": vector(1), "b.bias": vector(2, 3)})
    found = [
        part(mx.zeros((1, 32))).tolist() for part in weights.linears("w", 32, {"a": 1, "b": 2})
    ]
    assert found == [[[1]], [[2, 3]]] and not weights.left


# Keys that files write as 0 where they mean the default, and arrays whose values are all the same.
SAME: list[tuple[str, Any, Any]] = [
    ("llama.rope.scaling.factor", 0.0, None),
    ("llama.rope.scale_linear", 0.0, None),
    ("llama.rope.scaling.original_context_length", 0, None),
    ("llama.rope.scaling.yarn_beta_fast", 0.0, None),
    ("llama.rope.scaling.yarn_beta_slow", 0.0, None),
    ("llama.expert_count", 0, None),
    ("llama.nextn_predict_layers", 0, None),
    ("llama.attention.head_count", np.array([4, 4, 4], np.uint32), 4),
    ("llama.attention.head_count_kv", np.array([2, 2, 2], np.int32), 2),
    ("llama.feed_forward_length", np.array([512] * 3, np.uint32), 512),
    ("qwen3moe.expert_group_count", 0, None),
    ("qwen3moe.expert_group_used_count", 0, None),
    ("qwen3moe.expert_weights_scale", 0.0, None),
    ("qwen3moe.expert_gating_func", 0, None),
    ("qwen3moe.leading_dense_block_count", 0, None),
    ("qwen3moe.feed_forward_length", 0, 512),
    ("qwen3moe.expert_used_count", np.array([2, 2], np.uint32), 2),
    ("qwen3moe.expert_feed_forward_length", np.array([256, 256], np.uint32), 256),
    ("qwen3moe.expert_feed_forward_length", 0, None),
]


@pytest.mark.parametrize(("key", "value", "plain"), SAME)
def test_other_ways_to_say_the_same(
    llama: Path, qwen3moe: Path, key: str, value: Any, plain: Any
) -> None:
    path = llama if key.startswith("llama") else qwen3moe
    found, wanted = build(path, **{key: value}).args, build(path, **{key: plain}).args
    sizes = vars(found) | {"intermediate_size": None}, vars(wanted) | {"intermediate_size": None}
    assert sizes[0] == sizes[1]
    if "feed_forward" not in key or "expert" in key or isinstance(value, np.ndarray):
        assert found == wanted


def test_a_norm_without_epsilon(llama: Path) -> None:
    assert build(llama, **{"llama.attention.layer_norm_rms_epsilon": 0.0}).args.norm_eps == 0


NOT_SUPPORTED = [
    ("attention.head_count_kv", np.array([2, 1, 2]), r"layers that differ \(1, 2\)"),
    ("feed_forward_length", np.array([512, 256, 64]), r"layers that differ \(64, 256, 512\)"),
    ("attention.head_count", np.array([4, 0, 4]), "0 in layer 1, a layer without this part"),
    ("attention.causal", False, "attention.causal: attention to later positions"),
    ("nextn_predict_layers", 1, "nextn_predict_layers: layers that predict"),
]


@pytest.mark.parametrize(("name", "value", "message"), NOT_SUPPORTED)
def test_what_would_need_another_model_is_refused_by_name(
    llama: Path, name: str, value: Any, message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        build(llama, **{f"llama.{name}": value})


def test_axes_of_one_before_the_others_do_not_matter() -> None:
    raw = QTensor(F32, (1, 32), np.ones(32, np.float32).view(np.uint8))
    weights = Weights({"norm.weight": raw, "up.weight": raw.reshaped(1, 1, 32)})
    assert weights.vector("norm.weight", 32).shape == (32,)
    assert weights.tensor("up.weight", 1, 32).shape == (1, 32)
    with pytest.raises(ValueError, match=r"expected shape \(32, 1\), found \(1, 32\)"):
        weights.tensor("norm.weight", 32, 1)


def test_options_that_the_architecture_lacks_are_ignored_with_a_line(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wanted = build(llama).args
    neutral = {"llama.logit_scale": 1.0, "llama.attention.scale": 0.0}
    assert build(llama, **neutral).args == wanted and not caplog.records
    assert build(llama, **{"llama.logit_scale": 0.5}).args == wanted
    (record,) = caplog.records
    assert record.getMessage().startswith("warning: llama.logit_scale: ignored")


def test_tensors_that_generation_does_without(
    llama: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    case = random_models.CASES["llama"]
    name, one = "blk.0.attn_q.input_scale", np.ones(1, np.float32)
    path = random_models.write(tmp_path / "m.gguf", seed=3, vectors={name: one}, **case)
    build(path)
    (record,) = caplog.records
    assert record.getMessage() == f"warning: ignored: {name} (1 tensors in all)"
    with pytest.raises(
        NotImplementedError, match=r"'blk.0.attn_q.scale': a scale of a whole weight"
    ):
        build(path, renamed={name: "blk.0.attn_q.scale"})
