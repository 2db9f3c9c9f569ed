"""Models with experts: what their metadata says, files that are refused, layers that have none."""

import mlx.core as mx
import numpy as np
import pytest
import random_models
from test_models import build

from mlx_ferrum import blocks, ops
from mlx_ferrum.models.base import Weights
from mlx_ferrum.models.feed_forward import SharedExpert
from mlx_ferrum.nn import Experts
from mlx_ferrum.ops import Routing
from mlx_ferrum.tensor import QTensor


@pytest.fixture(scope="module")
def qwen3moe(tmp_path_factory):
    """Two layers, 8 experts of 256, 2 used."""
    return random_models.write_case(tmp_path_factory.mktemp("moe") / "m.gguf", "qwen3moe", seed=5)


@pytest.fixture(scope="module")
def qwen2moe(tmp_path_factory):
    return random_models.write_case(tmp_path_factory.mktemp("moe") / "m.gguf", "qwen2moe", seed=5)


BAD_EXPERTS = [
    ("expert_count", None, "'qwen3moe.expert_count' is missing"),
    ("expert_count", 0, "qwen3moe.expert_count: expected 1 to 1024, found 0"),
    ("expert_count", 1 << 31, "expert_count: expected 1 to 1024"),
    ("expert_count", 7, r"ffn_gate_inp.weight': expected shape \(7, 256\), found \(8, 256\)"),
    ("expert_count", 8.0, "expert_count: expected int, found float"),
    ("expert_used_count", None, "'qwen3moe.expert_used_count' is missing"),
    ("expert_used_count", 0, "expert_used_count: expected 1 to 1024, found 0"),
    ("expert_used_count", 9, "expert_used_count: expected 1 to 8, found 9"),
    ("expert_used_count", np.array([2.0, 2.0]), "expert_used_count: expected int, found float"),
    ("expert_feed_forward_length", 128, r"ffn_gate_exps.weight': expected shape \(8, 128, 256\)"),
    ("expert_feed_forward_length", -1, "expert_feed_forward_length: expected 1 to"),
    ("expert_gating_func", -1, "expert_gating_func: expected 1 to 3, found -1"),
    ("expert_gating_func", 4, "expert_gating_func: expected 1 to 3, found 4"),
    ("expert_weights_norm", 1, "expert_weights_norm: expected bool, found int"),
    ("expert_weights_scale", float("nan"), "expert_weights_scale: expected a positive number"),
    ("expert_group_count", 3, "expert_group_count: expected a divisor of 8 experts, found 3"),
    ("expert_group_count", 8, "expert_group_count: expected 1 to 4, found 8"),
    ("expert_group_used_count", 2, "expert_group_used_count: expected 1 to 1, found 2"),
    ("leading_dense_block_count", 3, "leading_dense_block_count: expected 0 to 2, found 3"),
    ("leading_dense_block_count", 1, "tensor 'blk.0.ffn_gate.weight' is missing"),
]


@pytest.mark.parametrize("name, value, message", BAD_EXPERTS)
def test_bad_metadata_of_experts_is_refused(qwen3moe, name, value, message):
    with pytest.raises(ValueError, match=message):
        build(qwen3moe, **{f"qwen3moe.{name}": value})


def test_groups_must_hold_the_experts_used(qwen3moe):
    groups = {"qwen3moe.expert_group_count": 4, "qwen3moe.expert_group_used_count": 1}
    assert build(qwen3moe, **groups).args.experts.routing == Routing(2, groups=4, groups_used=1)
    with pytest.raises(ValueError, match="expert_used_count: expected 1 to 2, found 3"):
        build(qwen3moe, **groups, **{"qwen3moe.expert_used_count": 3})


def test_gating_comes_from_the_metadata(qwen3moe, qwen2moe):
    def routing(path, **metadata):
        return build(path, **metadata).args.experts.routing

    assert routing(qwen3moe) == Routing(2)
    sigmoid = {"qwen3moe.expert_gating_func": 2, "qwen3moe.expert_weights_scale": 2.5}
    assert routing(qwen3moe, **sigmoid) == Routing(2, "sigmoid", scale=2.5)
    assert routing(qwen2moe) == Routing(4, normalise=False)
    assert routing(qwen2moe, **{"qwen2moe.expert_weights_norm": True}) == Routing(4)
    # the softmax of the chosen is the softmax of all, normalised
    assert routing(qwen2moe, **{"qwen2moe.expert_gating_func": 3}) == Routing(4)


