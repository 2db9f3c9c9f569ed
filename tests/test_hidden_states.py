"""Hidden states: what each layer passes on, and the logits that are read from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import random_models
from test_models import build

import mlx_ferrum
from mlx_ferrum import gguf
from mlx_ferrum.cache import Cache
from mlx_ferrum.models.base import LanguageModel

CASES = ("llama", "qwen2", "gemma3", "qwen3moe-60-dense")
TOKENS = mx.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@pytest.fixture(scope="module", params=CASES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden")
    return random_models.write_case(folder / "m.gguf", request.param, seed=5)


def shortened(path: Path, layers: int) -> Any:
    """The model with its first layers only."""
    file = gguf.read(path)
    architecture = file.metadata["general.architecture"]
    later = [n for n in file.tensors if n.startswith("blk.") and int(n.split(".")[1]) >= layers]
    return build(path, without=later, **{f"{architecture}.block_count": layers})


def test_each_state_is_what_a_shorter_model_ends_with(fast_backend: Any, path: Path) -> None:
    model = mlx_ferrum.load(path)[0]
    states = model.hidden_states(TOKENS)
    assert len(states) == model.args.num_layers + 1
    for state in states:
        assert state.shape == (*TOKENS.shape, model.args.hidden_size) and state.dtype == mx.float32
    for layers in range(1, model.args.num_layers):
        wanted = np.array(shortened(path, layers)(TOKENS))
        assert np.array_equal(np.array(model.logits(states[layers])), wanted), layers


def test_the_last_state_gives_the_logits_of_the_model(fast_backend: Any, path: Path) -> None:
    model = mlx_ferrum.load(path)[0]
    states = model.hidden_states(TOKENS)
    wanted = np.array(model(TOKENS))
    assert np.array_equal(np.array(model.logits(states[-1])), wanted)
    assert not np.allclose(np.array(model.logits(states[-2])), wanted)


def test_the_first_state_is_the_embeddings(reference: Any, path: Path) -> None:
    model = mlx_ferrum.load(path)[0]
    states = model.hidden_states(TOKENS)
    assert np.array_equal(np.array(states[0]), np.array(model.body.embed_tokens(TOKENS)))


def test_pieces_with_a_cache_are_as_one(fast_backend: Any, path: Path) -> None:
    model = mlx_ferrum.load(path)[0]
    whole, cache = model.hidden_states(TOKENS), model.make_cache()
    parts = [model.hidden_states(TOKENS[:, a:b], cache=cache) for a, b in ((0, 4), (4, 6))]
    assert cache.offset == 6
    for state, *pieces in zip(whole, *parts, strict=True):
        joined = np.concatenate([np.array(piece) for piece in pieces], axis=1)
        size = max(1.0, np.abs(np.array(state)).max())
        assert np.abs(joined - np.array(state)).max() < fast_backend.pieces * size


def test_states_are_kept_while_later_layers_run(cpu: Any, smollm2: Any) -> None:
    """A backend may reuse memory; what was handed out stays."""
    model, tokenizer = smollm2
    tokens = mx.array([tokenizer.encode("The capital of France is")])
    first = [np.array(state) for state in model.hidden_states(tokens)]
    again = model.hidden_states(tokens)
    model(mx.array([list(range(300))]))
    assert all(np.array_equal(np.array(a), b) for a, b in zip(again, first, strict=True))
    assert tokenizer.decode([int(model.logits(again[-1][0, -1]).argmax())]) == " Paris"


def test_bad_arguments_are_named(reference: Any, path: Path) -> None:
    model: LanguageModel = mlx_ferrum.load(path)[0]
    with pytest.raises(ValueError, match=r"tokens are .*, expected integers \(batch, length\)"):
        model.hidden_states(mx.array([1, 2]))
    with pytest.raises(ValueError, match="of another model: it has 1 layers"):
        model.hidden_states(TOKENS, cache=Cache(model.body.keeps[:1], model.fingerprint))
    with pytest.raises(ValueError, match=r"hidden states are a list, expected an mx\.array"):
        model.logits([[1.0]])  # type: ignore[arg-type]
    for shape in ((1, 5), (), (0, 256)):
        with pytest.raises(ValueError, match=r"hidden states are \(.*\), expected \(..., 256\)"):
            model.logits(mx.zeros(shape))
