"""Files that no model can be made of are refused by name; files that can be are, by part and by batch."""

from types import MappingProxyType

import mlx.core as mx
import numpy as np
import pytest
import random_models

from mlx_ferrum import blocks, gguf, models
from mlx_ferrum.models.base import Weights
from mlx_ferrum.rope import RopeArgs
from mlx_ferrum.tensor import QTensor


def build(path, without=(), renamed=MappingProxyType({}), **metadata):
    """A model from a file, with tensors left out or renamed and metadata replaced (None: left out)."""
    file = gguf.read(path)
    values = {**file.metadata, **metadata}
    values = {key: value for key, value in values.items() if value is not None}
    architecture = values["general.architecture"]
    module = models.find(architecture)
    tensors = {
        renamed.get(name, name): QTensor(
            blocks.by_name(i.type), i.shape, file.parts[i.part], i.offset
        )
        for name, i in file.tensors.items()
        if name not in without
    }
    weights = Weights(tensors)
    model = module.Model(module.ModelArgs.from_metadata(values, architecture), weights)
    weights.check_all_used()
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return random_models.write_case(tmp_path_factory.mktemp("llama") / "m.gguf", "llama", seed=3)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return random_models.write_case(tmp_path_factory.mktemp("gemma3") / "m.gguf", "gemma3", seed=4)


def test_architectures_are_the_files():
    known = [
        "bert",
        "gemma3",
        "llama",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
    ]
    assert models.architectures() == known


@pytest.mark.parametrize("factor", [0.0, -1.0, np.inf, np.nan])
def test_rotary_factors_are_positive_numbers(factor):
    factors = np.array([1, 2, factor, 4], np.float32)
    raw = QTensor(blocks.F32, (4,), factors.view(np.uint8))
    with pytest.raises(ValueError, match=f"expected positive numbers, found {factor}"):
        Weights({"rope_freqs.weight": raw}).rope_factors(4)


@pytest.mark.parametrize("name", ["mamba", "base", "encoder", "../llama", ""])
def test_unknown_architectures_are_refused(name):
    with pytest.raises(
        NotImplementedError, match="not supported; known: bert, gemma3, llama, qwen2, qwen2moe"
    ):
        models.find(name)


BAD_METADATA = [
    ("llama.block_count", None, "'llama.block_count' is missing"),
    ("llama.block_count", 0, "block_count: expected 1 to .* found 0"),
    ("llama.block_count", 1 << 40, "block_count: expected 1 to"),
    ("llama.block_count", "three", "block_count: expected int, found str"),
    ("llama.block_count", 5, "tensor 'blk.3.attn_norm.weight' is missing"),
    ("llama.block_count", 2, "tensors that this architecture does not know: blk.2"),
    ("tokenizer.ggml.tokens", ["a"] * 299, r"expected shape \(299, 256\), found \(300, 256\)"),
    ("llama.embedding_length", 128, r"'output.weight': expected shape \(300, 128\), found"),
    ("llama.attention.head_count", 3, "3 heads are not a multiple of 2"),
    ("llama.attention.head_count", True, "head_count: expected int, found bool"),
    ("llama.attention.key_length", 128, "attn_q.weight': expected shape"),
    ("llama.feed_forward_length", 256, "ffn_gate.weight': expected shape"),
    ("llama.feed_forward_length", 0, "feed_forward_length: expected the width of the MLP"),
    ("llama.feed_forward_length", None, "feed_forward_length: expected the width of the MLP"),
    ("llama.rope.scaling.factor", -1.0, "scaling.factor: expected a positive number, found -1.0"),
    ("llama.rope.scaling.attn_factor", 0.0, "attn_factor: expected a positive number, found 0.0"),
    ("llama.attention.head_count_kv", np.array([2, 2]), "expected 3 values, one a layer, found 2"),
    ("llama.embedding_length", np.array([256] * 3), "expected int, found ndarray"),
    (
        "llama.attention.layer_norm_rms_epsilon",
        float("nan"),
        "expected a positive number, found nan",
    ),
    ("llama.rope.dimension_count", 7, "must be even and positive, found 7"),
    ("llama.rope.dimension_count", 512, "dimension_count: expected 64 at most, found 512"),
    ("llama.rope.freq_base", 1.0, "must be a number above 1"),
    ("llama.rope.freq_base", float("inf"), "expected a positive number, found inf"),
]