def test_variants_of_experts_that_are_not_supported_are_refused(qwen3moe, tmp_path):
    dense = random_models.write_case(tmp_path / "m.gguf", "qwen3", seed=1)
    with pytest.raises(NotImplementedError, match="qwen3 with experts is not supported"):
        build(dense, **{"qwen3.expert_count": 8})
    groups = {"qwen3moe.expert_group_count": 2, "qwen3moe.expert_gating_func": 3}
    with pytest.raises(NotImplementedError, match="expert_gating_func: 3 with groups"):
        build(qwen3moe, **groups)
    bias = {"blk.1.exp_probs_b.bias": np.zeros(8, np.float32)}
    case = {**random_models.CASES["qwen3moe"], "vectors": bias}
    biased = random_models.write(tmp_path / "m.gguf", seed=3, **case)
    with pytest.raises(
        NotImplementedError, match=r"'blk.1.exp_probs_b.bias': a bias of the choice"
    ):
        build(biased, **{"qwen3moe.expert_gating_func": 3})


@pytest.mark.parametrize(
    "name", ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp"]
)
def test_missing_tensors_of_experts_are_named(qwen2moe, name):
    with pytest.raises(ValueError, match=f"tensor 'blk.1.{name}.weight' is missing"):
        build(qwen2moe, without=[f"blk.1.{name}.weight"])


def test_a_width_that_is_not_said_is_a_share_of_all(qwen3moe):
    key = "qwen3moe.expert_feed_forward_length"
    assert (
        build(qwen3moe, **{key: None, "qwen3moe.feed_forward_length": 512}).args.experts.size == 256
    )


def test_leading_dense_layers(tmp_path):
    path = random_models.write_case(tmp_path / "m.gguf", "qwen3moe-60-dense", seed=2)
    for metadata in ({}, {"qwen3moe.leading_dense_block_count": 1}):
        layers = build(path, **metadata).body.layers
        assert [isinstance(layer.mlp, Experts) for layer in layers] == [False, True, True]


def test_a_selection_bias_changes_the_choice_only(reference, tmp_path):
    """One that prefers experts 6 and 7 in layer 1 to all others."""
    bias = {"blk.1.exp_probs_b.bias": np.array([0, 0, 0, 0, 0, 0, 9, 9], np.float32)}
    case = {**random_models.CASES["qwen3moe"], "vectors": bias}
    model = build(random_models.write(tmp_path / "m.gguf", seed=3, **case))
    mixture = model.body.layers[1].mlp
    seen: list[mx.array] = []
    mixture.observer = lambda _, ids, __: seen.append(ids)
    x = mx.array(np.random.default_rng(1).normal(size=(1, 5, 256)).astype(np.float32))
    found = np.asarray(mixture(x))
    assert np.sort(np.asarray(seen[0])).tolist() == [[[6, 7]] * 5]
    logits = np.asarray(ops.matmul(x, mixture.router))[..., 6:]
    shares = mx.array(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    ids = mx.array(np.full((1, 5, 2), [6, 7], np.int32))
    inner = ops.gather_gate_up(x, mixture.gate, mixture.up, ids, "silu")
    wanted = np.asarray(ops.gather_down(inner, mixture.down, ids, shares))
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_gate_of_a_shared_expert_may_be_a_matrix_of_one_row(qwen2moe):
    model = build(qwen2moe)
    for gate_shape in ((256,), (1, 256)):
        shapes = {"gate": (256, 256), "up": (256, 256), "down": (256, 256), "gate_inp": gate_shape}
        tensors = {
            f"ffn_{name}_shexp.weight": QTensor(blocks.F32, shape, np.zeros(1 << 18, np.uint8))
            for name, shape in shapes.items()
        }
        shared = SharedExpert(model.args, 256, Weights(tensors))
        assert shared.share.weight.shape == (1, 256)
