"""Files of hybrid models: their spellings, and those that contradict themselves, which are refused with the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_hybrid
import random_models
from backends import REFERENCE
from random_hybrid import Delta

import mlx_ferrum
from mlx_ferrum.models import qwen35
from mlx_ferrum.models.hybrid import DeltaNet
from mlx_ferrum.models.weights import Weights
from mlx_ferrum.state.kinds import KV, Recurrent

SIZES = random_models.Sizes(layers=4, delta=Delta(2, 4, 32))


def load(folder: Path, arch: str = "qwen35", **options: Any) -> Any:
    given: dict[str, Any] = {"sizes": SIZES, "types": ("Q8_0",)} | options
    path = folder / f"{len(list(folder.iterdir()))}.gguf"  # a file that is in use stays as it is
    random_models.write(path, arch, seed=3, **given)
    with REFERENCE.in_use():
        return mlx_ferrum.load(path)[0]


REFUSED = {
    "ssm.inner_size": (192, r"ssm\.inner_size: expected 4 heads of 32, found 192"),
    "ssm.time_step_rank": (
        5,
        r"ssm\.time_step_rank: expected a multiple of 2 \(ssm\.group_count\)",
    ),
    "ssm.conv_kernel": (1, r"ssm\.conv_kernel: expected 2 at least, found 1"),
    "ssm.state_size": (0, r"ssm\.state_size: expected 1 to 1024, found 0"),
    "ssm.group_count": ("2", r"ssm\.group_count: expected int, found str"),
    "full_attention_interval": (0, r"full_attention_interval: expected 1 to 4096, found 0"),
    "rope.dimension_count": (66, r"rope\.dimension_count: expected 64 at most, found 66"),
    "nextn_predict_layers": (4, r"nextn_predict_layers: expected 0 to 3, found 4"),
    "attention.head_count_kv": (
        [0, 2, 0, 0],
        r"attention\.head_count_kv: 0 in layer 3, expected 1 at least: it has attention",
    ),
    "attention.recurrent_layers": (
        [True, False, True],
        r"recurrent_layers: expected 4 booleans, one a layer, found 3 of bool",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, key: str) -> None:
    value, message = REFUSED[key]
    with pytest.raises(ValueError, match=message):
        load(tmp_path, metadata={key: value})


def test_flags_that_are_no_booleans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 4 booleans, one a layer, found 4 of int32"):
        load(tmp_path, metadata={"attention.recurrent_layers": [1, 0, 1, 0]})


@pytest.mark.parametrize("value", [0.5, 1e30])
def test_states_that_would_grow_are_refused(tmp_path: Path, value: float) -> None:
    original = random_hybrid.RANGES["ssm_a"]
    random_hybrid.RANGES["ssm_a"] = (value, value)
    try:
        with pytest.raises(ValueError, match=r"'blk\.0\.ssm_a': expected numbers of 0 or less"):
            load(tmp_path)
    finally:
        random_hybrid.RANGES["ssm_a"] = original


def test_a_predicting_layer_is_not_recurrent(tmp_path: Path) -> None:
    sizes = random_models.Sizes(layers=2, delta=Delta(2, 4, 32, predictors=1))
    with pytest.raises(ValueError, match=r"recurrent_layers: layer 2 predicts further tokens"):
        load(tmp_path, sizes=sizes, metadata={"attention.recurrent_layers": [True, False, True]})


def test_tensors_of_another_kind_of_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor 'blk\.1\.attn_qkv\.weight' is missing"):
        load(tmp_path, metadata={"attention.recurrent_layers": [True, True, True, False]})


def test_a_file_of_predicting_layers_alone_is_refused() -> None:
    """As llama.cpp's converter writes with --mtp."""
    args: Any = None
    with pytest.raises(ValueError, match="files that only predict further tokens"):
        qwen35.Model(args, Weights({}))


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention.recurrent_layers": [True, False, True, False], "full_attention_interval": 4},
        {"attention.head_count_kv": [0, 2, 0, 2]},
        {"attention.head_count_kv": [2, 2, 2, 2]},
    ],
)
def test_spellings_of_the_same_layers(tmp_path: Path, metadata: dict[str, Any]) -> None:
    model, other = load(tmp_path), load(tmp_path, metadata=metadata)
    kinds = [Recurrent, KV, Recurrent, KV]
    assert [type(keeps) for keeps in other.body.keeps] == kinds
    tokens = mx.array(np.random.default_rng(1).integers(0, 250, (1, 9)))
    with REFERENCE.in_use():
        np.testing.assert_array_equal(np.array(model(tokens)), np.array(other(tokens)))


def test_predicting_layers_are_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = random_models.Sizes(layers=2, delta=Delta(2, 4, 32, predictors=1))
    model = load(tmp_path, sizes=sizes)
    assert len(model.body.layers) == 2
    assert "layers that predict further tokens (15 tensors)" in caplog.text


def test_only_the_order_of_heads_tells_the_architectures_apart(tmp_path: Path) -> None:
    """Where value heads share key heads."""
    tiled, grouped = load(tmp_path, "qwen35"), load(tmp_path, "qwen35")
    for layer in grouped.body.layers:
        if isinstance(net := layer.self_attn, DeltaNet):
            args = vars(net.delta) | {"is_tiled": False}
            net.delta = type(net.delta)(**args)
    tokens = mx.array(np.random.default_rng(1).integers(0, 250, (1, 9)))
    with REFERENCE.in_use():
        assert np.abs(np.array(tiled(tokens)) - np.array(grouped(tokens))).max() > 0.1