@pytest.mark.parametrize("key, value, message", BAD_METADATA)
def test_bad_metadata_is_refused(llama, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(llama, **{key: value})


def test_unsupported_variants_are_refused(llama):
    with pytest.raises(
        NotImplementedError, match="'longrope' is not supported; known: none, linear"
    ):
        build(llama, **{"llama.rope.scaling.type": "longrope"})


def test_missing_tensors_are_named(llama):
    with pytest.raises(ValueError, match=r"tensor 'blk.1.ffn_up.weight' is missing"):
        build(llama, without=["blk.1.ffn_up.weight"])


def test_window_patterns_are_checked(gemma3):
    key = "gemma3.attention.sliding_window_pattern"
    assert build(gemma3, **{key: 2}).args.windows == (8, None, 8, None)
    flags = np.array([True, True, False, True])
    assert build(gemma3, **{key: flags}).args.windows == (8, 8, None, 8)
    assert build(gemma3, **{key: np.append(flags, True)}).args.windows == (8, 8, None, 8)
    assert build(gemma3, **{key: 0}).args.windows == (8,) * 4
    with pytest.raises(ValueError, match="expected 4 flags, found 3"):
        build(gemma3, **{key: flags[:3]})
    for none in (None, 0):
        args = build(gemma3, **{"gemma3.attention.sliding_window": none}).args
        assert args.windows == (None,) * 4


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "gemma3", "qwen3moe"])
def test_a_cache_gives_what_one_pass_gives(backend, case, tmp_path):
    model = build(random_models.write_case(tmp_path / "m.gguf", case, seed=7))
    tokens = mx.array(np.random.default_rng(8).integers(0, 300, (2, 21)))
    whole = np.asarray(model(tokens))
    cache = model.make_cache()
    parts = [model(tokens[:, a:b], cache=cache) for a, b in [(0, 9), (9, 10), (10, 20), (20, 21)]]
    found = np.concatenate([np.asarray(p) for p in parts], axis=1)
    assert np.abs(found - whole).max() < backend.pieces


def test_the_batch_is_independent(backend, llama):
    model = build(llama)
    tokens = mx.array(np.random.default_rng(9).integers(0, 300, (3, 12)))
    whole = np.asarray(model(tokens))
    for i in range(3):
        alone = np.asarray(model(tokens[i : i + 1]))[0]
        assert np.abs(alone - whole[i]).max() < backend.pieces


def test_tokens_outside_the_vocabulary_are_refused(llama):
    with pytest.raises(ValueError, match="row ids lie between 0 and 299, found 300"):
        build(llama)(mx.array([[300]]))


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    plain = np.asarray(RopeArgs(dims=64, base=1e4).rope().frequencies)
    args = RopeArgs(dims=64, base=1e4, scaling="yarn", factor=8.0, original_context=4096)
    frequencies, magnitude = args.rope()
    ratio = plain / np.asarray(frequencies)
    turns = 4096 * plain / (2 * np.pi)
    assert np.allclose(ratio[turns > 40], 1) and np.allclose(ratio[turns < 0.7], 8)
    assert (np.diff(ratio) >= -1e-5).all() and magnitude == pytest.approx(1 + 0.1 * np.log(8))


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (mx.array([1, 2, 3]), r"tokens are mlx\.core\.\w+ \(3,\)"),
        (mx.array([[1.0, 2.0]]), r"tokens are mlx\.core\.float32 \(1, 2\)"),
        (np.ones((1, 2)), r"tokens are float64 \(1, 2\)"),
        (mx.zeros((1, 0), mx.uint32), r"tokens are mlx\.core\.uint32 \(1, 0\)"),
        ([1, 2], "tokens are a list"),
        ("text", "tokens are a str"),
    ],
)
def test_tokens_of_another_shape_or_type_are_refused(llama, tokens, found):
    with pytest.raises(ValueError, match=f"{found}, expected"):
        build(llama)(tokens)


def test_a_cache_of_another_model_is_refused(llama, gemma3):
    model, other = build(llama), build(gemma3)
    with pytest.raises(ValueError, match="it has 4 layers, the model 3"):
        model(mx.array([[1, 2]]), cache=other.make_cache())
    with pytest.raises(ValueError, match="the cache is a list, expected"):
        model(mx.array([[1, 2]]), cache=[])
    cache = model.make_cache()
    model(mx.array([[1, 2]]), cache=cache)
    with pytest.raises(ValueError, match=r"holds 1 sequences, expected 2: .* batch"):
        model(mx.array([[1], [2]]), cache=cache)
