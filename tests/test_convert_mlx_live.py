"""Folders that mlx_lm runs: the greedy tokens and the logits of our reference on the same weights.

Runs where mlx-lm is installed; test_convert_mlx.py compares weights and names without it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import hf_folders
import hf_hybrid
import mlx.core as mx
import numpy as np
import pytest
import random_models
from divergence import MAX_KL, kl, log_softmax
from test_convert_mlx import CHANGES, REFUSED

import mlx_ferrum
from mlx_ferrum import catalog
from mlx_ferrum.convert.command import main

mlx_lm: Any = pytest.importorskip("mlx_lm")
make_prompt_cache: Any = pytest.importorskip("mlx_lm.models.cache").make_prompt_cache
STEPS = 32
PROMPT = "The capital of France is"


def convert(path: Path, folder: Path) -> tuple[Any, Any, Any]:
    """mlx_lm's model and tokenizer, and our model on the weights that the folder holds."""
    assert main(["mlx", str(path), str(folder)]) == 0
    same = folder.with_suffix(".f32.gguf")
    assert main(["mlx", str(folder), str(same), "--type", "f32"]) == 0
    theirs, tokenizer = mlx_lm.load(str(folder))
    return theirs, tokenizer, mlx_ferrum.load(same)[0]


def compare_logits(theirs: Any, ours: Any, ids: list[int]) -> None:
    """Logits at each position of a prompt agree."""
    found, wanted = np.array(theirs(mx.array([ids]))[0]), np.array(ours(mx.array([ids]))[0])
    assert kl(log_softmax(wanted), log_softmax(found)).max() < MAX_KL


def greedy(model: Any, cache: Any, ids: list[int], ends: Collection[int] = ()) -> list[int]:
    """The most likely tokens after a prompt, up to one that ends the text."""
    given, chosen = ids, []
    for _ in range(STEPS):
        token = int(np.array(model(mx.array([given]), cache=cache))[0, -1].argmax())
        chosen.append(token)
        if token in ends:
            break
        given = [token]
    return chosen


def compare(theirs: Any, ours: Any, ids: list[int]) -> None:
    """Logits agree, and so do the most likely tokens after a prompt."""
    compare_logits(theirs, ours, ids)
    found = greedy(theirs, make_prompt_cache(theirs), ids)
    assert found == greedy(ours, ours.make_cache(), ids)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "tiny-moe"])
def test_real_models(name, tmp_path):
    """On the fastest backend: the reference takes minutes."""
    theirs, tokenizer, ours = convert(catalog.resolve(name), tmp_path / "m")
    own = mlx_ferrum.load(name)[1]
    ids = own.encode(PROMPT)
    assert tokenizer.encode(PROMPT) == ids
    assert tokenizer.eos_token_ids == set(own.eos_token_ids)
    compare_logits(theirs, ours, ids)
    found = [r.token for r in mlx_lm.stream_generate(theirs, tokenizer, PROMPT, max_tokens=STEPS)]
    assert found == greedy(ours, ours.make_cache(), ids, own.eos_token_ids)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "Hi <|im_end|> there"}]
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert given == own.apply_chat_template(messages)


@pytest.mark.parametrize("name", [name for name in random_models.CASES if name not in REFUSED])
def test_random_models(name, tmp_path, reference):
    path = random_models.write_case(tmp_path / "m.gguf", name, 1)
    theirs, _, ours = convert(path, tmp_path / "m")
    compare(theirs, ours, np.random.default_rng(1).integers(0, 300, 40).tolist())


@pytest.mark.parametrize("kind", hf_folders.ALL)
def test_folders_of_every_architecture(kind, tmp_path, reference):
    """Weights that are no blocks, and the rope scaling of each."""
    hf_folders.write(tmp_path / "hf", kind, **CHANGES.get(kind, {}))
    path = tmp_path / "m.gguf"
    assert main(["hf", str(tmp_path / "hf"), str(path), "--type", "f32"]) == 0
    theirs, _, ours = convert(path, tmp_path / "m")
    compare(theirs, ours, np.random.default_rng(2).integers(0, 256, 40).tolist())


@pytest.mark.parametrize("case", [case for case in hf_hybrid.CASES if case[:6] == "qwen35"])
@pytest.mark.parametrize("recipe", ["f32", "q4_k_m"])
def test_hybrid_models(case, recipe, tmp_path, reference):
    """Weights a quarter as large, so that states neither vanish nor grow; heads of 32, whole blocks."""
    heads: dict[str, Any] = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
    made = hf_hybrid.write(tmp_path / "hf", case, layer_types=None, **heads)
    smaller = {name: x / 4 for name, x in made.items()}
    hf_folders.save(tmp_path / "hf" / "model.safetensors", smaller, "F32")
    path = tmp_path / "m.gguf"
    assert main(["hf", str(tmp_path / "hf"), str(path), "--type", recipe]) == 0
    theirs, _, ours = convert(path, tmp_path / "m")
    original = mlx_ferrum.load(path)[0] if recipe == "f32" else ours
    compare(theirs, original, np.random.default_rng(2).integers(0, 256, 40).tolist())
